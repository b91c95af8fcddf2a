"""The embedded phantom: a small network that runs anywhere at once.

    python -m auxseg.main --config=configs/phantom.py
"""

from configs import base


def get_config():
    """Returns base with phantom data on slices with nodules, and a small network."""
    config = base.get_config()
    config.data.name = "phantom"
    config.data.slices = "nodule"
    config.data.split = "train_val_test"
    config.data.size = (192, 192)
    config.model.base_width = 16
    return config
