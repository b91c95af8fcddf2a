"""The networks in the box: what `predict` uses where no run is named.

auxseg/weights/box.json         version, and the SHA-256 of every file of the networks
auxseg/weights/MODEL_CARD.md    what they were trained on, how they score, what they have never seen
auxseg/weights/lungs/           a bundle of the kind 'saved' (`auxseg.runs.networks`)
auxseg/weights/nodules/         networks of the two looks at nodules (`auxseg.prediction.nodules`); may be missing
"""

from __future__ import annotations

import dataclasses
import pathlib

from auxseg.base import files
from auxseg.base.errors import InputError
from auxseg.prediction import nodules
from auxseg.runs import networks

FOLDER = pathlib.Path(__file__).resolve().parent.parent / "weights"
FILE = "box.json"
_FORMAT = "auxseg-box-1"


@dataclasses.dataclass(frozen=True, repr=False)
class Box:
    """Networks that come with auxseg.

    Attributes:
        version: of the box.
        checksum: SHA-256 of `box.json`, which holds those of all files.
        lungs: `networks.Network` that marks the lungs, with the nodules in them.
        nodules: `nodules.Networks` that find nodules in the lungs, or None.
    """

    version: str
    checksum: str
    lungs: networks.Network
    nodules: nodules.Networks | None

    def __repr__(self):
        return f"<{self}>"

    def __str__(self):
        return f"networks in the box, version {self.version} (SHA-256 {self.checksum[:12]})"


def load_box(folder=FOLDER):
    """Returns the `Box`, after comparing the checksums of its files.

    Raises:
        InputError: no box there, or a file of it is missing or changed.
    """
    folder = pathlib.Path(folder)
    if not (folder / FILE).is_file():
        raise InputError(
            f"--workdir: not given, and {folder} holds no networks; name a run, or install auxseg again"
        )
    about = files.read_object(folder / FILE, hint="install auxseg again")
    if about.get("format") != _FORMAT:
        raise InputError(f"{folder / FILE}: expected a box of format {_FORMAT!r}; install auxseg again")
    for name, checksum in about["files"].items():
        if not (folder / name).is_file() or networks.file_checksum(folder / name) != checksum:
            raise InputError(f"{folder / name}: missing or changed (SHA-256); install auxseg again")
    lungs = networks.load_network(folder / "lungs")
    found = nodules.load_networks(folder / "nodules") if (folder / "nodules").is_dir() else None
    return Box(about["version"], networks.file_checksum(folder / FILE), lungs, found)


def write_box(folder, version):
    """Writes `box.json` over all files of a folder but its texts; it says that the box is whole.

    Args:
        folder: pathlib.Path with the files of the box.
        version: of the box.
    """
    found = sorted(
        path for path in folder.rglob("*") if path.is_file() and path.suffix != ".md" and path.name != FILE
    )
    checksums = {path.relative_to(folder).as_posix(): networks.file_checksum(path) for path in found}
    files.write_json(folder / FILE, {"format": _FORMAT, "version": version, "files": checksums})
