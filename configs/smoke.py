"""A few steps of a tiny network on a tiny phantom: shows in under a minute that everything works.

    python -m auxseg.main --config=configs/smoke.py

Its scores mean nothing.
"""

from configs import phantom


def get_config():
    """Returns phantom with little of everything."""
    config = phantom.get_config()
    config.data.phantom.num_scans = 5
    config.data.phantom.num_slices = 24
    config.data.phantom.matrix = 128
    config.data.size = (64, 64)
    config.model.base_width = 4
    config.model.depth = 2
    config.insert.enabled = False
    config.train.num_epochs = 2
    config.train.bn_refresh_batches = 2
    config.optim.cosine_epochs = 0
    return config
