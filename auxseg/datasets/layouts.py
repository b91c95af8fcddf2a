"""Which code reads a folder of scans: LUNA16's layout, or those that other people have.

A layout is a module with `Settings`, `list_folder`, `fingerprint`, `create_nodule_reader`, `check_scans` and `read_slices`;
what prepares records asks for nothing else.
"""

from __future__ import annotations

from auxseg.datasets.folder import layout as folder
from auxseg.datasets.luna16 import layout as luna16

LAYOUTS = {"luna16": luna16, "folder": folder}


def name_of(settings):
    """Returns the name of the layout that some settings belong to."""
    return next(name for name, layout in LAYOUTS.items() if isinstance(settings, layout.Settings))


def layout_of(settings):
    """Returns the layout that some settings belong to."""
    return LAYOUTS[name_of(settings)]
