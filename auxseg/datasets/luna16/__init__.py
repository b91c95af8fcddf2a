"""LUNA16: its folder, records of its slices, their preparation.

Importing this registers the data set with TFDS, where that is installed: `tfds.data_source("luna16/middle")`.
"""

import contextlib

with contextlib.suppress(ImportError):
    from auxseg.datasets.luna16 import builder as builder
