"""A small network on a folder of real middle slices in the paper's NPZ form, split 70/10/20 by patient.

    python -m auxseg.main --config=configs/luna16_npz.py --config.data.dir=FOLDER

On 120 LUNA16 slices 25 minutes on two cores at most; mean Dice on the test split 0.985 and 0.989 (lungs), 0.00
(nodules), see experiments/results/study_slices.md.
"""

from configs import base


def get_config():
    """Returns base with NPZ data, a split with a test part, a narrower network and batches of four."""
    config = base.get_config()
    config.data.name = "npz"
    config.data.split = "train_val_test"
    config.data.size = (256, 256)
    config.model.base_width = 16
    config.train.batch_size = 4
    config.train.num_epochs = 30
    config.optim.plateau_patience_epochs = 3
    return config
