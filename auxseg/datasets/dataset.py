"""The form that every source of cases has."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable

import numpy as np

from auxseg.base.classes import CLASS_NAMES, knows, value_of


@dataclasses.dataclass(frozen=True)
class CaseTable:
    """What is known of each case (a slice with its mask), one entry a case; N cases.

    Attributes:
        case_id: str [N], unique, usable as a file name.
        series_uid: str [N]; the case_id where the series is not known.
        patient: str [N]; cases of one patient never part in a split. The series where unknown.
        subset: int8 [N], LUNA16's official subset 0-9, -1 where unknown.
        slice_index: int32 [N], 0-based axial index in the scan, -1 where unknown.
        spacing_zyx_mm: float32 [N, 3] of the native slice, NaN where unknown.
        native_size_yx: int32 [N, 2], rows and columns before resizing.
        num_nodules: int32 [N], nodules that cross the slice, -1 where not known.
        labels: uint8 [N, C], 1 where the class has a pixel in the resized mask, 0 where it has none, `UNKNOWN` where
            that is not known.
        classes: C names by mask value.
        meanings: uint8 [N, C, C], 1 where a value (second axis) of the case's mask may mean a class (third); None: each
            value means its own class. See `meanings`.
        source: str [N], which source of a mixture the case is of; None: there is one.
        group: str [N], cases of one group never part in a split; None: that is the patient.
        is_cut: bool [N], whether the case was cut out of a larger slice: beyond its edges is no air; None: none was.
        filled_yx: int32 [N, 2], rows and columns that the case fills of what is read, from the upper left, at a fixed scale
            (`scale`); None: all.
        added: bool [N], True for cases of a second data set, which are in no split but train; None: no such case.
    """

    case_id: np.ndarray
    series_uid: np.ndarray
    patient: np.ndarray
    subset: np.ndarray
    slice_index: np.ndarray
    spacing_zyx_mm: np.ndarray
    native_size_yx: np.ndarray
    num_nodules: np.ndarray
    labels: np.ndarray
    added: np.ndarray | None = None
    meanings: np.ndarray | None = None
    source: np.ndarray | None = None
    group: np.ndarray | None = None
    is_cut: np.ndarray | None = None
    filled_yx: np.ndarray | None = None
    classes: tuple[str, ...] = CLASS_NAMES

    def __len__(self):
        return len(self.case_id)

    @property
    def has_nodule(self):
        """bool [N]: whether a case shows a nodule; by `num_nodules` where nodules are none of the classes."""
        if "nodule" in self.classes:
            return self.labels[:, value_of("nodule", self.classes)] == 1
        return self.num_nodules > 0

    @property
    def together(self):
        """str [N]: cases of one name never part in a split."""
        return self.patient if self.group is None else self.group

    @property
    def knows(self):
        """bool [N, C]: whether a case's source tells the class from all others."""
        if self.meanings is None:
            return np.ones((len(self), len(self.classes)), bool)
        return knows(self.meanings)

    def digest(self):
        """Returns a SHA-256 of all columns: it changes with any fact of any case."""
        digest = hashlib.sha256()
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value is None and field.name in ("meanings", "source", "group", "is_cut", "filled_yx"):
                continue  # so that runs of before it keep their digest
            digest.update(f"{field.name} {np.asarray(value).shape}\n".encode())
            digest.update(repr(value.tolist() if isinstance(value, np.ndarray) else value).encode())
        return digest.hexdigest()

    def rows(self, indices):
        """Returns the table of some cases, int [n] or bool [N]."""
        columns = {
            field.name: value[indices]
            for field in dataclasses.fields(self)
            if isinstance(value := getattr(self, field.name), np.ndarray)
        }
        return dataclasses.replace(self, **columns)


@dataclasses.dataclass(frozen=True)
class Outline:
    """What several readers marked in one slice of a nodule.

    Attributes:
        nodule: its name; slices of one nodule share it.
        place: the slice's number within the nodule.
        diameter_mm: of the nodule.
        readers: bool [R, H, W], a mask a reader of the nodule; all False where one did not mark this slice.
        ratings: {'texture', 'subtlety', 'malignancy': the readers' median from 1 to 5, NaN where unknown}.
    """

    nodule: str
    place: int
    diameter_mm: float
    readers: np.ndarray
    ratings: dict


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A source of cases, whatever it is stored as; every source in `auxseg.datasets` gives one.

    Attributes:
        name: for logs and reports, such as 'luna16/middle-anatomy-annotations-320x320'.
        table: one row a case.
        size_yx: rows and columns of what `read` returns: of a fixed scale those of the largest case, which others fill in
            part (`CaseTable.filled_yx`).
        read: indices int [n] -> (images int16 [n, H, W] in HU, masks uint8 [n, H, W], `classes.UNKNOWN` where unknown).
        read_native_mask: index -> mask uint8 [H0, W0] before resizing.
        notes: lines to log and to keep in the run (missing subsets, skipped scans).
        read_slabs: indices int [n] -> int16 [n, H, W, slab] in HU, each case's slice in the middle; None without.
        slab: slices of a slab; 1 without.
        fingerprint: digest of what the slices and masks hold; '' where the source has none.
        read_train: as `read`, of cases that train: crops lie in the middle there, and where several readers say more
            than one mask can, it holds their votes (`targets`). None: `read`.
        readers: uint8 [N, 2], how many readers a case has and the bits of those who marked it; None: no votes.
        read_outline: index -> `Outline`, what each reader marked, as large as `read_case` gives the slice; None where that is
            not known.
        scale: `data.mm_per_pixel` of a fixed scale (`scale.read_scale`), None where slices are brought to one size.
    """

    name: str
    table: CaseTable
    size_yx: tuple[int, int]
    read: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
    read_native_mask: Callable[[int], np.ndarray]
    notes: tuple[str, ...] = ()
    read_slabs: Callable[[np.ndarray], np.ndarray] | None = None
    slab: int = 1
    fingerprint: str = ""
    read_train: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]] | None = None
    readers: np.ndarray | None = None
    read_outline: Callable[[int], Outline] | None = None
    scale: float | str | None = None

    def __len__(self):
        return len(self.table)

    @property
    def classes(self):
        """Class names by mask value."""
        return self.table.classes

    def read_seen(self, indices):
        """Returns what the network sees of cases and their masks: images or slabs int16, masks uint8 [n, H, W]."""
        images, masks = self.read(indices)
        return (images if self.read_slabs is None else self.read_slabs(indices)), masks

    def read_case(self, index):
        """Returns the image int16 [h, w] and the mask uint8 [h, w] of a case, without what it does not fill."""
        images, masks = self.read(np.array([index]))
        return self.crop(images[0], index), self.crop(masks[0], index)

    def crop(self, array, index):
        """Returns what a case fills of an array [H, W, ...] of the size of `read`."""
        rows, columns = self.filled_size(index)
        return array[:rows, :columns]

    def filled_size(self, index):
        """Returns the rows and columns that a case fills of what `read` returns."""
        filled = self.table.filled_yx
        return tuple(self.size_yx) if filled is None else tuple(filled[index].tolist())
