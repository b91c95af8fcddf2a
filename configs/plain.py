"""Ablation: the separable U-Net alone, without SE and auxiliary head (6,005,965 parameters and statistics).

python -m auxseg.main --config=configs/plain.py --config.data.dir=LUNA16
"""

from configs import base


def get_config():
    """Returns base without the SE blocks and the auxiliary head."""
    config = base.get_config()
    config.model.se = False
    config.model.aux = False
    return config
