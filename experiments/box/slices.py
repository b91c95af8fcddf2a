"""Slices that the lungs network in the box learns from: cut to the body, without nodules, as NPZ folders.

Three sources, each a folder of NPZ slices with an `index.csv` (`auxseg.datasets.npz`): a drawn phantom, LUNA16's
middle slices, and whole scans with reference lungs. A nodule is lung here; whoever looks for nodules looks inside.
"""

from __future__ import annotations

import pathlib
import shutil
import tempfile
import zlib

import numpy as np

from auxseg.base import files
from auxseg.base.classes import LEFT, NODULE, RIGHT
from auxseg.ct import body, scans
from auxseg.datasets import npz, resize
from auxseg.datasets.phantom import drawing
from auxseg.evaluation import whole_scans
from auxseg.scoring import components
from experiments.box import disease

SIZE_YX = (256, 256)
LEFT_OUT = {"ID_0170"}
"""Middle slices of patients whose whole scan judges."""


def write_phantom(folder, settings, *, stride, diseased=0.0):
    """Writes every `stride`th slice of each scan of a phantom; returns how many.

    Args:
        folder: where; made if missing.
        settings: `drawing.Settings`.
        stride: slices from one to the next; the first is another for each scan.
        diseased: share of the slices that get dense disease.
    """
    rows = []
    for number in range(settings.num_scans):
        scan = drawing.create_scan(settings, number)
        pairs = list(drawing.render_slices(settings, scan, number))
        images = np.stack([pair[0] for pair in pairs]).astype(np.int16)
        masks = _phantom_classes(np.stack([pair[1] for pair in pairs]))
        spacing = (float(np.diff(scan.y_mm[:2])[0]), float(np.diff(scan.x_mm[:2])[0]))
        chosen = range(number % stride, len(images), stride)
        rows += _write(folder, f"phantom{number:04d}", images, masks, spacing, chosen, diseased)
    return _write_index(folder, rows)


def _phantom_classes(masks):
    """Returns classes of LUNA16's values 3, 4 and 5; what else a lung holds is lung already."""
    classes = np.zeros(256, np.uint8)
    classes[[3, 4]] = LEFT, RIGHT
    return classes[masks]


def write_middle(folder, source, *, diseased=0.0):
    """Writes the middle slices of a folder of NPZ slices, each cut to its own body; returns how many.

    Args:
        folder: where; made if missing.
        source: folder of NPZ slices with classes 0 to 3 and an `index.csv`.
        diseased: share of the slices that get dense disease.
    """
    index = {f"ID_{row['id']}": row for row in files.read_cells(source / "index.csv", ("id",))}
    rows = []
    for path in sorted(source.glob("*.npz")):
        if path.stem in LEFT_OUT:
            continue
        with np.load(path, allow_pickle=False) as arrays:
            image, mask = arrays["image"], _nodules_to_lungs(arrays["mask"])
        known = index.get(path.stem, {})
        mm = float(known.get("pixel_spacing_mm") or 0.7)
        written = _write(folder, path.stem, image[None], mask[None], (mm, mm), [0], diseased)
        rows += [{**row, "patient": known.get("series_uid") or path.stem} for row in written]
    return _write_index(folder, rows)


def _nodules_to_lungs(mask):
    """Returns a mask uint8 [H, W] whose nodules belong to the lung around them."""
    mask = np.array(mask, np.uint8)
    pieces = components.find_components(mask[None], NODULE)
    numbers = pieces.read(mask[None], 0)
    for number in range(1, len(pieces.pieces) + 1):
        mask[numbers == number] = components.surrounding_lung(mask, numbers == number)
    return mask


def write_scan(folder, path, labels, *, stride, skip_mm=(), shift_yx=(0, 0), diseased=0.0):
    """Writes every `stride`th slice of a scan with a label map; returns how many.

    Args:
        folder: where; made if missing.
        path: the scan, in any form that `auxseg.ct.scans` reads.
        labels: its label map: 1 left lung, 2 right lung, else background.
        stride: slices from one to the next.
        skip_mm: heights (z in mm, LPS) of slices in which something is not known.
        shift_yx: rows and columns by which to move the label map onto what it outlines.
        diseased: share of the slices that get dense disease.
    """
    with tempfile.TemporaryDirectory() as scratch:
        scan = scans.open_scan(scans.find_scans(path)[0], scratch)
        images = scan.read(0, scan.num_slices)
    masks = whole_scans.read_labels(labels, scan, shift_yx=shift_yx)
    masks = np.where(masks <= RIGHT, masks, 0).astype(np.uint8)
    spoilt = {whole_scans.find_slice(scan, mm) for mm in skip_mm}
    chosen = [k for k in range(0, len(images), stride) if k not in spoilt]
    rows = _write(folder, path.name, images, masks, scan.geometry.spacing_zyx_mm[1:], chosen, diseased)
    return _write_index(folder, rows)


def join(folder, sources):
    """Copies the slices of some folders, with their index, to one; returns how many."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for source in sources:
        for path in sorted(source.glob("*.npz")):
            shutil.copy(path, folder / path.name)
        rows += files.read_cells(source / "index.csv")
    return _write_index(folder, rows)


def _write(folder, name, images, masks, spacing_yx_mm, chosen, diseased):
    """Writes slices of one scan [D, H, W], cut to its body and resized; returns their rows of the index."""
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    box = body.find_body(lambda start, stop: images[start:stop], len(images), spacing_yx_mm)
    rows = []
    for k in chosen:
        image = resize.resize_image(box.cut(images[k]), SIZE_YX)
        mask = resize.resize_mask(box.cut_mask(masks[k]), SIZE_YX)
        mm = [float(size * old / new) for size, old, new in zip(box.size_yx, spacing_yx_mm, SIZE_YX)]
        rng = np.random.default_rng([zlib.crc32(name.encode()), k])
        if rng.random() < diseased:
            image = disease.add_disease(rng, image, mask, mm[1])
        case = name if len(images) == 1 else f"{name}_{k:04d}"
        npz.write_case(folder / f"{case}.npz", image, mask)
        rows.append({"id": case, "patient": name, "slice_index": k, "pixel_spacing_mm": mm[1]})
    return rows


def _write_index(folder, rows):
    """Writes `index.csv`, which says that a folder is whole; returns how many rows it has."""
    files.write_csv(pathlib.Path(folder) / "index.csv", rows)
    return len(rows)
