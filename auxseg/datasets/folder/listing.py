"""Which file of a folder is a scan, which its label: by names, or by what DICOM files say of each other.

    imagesTr/CASE_0000.nii.gz  labelsTr/CASE.nii.gz  dataset.json      nnU-Net; without _0000 the Medical Decathlon (MSD)
    images/CASE.nrrd           labels/CASE.nrrd                        also masks, segmentations
    CASE.mha                   CASE_label.mha                          also _mask, _seg, _lungs, ...
    CASE/ct.nii.gz             CASE/mask.nii.gz                        also image, scan
    a folder of DICOM          with DICOM-SEG or RTSTRUCT of the same study

Scans may be in any form that `predict` reads; labels also lie in `labels/CASE/`, one structure an image. `annotations.csv`
(LUNA16's columns) has nodules in mm, `patients.csv` (columns scan and patient) says whose scan it is. Every file ends as
used or skipped, with a reason.
"""

from __future__ import annotations

import collections
import dataclasses
import os
import pathlib
import re

from auxseg.base import files
from auxseg.base.errors import InputError
from auxseg.ct import find, label_files
from auxseg.ct import names as names_lib
from auxseg.datasets.folder import labels as labels_lib

IMAGE_FOLDERS = ("imagesTr", "images", "scans", "ct")
LABEL_FOLDERS = ("labelsTr", "labels", "masks", "segmentations")
ANNOTATIONS, PATIENTS, DATASET = "annotations.csv", "patients.csv", "dataset.json"
_IMAGE_END = re.compile(r"(^|[-_. ])(ct|images?|img|scan|volume)$", re.IGNORECASE)
USED, SKIPPED, FAILED = "used", "skipped", "failed"
_MOST_NAMED = 10
"""Skipped files in the notes; `files.csv` beside the records has them all."""


@dataclasses.dataclass(frozen=True)
class Scan:
    """One scan with its labels.

    Attributes:
        uid: its name, unique in the folder and usable as a file name.
        source: `find.Source`.
        labels: label files or folders; none where `annotations.csv` stands for them.
        patient: whose it is; the name where nothing says so.
        value_names: {value: name} of the labels, as dataset.json has them.
        subset: -1: LUNA16's subsets are not known.
    """

    uid: str
    source: find.Source
    labels: tuple[pathlib.Path, ...]
    patient: str
    value_names: dict[int, str]
    subset: int = -1

    @property
    def series_uids(self):
        """SeriesInstanceUIDs of its DICOM series."""
        return tuple(one.uid for one in self.source.series if one.uid)


@dataclasses.dataclass(frozen=True, order=True)
class File:
    """What becomes of a file, or of a folder of DICOM.

    Attributes:
        file: its place in the folder.
        what: `USED`, `SKIPPED` or `FAILED`.
        why: not used.
        scan: name of the scan that it belongs to, or ''.
    """

    file: str
    what: str
    why: str = ""
    scan: str = ""


@dataclasses.dataclass(frozen=True)
class Folder:
    """What is in a folder.

    Attributes:
        path: the folder.
        scans: the scans with labels, by name.
        annotations: `annotations.csv`, or None.
        problems: one line for each scan that cannot be used; it names the scan.
        notes: what else is to be said.
        files: one `File` for everything that was seen.
    """

    path: pathlib.Path
    scans: tuple[Scan, ...]
    annotations: pathlib.Path | None
    problems: tuple[str, ...]
    notes: tuple[str, ...]
    files: tuple[File, ...]


def list_folder(path):
    """Returns the `Folder`, from names and DICOM headers alone.

    Raises:
        InputError: there is no such folder, no scan in it, or none that has a label.
    """
    path = pathlib.Path(path)
    if not path.is_dir():
        raise InputError(f"data.dir: {path} does not exist or is no folder; expected scans with labels")
    listing = _Listing(path)
    if not listing.scans and not listing.problems:
        raise InputError(
            f"data.dir: none of the {listing.num_sources} scans in {path} has a label of its name; expected imagesTr/CASE_0000 and "
            "labelsTr/CASE, images/CASE and labels/CASE, CASE and CASE_label, or DICOM-SEG or RTSTRUCT of the same study"
        )
    return Folder(
        path, tuple(sorted(listing.scans, key=lambda scan: scan.uid)), listing.annotations, tuple(listing.problems),
        tuple(listing.notes()), tuple(sorted(listing.files)),
    )  # fmt: skip


class _Listing:
    """Goes through a folder once."""

    def __init__(self, path):
        self.path, self.scans, self.problems, self.files = path, [], [], []
        self.annotations = self._known(ANNOTATIONS)
        self._marked = _read_column(self.annotations, "seriesuid")
        about = self._known(DATASET)
        self._about = (
            files.read_object(about, hint="correct it, or take it out of the folder") if about else {}
        )
        self._value_names = labels_lib.read_value_names(self._about.get("labels"))
        self._patients = self._read_patients()
        self._num_unnamed = 0
        images, labels = (_first_folder(path, names) for names in (IMAGE_FOLDERS, LABEL_FOLDERS))
        apart = bool(images and labels)
        found = _survey(images if apart else path)
        labelled, others = labels_lib.list_labels(labels) if apart else ([], [])
        self._note(others, SKIPPED, "no label: neither an image, DICOM-SEG, RTSTRUCT nor a folder of them")
        sources, more = ([*found.sources], []) if apart else tell_labels(found.sources)
        labels_found = [*labelled, *more, *_find_series(found.skipped)]
        names = {name for one in labels_found for name in one.names}
        sources = [
            part for source in sources for part in _split_study(source, images if apart else path, names)
        ]
        self._pair(self._name_sources(sources), labels_found)
        known = {self.path / name for name in (ANNOTATIONS, PATIENTS, DATASET)}
        for reason, file in found.others:
            if file not in known:
                self._note([file], SKIPPED, reason)
        for entry in sorted(path.iterdir()) if apart else ():
            if entry not in known | {images, labels} and not entry.name.startswith("."):
                self._note([entry], SKIPPED, f"beside {images.name} and {labels.name}")

    def notes(self):
        """Returns lines about patients and about what was skipped."""
        lines = []
        if self._num_unnamed:
            lines.append(
                f"{self._num_unnamed} scans state no patient: each is taken for a patient of its own ({PATIENTS} with the "
                "columns scan and patient says otherwise)"
            )
        skipped = [f"skipped: {one.file}: {one.why}" for one in sorted(self.files) if one.what == SKIPPED]
        rest = len(skipped) - _MOST_NAMED
        return (
            lines
            + skipped[:_MOST_NAMED]
            + ([f"skipped: {rest} more files (see files.csv)"] if rest > 0 else [])
        )

    def _known(self, name):
        """Returns the path of a file that is known by its name, None without it."""
        path = self.path / name
        if not path.is_file():
            return None
        self._note([path], USED)
        return path

    def _read_patients(self):
        """Returns {scan: patient} of patients.csv and dataset.json."""
        path, found = self._known(PATIENTS), self._about.get("patients", {})
        patients = {str(scan): str(who) for scan, who in found.items()} if isinstance(found, dict) else {}
        rows = files.read_cells(path, ("scan", "patient"), hint="give both columns") if path else ()
        return patients | {row["scan"]: row["patient"] for row in rows if row["patient"]}

    def _name_sources(self, sources):
        """Returns [(name, source)] of the scans: without what ends the names of images, where that names one alone."""
        named = []
        for source in sources:
            channel = labels_lib.CHANNEL.search(source.name)
            if channel and channel[1] != "0000":
                self._note([source.path], SKIPPED, f"channel {int(channel[1])}: the CT is channel 0")
            else:
                named.append(
                    (_IMAGE_END.sub("", labels_lib.CHANNEL.sub("", source.name)) or source.name, source)
                )
        counts = collections.Counter(name.lower() for name, _ in named)
        return [(name if counts[name.lower()] == 1 else source.name, source) for name, source in named]

    def _pair(self, named, labels):
        """Gives each scan its labels."""
        self.num_sources, taken = len(named), set()
        for name, source in named:
            own = [one for one in labels if one.names & {name.lower(), source.name.lower()}]
            studies = {one.study_uid for one in source.series if one.study_uid}
            own = own or [one for one in labels if one.study_uid in studies]
            taken |= {id(one) for one in own}
            self._add(name, source, own)
        for one in labels:
            if id(one) not in taken:
                self._note(one.paths, SKIPPED, "a label without its scan")

    def _add(self, name, source, own):
        paths = tuple(path for one in own for path in one.paths)
        if source.kind == "broken":
            self.problems.append(f"{name}: {source.problem}")
            self._note([source.path, *paths], FAILED, source.problem, name)
        elif len(own) > 1 and not all(one.study_uid for one in own):
            listed = ", ".join(self._place(path) for path in paths)
            why = f"has {len(own)} labels ({listed}); leave one in the folder"
            self.problems.append(f"{name}: {why}")
            self._note([source.path, *paths], FAILED, why, name)
        elif not own and not self._marked & {name, *(one.uid for one in source.series)}:
            self._note([source.path], SKIPPED, "a scan without a label of its name")
        else:
            patient = self._patients.get(name) or (source.series[0].patient[0] if source.series else "")
            self._num_unnamed += not patient
            self.scans.append(Scan(name, source, paths, patient or name, self._value_names))
            self._note([source.path, *paths], USED, scan=name)

    def _note(self, paths, what, why="", scan=""):
        self.files += [File(self._place(path), what, why, scan) for path in paths]

    def _place(self, path):
        return str(path.relative_to(self.path)) if path.is_relative_to(self.path) else str(path)


def list_files(folder, problems):
    """Returns the rows of `files.csv`: what became of each file of a `Folder`.

    Args:
        folder: `Folder`.
        problems: one line for each scan that could not be used, which begins with its name.
    """
    failed = dict(line.split(": ", 1) for line in problems)
    known = [
        dataclasses.replace(one, what=FAILED, why=failed[one.scan]) if one.scan in failed else one
        for one in folder.files
    ]
    return [dataclasses.asdict(one) for one in known]


def _first_folder(path, names):
    return next((path / name for name in names if (path / name).is_dir()), None)


def _survey(path):
    try:
        return find.survey(path)
    except InputError as error:
        raise InputError(str(error).replace("--input:", "data.dir:")) from error


def _read_column(path, column):
    return {row[column].strip() for row in files.read_cells(path, (column,))} if path else set()


def tell_labels(found):
    """Returns (scans, `labels.Label`s) of the sources of one folder that holds both, by their names."""
    sources, labels = [], {}
    for source in found:
        parts, end = source.path.parts, labels_lib.LABEL_END.search(source.name)
        if source.kind == "file" and parts[-2] in LABEL_FOLDERS and len(parts) > 2:
            name = source.name.rsplit(f"-{parts[-2]}-", 1)[0]
            labels[source.path.parent] = labels_lib.Label(
                name, frozenset({name.lower()}), (source.path.parent,)
            )
        elif source.kind == "file" and end:
            name = source.name[: end.start()]
            labels[source.path] = labels_lib.Label(name, frozenset({name.lower()}), (source.path,))
        else:
            sources.append(source)
    return sources, list(labels.values())


def _split_study(source, root, names):
    """Returns a source for each folder of a DICOM study whose folders have labels of their own names, else the study."""
    folders = {}
    for one in source.series:
        folders.setdefault(pathlib.Path(os.path.commonpath([path.parent for path in one.paths])), []).append(
            one
        )
    parts = [
        dataclasses.replace(
            source,
            name=names_lib.file_name("-".join(place.relative_to(root).parts)),
            path=place,
            series=tuple(series),
        )
        for place, series in folders.items()
        if len(folders) > 1
    ]
    return parts if names & {one.name.lower() for one in parts} else [source]


def _find_series(skipped):
    """Returns a `labels.Label` for each DICOM series that holds labels."""
    return [
        labels_lib.Label(one.name, frozenset(), one.series.paths, one.series.study_uid)
        for one in skipped
        if one.series is not None and one.series.modality in label_files.KINDS
    ]
