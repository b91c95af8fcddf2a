"""The paper's third run (section 4.1, Figs 9 and 10): split 3, initialisation 3.

python -m auxseg.main --config=configs/seed3.py --config.data.dir=LUNA16
"""

from configs import base


def get_config():
    """Returns base with other seeds of split, initialisation and order."""
    config = base.get_config()
    config.seed = 3
    config.data.split_seed = 3
    config.train.order_seed = 3
    return config
