"""auxseg: lung and lung-nodule segmentation on chest CT with the Auxiliary U-Net.

The public functions, each imported when it is first asked for:

    segment       a scan -> its mask and measurements       (auxseg.prediction.segment)
    Options       how `segment` does it                     (auxseg.prediction.segment)
    load_box      the networks that come with auxseg        (auxseg.prediction.box)
    load_network  a run or a bundle -> a network            (auxseg.runs.networks)
    read_config   a settings file or its name -> settings   (auxseg.runs.config_files)
    create_model  settings -> an untrained Flax module      (auxseg.models)
"""

import importlib
import sys

__version__ = "0.1.0"

_PUBLIC = {
    "segment": "auxseg.prediction.segment",
    "Options": "auxseg.prediction.segment",
    "load_box": "auxseg.prediction.box",
    "load_network": "auxseg.runs.networks",
    "read_config": "auxseg.runs.config_files",
    "create_model": "auxseg.models",
}
__all__ = tuple(_PUBLIC)

if sys.platform == "win32":
    raise ImportError("auxseg runs on Linux and macOS; on Windows install it in WSL (wsl --install)")


def __getattr__(name):
    if name not in _PUBLIC:
        raise AttributeError(f"module 'auxseg' has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__():
    return sorted([*globals(), *_PUBLIC])
