"""Lungs alone, cut to the body: the start of the lungs network in the box, on the phantom from apex to base.

    python -m auxseg.main --config=configs/lungs_phantom.py --config.data.dir=FOLDER

The slices are NPZ that `experiments/box/slices.py` draws: the whole phantom, slices without lung too, and nodules are
lung. Wide zooms and shifts stand for fields that the phantom does not draw.
"""

from configs import base


def get_config():
    """Returns base with NPZ slices of the body, a small network, batches of four and augmentation."""
    config = base.get_config()
    config.data.name = "npz"
    config.data.field = "body"
    config.data.size = (256, 256)
    config.model.base_width = 8
    config.loss.aux_weight = 0.1
    config.augment.enabled = True
    config.augment.scale_fraction = 0.2
    config.augment.shift_fraction = 0.08
    config.train.batch_size = 4
    config.train.num_epochs = 7
    config.train.bn_refresh_batches = 20
    config.optim.cosine_epochs = 7
    return config
