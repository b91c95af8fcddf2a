"""What tells whether a scan was segmented before: its files' content, and the settings."""

from __future__ import annotations

import hashlib

from auxseg.base import files
from auxseg.base.errors import InputError
from auxseg.ct import headers, own
from auxseg.ct.own import DONE


def describe_input(source):
    """Returns what tells whether an input is still the same, as JSON types: 'stat' quickly, 'digest' surely.

    A copy has another time of change and the same digest. DICOM files without images (such as a mask as
    DICOM-SEG beside them) do not count.

    Args:
        source: `find.Source`.

    Raises:
        InputError: the source is broken.
    """
    if source.kind == "broken":
        raise InputError(source.problem)
    paths = _list_inputs(source)
    digests = sorted(_digest(path) for path in paths)
    return {"stat": _stat(paths), "digest": hashlib.sha256("".join(digests).encode("ascii")).hexdigest()[:32]}


def _list_inputs(source):
    paths = {frame.path for one in source.series for frame in one.frames} or {source.path}
    return sorted(
        paths | {beside for path in paths for beside in headers.find_voxel_files(path) if beside.is_file()}
    )


def _stat(paths):
    """Returns number, bytes and newest change of files."""
    stats = [path.stat() for path in paths]
    return [len(stats), sum(one.st_size for one in stats), max((one.st_mtime_ns for one in stats), default=0)]


def _digest(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_about(folder):
    """Returns what the `prediction.json` of a folder says."""
    return files.read_object(folder / DONE, hint="remove it and start again")


def read_done(folder, source, settings):
    """Returns what `prediction.json` says.

    Raises:
        InputError: the prediction there was made from another input or with other settings.
    """
    about = read_about(folder)
    old = about.get("settings", {})
    different = sorted(name for name in settings.keys() | old.keys() if settings.get(name) != old.get(name))
    if not _is_same_input(about.get("input", {}), source):
        different.append("input")
    if different:
        raise InputError(
            f"--output: {folder} holds a prediction that differs in {', '.join(different)}; give another folder, or "
            "--overwrite"
        )
    return about


def _is_same_input(old, source):
    if source.kind != "broken" and old.get("stat") == _stat(_list_inputs(source)):
        return True
    return old.get("digest") == describe_input(source)["digest"]


def remove_done(folder):
    """Removes a prediction, its `prediction.json` first, so that no part of it passes for a whole."""
    about = read_about(folder)
    (folder / DONE).unlink()
    for name in about.get("files", ()):
        if name == (folder / name).name:
            (folder / name).unlink(missing_ok=True)


def check_targets(folder, names, source, *, overwrite):
    """Raises where a mask would replace a scan, or a file that auxseg did not write.

    Args:
        folder: where the masks go.
        names: of the masks.
        source: `find.Source`.
        overwrite: whether other files may be replaced.

    Raises:
        InputError: it would; nothing was written.
    """
    inputs = {path.resolve() for path in _list_inputs(source)}
    for name in names:
        target = folder / name
        if target.resolve() in inputs:
            raise InputError(f"--output: {target} is the scan itself; give another folder")
        if target.exists() and not overwrite and not (folder / DONE).exists() and not own.is_own(target):
            raise InputError(
                f"--output: {target} is there and not by auxseg; give another folder, or --overwrite"
            )
