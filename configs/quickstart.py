"""The README's first run: the phantom for two minutes of training, then the report; see phantom.py for more.

python -m auxseg.main --config=configs/quickstart.py
"""

from configs import phantom


def get_config():
    """Returns phantom with few scans, smaller images and a limit of two minutes."""
    config = phantom.get_config()
    config.data.phantom.num_scans = 24
    config.data.size = (192, 192)
    config.insert.enabled = False
    config.optim.cosine_epochs = 0
    config.train.num_epochs = 30
    config.train.max_minutes = 2.0
    return config
