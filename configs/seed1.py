"""The paper's first run (section 4, Figs 5 and 6): split 1, initialisation 1.

python -m auxseg.main --config=configs/seed1.py --config.data.dir=LUNA16
"""

from configs import base


def get_config():
    """Returns base: it has the seeds 1."""
    return base.get_config()
