"""Ablation: without the auxiliary head and its loss (6,445,501 parameters and statistics).

python -m auxseg.main --config=configs/no_aux.py --config.data.dir=LUNA16
"""

from configs import base


def get_config():
    """Returns base without the auxiliary head."""
    config = base.get_config()
    config.model.aux = False
    return config
