"""What tells whether a scan was segmented before: its files' content, and the settings."""

from __future__ import annotations

import hashlib
import os

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
        paths
        | {beside for path in paths for beside in headers.find_voxel_files(path) if os.path.isfile(beside)}
    )


def _stat(paths):
    """Returns number, bytes and newest change of files."""
    stats = [path.stat() for path in paths]
    return [len(stats), sum(one.st_size for one in stats), max((one.st_mtime_ns for one in stats), default=0)]


def _digest(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_about(folder):
    """Returns what the `prediction.json` of a folder says.

    Raises:
        InputError: it cannot be read, or what is read of it is of another kind than auxseg writes.
    """
    about = files.read_object(folder / DONE, hint=_AGAIN)
    wrong = [name for name, is_sound in _SOUND.items() if name in about and not is_sound(about[name])]
    if wrong:
        raise InputError(
            f"{folder / DONE}: {wrong[0]} is none of auxseg's, {about[wrong[0]]!r:.80}; it is damaged: {_AGAIN}"
        )
    return about


_AGAIN = "remove it and start again"


def _is_ml(value):
    return value is None or (isinstance(value, (int, float)) and not isinstance(value, bool))


def _is_series(value):
    kinds = {"number": int, "description": str, "uid": str, "files": int}
    return isinstance(value, dict) and all(
        isinstance(value.get(name, kind()), kind) for name, kind in kinds.items()
    )


def _is_skipped(value):
    kinds = {"name": str, "path": str, "reason": str, "files": int}
    return (
        isinstance(value, dict)
        and all(isinstance(value.get(name), kind) for name, kind in kinds.items())
        and _is_series(value.get("series"))
    )


def _is_finding(value):
    return isinstance(value, dict) and all(isinstance(value.get(name), str) for name in ("severity", "text"))


def _each(is_sound):
    return lambda values: isinstance(values, list) and all(map(is_sound, values))


_SOUND = {
    "settings": lambda value: isinstance(value, dict),
    "input": lambda value: isinstance(value, dict),
    "series": _is_series,
    "skipped": _each(_is_skipped),
    "files": _each(lambda value: isinstance(value, str)),
    "findings": _each(_is_finding),
    "lungs_ml": lambda value: _each(_is_ml)(value) and len(value) == 2,
    "others_ml": lambda value: isinstance(value, dict) and all(map(_is_ml, value.values())),
    "nodules": lambda value: isinstance(value, int),
}
"""What is read of a prediction.json, and whether it is what auxseg writes: it may be damaged, or another's."""


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
