"""NPZ folders and stacks: what is read, and what is refused by name."""

import time

import numpy as np
import pytest

from auxseg.base.errors import InputError
from auxseg.datasets import npz, select


def make_slice(seed=0, size=64):
    """Returns (image int16, mask uint8) with a left lung, a right lung and a nodule in the left lung."""
    image = np.random.default_rng(seed).normal(40, 10, (size, size)).astype(np.int16)
    mask = np.zeros((size, size), np.uint8)
    mask[16:48, 36:56], mask[16:48, 8:28], mask[30:34, 40:44] = 1, 2, 3
    image[(mask == 1) | (mask == 2)] = -850
    return image, mask


@pytest.fixture
def folder(tmp_path):
    for index in range(4):
        npz.write_case(tmp_path / f"ID_{index:04d}.npz", *make_slice(index))
    return tmp_path


def test_folder_without_an_index(folder):
    dataset = npz.read_npz(folder, size_yx=(32, 32))
    assert dataset.table.case_id.tolist() == ["ID_0000", "ID_0001", "ID_0002", "ID_0003"]
    assert (
        dataset.table.series_uid.tolist() == dataset.table.patient.tolist() == dataset.table.case_id.tolist()
    )
    assert np.isnan(dataset.table.spacing_zyx_mm).all()
    assert (dataset.table.subset == -1).all() and (dataset.table.num_nodules == -1).all()
    np.testing.assert_array_equal(dataset.table.labels, np.ones((4, 4)))
    images, masks = dataset.read(np.array([2, 0]))
    assert (images.shape, images.dtype, masks.dtype) == ((2, 32, 32), np.int16, np.uint8)
    assert images[0, 16, 24] == -850 and masks[0, 16, 20] == 3 and masks[1, 12, 8] == 2
    np.testing.assert_array_equal(dataset.read_native_mask(1), make_slice()[1])
    assert (dataset.name, len(dataset)) == (f"npz/{folder.name}-32x32", 4)
    # Nothing says which slices are of one patient: the reader must hear of it.
    (note,) = dataset.notes
    assert note.startswith("4 of 4 slices name no patient") and "index.csv" in note


def test_index_gives_series_spacing_and_subset(folder):
    (folder / "index.csv").write_text(
        "id,slice_index,series_uid,patient,subset,pixel_spacing_mm,slice_spacing_mm,num_nodules\n"
        "0001,12,1.2.3,P9,4,0.7,2.5,1\n0002,,,,,,,\n0000,3,1.2.4,,0,0.6,1.25,0\nID_0003,,,,,,,\n"
    )
    table = npz.read_npz(folder, size_yx=(32, 32)).table
    assert table.series_uid.tolist() == ["1.2.4", "1.2.3", "ID_0002", "ID_0003"]
    assert table.patient.tolist() == ["1.2.4", "P9", "ID_0002", "ID_0003"]
    assert table.subset.tolist() == [0, 4, -1, -1]
    assert table.slice_index.tolist() == [3, 12, -1, -1]
    assert table.num_nodules.tolist() == [0, 1, -1, -1]
    np.testing.assert_allclose(table.spacing_zyx_mm[:2], [[1.25, 0.6, 0.6], [2.5, 0.7, 0.7]], rtol=1e-6)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,subset\n0007,1\n", "line 2: there is no 0007.npz or ID_0007.npz"),
        ("id,subset\n0001,1\nID_0001,1\n", "line 3: id 'ID_0001' appears twice"),
        ("id,pixel_spacing_mm\n0001,wide\n", "line 2: pixel_spacing_mm is 'wide', expected a number"),
        ("id,pixel_spacing_mm\n0001,0\n", "expected millimetres above 0"),
        ("id,subset\n0001,12\n", "subset is 12, expected 0 to 9"),
        ("name,subset\n0001,1\n", "has no column id"),
    ],
)
def test_index_that_does_not_fit_is_refused(folder, text, message):
    (folder / "index.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        npz.read_npz(folder, size_yx=(32, 32))


def test_slices_missing_from_the_index_are_noted(folder):
    (folder / "index.csv").write_text("id,subset\n0001,1\n")
    notes = npz.read_npz(folder, size_yx=(32, 32)).notes
    assert notes[0] == "3 slices are not in index.csv, such as ID_0000"
    (folder / "index.csv").write_text("id,patient\n" + "".join(f"000{i},A\n" for i in range(4)))
    assert npz.read_npz(folder, size_yx=(32, 32)).notes == ()


@pytest.mark.parametrize("names", [("images", "masks"), ("image", "mask")])
@pytest.mark.parametrize("channel", [False, True])
def test_one_file_with_stacked_arrays(folder, tmp_path, names, channel):
    pairs = [make_slice(index) for index in range(4)]
    stacks = [np.stack(arrays) for arrays in zip(*pairs, strict=True)]
    stacks = [stack[..., None] if channel else stack for stack in stacks]
    np.savez_compressed(tmp_path / "all.npz", **dict(zip(names, stacks, strict=True)))
    stacked = npz.read_npz(tmp_path / "all.npz", size_yx=(32, 32))
    (tmp_path / "all.npz").unlink()
    separate = npz.read_npz(folder, size_yx=(32, 32))
    for one, other in zip(stacked.read(np.arange(4)), separate.read(np.arange(4)), strict=True):
        np.testing.assert_array_equal(one, other)
    assert stacked.table.case_id.tolist() == ["all_0", "all_1", "all_2", "all_3"]


def test_bad_mask_values_are_named_with_their_file(folder):
    image, mask = make_slice()
    mask[0, :2] = 7, 200
    npz.write_case(folder / "ID_0002.npz", image, mask)
    with pytest.raises(InputError, match=r"got 7, 200, expected only 0, 1, 2, 3, in .*ID_0002.npz"):
        npz.read_npz(folder, size_yx=(32, 32))


def test_luna16_values_need_the_papers_reading(folder):
    for index in range(4):
        image, mask = make_slice(index)
        npz.write_case(folder / f"ID_{index:04d}.npz", image, np.array([0, 3, 4, 5])[mask])
    with pytest.raises(InputError, match="5 is the airway and no nodule; set data.labels='airway_as_nodule'"):
        npz.read_npz(folder, size_yx=(32, 32))
    dataset = npz.read_npz(folder, size_yx=(32, 32), labels="airway_as_nodule")
    np.testing.assert_array_equal(dataset.read_native_mask(0), make_slice()[1])


def test_swapped_sides_are_refused_and_a_few_are_noted(folder):
    image, mask = make_slice()
    npz.write_case(folder / "ID_0003.npz", image[:, ::-1], mask[:, ::-1])
    note = npz.read_npz(folder, size_yx=(32, 32)).notes[0]
    assert note == "1 of 4 slices have the left lung on the image's left (prone or mirrored): ID_0003"
    for index in range(4):
        npz.write_case(folder / f"ID_{index:04d}.npz", image[:, ::-1], mask[:, ::-1])
    with pytest.raises(InputError, match="in 4 of 4 slices .* the patient's left at the higher columns"):
        npz.read_npz(folder, size_yx=(32, 32))


def test_lungmasks_values_are_read_by_their_names(folder):
    image, mask = make_slice()
    swapped = np.array([0, 2, 1, 3])[mask]
    for index in range(4):
        npz.write_case(folder / f"ID_{index:04d}.npz", image, swapped)
    with pytest.raises(InputError, match="swap the two names in data.classes .lungmask"):
        npz.read_npz(folder, size_yx=(32, 32))
    classes = ("background", "right_lung", "left_lung", "nodule")
    dataset = npz.read_npz(folder, size_yx=(32, 32), classes=classes)
    assert dataset.classes == classes
    np.testing.assert_array_equal(dataset.read_native_mask(0), swapped)


def test_one_value_for_both_lungs_is_refused_unless_it_is_named_so(folder):
    image, mask = make_slice()
    for index in range(4):
        npz.write_case(folder / f"ID_{index:04d}.npz", image, (mask > 0).astype(np.uint8))
    with pytest.raises(InputError, match="the value 1 .left_lung. and never that of the other lung"):
        npz.read_npz(folder, size_yx=(32, 32))
    dataset = npz.read_npz(folder, size_yx=(32, 32), classes=("background", "lung"))
    np.testing.assert_array_equal(dataset.table.labels, np.ones((4, 2)))


def test_a_value_without_a_name_is_refused(folder):
    with pytest.raises(InputError, match="got 2, 3, expected only 0, 1, in .*data.classes names them"):
        npz.read_npz(folder, size_yx=(32, 32), classes=("background", "nodule"))


def test_the_fingerprint_changes_with_a_pixel_and_not_with_a_copy(folder, tmp_path):
    image, mask = make_slice()
    first = npz.read_npz(folder, size_yx=(32, 32)).fingerprint
    content = (folder / "ID_0001.npz").read_bytes()
    (folder / "ID_0001.npz").write_bytes(content)
    assert npz.read_npz(folder, size_yx=(32, 32)).fingerprint == first
    mask[0, 0] = 3
    npz.write_case(folder / "ID_0001.npz", image, mask)
    assert npz.read_npz(folder, size_yx=(32, 32)).fingerprint != first


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.random.default_rng(0).random((64, 64)), r"scaled to \[0, 1\]"),
        (np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8), "8-bit image"),
        (np.random.default_rng(0).normal(-160, 200, (64, 64)).clip(-160, 240), "already windowed"),
        (np.full((64, 64), np.nan), "expected HU"),
        (make_slice()[0][:, :32], r"image \(64, 32\) and mask \(64, 64\) differ in shape"),
    ],
)
def test_images_that_are_no_hu_are_refused_when_read(folder, image, message):
    np.savez(folder / "ID_0001.npz", image=image, mask=make_slice()[1])
    dataset = npz.read_npz(folder, size_yx=(32, 32))
    with pytest.raises(InputError, match=f"{message}.*ID_0001.npz"):
        dataset.read(np.arange(4))


def test_windows_without_a_lung_need_no_air(tmp_path):
    """A window within a mass shows tissue alone; values that are no HU are still refused."""
    image = np.linspace(-10, 1300, 32 * 32).reshape(32, 32)
    npz.write_case(tmp_path / "a.npz", image, np.eye(32))
    two = ("background", "nodule")
    images, masks = npz.read_npz(tmp_path, size_yx=(32, 32), classes=two).read([0])
    assert images[0, 0, 0] == -10 and masks.sum() == 32
    with pytest.raises(InputError, match="intercept"):
        npz.read_npz(tmp_path, size_yx=(32, 32)).read([0])
    npz.write_case(tmp_path / "a.npz", np.eye(32), np.eye(32))
    with pytest.raises(InputError, match="scaled"):
        npz.read_npz(tmp_path, size_yx=(32, 32), classes=two).read([0])


def test_unreadable_files_are_one_line_errors(folder):
    good = (folder / "ID_0000.npz").read_bytes()
    broken = bytearray(good)
    broken[len(good) // 2 : len(good) // 2 + 30] = bytes(30)
    for content in (b"", b"no archive", good[:-200]):
        (folder / "ID_0002.npz").write_bytes(content)
        with pytest.raises(InputError, match="ID_0002.npz cannot be read as .npz"):
            npz.read_npz(folder, size_yx=(32, 32))
    (folder / "ID_0002.npz").write_bytes(bytes(broken))
    with pytest.raises(InputError, match="ID_0002.npz cannot be read as .npz"):
        npz.read_npz(folder, size_yx=(32, 32)).read(np.arange(4))


def test_pickled_arrays_and_other_names_are_refused(folder):
    image, mask = make_slice()
    np.savez(folder / "ID_0002.npz", image=image, mask=mask.astype(object))
    with pytest.raises(InputError, match="ID_0002.npz cannot be read as .npz"):
        npz.read_npz(folder, size_yx=(32, 32))
    np.savez(folder / "ID_0002.npz", x=image, y=mask)
    with pytest.raises(InputError, match=r"holds the arrays \['x', 'y'\], expected 'mask' or 'masks'"):
        npz.read_npz(folder, size_yx=(32, 32))


def test_stack_in_a_folder_and_empty_places_are_explained(tmp_path):
    with pytest.raises(InputError, match="holds no .npz file"):
        npz.read_npz(tmp_path, size_yx=(32, 32))
    with pytest.raises(InputError, match="does not exist"):
        npz.read_npz(tmp_path / "nowhere", size_yx=(32, 32))
    image, mask = make_slice()
    np.savez(tmp_path / "all.npz", images=image[None], masks=mask[None])
    with pytest.raises(InputError, match="give the file itself as data.dir"):
        npz.read_npz(tmp_path, size_yx=(32, 32))


def test_interrupted_write_leaves_no_half_file(tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(npz.np, "savez_compressed", fail)
    with pytest.raises(KeyboardInterrupt):
        npz.write_case(tmp_path / "ID_0.npz", *make_slice())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_are_those_that_numpy_loads(tmp_path, order):
    image, mask = make_slice()
    np.savez(tmp_path / "a.npz", image=np.array(image, order=order), mask=np.array(mask, order=order))
    image[:, 0] = -700
    np.savez_compressed(tmp_path / "b.npz", image=np.array(image, ">i2", order=order), mask=mask)
    images, masks = npz.read_npz(tmp_path, size_yx=(64, 64)).read(np.arange(2))
    for row, name in enumerate("ab"):
        with np.load(tmp_path / f"{name}.npz") as file:
            np.testing.assert_array_equal(images[row], np.maximum(file["image"], -1024))
            np.testing.assert_array_equal(masks[row], file["mask"])


def test_headers_are_parsed_one_at_a_time(folder, monkeypatch):
    """Two threads that parse at once can fail (CPython issue 106905)."""
    inside, most = [], []
    parse = np.lib.format.read_array_header_1_0

    def slow(file):
        inside.append(1)
        most.append(len(inside))
        time.sleep(0.002)
        inside.pop()
        return parse(file)

    monkeypatch.setattr(np.lib.format, "read_array_header_1_0", slow)
    npz.read_npz(folder, size_yx=(32, 32)).read(np.arange(4))
    assert len(most) == 16 and max(most) == 1


def test_real_middle_slices(real_data):
    dataset = npz.read_npz(real_data / "luna16_middle", size_yx=(320, 320))
    assert len(dataset) == 120
    (note,) = dataset.notes
    assert note.startswith("83 of 120 slices name no patient and no series")
    assert dataset.table.labels.sum(axis=0).tolist() == [120, 120, 120, 8]
    assert (~np.isnan(dataset.table.spacing_zyx_mm[:, 1])).sum() == 37
    index = int(np.flatnonzero(dataset.table.case_id == "ID_0003")[0])
    assert np.bincount(dataset.read_native_mask(index).ravel()).tolist()[1:] == [22232, 30576, 49]
    images, masks = dataset.read(np.array([index]))
    assert -950 < images[0][masks[0] == 1].mean() < -700
    assert (masks == 3).sum() == pytest.approx(49 * (320 / 512) ** 2, abs=4)


def test_unknown_pixels_are_read_as_such(folder):
    image, mask = make_slice()
    mask[mask == 3], mask[:8] = 255, 255
    for index in range(4):
        npz.write_case(folder / f"ID_{index:04d}.npz", image, mask)
    dataset = npz.read_npz(folder, size_yx=(32, 32))
    np.testing.assert_array_equal(dataset.table.labels, [[1, 1, 1, 255]] * 4)
    assert not dataset.table.has_nodule.any()
    _, masks = dataset.read(np.array([0]))
    assert (masks[0, :4] == 255).all() and masks[0, 16, 20] == 255 and masks[0, 12, 8] == 2
    other = select.select(dataset, ("background", "lung"))
    assert np.unique(other.read(np.array([0]))[1]).tolist() == [0, 1, 255]
    assert other.table.labels.tolist() == [[1, 1]] * 4
