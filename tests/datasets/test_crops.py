"""Crops of real nodules with several readers: values by hand on a folder that a fixture writes."""

import csv

import numpy as np
import pytest

from auxseg.base.errors import InputError
from auxseg.datasets import crop_cases, windows
from auxseg.datasets import crops as crops_lib

ROW = {
    "patient": "P1", "series_uid": "1.2", "subset": "", "nodule": "P1/0", "k": "0", "spacing_mm": "0.7", "gap_mm": "2.5",
    "readers": "3", "diameter_mm": "5.5", "consensus_px": "2", "hu_slope": "8.0", "hu_offset": "-1000.0",
}  # fmt: skip


def write(folder, images, readers, rows):
    np.savez(folder / "nodules.npz", image=images, readers=readers)
    with open(folder / "index.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(ROW))
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture
def folder(tmp_path):
    images = np.arange(3 * 16, dtype=np.uint8).reshape(3, 4, 4)
    readers = np.zeros((3, 4, 4), np.uint8)
    readers[0, 1] = (0, 1, 5, 13)  # by none, one, two and three of the readers 0, 2 and 3
    readers[1, 0, 0] = 8
    readers[2, 2, 2:] = 3
    rows = [ROW, ROW | {"k": "1"}, ROW | {"patient": "P2", "nodule": "P2/0", "subset": "4", "readers": "4"}]
    write(tmp_path, images, readers, rows)
    return tmp_path


def test_reads_the_table_and_hu(folder):
    crops = crops_lib.read_crops(folder)
    assert len(crops) == 3
    assert crops.subset.tolist() == [-1, -1, 4]
    assert crops.place.tolist() == [0, 1, 0]
    assert crops.image_hu(1)[0, 1] == 8.0 * 17 - 1000.0


def test_targets_by_hand(folder):
    crops = crops_lib.read_crops(folder)
    np.testing.assert_allclose(crops.target(0, "share")[1], [0, 1 / 3, 2 / 3, 1])
    assert crops.target(0, "consensus")[1].tolist() == [0, 0, 1, 1]
    assert crops.target(2, "consensus")[2].tolist() == [0, 0, 1, 1]  # two of four are half
    drawn = {tuple(crops.target(0, "reader", np.random.default_rng(seed))[1]) for seed in range(40)}
    assert drawn == {(0, 1, 1, 1), (0, 0, 1, 1), (0, 0, 0, 1)}


def test_slabs_hold_slices_of_one_nodule_cut_at_one_place(folder):
    """Nodules of two slices and of one; what readers left unmarked is not there, so the outermost ones repeat."""
    around = crops_lib.neighbours(crops_lib.read_crops(folder), 3, 0.0)
    assert around.tolist() == [[0, 0, 1], [0, 1, 1], [2, 2, 2]]
    wanted = {"classes": crops_lib.CLASSES, "size_yx": (4, 4)}
    found, alone = crop_cases.load(folder, **wanted, slab=3, step_mm=2.5), crop_cases.load(folder, **wanted)
    assert found.slab == 3 and found.name == f"{alone.name}-slab3x2.5mm"
    slabs, masks = found.read_seen([0, 2])
    images, same_masks = alone.read_seen([0, 2])
    assert slabs.shape == (2, 4, 4, 3) and slabs.dtype == np.int16
    np.testing.assert_array_equal(slabs[..., 1], images)
    np.testing.assert_array_equal(masks, same_masks)
    # HU of the second slice are 8 x 16 above those of the first, pixel by pixel where both are cut alike.
    assert (slabs[0, ..., 2] - slabs[0, ..., 1] == 8 * 16).all() and (slabs[1, ..., 0] == images[1]).all()


def test_readers_are_those_of_the_whole_nodule(folder):
    crops = crops_lib.read_crops(folder)
    assert crops.which_readers(0) == crops.which_readers(1) == [0, 2, 3]
    assert crops_lib.reader_mask(crops.readers[1], 3).sum() == 1


def test_largest_slice_of_each_nodule(folder):
    crops = crops_lib.read_crops(folder)
    assert crops_lib.largest_slices(crops, np.arange(3)).tolist() == [0, 2]
    assert crops_lib.largest_slices(crops, np.array([1])).tolist() == [1]


def test_cut_mirrors_the_edges():
    image = np.arange(4)[None, :] + 10 * np.arange(4)[:, None]
    assert crops_lib.cut(image, (0, 0), 2).tolist() == [[11, 12], [21, 22]]
    assert crops_lib.cut(image, (0, 3), 4)[0].tolist() == [3, 3, 2, 1]
    assert crops_lib.cut(image, (-2, 0), 4)[:, 0].tolist() == [10, 0, 0, 10]


def test_shifts_are_a_function_of_the_seed():
    shifts = crops_lib.draw_shifts(500, most_px=24, seed=1)
    assert (shifts.min(), shifts.max()) == (-24, 24)
    assert (shifts == crops_lib.draw_shifts(500, most_px=24, seed=1)).all()
    assert (shifts != crops_lib.draw_shifts(500, most_px=24, seed=2)).any()


def test_faults_are_named(folder, tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        crops_lib.read_crops(tmp_path / "nowhere")
    images, readers = np.zeros((1, 4, 4), np.uint8), np.full((1, 4, 4), 15, np.uint8)
    write(folder, images, readers, [ROW])
    with pytest.raises(InputError, match="3 readers .* marks of 4"):
        crops_lib.read_crops(folder)
    write(folder, images, readers, [ROW | {"readers": "4"}] * 2)
    with pytest.raises(InputError, match="2 rows"):
        crops_lib.read_crops(folder)
    write(folder, images, readers, [ROW | {"readers": "4", "hu_slope": "steep"}])
    with pytest.raises(InputError, match="hu_slope"):
        crops_lib.read_crops(folder)
    write(folder, images.astype(np.int16), readers, [ROW])
    with pytest.raises(InputError, match="both uint8"):
        crops_lib.read_crops(folder)


STILL = windows.Ranges(
    shift_px=0, scale=0.0, degrees=0.0, hu_scale=0.0, offset_hu=0.0, noise_hu=0.0, step_hu=1.0
)


def test_window_without_change_is_the_middle_or_its_mirror():
    image = np.arange(36, dtype=np.float32).reshape(6, 6)
    image, target = windows.draw_window(
        np.random.default_rng(0), (image, image / 35), (2.5, 2.5), size=4, ranges=STILL
    )
    inner = np.arange(36).reshape(6, 6)[1:5, 1:5]
    options = [inner, inner[::-1], inner[:, ::-1], inner[::-1, ::-1]]
    assert any(np.allclose(image, option) for option in options)
    np.testing.assert_allclose(target * 35, image, atol=1e-4)


def test_windows_move_image_and_target_alike():
    image = np.full((64, 64), -850.0, np.float32)
    image[30:34, 30:34] = 150.0
    ranges = STILL._replace(shift_px=20, scale=0.2, degrees=30.0)
    seen = set()
    for seed in range(20):
        target = (image > 0).astype(np.float32)
        moved, mask = windows.draw_window(
            np.random.default_rng(seed), (image, target), (31.5, 31.5), size=48, ranges=ranges
        )
        np.testing.assert_allclose(moved, -850.0 + 1000.0 * mask, atol=1.0)
        seen.add(tuple(np.argwhere(mask > 0.5).mean(axis=0).round().astype(int)))
    assert len(seen) > 10


def test_what_is_enlarged_covers_as_many_more_pixels():
    image = np.zeros((64, 64), np.float32)
    image[28:36, 28:36] = 1.0
    for enlarge, area in ((1.0, 64), (2.0, 256), (0.5, 16)):
        _, mask = windows.draw_window(
            np.random.default_rng(1), (image, image), (31.5, 31.5), size=32, ranges=STILL, enlarge=enlarge
        )
        assert mask.sum() == pytest.approx(area, rel=0.01)


def test_hu_scale_turns_about_lung():
    image = np.array([[windows.LUNG_HU, 150.0]])
    ranges = STILL._replace(hu_scale=0.2)
    values = np.array(
        [windows.blur_scale(np.random.default_rng(seed), image, ranges)[0] for seed in range(200)]
    )
    assert np.ptp(values[:, 0]) == 0.0
    scale = (values[:, 1] - windows.LUNG_HU) / 1000.0
    assert 1 / 1.2 - 0.002 <= scale.min() < 0.86 and 1.17 < scale.max() <= 1.202


def load(folder, **changed):
    return crop_cases.load(folder, **({"size_yx": (4, 4), "classes": ("background", "nodule")} | changed))


def test_a_data_set_tells_nodule_from_the_rest(folder):
    dataset = load(folder)
    images, masks = dataset.read(np.arange(3))
    crops = crops_lib.read_crops(folder)
    shifts = crops_lib.draw_shifts(3, most_px=24, seed=24)
    for index in range(3):
        expected = crops_lib.cut(crops.target(index, "consensus"), shifts[index], 4)
        np.testing.assert_array_equal(masks[index], expected)
        np.testing.assert_array_equal(images[index], crops_lib.cut(crops.image_hu(index), shifts[index], 4))
        np.testing.assert_array_equal(dataset.read_native_mask(index), masks[index])
    table = dataset.table
    assert table.case_id.tolist() == ["P1_0-0", "P1_0-1", "P2_0-0"] and dataset.classes == (
        "background",
        "nodule",
    )
    assert table.labels[:, 1].tolist() == masks.any(axis=(1, 2)).tolist()
    assert (
        table.patient.tolist() == ["P1", "P1", "P2"] and images.dtype == np.int16 and masks.dtype == np.uint8
    )


def test_a_crop_never_teaches_that_there_is_no_lung(folder):
    with pytest.raises(InputError, match="data.classes: got .*left_lung"):
        load(folder, classes=("background", "left_lung", "right_lung", "nodule"))


def test_crops_are_never_resized(folder):
    for size in ((8, 8), (2, 4)):
        with pytest.raises(InputError, match="data.size: got"):
            load(folder, size_yx=size)
