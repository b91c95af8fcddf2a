"""Several processes, or Apache Beam, prepare what one does; a worker that dies is replaced, or named."""

import functools
import importlib.util
import pathlib
import subprocess
import sys

import fixtures_luna16
import numpy as np
import pytest
from fixtures_luna16 import UIDS

from auxseg.base.errors import InputError
from auxseg.ct import images as ct_images
from auxseg.datasets.luna16 import layout
from auxseg.datasets.preparation import pieces
from auxseg.datasets.preparation.records import prepare, read_records

SETTINGS = layout.Settings(size_yx=(48, 40), slices="nodule")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Returns the tiny LUNA16 folder with the lungs of a mask exchanged, and one scan that cannot be used."""
    folder = fixtures_luna16.write_folder(tmp_path_factory.mktemp("luna16"))
    path = folder / "seg-lungs-LUNA16" / f"{UIDS[0]}.mhd"
    volume, geometry = ct_images.read_volume(path), ct_images.read_geometry(path)
    swapped = np.where(volume == 3, 4, np.where(volume == 4, 3, volume)).astype(np.int16)
    ct_images.write_volume(path, swapped, geometry)
    fixtures_luna16.write_scan(folder, "1.2.840.4", 4)
    with open(folder / "annotations.csv", "a", encoding="utf-8") as file:
        file.write("1.2.840.4,15.5,0.0,15.0,8.0\n")
    path = folder / "seg-lungs-LUNA16" / "1.2.840.4.mhd"
    volume, geometry = ct_images.read_volume(path), ct_images.read_geometry(path)
    ct_images.write_volume(path, volume + np.int16(1), geometry)
    return folder


@pytest.fixture(scope="module")
def by_one(folder, tmp_path_factory):
    return load(folder, tmp_path_factory.mktemp("one"), pieces.write_all)


def load(folder, cache, write_all):
    records = prepare(folder, cache_dir=cache, settings=SETTINGS, skip_bad_scans=True, write_all=write_all)
    assert [path.name for path in cache.rglob(".*")] == []
    return read_records(records, settings=SETTINGS, skip_bad_scans=True)


def assert_same(one, other):
    assert one.notes == other.notes
    rows = np.arange(len(one))
    for a, b in zip(one.read(rows), other.read(rows), strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(one.table.case_id, other.table.case_id)
    np.testing.assert_array_equal(one.read_native_mask(0), other.read_native_mask(0))


def start_instead(monkeypatch, code):
    """Has workers begin with `code`."""
    start = subprocess.Popen

    def popen(command, **settings):
        main = "from auxseg.datasets.preparation import worker; worker.main()"
        return start([sys.executable, "-c", f"{code}\n{main}"], **settings)

    monkeypatch.setattr(pieces.subprocess, "Popen", popen)


def test_one_says_what_is_wrong(by_one):
    assert len(by_one) == 14
    assert f"{UIDS[0]}: the mask had the lungs on the wrong sides of the patient; swapped" in by_one.notes
    assert sum(note.startswith("left out: 1.2.840.4: mask values: got 1, ") for note in by_one.notes) == 1


def test_workers_prepare_the_same_and_one_that_dies_is_replaced(folder, by_one, tmp_path, monkeypatch):
    """The first worker that comes to the second scan kills itself; whoever comes to it again does not."""
    code = f"""
import os, pathlib, signal
from auxseg.datasets.luna16 import layout
read, mark = layout.read_slices, pathlib.Path({str(tmp_path / "mark")!r})
def read_or_die(scan, *rest):
    if scan.uid == {UIDS[1]!r} and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return read(scan, *rest)
layout.read_slices = read_or_die
"""
    start_instead(monkeypatch, code)
    write_all = functools.partial(pieces.write_all, num_workers=2)
    assert_same(load(folder, tmp_path / "cache", write_all), by_one)
    assert (tmp_path / "mark").exists()


def test_worker_that_dies_again_is_named_with_its_scan(folder, tmp_path, monkeypatch):
    start_instead(monkeypatch, "import sys; sys.exit(1)")
    write_all = functools.partial(pieces.write_all, num_workers=2)
    with pytest.raises(InputError, match="preparing 1.2.840..: a process died of it twice"):
        load(folder, tmp_path / "cache", write_all)
    assert not list(tmp_path.rglob("*.array_record*"))


def test_what_keeps_a_worker_from_writing_is_one_clear_line(folder, tmp_path):
    job = pieces.Job("records", str(folder), SETTINGS, str(tmp_path / "file" / "place"))
    (tmp_path / "file").write_text("")
    scans, nodules_of = pieces.open_job(job)
    with pytest.raises(InputError, match="preparing 1.2.840..: .*npz: cannot be written .Not a directory"):
        list(pieces.write_all(job, list(scans.values())[:2], nodules_of, num_workers=2))


def test_job_survives_its_line():
    settings = layout.Settings(size_yx=(8, 9), nodules="lidc", lidc="a b")
    job = pieces.Job("npz", "in", settings, "out", (3, 4))
    assert pieces.Job.from_json(job.to_json()) == job and "\n" not in job.to_json()


def test_number_of_workers(monkeypatch):
    monkeypatch.setattr(pieces.os, "sched_getaffinity", lambda _: range(6), raising=False)
    assert [pieces.default_workers(n) for n in (1, 8, 24, 888)] == [1, 2, 6, 6]
    monkeypatch.setattr(pieces.os, "sched_getaffinity", lambda _: range(64), raising=False)
    assert pieces.default_workers(888) == pieces.MAX_WORKERS


@pytest.mark.skipif(
    importlib.util.find_spec("apache_beam") is None, reason="the extra 'beam' is not installed"
)
def test_beam_prepares_the_same(folder, by_one, tmp_path):
    from auxseg.datasets.preparation import beam

    assert_same(load(folder, tmp_path / "cache", beam.write_all), by_one)


@pytest.mark.skipif(
    importlib.util.find_spec("apache_beam") is not None, reason="the extra 'beam' is installed"
)
def test_without_beam_the_extra_is_named(folder, tmp_path):
    from auxseg.datasets.preparation import beam

    with pytest.raises(InputError, match=r"Apache Beam is not installed .* pip install 'auxseg\[beam\]'"):
        load(folder, tmp_path / "cache", beam.write_all)


@pytest.mark.parametrize("left_out", [True, False])
def test_what_a_pipeline_leaves_is_read(folder, tmp_path, left_out):
    """Without Beam: what each of its workers does, and what is made of it."""
    from auxseg.datasets.preparation import beam

    job = pieces.Job("records", str(folder), SETTINGS, str(tmp_path))
    scans, nodules_of = pieces.open_job(job)
    if left_out:
        with pytest.raises(InputError, match="has left 1.2.840.1 out"):
            beam._read_problem(job, UIDS[0])
        return
    for uid in (UIDS[0], UIDS[0], "1.2.840.4"):
        beam.write_one(job, scans[uid], nodules_of)
    assert beam._read_problem(job, UIDS[0]) is None
    assert beam._read_problem(job, "1.2.840.4").startswith("mask values: got 1, ")
    assert [path.name for path in pathlib.Path(tmp_path).iterdir()] == [f"{UIDS[0]}.npz"]
