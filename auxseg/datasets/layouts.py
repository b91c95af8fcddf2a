"""Which code reads a folder of scans: LUNA16's layout, or those that other people have.

A layout is a module `NAME/layout.py` with `Settings`, `list_folder`, `fingerprint`, `create_nodule_reader`, `check_scans`,
`read_slices`, `files_of` and `open_images`; what prepares records and slabs asks for nothing else.
"""

from __future__ import annotations

import importlib
import sys

LAYOUTS = ("luna16", "folder")


def get_layout(name):
    """Returns the layout of a name of `LAYOUTS`."""
    return importlib.import_module(f"auxseg.datasets.{name}.layout")


def layout_of(settings):
    """Returns the layout that some settings belong to: the module of their class."""
    return sys.modules[type(settings).__module__]


def name_of(settings):
    """Returns the name of the layout that some settings belong to."""
    return type(settings).__module__.split(".")[-2]
