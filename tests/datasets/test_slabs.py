"""Slabs: the right slices in the right order, repeated at the ends of a scan, written once, into the network."""

import fakes
import numpy as np
import pytest
from test_load import data_config, write_npz

from auxseg import datasets
from auxseg.base.errors import InputError
from auxseg.ct.images import read_slices
from auxseg.datasets import join, resize, slabs
from auxseg.datasets.luna16 import layout
from auxseg.datasets.preparation import records
from auxseg.devices import parallel
from auxseg.training import augment, batching, setup
from configs import base

PHANTOM = {"num_scans": 3, "num_slices": 12, "matrix": 64}


@pytest.fixture(scope="module")
def phantom(tmp_path_factory):
    """Settings of a small phantom, drawn once."""
    folder = tmp_path_factory.mktemp("phantom")
    values = {"name": "phantom", "dir": str(folder / "scans"), "cache_dir": str(folder / "cache")}
    datasets.load(data_config(**values, **PHANTOM, size=(32, 32)))
    return values | PHANTOM | {"size": (32, 32)}


@pytest.fixture(scope="module")
def dataset(phantom):
    return datasets.load(data_config(**phantom, slab=5))


def test_neighbours_of_each_slice(dataset, phantom):
    paths = {scan.uid: scan.path for scan in layout.list_folder(phantom["dir"]).scans}
    indices = np.array([2, 0])
    found, images = dataset.read_slabs(indices), dataset.read(indices)[0]
    assert found.shape == (2, 32, 32, 5) and found.dtype == np.int16 and dataset.slab == 5
    np.testing.assert_array_equal(found[..., 2], images)
    middle = int(dataset.table.slice_index[2])
    for place in range(5):
        slice_ = read_slices(paths[str(dataset.table.series_uid[2])], [middle + place - 2])[0]
        np.testing.assert_array_equal(found[0, ..., place], resize.resize_image(slice_, (32, 32)))
    every = datasets.load(data_config(**phantom, slices="all", slab=5, slab_step_mm=0.0))
    first, last = every.read_slabs([0, 11])
    for end, middle in ((first[..., 0], first[..., 2]), (last[..., 4], last[..., 2])):
        np.testing.assert_array_equal(end, middle)
    assert (first[..., 2] != first[..., 3]).any()


def test_slices_lie_as_near_to_the_distance_as_whole_slices_allow():
    for spacing_mm, apart in ((0.6, 4), (1.0, 2), (1.25, 2), (2.0, 1), (2.5, 1), (8.0, 1), (np.nan, 1)):
        assert slabs.slices_apart(spacing_mm, 2.5) == apart
    assert slabs.slices_apart(0.6, 0.0) == 1  # neighbours, whatever their distance


def test_the_ends_of_a_scan_are_repeated():
    found = slabs.places_around(1, num_slices=5, apart=2, in_scan=5)
    assert found.tolist() == [0, 0, 1, 3, 4]
    assert slabs.places_around(3, num_slices=1, apart=1, in_scan=5).tolist() == [3]


def test_slabs_of_a_finer_scan_skip_slices(phantom):
    """The phantom's slices lie several mm apart: twice their distance is two slices on."""
    alone = datasets.load(data_config(**phantom))
    step_mm = 2.0 * float(alone.table.spacing_zyx_mm[2, 0])
    wide = datasets.load(data_config(**phantom, slab=3, slab_step_mm=step_mm))
    near = datasets.load(data_config(**phantom, slab=5, slab_step_mm=0.0))
    np.testing.assert_array_equal(wide.read_slabs([2]), near.read_slabs([2])[..., ::2])


def test_slabs_are_written_once_and_single_slices_stay_as_they_are(phantom, dataset, monkeypatch):
    monkeypatch.setattr(slabs, "_write", None)
    again = datasets.load(data_config(**phantom, slab=5))
    np.testing.assert_array_equal(again.read_slabs([1]), dataset.read_slabs([1]))
    alone = datasets.load(data_config(**phantom))
    assert alone.read_slabs is None and alone.name + "-slab5x2.5mm" == dataset.name
    np.testing.assert_array_equal(alone.read(np.array([1]))[0], dataset.read(np.array([1]))[0])


@pytest.mark.parametrize("placement", ["device", "stream"])
def test_batches_of_slabs(dataset, placement):
    devices = parallel.choose_devices(1)
    feed = batching.create_feed(dataset, np.arange(3), placement=placement, devices=devices)
    rows = [(np.array([1, 0], np.int32), np.array([1.0, 0.0], np.float32))]
    ((batch, _),) = list(batching.read_batches(feed, rows))
    np.testing.assert_array_equal(np.asarray(batch.images)[0, 0], dataset.read_slabs([1])[0])
    raw = batching.RawBatch(*(np.asarray(part)[0] for part in batch))
    made = batching.to_batch(raw, window_hu=(-1000.0, 400.0), num_classes=4)
    assert made.images.shape == (2, 32, 32, 5)


def test_slices_of_a_slab_are_augmented_together():
    images = np.random.default_rng(0).normal(-500, 200, (1, 16, 16)).astype(np.int16)
    masks, keys = np.zeros((1, 16, 16), np.uint8), augment.case_keys(1, 0, np.arange(1))
    how = {"ranges": augment.Ranges(0.5, 0.1, 0.1, 10.0, 0.05), "window_hu": (-1000.0, 400.0)}
    single, _ = augment.augment(images, masks, keys, **how)
    slab, _ = augment.augment(np.stack([images] * 3, -1), masks, keys, **how)
    for place in range(3):
        np.testing.assert_allclose(slab[..., place], single, atol=1e-3)


def test_what_has_no_slabs_says_so(tmp_path, dataset):
    write_npz(tmp_path)
    with pytest.raises(InputError, match="data.slab: got 3, but NPZ files hold single slices"):
        datasets.load(data_config(name="npz", dir=str(tmp_path), slab=3))
    for wrong in (2, 0, 65):
        with pytest.raises(InputError, match=f"data.slab: got {wrong}, expected an odd number"):
            datasets.check_slab(wrong)
    (tmp_path / "records.json").write_text("{}", encoding="utf-8")
    with pytest.raises(InputError, match="holds records of single slices"):
        records.list_scans(tmp_path, layout.Settings())
    with pytest.raises(InputError, match="has no scan"):
        slabs.attach(dataset, {}, layout.Settings(), num_slices=3, step_mm=0.0, cache_dir=tmp_path)
    with pytest.raises(InputError, match="data.slab_step_mm: got -1"):
        datasets.check_slab_step({"slab_step_mm": -1})
    assert join.add(fakes.two_discs(3), _renamed()).read_slabs is None


def _renamed():
    data = fakes.two_discs(2)
    names = np.array(["x", "y"])
    table = type(data.table)(**(vars(data.table) | {"case_id": names, "series_uid": names, "patient": names}))
    return type(data)("second", table, data.size_yx, data.read, data.read_native_mask)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model.name": "unet3d"}, "data.slab: got 1 with model.name='unet3d'"),
        (
            {"data.slab": 3, "model.name": "unet_plus_plus"},
            "data.slab: got 3 with model.name='unet_plus_plus'",
        ),
        ({"model.name": "unet3d", "data.slab": 3, "insert.enabled": True}, "inserted into single slices"),
    ],
)
def test_settings_that_do_not_fit_each_other(changes, words):
    config = base.get_config()
    with config.unlocked():
        config.update_from_flattened_dict(changes)
    with pytest.raises(InputError, match=words):
        setup.check_settings(config)
