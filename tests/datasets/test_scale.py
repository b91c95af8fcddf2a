"""A fixed scale: sizes by hand, canvases, what lies around a slice, and each source at it."""

import dataclasses

import fakes
import fixtures_luna16
import ml_collections
import numpy as np
import pytest
from test_crops import ROW
from test_crops import write as write_crops
from test_load import data_config

from auxseg import datasets
from auxseg.base.classes import AIR_HU, UNKNOWN
from auxseg.base.errors import InputError
from auxseg.datasets import crop_cases, crops, npz, scale


@pytest.mark.parametrize(
    ("native", "spacing", "mm", "size"),
    [
        ((100, 100), (0.7, 0.7), 0.35, (200, 200)),
        ((100, 50), (0.5, 1.0), 0.75, (67, 67)),
        ((3, 3), (0.1, 0.1), 5.0, (1, 1)),
        ((100, 50), (np.nan, np.nan), "own", (100, 50)),
    ],
)
def test_size_at_a_scale(native, spacing, mm, size):
    assert scale.filled_size(native, spacing, mm) == size


def test_too_many_pixels_are_refused():
    with pytest.raises(InputError, match="at 0.1 mm a slice of .512, 512. pixels has 5120 x 5120"):
        scale.filled_size((512, 512), (1.0, 1.0), 0.1)


@pytest.mark.parametrize("value", [0.05, 12, "fine", True, (0.7, 0.7)])
def test_what_is_no_scale_is_refused(value):
    with pytest.raises(InputError, match="data.mm_per_pixel: got .*, expected 0.1 to 10 mm, 'own'"):
        scale.read_scale({"mm_per_pixel": value})


@pytest.mark.parametrize(
    ("window", "step"), [((96, 96), 32), ((320, 320), 64), ((48, 40), 8), ((512, 512), 64)]
)
def test_step_is_what_a_window_can_be_halved_by(window, step):
    assert scale.step_of(window) == step


def network_of(names, mm=None):
    sources = {name: ml_collections.ConfigDict({"name": name, "share": 1}) for name in names[1:]}
    config = data_config(name=names[0], size=(96, 96), mm_per_pixel=mm)
    with config.unlocked():
        config.sources = ml_collections.ConfigDict(sources)
    return scale.seen_scale(config)


def test_networks_of_crops_see_scans_at_their_own_resolution():
    assert network_of(["npz"]) == (None, "")
    assert network_of(["crops"], 0.7) == (0.7, "")
    seen, doubt = network_of(["crops", "crops", "patches"])
    assert seen == "own" and "windows of 96x96 pixels at the scans' own resolution" in doubt
    seen, doubt = network_of(["npz", "npz", "crops"])
    assert seen is None and "slices of 96x96 pixels and on crops at their own resolution" in doubt


def write_slices(folder, spacings):
    """Writes a slice for each spacing; all show the same 32 mm, with lungs and a nodule of 2 mm."""
    folder.mkdir()
    lines = ["id,patient,pixel_spacing_mm"]
    for number, mm in enumerate(spacings):
        size = 32 if mm is None else round(32 / mm)
        image, mask = np.full((size, size), -1000, np.int16), np.zeros((size, size), np.uint8)
        each = size // 32
        mask[8 * each : 24 * each, 18 * each : 28 * each] = 1
        mask[8 * each : 24 * each, 4 * each : 14 * each] = 2
        mask[10 * each : 12 * each, 20 * each : 22 * each] = 3
        image[mask > 0] = -850
        npz.write_case(folder / f"{number}.npz", image, mask)
        lines.append(f"{number},P{number},{'' if mm is None else mm}")
    (folder / "index.csv").write_text("\n".join(lines))
    return folder


def test_slices_of_any_spacing_show_the_same_at_a_scale(tmp_path):
    write_slices(tmp_path / "a", [1.0, 0.5])
    config = data_config(name="npz", dir=str(tmp_path / "a"), size=(16, 16), mm_per_pixel=1)
    found = datasets.load(config)
    assert found.name == "npz/a-1mm" and found.size_yx == (32, 32)
    images, masks = found.read([0, 1])
    np.testing.assert_array_equal(masks[0], masks[1])
    assert (masks[0] == 3).sum() == 4 and np.abs(images[0] - images[1]).max() < 100
    assert found.table.native_size_yx.tolist() == [[32, 32], [64, 64]]
    assert found.read_native_mask(1).shape == (64, 64)


def test_what_a_slice_does_not_fill_is_air_of_which_nothing_is_known(tmp_path):
    write_slices(tmp_path / "a", [1.0, 0.5])
    found = datasets.load(data_config(name="npz", dir=str(tmp_path / "a"), size=(48, 48), mm_per_pixel="own"))
    assert found.size_yx == (64, 64) and found.table.filled_yx.tolist() == [[32, 32], [64, 64]]
    images, masks = found.read([0])
    assert (images[0, 32:] == AIR_HU).all() and (images[0, :, 32:] == AIR_HU).all()
    assert (masks[0, 32:] == UNKNOWN).all() and (masks[0, :32, :32] < 4).all()
    image, mask = found.read_case(0)
    assert image.shape == mask.shape == (32, 32) and not (mask == UNKNOWN).any()


def test_unknown_spacing_is_refused_by_millimetres_alone(tmp_path):
    write_slices(tmp_path / "a", [1.0, None])
    config = data_config(name="npz", dir=str(tmp_path / "a"), size=(16, 16), mm_per_pixel=0.5)
    with pytest.raises(
        InputError, match="spacing of 1 of 2 in npz/a is not known, such as 1; state pixel_sp"
    ):
        datasets.load(config)
    config.mm_per_pixel = "own"
    assert datasets.load(config).size_yx == (32, 32)


def test_windows_of_slices_are_cut_at_the_scale(tmp_path):
    write_slices(tmp_path / "a", [1.0, 0.5])
    with np.load(tmp_path / "a" / "1.npz") as arrays:
        free = np.where(arrays["mask"] == 3, 1, arrays["mask"])
        npz.write_case(tmp_path / "a" / "1.npz", arrays["image"], free)
    config = data_config(name="patches", dir=str(tmp_path / "a"), size=(16, 16), mm_per_pixel=0.8, windows=3)
    found = datasets.load(config)
    assert len(found) == 3 and found.size_yx == (16, 16) and found.table.is_cut.all()
    np.testing.assert_allclose(found.table.spacing_zyx_mm[:, 1:], 0.8)
    assert found.table.filled_yx.tolist() == [[16, 16]] * 3
    assert found.read([0])[1].max() > 0
    unset = datasets.load(data_config(name="patches", dir=str(tmp_path / "a"), size=(16, 16), windows=3))
    np.testing.assert_allclose(unset.table.spacing_zyx_mm[:, 1:], 0.5)
    assert unset.table.filled_yx is None and unset.scale is None


@pytest.fixture
def folder(tmp_path):
    """Crops of 20x20 pixels of 0.7 mm: two readers mark 3x3 pixels and one of them a row."""
    readers = np.zeros((2, 20, 20), np.uint8)
    readers[:, 9:12, 9:12] = 1
    readers[0, 9, 9:12] = 3
    rows = [ROW | {"readers": "2"}, ROW | {"nodule": "P1/1", "readers": "2", "spacing_mm": "0.35"}]
    (tmp_path / "crops").mkdir()
    write_crops(tmp_path / "crops", np.full((2, 20, 20), 100, np.uint8), readers, rows)
    return tmp_path / "crops"


def test_crops_at_a_scale_are_whole_with_their_mirror_image_around(folder):
    wanted = {"classes": crops.CLASSES, "size_yx": (16, 16), "scale": 0.35}
    found = crop_cases.load(folder, **wanted)
    assert found.size_yx == (48, 48) and found.table.filled_yx.tolist() == [[40, 40], [20, 20]]
    assert found.table.native_size_yx.tolist() == [[20, 20]] * 2
    images, masks = found.read_train([0, 1])
    # The consensus of two is the mark of either: 3x3 pixels become 6x6 at half the pixel size.
    assert masks[0, 18:24, 18:24].all() and (masks[0, :40, :40] == 1).sum() == 36
    assert (masks[1, :20, :20] == 1).sum() == 9 and (masks[1, 20:] == UNKNOWN).all()
    assert (images[1] == -200).all()  # 8 x 100 - 1000, and its mirror image
    outline = found.read_outline(0)
    assert outline.readers.shape == (2, 40, 40) and outline.readers.sum(axis=(1, 2)).max() <= 36
    shown, moved = found.read_case(0)
    assert shown.shape == moved.shape == (40, 40)
    assert (crop_cases.load(folder, **wanted).read([0])[1] == found.read([0])[1]).all()
    with pytest.raises(InputError, match="never resized, unless data.mm_per_pixel"):
        crop_cases.load(folder, classes=crops.CLASSES, size_yx=(32, 32))


def test_votes_of_crops_follow_the_scale(folder):
    found = crop_cases.load(folder, classes=crops.CLASSES, size_yx=(16, 16), scale=0.35, target="share")
    votes = found.read_train([0])[1][0]
    assert (votes == 131).sum() == 2 * 6 and (
        votes == 129
    ).sum() == 4 * 6  # both readers in the first row of three
    assert (votes == 128).sum() == 40 * 40 - 36 and (votes[40:] == UNKNOWN).all()


def test_no_mark_of_a_reader_is_lost_in_a_smaller_size():
    readers = np.zeros((8, 8), np.uint8)
    readers[3, 3], readers[5, 5:7] = 0b100, 0b001
    small = crop_cases.resize_marks(readers, (2, 2))
    assert np.bitwise_or.reduce(small.ravel()) == 0b101
    assert crop_cases.resize_marks(readers, (8, 8)) is readers


def test_slabs_of_crops_lie_at_the_scale(folder):
    found = crop_cases.load(folder, classes=crops.CLASSES, size_yx=(16, 16), scale=0.35, slab=3)
    slabs, masks = found.read_seen([1])
    assert slabs.shape == (1, 48, 48, 3) and masks.shape == (1, 48, 48)
    np.testing.assert_array_equal(slabs[..., 1], found.read([1])[0])


def test_sources_of_a_mixture_share_the_largest_canvas(tmp_path, folder):
    write_slices(tmp_path / "a", [0.5])
    config = data_config(classes=crops.CLASSES, size=(16, 16), mm_per_pixel=0.35, dir=str(folder))
    with config.unlocked():
        config.sources.nodules = ml_collections.ConfigDict({"name": "crops", "share": 1})
        config.sources.slices = ml_collections.ConfigDict({
            "name": "npz", "dir": str(tmp_path / "a"), "share": 1, "meanings": ("background", "background+nodule"),
            "classes": ("background", "nodule"),
        })  # fmt: skip
    with np.load(tmp_path / "a" / "0.npz") as arrays:
        npz.write_case(tmp_path / "a" / "0.npz", arrays["image"], (arrays["mask"] == 3).astype(np.uint8))
    with config.unlocked():
        del config.sources.slices.meanings
    mixed = datasets.load(config)
    assert mixed.size_yx == (96, 96) and mixed.scale == 0.35
    assert mixed.table.filled_yx.tolist() == [[40, 40], [20, 20], [91, 91]]
    images, masks = mixed.read([0, 2])
    assert (images[0] == -200).all() and (masks[0, 40:] == UNKNOWN).all()
    assert (images[1, 91:] == AIR_HU).all()
    with config.unlocked():
        config.sources.slices.mm_per_pixel = 0.7
    with pytest.raises(InputError, match="data.sources.slices.mm_per_pixel: all sources of a run have one"):
        datasets.load(config)


def test_scans_are_prepared_once_for_every_scale(tmp_path):
    """LUNA16's records hold slices as they are, which 'own' gives; each scale is made of the same."""
    source = fixtures_luna16.write_folder(tmp_path / "luna")
    config = data_config(
        dir=str(source), size=(16, 16), cache_dir=str(tmp_path / "cache"), mm_per_pixel="own"
    )
    own = datasets.load(config)
    prepared = sorted((tmp_path / "cache" / "luna16").glob("[a-z]*"))
    config.mm_per_pixel = 2.5
    found = datasets.load(config)
    assert sorted((tmp_path / "cache" / "luna16").glob("[a-z]*")) == prepared and "own" in prepared[0].name
    assert found.name == "luna16/middle-anatomy-annotations-2.5mm"
    for index in range(len(own)):
        native, spacing = own.table.native_size_yx[index], own.table.spacing_zyx_mm[index, 1:]
        image, mask = own.read_case(index)
        assert mask.shape == image.shape == tuple(native)
        np.testing.assert_array_equal(mask, own.read_native_mask(index))
        assert found.read_case(index)[1].shape == scale.filled_size(native, spacing, 2.5)


def test_a_table_without_a_scale_keeps_its_digest():
    table = fakes.two_discs(3).table
    filled = dataclasses.replace(table, filled_yx=np.full((3, 2), 16, np.int32))
    assert table.digest() != filled.digest()
    assert dataclasses.replace(filled, filled_yx=None).digest() == table.digest()
