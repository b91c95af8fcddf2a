"""Nodules alone: the paper's recipe on crops that several readers outlined, and on windows of slices without a nodule.

    python -m auxseg.main --config=configs/recommended.py --config.data.dir=CROPS --config.data.sources.free.dir=SLICES

CROPS has `nodules.npz` and `index.csv`, SLICES the paper's NPZ form. Six of each eight cases are crops, two are windows of
lung, so that not every image has a nodule. Loss and schedule are the paper's. Added is only what was shown to help on crops
of other patients, over three starts (experiments/results/study_ablation.md):

* `train.bn_refresh_batches`: batch statistics taken anew before each validation

The width is what two cores allow. Further data: `data.target`, `data.mm_per_pixel` and `data.sources` (configs/README.md).
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from configs import base


def get_config():
    """Returns base with two classes, a mixture of crops and windows, a narrower network, and the one part."""
    config = base.get_config()
    config.data.name = "crops"
    config.data.classes = ("background", "nodule")
    config.data.size = (96, 96)
    config.data.split = "train_val_test"
    with config.unlocked():
        config.data.sources.crops = ConfigDict({"dir": placeholder(str), "share": 6})
        config.data.sources.free = ConfigDict({"name": "patches", "dir": placeholder(str), "share": 2})
        config.data.sources.free.from_subsets = (0, 1, 2)  # LUNA16's middle slices that lost their series
    config.model.base_width = 16
    config.train.bn_refresh_batches = 20
    return config
