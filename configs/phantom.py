"""The embedded phantom: a small network that runs anywhere at once, and finds lungs and nodules.

    python -m auxseg.main --config=configs/phantom.py

Slices with nodules are as many as without, more are inserted while training, and a nodule's pixels count thirtyfold
in the cross-entropy. At most 40 minutes on two cores; mean Dice on the test split of the phantom of version 1 was 0.988, 0.983
(lungs) and 0.818 (nodules), one run, see experiments/results/study_slices.md.
"""

from configs import base


def get_config():
    """Returns base with phantom data on slices with nodules, a small network and batches of four."""
    config = base.get_config()
    config.data.name = "phantom"
    config.data.slices = "nodule"
    config.data.split = "train_val_test"
    config.data.size = (256, 256)
    config.data.phantom.num_scans = 160
    config.model.base_width = 8
    config.loss.class_weights = (1.0, 1.0, 1.0, 30.0)
    config.insert.enabled = True
    config.insert.kinds = (0.5, 0.15, 0.35)
    config.train.batch_size = 4
    config.train.num_epochs = 14
    config.train.bn_refresh_batches = 20
    config.optim.cosine_epochs = 14
    return config
