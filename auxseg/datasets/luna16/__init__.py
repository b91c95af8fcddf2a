"""LUNA16: its folder, and what is in it.

Importing this registers the data set with TFDS, where that is installed: `tfds.data_source("luna16/middle")`.
"""

import importlib.util

if importlib.util.find_spec("tensorflow_datasets"):
    from auxseg.datasets.luna16 import builder as builder
