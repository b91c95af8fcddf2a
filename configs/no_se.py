"""Ablation: without squeeze-and-excitation (6,137,681 parameters and statistics).

python -m auxseg.main --config=configs/no_se.py --config.data.dir=LUNA16
"""

from configs import base


def get_config():
    """Returns base without the SE blocks."""
    config = base.get_config()
    config.model.se = False
    return config
