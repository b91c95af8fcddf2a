"""The paper's second run (Figs 7 and 8): split 2, initialisation 2.

python -m auxseg.main --config=configs/seed2.py --config.data.dir=LUNA16
"""

from configs import base


def get_config():
    """Returns base with other seeds of split, initialisation and order."""
    config = base.get_config()
    config.seed = 2
    config.data.split_seed = 2
    config.train.order_seed = 2
    return config
