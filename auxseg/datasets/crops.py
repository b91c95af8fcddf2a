"""Crops around real nodules with the outlines of several readers: `nodules.npz` beside its `index.csv`.

`nodules.npz` holds `image` uint8 [N, H, W], scaled slice by slice, and `readers` uint8 [N, H, W], whose bit r is
set where reader r marks nodule. `index.csv` has a row a slice (`COLUMNS`). A crop is centred on its nodule, so
whoever trains or scores on it moves it first (`cut`, with mirrored edges): else a network learns the place.

What a crop does not know: which of its other pixels is lung, wall or vessel. It tells nodule from the rest alone.
"""

from __future__ import annotations

import dataclasses
import pathlib

import numpy as np

from auxseg.base import files, npz
from auxseg.base.errors import InputError, check_choice
from auxseg.datasets import slabs
from auxseg.datasets.dataset import Outline

TARGETS = ("consensus", "reader", "share")
"""What a crop is trained on: at least half of the readers, one of them drawn anew each time, or their share."""

COLUMNS = (
    "patient", "series_uid", "subset", "nodule", "k", "spacing_mm", "gap_mm", "readers", "diameter_mm",
    "consensus_px", "hu_slope", "hu_offset",
)  # fmt: skip
"""Columns of `index.csv` that are read; millimetres, HU = `hu_slope` x image + `hu_offset`."""

RATINGS = ("texture", "subtlety", "malignancy")
"""Columns of the readers' median ratings from 1 to 5, which may be missing or empty."""

CLASSES = ("background", "nodule")
VOTES, MOST_VOTERS = 128, 6
"""A mask that trains may hold votes: 128 and the bits of the readers who mark nodule there, of six at most."""
MOST_SHIFT_PX = 24
SHIFT_SEED = 24
"""Of the moves that every score is taken at."""
MOST_BYTES = 1 << 32
_MOST_READERS = 8


@dataclasses.dataclass(frozen=True)
class Crops:
    """Crops and what is known of each, one entry a slice; N slices.

    Attributes:
        images: uint8 [N, H, W], scaled slice by slice.
        readers: uint8 [N, H, W], bit r where reader r marks nodule.
        patient, series_uid, nodule: str [N].
        subset: int8 [N], LUNA16's subset, -1 where the scan is in none.
        place: int32 [N], the slice's number within its nodule.
        spacing_mm: float32 [N], of rows and columns.
        gap_mm: float32 [N], between neighbouring slices of the scan.
        num_readers: int32 [N], who outlined the nodule, whether they mark this slice or not.
        reader_bits: uint8 [N], the bits of those readers; with three readers any of four may be unused.
        diameter_mm: float32 [N], of a sphere with the readers' mean volume.
        hu_slope, hu_offset: float32 [N], estimated; the scale is known to about a fifth.
        ratings: {one of `RATINGS`: float32 [N], the readers' median, NaN where unknown}.
    """

    images: np.ndarray
    readers: np.ndarray
    patient: np.ndarray
    series_uid: np.ndarray
    nodule: np.ndarray
    subset: np.ndarray
    place: np.ndarray
    spacing_mm: np.ndarray
    gap_mm: np.ndarray
    num_readers: np.ndarray
    reader_bits: np.ndarray
    diameter_mm: np.ndarray
    hu_slope: np.ndarray
    hu_offset: np.ndarray
    ratings: dict = dataclasses.field(default_factory=dict)

    def __len__(self):
        return len(self.images)

    def image_hu(self, index):
        """Returns one slice in HU, float32 [H, W]."""
        return self.images[index] * self.hu_slope[index] + self.hu_offset[index]

    def share(self, index):
        """Returns the share of the readers that mark each pixel, float32 [H, W] from 0 to 1."""
        return share(self.readers[index], self.num_readers[index])

    def target(self, index, kind, generator=None):
        """Returns what a slice is trained on, float32 [H, W] from 0 to 1.

        Args:
            index: of the slice.
            kind: one of `TARGETS`.
            generator: NumPy generator that draws the reader, for 'reader'.
        """
        check_choice("target", kind, TARGETS)
        if kind == "share":
            return self.share(index)
        if kind == "consensus":
            return consensus(self.readers[index], self.num_readers[index]).astype(np.float32)
        return reader_mask(self.readers[index], generator.choice(self.which_readers(index))).astype(
            np.float32
        )

    def which_readers(self, index):
        """Returns the bits of the readers who outlined the slice's nodule, a list of whole numbers."""
        return [bit for bit in range(_MOST_READERS) if self.reader_bits[index] >> bit & 1]


def read_crops(folder):
    """Returns the `Crops` of a folder.

    Raises:
        InputError: a file is missing or damaged, or index and arrays do not fit.
    """
    folder = pathlib.Path(folder).expanduser()
    arrays, rows = _read_arrays(folder / "nodules.npz"), _read_rows(folder / "index.csv")
    if len(rows) != len(arrays["image"]):
        raise InputError(
            f"{folder}: index.csv has {len(rows)} rows, nodules.npz {len(arrays['image'])} slices, expected as many"
        )
    return _create_crops(arrays, rows, folder)


def neighbours(crops, num_slices, step_mm):
    """Returns the rows of the slab around each slice, int [N, num_slices]: slices of the same nodule alone.

    Args:
        crops: `Crops`.
        num_slices: of a slab, odd.
        step_mm: between them, as in `slabs`.
    """
    around = np.empty((len(crops), num_slices), np.int64)
    for nodule in np.unique(crops.nodule):
        rows = np.flatnonzero(crops.nodule == nodule)
        rows = rows[np.argsort(crops.place[rows])]
        apart = slabs.slices_apart(crops.gap_mm[rows[0]], step_mm)
        for place, row in enumerate(rows):
            around[row] = rows[
                slabs.places_around(place, num_slices=num_slices, apart=apart, in_scan=len(rows))
            ]
    return around


def meanings_of(classes):
    """Returns `data.meanings` of crops in `classes`: what is no nodule may be any other of them.

    Raises:
        InputError: there is no nodule among them.
    """
    if "nodule" not in classes:
        raise InputError(
            f"data.classes: got {tuple(classes)}, but crops tell nodule from the rest: name 'nodule'"
        )
    return ("+".join(name for name in classes if name != "nodule"), "nodule")


def outline(crops, index, marks):
    """Returns the `dataset.Outline` of a slice.

    Args:
        crops: `Crops`.
        index: of the slice.
        marks: uint8 [H, W], the bits of its readers as they are wanted: moved and cut, as a rule.
    """
    return Outline(
        nodule=str(crops.nodule[index]),
        place=int(crops.place[index]),
        diameter_mm=float(crops.diameter_mm[index]),
        readers=np.stack([reader_mask(marks, bit) for bit in crops.which_readers(index)]),
        ratings={name: float(values[index]) for name, values in crops.ratings.items()},
    )


def share(readers, num_readers):
    """Returns how many of the readers mark each pixel, as a share: float32, shape of `readers` (uint8 bits)."""
    votes = sum(((readers >> bit) & 1).astype(np.float32) for bit in range(_MOST_READERS))
    return votes / np.float32(num_readers)


def consensus(readers, num_readers):
    """Returns the pixels that at least half of the readers mark: bool, shape of `readers` (uint8 bits)."""
    return share(readers, num_readers) >= 0.5


def reader_mask(readers, reader):
    """Returns what one reader marks: bool, shape of `readers` (uint8 bits)."""
    return ((readers >> reader) & 1).astype(bool)


def cut(image, shift_yx, size):
    """Returns the square [size, size] whose centre lies `shift_yx` pixels off the image's, edges mirrored.

    Args:
        image: [H, W], any type.
        shift_yx: whole numbers; the content moves the other way.
        size: pixels.
    """
    starts = [(length - size) // 2 + shift for length, shift in zip(image.shape, shift_yx, strict=True)]
    pads = [(max(0, -s), max(0, s + size - n)) for s, n in zip(starts, image.shape, strict=True)]
    padded = np.pad(image, pads, mode="symmetric")
    (row, column), (above, left) = starts, (pads[0][0], pads[1][0])
    return padded[row + above : row + above + size, column + left : column + left + size]


def draw_shifts(num, *, most_px, seed):
    """Returns whole shifts of rows and columns, int32 [num, 2] from -most_px to most_px, a function of the seed."""
    generator = np.random.Generator(np.random.PCG64(seed))
    return generator.integers(-most_px, most_px + 1, (num, 2), dtype=np.int32)


def largest_slices(crops, rows):
    """Returns, of the given rows (int [n]), the one of each nodule where its consensus is largest, int [nodules]."""
    best = {}
    for row in rows:
        area = int(consensus(crops.readers[row], crops.num_readers[row]).sum())
        if area > best.get(crops.nodule[row], (-1, -1))[0]:
            best[crops.nodule[row]] = (area, int(row))
    return np.array([row for _, row in best.values()], np.int64)


def _read_arrays(path):
    if not path.is_file():
        raise InputError(f"crops: {path} does not exist; expected a folder with nodules.npz and index.csv")
    try:
        arrays = npz.read_npz(path, most_bytes=MOST_BYTES)
    except npz.UNREADABLE as error:
        raise InputError(f"crops: {path} cannot be read as .npz: {error}; copy it again") from error
    shapes = {
        name: (arrays[name].shape, arrays[name].dtype) for name in ("image", "readers") if name in arrays
    }
    if len(shapes) < 2 or len(set(shapes.values())) > 1 or arrays["image"].dtype != np.uint8:
        raise InputError(f"{path}: holds {shapes}, expected 'image' and 'readers', both uint8 [N, H, W]")
    return arrays


def _read_rows(path):
    rows = files.read_cells(path, COLUMNS, hint="copy it again")
    if not rows:
        raise InputError(f"{path}: has no row; copy it again")
    return rows


def _create_crops(arrays, rows, folder):
    def column(name, kind, empty=None):
        try:
            return np.array([kind(row[name] or empty) for row in rows])
        except (TypeError, ValueError) as error:
            raise InputError(f"{folder / 'index.csv'}: column {name!r}: {error}; expected numbers") from error

    numbers = {
        name: column(name, float).astype(np.float32)
        for name in ("spacing_mm", "gap_mm", "diameter_mm", "hu_slope", "hu_offset")
    }
    nodule, num_readers = column("nodule", str), column("readers", int).astype(np.int32)
    return Crops(
        images=arrays["image"],
        readers=arrays["readers"],
        patient=column("patient", str),
        series_uid=column("series_uid", str, ""),
        nodule=nodule,
        subset=column("subset", int, "-1").astype(np.int8),
        place=column("k", int).astype(np.int32),
        num_readers=num_readers,
        reader_bits=_find_readers(arrays["readers"], nodule, num_readers, folder),
        ratings={name: column(name, float, "nan").astype(np.float32) for name in RATINGS if name in rows[0]},
        **numbers,
    )


def _find_readers(readers, nodule, num_readers, folder):
    """Returns the bits that each slice's nodule has in any of its slices, uint8 [N].

    Raises:
        InputError: a nodule has more of them than readers.
    """
    _, numbers = np.unique(nodule, return_inverse=True)
    bits = np.zeros(numbers.max(initial=-1) + 1, np.uint8)
    np.bitwise_or.at(bits, numbers, np.bitwise_or.reduce(readers.reshape(len(readers), -1), axis=1))
    num_bits = np.bitwise_count(bits)[numbers]
    wrong = np.flatnonzero((num_bits > num_readers) | (num_bits == 0))
    if len(wrong):
        row = wrong[0]
        raise InputError(
            f"{folder}: nodule {nodule[row]} has {num_readers[row]} readers in index.csv and marks of {num_bits[row]} "
            "in nodules.npz, expected marks of at least one and of no more than its readers"
        )
    return bits[numbers]
