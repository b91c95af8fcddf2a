"""The list of slices names what is there, and notices a changed pixel."""

import numpy as np

from auxseg.datasets import npz
from experiments.checks import list_slices


def write(folder, value):
    image = np.full((512, 512), -800, np.int16)
    mask = np.zeros((512, 512), np.uint8)
    mask[200:300, 300:400], mask[200:300, 100:200], mask[250, 350] = 1, 2, 3
    image[0, 0] = value
    npz.write_case(folder / "ID_0001.npz", image, mask)


def test_slices_are_counted_and_a_changed_pixel_is_seen(tmp_path):
    write(tmp_path, -900)
    (first,) = list_slices.list_slices(tmp_path)
    assert first["case_id"] == "ID_0001" and first["series_uid"] is None
    assert first["pixels"] == {
        "background": 512 * 512 - 20_000,
        "left_lung": 9_999,
        "right_lung": 10_000,
        "nodule": 1,
    }
    write(tmp_path, -901)
    (second,) = list_slices.list_slices(tmp_path)
    assert second["sha256"] != first["sha256"] and second["pixels"] == first["pixels"]
