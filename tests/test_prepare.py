"""The command end to end: records and NPZ of a tiny LUNA16 folder, in its own process."""

import os
import pathlib
import signal
import subprocess
import sys

import fixtures_luna16
import numpy as np
import pytest
from absl.flags import FLAGS
from absl.testing import flagsaver

from auxseg.base import files
from auxseg.base.errors import InputError
from auxseg.datasets import npz
from auxseg.datasets.luna16 import layout
from auxseg.datasets.preparation.records import load
from auxseg.prepare import main

ROOT = pathlib.Path(__file__).parent.parent


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return fixtures_luna16.write_folder(tmp_path_factory.mktemp("luna16"))


def prepare(*flags, cache=None):
    environment = {**os.environ, "AUXSEG_CACHE": str(cache)}
    command = [sys.executable, "-m", "auxseg.prepare", *map(str, flags)]
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, encoding="utf-8", timeout=120
    )


def test_records_are_found_by_training_and_without_the_scans(folder, tmp_path):
    done = prepare(f"--data_dir={folder}", "--size=48,48", "--slices=lung", cache=tmp_path)
    assert done.returncode == 0, done.stderr
    settings = layout.Settings(size_yx=(48, 48), slices="lung")
    (records,) = (tmp_path / "luna16").glob("lung-*")
    assert done.stdout.splitlines() == [
        "subsets not there: 1, 2, 4, 5, 6, 7, 8, 9 of 0 to 9",
        f"31 slices of 3 scans in {records}",
        f"Train on them with --config.data.dir={folder} --config.data.slices=lung --config.data.size=48,48, or without "
        f"the scans with --config.data.dir={records} --config.data.slices=lung --config.data.size=48,48",
    ]
    before = (records / "records.json").stat().st_mtime_ns
    found = load(folder, cache_dir=tmp_path, settings=settings)
    alone = load(records, cache_dir=tmp_path / "none", settings=settings)
    assert (records / "records.json").stat().st_mtime_ns == before
    np.testing.assert_array_equal(found.read(np.arange(31))[0], alone.read(np.arange(31))[0])


@pytest.mark.parametrize("size", [None, "32,32"])
def test_npz_holds_what_the_records_hold(folder, tmp_path, size):
    flags = [f"--data_dir={folder}", "--format=npz", f"--output={tmp_path / 'npz'}", "--slices=nodule"]
    done = prepare(*flags, *([f"--size={size}"] if size else []))
    assert done.returncode == 0, done.stderr
    assert f"14 slices of 2 scans in {tmp_path / 'npz'}" in done.stdout
    from_npz = npz.read_npz(tmp_path / "npz", size_yx=(32, 32))
    settings = layout.Settings(size_yx=(32, 32), slices="nodule")
    records = load(folder, cache_dir=tmp_path / "cache", settings=settings)
    for one, other in zip(from_npz.read(np.arange(14)), records.read(np.arange(14)), strict=True):
        np.testing.assert_array_equal(one, other)
    for column in ("case_id", "series_uid", "patient", "subset", "slice_index", "num_nodules", "labels"):
        np.testing.assert_array_equal(getattr(from_npz.table, column), getattr(records.table, column))
    pixel_mm = 2.0 if size else 1.0
    np.testing.assert_allclose(from_npz.table.spacing_zyx_mm, [[2.5, pixel_mm, pixel_mm]] * 14)


def test_killed_npz_goes_on_and_another_process_waits_its_turn(folder, tmp_path, monkeypatch):
    flags = [f"--data_dir={folder}", "--format=npz", f"--output={tmp_path / 'npz'}", "--workers=1"]
    code = (
        "import os, signal, sys; from auxseg import prepare; from auxseg.base import command\n"
        "from auxseg.datasets.luna16 import layout\n"
        "read = layout.read_slices\n"
        "def stop(scan, *rest):\n"
        f"    if scan.uid == {fixtures_luna16.UIDS[2]!r}: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return read(scan, *rest)\n"
        "layout.read_slices = stop\n"
        "command.run(prepare.main)"
    )
    killed = subprocess.run([sys.executable, "-c", code, *flags], cwd=ROOT, capture_output=True, timeout=120)
    assert killed.returncode == -signal.SIGKILL
    (partial,) = tmp_path.iterdir()
    assert partial.name.startswith(".partial-npz-") and len(list(partial.glob("*.json"))) == 2
    read, seen = layout.read_slices, []
    monkeypatch.setattr(layout, "read_slices", lambda *a: seen.append(a[0].uid) or read(*a))
    with flagsaver.flagsaver():
        FLAGS(["prepare", *flags])
        with files.locked(partial, name="", hint=""), pytest.raises(InputError, match="another process"):
            main(["prepare"])
        main(["prepare"])
    assert seen == [fixtures_luna16.UIDS[2]]
    assert [path.name for path in tmp_path.iterdir()] == ["npz"]
    assert {path.suffix for path in (tmp_path / "npz").iterdir()} == {".npz", ".csv"}
    assert len(npz.read_npz(tmp_path / "npz", size_yx=(32, 32))) == 3


def test_npz_output_is_replaced_only_when_told_and_only_its_own(folder, tmp_path):
    flags = [f"--data_dir={folder}", "--format=npz", f"--output={tmp_path / 'npz'}"]
    assert prepare(*flags).returncode == 0
    refused = prepare(*flags)
    assert refused.returncode == 2 and "give --overwrite to replace it" in refused.stderr
    (tmp_path / "npz" / "thesis.txt").write_text("mine")
    refused = prepare(*flags, "--overwrite")
    assert refused.returncode == 2 and "holds more than .npz files" in refused.stderr
    (tmp_path / "npz" / "thesis.txt").unlink()
    assert prepare(*flags, "--overwrite").returncode == 0
    assert [path.name for path in tmp_path.iterdir()] == ["npz"]


@pytest.mark.parametrize("form", ["records", "npz"])
def test_bad_scans_are_one_line_each_and_can_be_skipped(tmp_path, form):
    folder = fixtures_luna16.write_folder(tmp_path / "luna")
    first, second, third = fixtures_luna16.UIDS
    raw = folder / "subset0" / f"{first}.raw"
    raw.write_bytes(raw.read_bytes()[:-100])
    (folder / "seg-lungs-LUNA16" / f"{second}.mhd").unlink()
    flags = [f"--data_dir={folder}", f"--format={form}", f"--output={tmp_path / 'out'}"]
    refused = prepare(*flags)
    assert refused.returncode == 2 and "Traceback" not in refused.stderr
    lines = refused.stdout.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith(f"cannot be used: {second}: has no mask")
    assert lines[1].startswith(f"cannot be used: {first}: ") and "is truncated" in lines[1]
    assert "2 of 3 scans cannot be used" in refused.stderr
    done = prepare(*flags, "--skip_bad_scans")
    assert done.returncode == 0, done.stderr
    assert sum(line.startswith("left out: ") for line in done.stdout.splitlines()) == 2
    assert "1 slices of 1 scans" in done.stdout


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--format=zip"], "--format: got 'zip', expected one of 'records', 'npz'"),
        ([], "/tfds/downloads/manual/luna16 does not exist; put subset0 ... subset9"),
        (["--data_dir=/nowhere"], "/nowhere does not exist"),
        (["--data_dir=/nowhere", "--size=big"], "--size: got 'big', expected ROWS,COLUMNS"),
        (["--data_dir=/nowhere", "--slices=some"], "data.slices: got 'some', expected one of 'middle'"),
        (["--data_dir=/nowhere", "--nodules=lidc"], "data.lidc: not given"),
        (["--data_dir=/nowhere", "--format=npz"], "--output: not given"),
        (["--data_dir=/nowhere", "--beam_options=--x"], "--beam_options: given without --beam"),
    ],
)
def test_wrong_flags_are_named(flags, message, monkeypatch):
    monkeypatch.delenv("AUXSEG_LUNA16", raising=False)
    monkeypatch.setenv("TFDS_DATA_DIR", "/tfds")
    with flagsaver.flagsaver(), pytest.raises(InputError) as caught:
        FLAGS(["prepare", *flags])
        main(["prepare"])
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_wrong_flag_ends_the_command_with_one_line():
    done = prepare("--format=zip")
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)
    assert "--format: got 'zip'" in done.stderr
