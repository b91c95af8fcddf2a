"""Small data sets that tests make up, without files, and a call of a command."""

import types
import unittest.mock

import numpy as np
from absl import flags

from auxseg.datasets.dataset import CaseTable, Dataset


def two_discs(num_cases, size=16, seed=0):
    """Returns a Dataset of two 'lungs' and, in every third case, a 'nodule' in one; [num_cases, size, size]."""
    generator = np.random.default_rng(seed)
    rows, columns = np.mgrid[:size, :size] / size
    images = np.full((num_cases, size, size), 40, np.int16)
    masks = np.zeros(images.shape, np.uint8)
    for i in range(num_cases):
        for label, x in ((2, 0.27), (1, 0.73)):
            centre = x + generator.uniform(-0.04, 0.04), 0.5 + generator.uniform(-0.1, 0.1)
            disc = (columns - centre[0]) ** 2 + (rows - centre[1]) ** 2 < generator.uniform(0.12, 0.2) ** 2
            images[i][disc], masks[i][disc] = -850, label
        if i % 3 == 0:
            row, column = (int(size * 0.5), int(size * generator.choice([0.27, 0.73])))
            images[i, row : row + 2, column : column + 2] = 30
            masks[i, row : row + 2, column : column + 2] = 3
    images += generator.normal(0, 20, images.shape).astype(np.int16)
    return dataset(images, masks)


def dataset(images, masks, patients=None):
    """Returns a Dataset of arrays in memory: int16 and uint8 [N, H, W]."""
    n, height, width = images.shape
    ids = np.array([f"case{i:03d}" for i in range(n)])
    table = CaseTable(
        case_id=ids,
        series_uid=ids,
        patient=ids if patients is None else np.asarray(patients),
        subset=np.full(n, -1, np.int8),
        slice_index=np.arange(n, dtype=np.int32),
        spacing_zyx_mm=np.full((n, 3), [2.0, 0.7, 0.7], np.float32),
        native_size_yx=np.full((n, 2), [height, width], np.int32),
        num_nodules=(masks == 3).any(axis=(1, 2)).astype(np.int32),
        labels=np.stack([(masks == c).any(axis=(1, 2)) for c in range(4)], axis=1).astype(np.uint8),
    )
    return Dataset("fake", table, (height, width), lambda i: (images[i], masks[i]), lambda i: masks[i])


def write_npz(folder, data):
    """Writes a Dataset as the folder of NPZ files that `data.name='npz'` reads."""
    folder.mkdir(parents=True, exist_ok=True)
    images, masks = data.read(np.arange(len(data)))
    for name, image, mask in zip(data.table.case_id, images, masks, strict=True):
        np.savez_compressed(folder / f"{name}.npz", image=image, mask=mask)
    return folder


def call(main, **values):
    """Calls a command's `main` with these values of its flags."""
    with unittest.mock.patch.object(flags, "FLAGS", types.SimpleNamespace(**values)):
        return main([])


def epoch_row(epoch):
    """Returns a row of `metrics.jsonl` with as little as one can have."""
    return {"epoch": epoch, "seconds": 1.0, "learning_rate": 0.001, "train": {}, "val": {"dice": {}}}
