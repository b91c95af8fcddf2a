"""A small network on a folder of real middle slices in the paper's NPZ form; whole, middle and test by case.

    python -m auxseg.main --config=configs/luna16_npz.py --config.data.dir=FOLDER
"""

from configs import base


def get_config():
    """Returns base with NPZ data, a split with a test part and a narrower network."""
    config = base.get_config()
    config.data.name = "npz"
    config.data.split = "train_val_test"
    config.model.base_width = 16
    return config
