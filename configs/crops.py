"""Nodules alone, on crops that several readers outlined and windows of slices without a nodule.

    python -m auxseg.main --config=configs/crops.py --config.data.dir=CROPS --config.data.sources.free.dir=SLICES

CROPS has `nodules.npz` and `index.csv`, SLICES the paper's NPZ form. Six of each eight cases are crops, trained on the
share of readers and moved by up to 30 %; two are windows of lung, so that not every image has a nodule. With
--config.data.target=reader or consensus, one reader or at least half of them are the target.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from configs import base


def get_config():
    """Returns base with two classes, a mixture of crops and windows, a narrower network and augmentation."""
    config = base.get_config()
    config.data.name = "crops"
    config.data.classes = ("background", "nodule")
    config.data.size = (96, 96)
    config.data.split = "train_val_test"
    config.data.target = "share"
    with config.unlocked():
        config.data.sources.crops = ConfigDict({"dir": placeholder(str), "share": 6})
        config.data.sources.free = ConfigDict({"name": "patches", "dir": placeholder(str), "share": 2})
        config.data.sources.free.from_subsets = (0, 1, 2)  # LUNA16's middle slices that lost their series
    config.model.base_width = 16
    config.augment.enabled = True
    config.augment.shift_fraction = 0.3
    config.augment.hu_scale_fraction = 0.2
    config.train.num_epochs = 8
    config.train.bn_refresh_batches = 20
    config.optim.cosine_epochs = 8
    return config
