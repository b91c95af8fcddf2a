"""A small network on whole scans with labels in a folder: all slices with lung, split 70/10/20 by patient.

    python -m auxseg.main --config=configs/own_scans.py --config.data.dir=FOLDER [--config.data.label_map=lungmask]

The folder's layout, formats and label maps are in auxseg/datasets/README.md.
"""

from configs import luna16_npz


def get_config():
    """Returns luna16_npz with a folder of scans in place of NPZ slices."""
    config = luna16_npz.get_config()
    config.data.name = "folder"
    config.data.slices = "lung"
    return config
