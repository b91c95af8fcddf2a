"""Records: what is in them, when they are written anew, and that none is half written."""

import concurrent.futures
import json
import os
import signal
import subprocess
import sys
import time

import fixtures_luna16
import numpy as np
import pytest
from fixtures_luna16 import UIDS

from auxseg.base.errors import InputError
from auxseg.ct import images as ct_images
from auxseg.datasets import resize
from auxseg.datasets.luna16 import layout
from auxseg.datasets.luna16.layout import Settings
from auxseg.datasets.preparation import builder
from auxseg.datasets.preparation import pieces as luna16_pieces
from auxseg.datasets.preparation.pieces import _read_examples
from auxseg.datasets.preparation.records import RECORDS_FILE, load, prepare
from auxseg.datasets.preparation.source import BadScansError

SMALL = Settings(size_yx=(48, 48), slices="nodule")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return fixtures_luna16.write_folder(tmp_path_factory.mktemp("luna16"))


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def records_in(cache):
    return sorted(path.parent.name for path in cache.rglob(RECORDS_FILE))


@pytest.mark.parametrize("slices", ["middle", "nodule", "lung"])
def test_records_hold_the_slices_of_the_folder(folder, cache, slices):
    settings = Settings(size_yx=(48, 40), slices=slices)
    dataset = load(folder, cache_dir=cache, settings=settings)
    listed = layout.list_folder(folder)
    reader = layout.create_nodule_reader(listed, settings)
    expected = [
        (scan, part) for scan in listed.scans for part in layout.read_slices(scan, settings, reader)[0]
    ]
    images, masks = dataset.read(np.arange(len(dataset)))
    assert len(expected) == len(dataset) == len(images)
    for row, (scan, part) in enumerate(expected):
        assert dataset.table.case_id[row] == f"{scan.uid}_{part.index_z:04d}"
        assert (dataset.table.subset[row], dataset.table.slice_index[row]) == (scan.subset, part.index_z)
        assert dataset.table.num_nodules[row] == part.num_nodules
        np.testing.assert_array_equal(images[row], resize.resize_image(part.image, (48, 40)))
        np.testing.assert_array_equal(masks[row], resize.resize_mask(part.mask, (48, 40)))
        np.testing.assert_array_equal(dataset.read_native_mask(row), part.mask)
        np.testing.assert_array_equal(np.flatnonzero(dataset.table.labels[row]), np.unique(masks[row]))
    assert dataset.name == f"luna16/{slices}-anatomy-annotations-48x40"
    np.testing.assert_allclose(dataset.table.spacing_zyx_mm, [[2.5, 1.0, 1.0]] * len(dataset))
    np.testing.assert_array_equal(dataset.table.native_size_yx, [[64, 64]] * len(dataset))


def test_any_order_and_repeats_are_read(folder, cache):
    dataset = load(folder, cache_dir=cache, settings=SMALL)
    images, masks = dataset.read(np.arange(len(dataset)))
    order = np.array([11, 0, 3, 11, 8])
    some = dataset.read(order)
    np.testing.assert_array_equal(some[0], images[order])
    np.testing.assert_array_equal(some[1], masks[order])
    assert dataset.read(np.array([], int))[0].shape == (0, 48, 48)
    many = np.tile(order, 30)
    np.testing.assert_array_equal(dataset.read(many)[1], masks[many])


def test_records_are_written_once_for_each_setting(folder, tmp_path):
    load(folder, cache_dir=tmp_path, settings=SMALL)
    (first,) = records_in(tmp_path)
    before = (tmp_path / "luna16" / first / RECORDS_FILE).stat().st_mtime_ns
    load(folder, cache_dir=tmp_path, settings=SMALL)
    assert records_in(tmp_path) == [first]
    assert (tmp_path / "luna16" / first / RECORDS_FILE).stat().st_mtime_ns == before
    larger = load(folder, cache_dir=tmp_path, settings=Settings(size_yx=(56, 56), slices="nodule"))
    assert larger.read(np.array([0]))[0].shape == (1, 56, 56)
    assert len(records_in(tmp_path)) == 2


def test_records_follow_a_change_of_the_folder(tmp_path):
    folder = fixtures_luna16.write_folder(tmp_path / "luna")
    assert len(load(folder, cache_dir=tmp_path / "cache", settings=Settings(size_yx=(48, 48)))) == 3
    fixtures_luna16.write_scan(folder, "1.2.840.4", 4)
    assert len(load(folder, cache_dir=tmp_path / "cache", settings=Settings(size_yx=(48, 48)))) == 4


def test_prepared_records_need_neither_scans_nor_simpleitk(folder, cache):
    load(folder, cache_dir=cache, settings=SMALL)
    code = (
        "import sys; from auxseg.datasets.luna16 import layout; from auxseg.datasets.preparation import records; import numpy as np\n"
        f"s = layout.Settings(size_yx=(48, 48), slices='nodule')\n"
        f"d = records.load({str(folder)!r}, cache_dir={str(cache)!r}, settings=s)\n"
        "d.read(np.arange(len(d))); d.read_native_mask(0)\n"
        "print(len(d), [m for m in ('SimpleITK', 'tensorflow', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, encoding="utf-8", timeout=120
    )
    assert done.stdout.strip() == "14 []", done.stderr


def test_records_of_other_settings_or_version_are_refused(folder, tmp_path):
    records = prepare(folder, cache_dir=tmp_path, settings=SMALL)
    with pytest.raises(InputError, match="was written with .*'nodule'.*, expected .*'lung'"):
        load(records, cache_dir=tmp_path, settings=Settings(size_yx=(48, 48), slices="lung"))
    manifest = json.loads((records / RECORDS_FILE).read_text(encoding="utf-8"))
    (records / RECORDS_FILE).write_text(json.dumps(manifest | {"version": "0.9.0"}))
    with pytest.raises(InputError, match="was written with .*0.9.0"):
        load(records, cache_dir=tmp_path, settings=SMALL)


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_damaged_records_are_one_line_errors(folder, tmp_path, damage):
    records = prepare(folder, cache_dir=tmp_path, settings=SMALL)
    file = next(records.rglob("*subset0.array_record*"))
    content = bytearray(file.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 64] = bytes(64)
    if damage == "remove":
        file.unlink()
    else:
        file.write_bytes(content if damage == "flip" else content[: len(content) // 2])
    with pytest.raises(InputError, match="prepare them again") as caught:
        dataset = load(records, cache_dir=tmp_path, settings=SMALL)
        dataset.read(np.arange(len(dataset)))
    assert "\n" not in str(caught.value)


def test_bad_scans_stop_or_are_skipped_and_listed(tmp_path):
    folder = fixtures_luna16.write_folder(tmp_path / "luna")
    raw = folder / "subset0" / f"{UIDS[0]}.raw"
    raw.write_bytes(raw.read_bytes()[:-2])
    settings = Settings(size_yx=(48, 48))
    with pytest.raises(BadScansError, match=f"1 of 3 scans cannot be used: {UIDS[0]}: .* is truncated"):
        load(folder, cache_dir=tmp_path / "cache", settings=settings)
    assert records_in(tmp_path) == [] and not list((tmp_path / "cache").rglob(".partial*"))
    dataset = load(folder, cache_dir=tmp_path / "cache", settings=settings, skip_bad_scans=True)
    assert len(dataset) == 2
    assert any(note.startswith(f"left out: {UIDS[0]}: ") for note in dataset.notes)
    with pytest.raises(BadScansError, match="1 of 3 scans cannot be used"):
        load(folder, cache_dir=tmp_path / "cache", settings=settings)


def test_scan_that_fails_while_it_is_read(tmp_path):
    """A mask with values that are none is seen only when it is read; here it is all of its subset."""
    folder = fixtures_luna16.write_folder(tmp_path / "luna")
    path = folder / "seg-lungs-LUNA16" / f"{UIDS[2]}.mhd"
    volume, geometry = ct_images.read_volume(path), ct_images.read_geometry(path)
    ct_images.write_volume(path, volume + np.int16(1), geometry)
    settings = Settings(size_yx=(48, 48))
    with pytest.raises(BadScansError, match=f"{UIDS[2]}: mask values: got 1, "):
        load(folder, cache_dir=tmp_path / "cache", settings=settings)
    dataset = load(folder, cache_dir=tmp_path / "cache", settings=settings, skip_bad_scans=True)
    assert dataset.table.series_uid.tolist() == list(UIDS[:2])
    assert sum(note.startswith(f"left out: {UIDS[2]}: ") for note in dataset.notes) == 1


def test_scan_that_fails_amid_its_subset_leaves_the_others_whole(tmp_path):
    folder = fixtures_luna16.write_folder(tmp_path / "luna")
    fixtures_luna16.write_scan(folder, "1.2.840.4", 0)
    path = folder / "seg-lungs-LUNA16" / f"{UIDS[1]}.mhd"
    ct_images.write_volume(path, ct_images.read_volume(path) * np.int16(0), ct_images.read_geometry(path))
    settings = Settings(size_yx=(48, 48), slices="lung")
    with pytest.raises(BadScansError, match=f"{UIDS[1]}: the mask has no lung"):
        load(folder, cache_dir=tmp_path / "cache", settings=settings)
    assert not list((tmp_path / "cache").rglob("*array_record*"))
    dataset = load(folder, cache_dir=tmp_path / "cache", settings=settings, skip_bad_scans=True)
    assert np.unique(dataset.table.series_uid).tolist() == [UIDS[0], UIDS[2], "1.2.840.4"]
    assert dataset.read(np.arange(30))[0].shape == (30, 48, 48)


def test_failed_overwrite_keeps_the_former_records(tmp_path):
    folder = fixtures_luna16.write_folder(tmp_path / "luna")
    settings = Settings(size_yx=(48, 48))
    records = prepare(folder, cache_dir=tmp_path / "cache", settings=settings)

    def fail(*_):
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(layout, "read_slices", fail)
        prepare(folder, cache_dir=tmp_path / "cache", settings=settings, overwrite=True)
    assert len(load(records, cache_dir=tmp_path, settings=settings)) == 3
    assert not list((tmp_path / "cache").rglob(".partial*"))


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"version": "1.0.0", "settings": 3}'])
def test_damaged_manifest_is_one_line(folder, tmp_path, content):
    records = prepare(folder, cache_dir=tmp_path, settings=SMALL)
    (records / RECORDS_FILE).write_text(content)
    with pytest.raises(InputError, match="records.json.*prepare (the records|them) again"):
        load(records, cache_dir=tmp_path, settings=SMALL)


def test_no_slice_at_all_is_said(tmp_path):
    fixtures_luna16.write_scan(tmp_path, UIDS[2], 3)
    fixtures_luna16.write_annotations(tmp_path, {})
    with pytest.raises(InputError, match="none of 1 scans has a slice to read: .*1 scans have no nodule"):
        load(tmp_path, cache_dir=tmp_path / "cache", settings=SMALL)


def test_killed_preparation_is_never_taken_for_whole_and_goes_on(folder, tmp_path, monkeypatch):
    code = (
        "import os, signal; from auxseg.datasets.luna16 import layout; from auxseg.datasets.preparation import records\n"
        "read = layout.read_slices\n"
        "def stop(scan, *rest):\n"
        f"    if scan.uid == {UIDS[2]!r}: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return read(scan, *rest)\n"
        "layout.read_slices = stop\n"
        "s = layout.Settings(size_yx=(48, 48))\n"
        f"records.prepare({str(folder)!r}, cache_dir={str(tmp_path)!r}, settings=s)"
    )
    killed = subprocess.run([sys.executable, "-c", code], timeout=120, capture_output=True)
    assert killed.returncode == -signal.SIGKILL
    assert records_in(tmp_path) == [] and len(list(tmp_path.rglob(".partial*"))) == 1
    (pieces,) = tmp_path.rglob(".pieces-*")
    assert sorted(path.name for path in pieces.iterdir()) == [f"{uid}.npz" for uid in UIDS[:2]]
    content = bytearray((pieces / f"{UIDS[1]}.npz").read_bytes())
    content[2000] ^= 1  # of the image, as a disk may: noticed, and made anew
    (pieces / f"{UIDS[1]}.npz").write_bytes(content)
    read, seen = layout.read_slices, []
    monkeypatch.setattr(layout, "read_slices", lambda *a: seen.append(a[0].uid) or read(*a))
    dataset = load(folder, cache_dir=tmp_path, settings=Settings(size_yx=(48, 48)))
    assert len(dataset) == 3 and seen == [UIDS[2], UIDS[1]]
    assert [path.name for path in tmp_path.rglob(".*")] == []
    monkeypatch.undo()
    other = load(folder, cache_dir=tmp_path / "other", settings=Settings(size_yx=(48, 48)))
    np.testing.assert_array_equal(dataset.read(np.arange(3))[0], other.read(np.arange(3))[0])


def test_two_processes_prepare_one_after_the_other(folder, tmp_path):
    code = (
        "from auxseg.datasets.luna16 import layout; from auxseg.datasets.preparation import records; import sys, time\n"
        "read = layout.read_slices\n"
        "def slow(scan, *rest):\n"
        "    print('read', file=sys.stderr); time.sleep(0.2)\n"
        "    return read(scan, *rest)\n"
        "layout.read_slices = slow\n"
        "s = layout.Settings(size_yx=(48, 48))\n"
        f"d = records.load({str(folder)!r}, cache_dir={str(tmp_path)!r}, settings=s); print('cases', len(d))"
    )

    def run(_):
        return subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, encoding="utf-8", timeout=120
        )

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        done = list(pool.map(run, range(2)))
    assert [process.returncode for process in done] == [0, 0], done
    lines = [line for process in done for line in process.stderr.splitlines()]
    assert [process.stdout for process in done] == ["cases 3\n"] * 2
    assert lines.count("read") == 3  # by one of them, while the other waited
    assert len(records_in(tmp_path)) == 1


def test_overwrite_prepares_anew(folder, tmp_path):
    records = prepare(folder, cache_dir=tmp_path, settings=SMALL)
    before = (records / RECORDS_FILE).stat().st_mtime_ns
    time.sleep(0.01)
    assert prepare(folder, cache_dir=tmp_path, settings=SMALL, overwrite=True) == records
    assert (records / RECORDS_FILE).stat().st_mtime_ns > before


def test_split_of_several_files_is_read_in_order(folder, tmp_path, monkeypatch):
    whole = load(folder, cache_dir=tmp_path / "a", settings=SMALL)
    monkeypatch.setattr(builder, "SHARD_BYTES", 4 * 3 * 48 * 48)
    parts = load(folder, cache_dir=tmp_path / "b", settings=SMALL)
    assert len(list((tmp_path / "b").rglob("*subset0.array_record*"))) == 4  # of 14 slices
    for one, other in zip(whole.read(np.arange(14)), parts.read(np.arange(14)), strict=True):
        np.testing.assert_array_equal(one, other)


def test_no_more_than_one_scan_is_held(folder, tmp_path, monkeypatch):
    """A scan is read only after the piece of the one before was written, and taken up after its records were."""
    events = []
    read, write, take = layout.read_slices, luna16_pieces._write_examples, _read_examples
    add = builder.tfds.core.SequentialWriter.add_examples

    def noted(self, split_examples):
        def each(examples):
            for example in examples:
                yield example
                events.append(("recorded", example["series_uid"]))

        add(self, {name: each(examples) for name, examples in split_examples.items()})

    def note(name, function, uid_of):
        return lambda *a: events.append((name, uid_of(a))) or function(*a)

    monkeypatch.setattr(layout, "read_slices", note("read", read, lambda a: a[0].uid))
    monkeypatch.setattr(luna16_pieces, "_write_examples", note("written", write, lambda a: a[1].uid))
    monkeypatch.setattr(luna16_pieces, "_read_examples", note("taken", take, lambda a: a[1].uid))
    monkeypatch.setattr(builder.tfds.core.SequentialWriter, "add_examples", noted)
    prepare(folder, cache_dir=tmp_path, settings=Settings(size_yx=(48, 48)))
    first = [(what, uid) for uid in UIDS for what in ("read", "written")]
    assert events == first + [(what, uid) for uid in UIDS for what in ("taken", "recorded")]


def test_cache_folder_may_be_shared_by_readers(folder, tmp_path):
    """Reading complete records touches nothing, not even the lock."""
    prepare(folder, cache_dir=tmp_path, settings=SMALL)
    before = {path: os.stat(path).st_mtime_ns for path in tmp_path.rglob("*")}
    load(folder, cache_dir=tmp_path, settings=SMALL).read(np.arange(3))
    assert {path: os.stat(path).st_mtime_ns for path in tmp_path.rglob("*")} == before
