"""Which scans a path holds, each with a name of its own, and what else lies there.

Every file seen ends in a `Source`, or in a `Skipped` that says why not. Names follow from a scan's own place
alone, so that another scan beside it changes none.
"""

from __future__ import annotations

import collections
import dataclasses
import os
import pathlib

from auxseg.base import progress
from auxseg.base.errors import InputError
from auxseg.ct import archive, dicom, headers, names, own
from auxseg.ct.checks import WARNING, Finding
from auxseg.ct.damage import Damage, join, place_damage

_RESULT = "a result of auxseg"
_NAMED = 3
"""Files named in a line about many."""


@dataclasses.dataclass(frozen=True)
class Source:
    """A scan that was found and not yet opened.

    Attributes:
        name: unique among those found together, usable as a file name.
        path: the file or, for DICOM, the folder.
        kind: 'dicom', 'file', 'npz', 'zip', or 'broken'.
        series: the series of one DICOM study.
        problem: for 'broken': the one line that says why.
        findings: what was noticed on finding it.
    """

    name: str
    path: pathlib.Path
    kind: str
    series: tuple[dicom.Series, ...] = ()
    problem: str = ""
    findings: tuple[Finding, ...] = ()


@dataclasses.dataclass(frozen=True)
class Skipped:
    """What was seen and is not segmented.

    Attributes:
        name: what to call it.
        path: where it lies.
        reason: why.
        count: number of files.
        series: the DICOM series, or None.
    """

    name: str
    path: pathlib.Path
    reason: str
    count: int = 1
    series: dicom.Series | None = None


@dataclasses.dataclass(frozen=True)
class Found:
    """All that a path holds.

    Attributes:
        sources: the scans, in the order of their names.
        skipped: everything else, files of one reason and folder together.
        others: (reason, path) of every file that is no scan by itself.
    """

    sources: tuple[Source, ...]
    skipped: tuple[Skipped, ...]
    others: tuple[tuple[str, pathlib.Path], ...] = ()


def find_scans(path):
    """Returns the scans that a path holds, as a list of `Source` in the order of their names.

    A file is one scan. In a folder (and its subfolders, also linked ones) every scan file, zip and NPZ is one,
    and all DICOM files of one patient's study are one. What else lies there is in `survey`.

    Raises:
        InputError: nothing there that could be a scan.
    """
    return list(survey(path).sources)


def survey(path):
    """Returns what a path holds, as a `Found`; see `find_scans`.

    Raises:
        InputError: nothing there that could be a scan.
    """
    path = pathlib.Path(path)
    if not path.exists():
        raise InputError(f"--input: {path} does not exist")
    walk = _Walk()
    files = [path] if path.is_file() else list(walk.list_files(path))
    root = path if path.is_dir() else path.parent
    sources, rest = _find_files(files, root, walk, alone=path.is_file())
    studies, skipped = _find_studies(rest, root, walk)
    if path.is_file() and studies:
        studies = [_note_siblings(one, path) for one in studies]
    sources = names.make_unique([*sources, *studies], root)
    if not sources:
        what = f"none of its {len(files)} files is one" if path.is_dir() else "it is none"
        raise InputError(
            f"--input: no scan in {path}: {what}; expected DICOM, a zip, .npz, or {', '.join(headers.SUFFIXES)}"
        )
    ordered = sorted(sources, key=lambda source: (source.name, str(source.path)))
    return Found(tuple(ordered), (*_summarize(walk.others, root), *skipped), tuple(walk.others))


class _Walk:
    """Goes through folders and keeps what is no scan: `others`, [(reason, path)], and `damaged`, `Damage`s."""

    def __init__(self):
        self.others, self.damaged, self._seen = [], [], set()

    def list_files(self, folder):
        """Yields the files of a folder and its subfolders, real ones first; each folder is entered once."""
        links, waiting = [], [pathlib.Path(folder)]
        while waiting or links:
            linked = not waiting
            one = links.pop(0) if linked else waiting.pop(0)
            if not self._enter(one):
                self.others.append(("a link to a folder that is read already", one))
                continue
            files, folders = self._read_folder(one)
            links += [each for each in folders if each.is_symlink()]
            waiting += [each for each in folders if not each.is_symlink()]
            yield from files

    def _enter(self, folder):
        about = folder.stat()
        known = (about.st_dev, about.st_ino) in self._seen
        self._seen.add((about.st_dev, about.st_ino))
        return not known

    def _read_folder(self, folder):
        """Returns (files, folders) of a folder; hidden and special ones go to `others`."""
        files, folders = [], []
        try:
            entries = sorted(folder.iterdir())
        except OSError as error:
            text = f"scan: the folder {folder} cannot be read: {error.strerror}"
            self.damaged.append(Damage(folder, folder, text))
            return files, folders
        for entry in entries:
            if entry.name.startswith("."):
                self.others.append(("hidden", entry))
            elif entry.is_dir():
                folders.append(entry)
            elif entry.is_file() or (entry.is_symlink() and not entry.exists()):
                files.append(entry)
            else:
                self.others.append(("no file (a pipe or device)", entry))
        return files, folders


def _find_files(files, root, walk, alone):
    """Returns (sources that are one file each, files that may be DICOM)."""
    beside = {name for file in files for name in headers.find_voxel_files(file)}
    sources, rest = [], []
    for file in files:
        kind = _kind(file)
        if file in beside:
            continue
        if not file.exists():
            problem = f"scan: {file} is a link to nothing"
            sources.append(Source(_name_file(file, root), file, "broken", problem=problem))
        elif kind == "zip" and not alone and not archive.may_hold_scan(file):
            walk.others.append(("a zip without a scan", file))
        elif kind and not alone and own.is_own(file):
            walk.others.append((_RESULT, file))
        elif kind:
            sources.append(Source(_name_file(file, root), file, kind))
        else:
            rest.append(file)
    return sources, rest


def _kind(path):
    """Returns what a file is by its name: 'file', 'npz', 'zip', or '' for perhaps DICOM."""
    name = path.name.lower()
    if name.endswith(headers.SUFFIXES):
        return "file"
    return {".npz": "npz", ".zip": "zip"}.get(path.suffix.lower(), "")


def _name_file(path, root):
    name = path.name
    for suffix in sorted((*headers.SUFFIXES, ".npz", ".zip"), key=len, reverse=True):
        if name.lower().endswith(suffix):
            name = name[: -len(suffix)]
            break
    return "-".join([*path.parent.relative_to(root).parts, name])


def _find_studies(files, root, walk):
    """Returns (one source a patient's study, files and series that are none)."""
    parts = []
    if len(files) > 2000:
        files = progress.track(files, total=len(files), label="reading DICOM headers", unit="file")
    for path in files:
        part = _read_part(path, walk)
        if part is not None:
            parts.append(part)
    series, lost = place_damage(dicom.merge_series(parts), walk.damaged)
    studies = collections.defaultdict(list)
    for one in series:
        place = "" if one.study_uid else str(one.paths[0].parent)
        studies[one.patient, one.study_uid, place].append(one)
    sources, skipped = [], []
    for series in studies.values():
        images = tuple(one for one in series if one.frames)
        if images:
            folder, name = _common_folder(images, root)
            sources.append(Source(name, folder, "dicom", images))
        for one in series:
            if not one.frames:
                folder, name = _common_folder([one], root)
                reason = f"no images of a patient ({one.modality})"
                skipped.append(Skipped(f"series {one.number} of {name}", folder, reason, len(one.paths), one))
    known = {one.study_uid for source in sources for one in source.series} - {""}
    beside = [one for one in lost if one.study_uid in known]
    skipped += [Skipped(one.path.name, one.folder, one.text) for one in beside]
    broken = _create_broken([one for one in lost if one not in beside], sources, root)
    return _name_patients([*sources, *broken]), skipped


def _create_broken(lost, sources, root):
    """Returns sources of what is damaged and of no scan: one a folder, or a series where its folder holds others."""
    groups = collections.defaultdict(list)
    for one in lost:
        groups[one.folder, one.series_uid].append(one)
    taken = {path.parent for source in sources for series in source.series for path in series.paths}
    taken |= {folder for folder, _ in groups if sum(other == folder for other, _ in groups) > 1}
    broken = []
    for (folder, _), group in groups.items():
        path = group[0].path if folder in taken else folder
        name = _name_file(path, root) if folder in taken else ""
        name = name or "-".join(folder.relative_to(root).parts) or folder.resolve().name
        broken.append(Source(name, path, "broken", problem=join([one.text for one in group])))
    return broken


def _read_part(path, walk):
    """Returns the `dicom.Series` of one file, None for what is none (kept in `walk`)."""
    try:
        looks = dicom.is_dicom(path)
    except OSError as error:
        text = f"scan: {path} cannot be read: {error.strerror}; check its permissions and the disk"
        walk.damaged.append(Damage(path.parent, path, text))
        return None
    if own.is_result(path):
        walk.others.append((_RESULT, path))
        return None
    if not looks and path.suffix.lower() not in (".dcm", ".dicom"):
        walk.others.append(("no scan", path))
        return None
    dicom.check_installed(path)
    try:
        part = dicom.read_file(path)
    except InputError as error:
        walk.damaged.append(Damage(path.parent, path, str(error), *dicom.read_uids(path)))
        return None
    if part is None:
        walk.others.append(("DICOM without an image", path))
    return part


def _common_folder(series, root):
    """Returns (the folder that holds all files of a study, the name that follows from it)."""
    folders = sorted({path.parent for one in series for path in one.paths})
    common = pathlib.Path(os.path.commonpath(folders))
    inside = common.relative_to(root).parts if common.is_relative_to(root) else ()
    return common, "-".join(inside) or common.resolve().name


def _name_patients(sources):
    """Returns the sources with the PatientID, else a number made of the UIDs, after a name that several share."""
    shared = collections.Counter(source.name for source in sources)
    ids = collections.Counter((source.name, _patient_id(source)) for source in sources)
    named = []
    for source in sources:
        if shared[source.name] > 1:
            patient = _patient_id(source)
            own_id = bool(patient) and ids[source.name, patient] == 1
            word = (
                patient
                if own_id
                else names.digest(f"{patient} {source.series[0].study_uid if source.series else ''}")
            )
            source = dataclasses.replace(source, name=f"{source.name}-{word}")
        named.append(source)
    return named


def _patient_id(source):
    return source.series[0].patient[0] if source.series else ""


def _note_siblings(source, path):
    """Returns a source of one DICOM file, with a finding where more of its series lie beside it."""
    uid = source.series[0].uid if source.series else ""
    beside = [file for file in path.parent.iterdir() if file != path and file.is_file() and not _kind(file)]
    count = sum(dicom.read_uids(file)[1] == uid for file in beside) if uid else 0
    name = path.stem if path.suffix.lower() in (".dcm", ".dicom") else path.name
    if count:
        text = (
            f"{path} is one of {count + 1} files of its series in this folder: only this one is segmented; give "
            f"{path.parent} for the whole scan"
        )
        source = dataclasses.replace(source, findings=(*source.findings, Finding(WARNING, "one-file", text)))
    return dataclasses.replace(source, name=name)


def _summarize(others, root):
    """Returns one `Skipped` a reason and folder, and one for all results of auxseg."""
    groups = collections.defaultdict(list)
    for reason, path in others:
        groups[reason, root if reason == _RESULT else path.parent].append(path)
    result = []
    for (reason, folder), paths in groups.items():
        listed = ", ".join(path.name for path in paths[:_NAMED]) + (", ..." if len(paths) > _NAMED else "")
        result.append(Skipped(listed, folder, reason, len(paths)))
    return result
