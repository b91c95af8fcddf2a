"""Lungs alone, cut to the body: the lungs network in the box, on real slices after the phantom's.

    python -m auxseg.main --config=configs/lungs.py --config.data.dir=FOLDER --config.data.extra_dir=SCANS

Middle slices of LUNA16 and, as `data.extra_dir`, whole scans with reference lungs: necks, domes and bowel are on the
latter alone. Nodules are lung.
"""

from configs import lungs_phantom


def get_config():
    """Returns `lungs_phantom` with the schedule of the fine-tuning."""
    config = lungs_phantom.get_config()
    config.train.num_epochs = 8
    config.optim.cosine_epochs = 8
    config.augment.scale_fraction = 0.12
    config.augment.shift_fraction = 0.05
    return config
