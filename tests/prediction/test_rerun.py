"""Tests of running predict again, into its own input, on copies and on parts of the scans."""

import csv
import errno
import json
import os
import shutil

import chest
import dicom_files
import fake_network
import numpy as np
import pytest

from auxseg import predict
from auxseg.base import files
from auxseg.base.errors import InputError
from auxseg.ct import find, inflate
from auxseg.prediction import done, outputs
from auxseg.prediction import rows as rows_lib

VOLUME = chest.draw((9, 48, 56))


def _run(path, output, **kwargs):
    return outputs.predict(path, output, [fake_network.create((56, 56))], **kwargs)


def _status(rows):
    return [(row["scan"], row["status"]) for row in rows if row["status"] != "skipped"]


def _write(path, shift=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, image=np.roll(VOLUME, shift, 1))


@pytest.mark.parametrize("formats", [("nii.gz",), ("nrrd", "npz"), ("mha", "nii")])
@pytest.mark.parametrize("count", [1, 2])
def test_its_own_masks_are_no_scans(tmp_path, formats, count):
    for number in range(count):
        _write(tmp_path / f"case{number}.npz", number)
    first = _run(tmp_path, tmp_path, formats=formats)
    again = _run(tmp_path, tmp_path, formats=formats)
    assert [row["scan"] for row in again if row["status"] == "done before"] == [row["scan"] for row in first]
    (skipped,) = [row for row in again if row["status"] == "skipped"]
    assert skipped["reason"] == "a result of auxseg" and skipped["files"] >= 4 * count


def test_masks_of_a_stopped_run_are_no_scans(tmp_path):
    """prediction.json comes last: without it the mask's own words tell."""
    _write(tmp_path / "case.npz")
    for form in ("nii.gz", "nrrd", "mha", "nii", "npz"):
        _run(tmp_path / "case.npz", tmp_path / form, formats=(form,))
        (tmp_path / form / "prediction.json").unlink()
    assert [source.name for source in find.find_scans(tmp_path)] == ["case"]


def test_a_dicom_seg_beside_its_scan(tmp_path):
    dicom_files.write_series(tmp_path, chest.draw(), spacing_zyx=(6, 6, 6))
    assert _status(_run(tmp_path, tmp_path, formats=("dicom-seg",)))[0][1] == "done"
    rows = _run(tmp_path, tmp_path, formats=("dicom-seg",))
    assert rows[0]["status"] == "done before"
    assert any("no images of a patient (SEG)" in row["reason"] for row in rows)


def test_a_copy_is_the_same_scan_and_other_values_are_not(tmp_path):
    _write(tmp_path / "a.npz")
    _run(tmp_path / "a.npz", tmp_path / "out")
    os.utime(tmp_path / "a.npz", (1, 1))
    assert _run(tmp_path / "a.npz", tmp_path / "out")[0]["status"] == "done before"
    _write(tmp_path / "a.npz", 5)
    with pytest.raises(InputError, match="differs in input; .*--overwrite"):
        _run(tmp_path / "a.npz", tmp_path / "out")
    assert _run(tmp_path / "a.npz", tmp_path / "out", overwrite=True)[0]["status"] == "done"
    assert _run(tmp_path / "a.npz", tmp_path / "out")[0]["status"] == "done before"


def test_a_scan_alone_that_fails_is_in_the_table(tmp_path):
    """With what was skipped; where a former prediction stands, its own row stays."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in/notes.txt").write_text("x")
    (tmp_path / "in/case.nii").write_bytes(b"no header")
    with pytest.raises(InputError):
        _run(tmp_path / "in", tmp_path / "out")
    found = files.read_cells(tmp_path / "out/scans.csv")
    assert [(row["scan"], row["status"]) for row in found] == [("case", "failed"), ("notes.txt", "skipped")]
    assert "its first bytes are no header" in found[0]["reason"]
    _write(tmp_path / "in/case.npz")
    (tmp_path / "in/case.nii").unlink()
    _run(tmp_path / "in", tmp_path / "out")
    _write(tmp_path / "in/case.npz", 3)
    with pytest.raises(InputError, match="differs in input"):
        _run(tmp_path / "in", tmp_path / "out")
    assert files.read_cells(tmp_path / "out/scans.csv")[0]["status"] == "done"


@pytest.mark.parametrize("name", ["a.nii.gz", "a.npz"])
def test_a_full_disk_is_the_output_s(tmp_path, monkeypatch, name):
    """Not the scan's, which is unpacked there."""

    def no_room(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(inflate, "inflate_nifti" if name.endswith("gz") else "inflate_npz", no_room)
    (tmp_path / name).touch()
    with pytest.raises(InputError, match="^--output: .*/out: No space left on device; .*make room"):
        _run(tmp_path / name, tmp_path / "out")
    assert [one.name for one in (tmp_path / "out").iterdir()] == ["scans.csv"]


def test_overwrite_leaves_no_mask_of_before(tmp_path):
    _write(tmp_path / "a.npz")
    _run(tmp_path / "a.npz", tmp_path / "out", formats=("nrrd",))
    _run(tmp_path / "a.npz", tmp_path / "out", formats=("mha",), overwrite=True)
    assert not (tmp_path / "out" / "mask.nrrd").exists() and (tmp_path / "out" / "mask.mha").exists()


def test_neither_the_scan_nor_a_strangers_mask_is_replaced(tmp_path):
    _write(tmp_path / "mask.npz")
    with pytest.raises(InputError, match="is the scan itself"):
        _run(tmp_path / "mask.npz", tmp_path, formats=("npz",), overwrite=True)
    _write(tmp_path / "a.npz")
    with pytest.raises(InputError, match="not by auxseg"):
        _run(tmp_path / "a.npz", tmp_path, formats=("npz",))


def test_names_do_not_shift(tmp_path):
    """The name of a scan is the same whatever lies beside it."""
    names = ["a_b.npz", "a b.npz", "x/scan.npz", "y/scan.npz", "a:b.npz", "Ä.npz"]
    alone = []
    for name in names:
        _write(tmp_path / "one" / name)
        alone += [source.name for source in find.find_scans(tmp_path / "one")]
        shutil.rmtree(tmp_path / "one")
        _write(tmp_path / "all" / name)
    found = {
        str(one.path.relative_to(tmp_path / "all")): one.name for one in find.find_scans(tmp_path / "all")
    }
    assert [found[name] for name in names] == alone and len(set(alone)) == len(names)
    assert alone[:4] == ["a_b", "a b", "x-scan", "y-scan"]


def test_names_that_differ_in_suffix_alone(tmp_path):
    for name in ("a.npz", "a.nii.gz", "A.mha"):
        (tmp_path / name).write_bytes(b"")
    assert sorted(one.name for one in find.find_scans(tmp_path)) == ["A-mha", "a-nii.gz", "a-npz"]


def test_parts_are_the_whole(tmp_path):
    for number in range(5):
        _write(tmp_path / "in" / f"case{number}.npz", number)
    (tmp_path / "in" / "readme.txt").write_text("no scan")
    parts = [_run(tmp_path / "in", tmp_path / "out", part=(k, 3)) for k in (1, 2, 3)]
    assert [[name[-1] for name, _ in _status(rows)] for rows in parts] == [["0", "3"], ["1", "4"], ["2"]]
    assert sorted(one.name for one in (tmp_path / "out").glob("*.csv")) == [
        f"scans-{k}-of-3.csv" for k in (1, 2, 3)
    ]
    rows = _run(tmp_path / "in", tmp_path / "out")
    assert {status for _, status in _status(rows)} == {"done before"}
    assert not list((tmp_path / "out").glob(".*"))


def test_parts_have_as_many_scans_whatever_lies_beside_them(tmp_path):
    for name in "abcd":
        for end in (".mha", "_lungs.nii.gz"):
            (tmp_path / f"{name}{end}").write_bytes(b"")
    sources = find.find_scans(tmp_path)
    parts = [[one.name for one in outputs.take_part(sources, (k, 2))] for k in (1, 2)]
    assert parts == [["a", "a_lungs", "c", "c_lungs"], ["b", "b_lungs", "d", "d_lungs"]]


@pytest.mark.parametrize("text", ["0/3", "4/3", "1", "a/b", "1/0", "-1/2"])
def test_a_part_that_is_none(text):
    with pytest.raises(InputError, match="--part: got"):
        predict.read_part(text)
    assert predict.read_part("3/8") == (3, 8)


def test_everything_handed_in_is_in_the_table(tmp_path, capsys):
    """Two series of a patient, another patient in the same folder, a text, a zip without a scan, a bad file."""
    folder = tmp_path / "in"
    volume = chest.draw()
    dicom_files.write_series(folder / "flat", volume, spacing_zyx=(6, 6, 6), prefix="A")
    dicom_files.write_series(folder / "flat", volume[::2], spacing_zyx=(12, 6, 6), number=9, prefix="B")

    def edit(one, index):
        one.PatientID = "P2"

    dicom_files.write_series(folder / "flat", volume, spacing_zyx=(6, 6, 6), edit=edit, prefix="C")
    (folder / "readme.txt").write_text("no scan")
    (folder / "bad.nii.gz").write_bytes(b"no scan at all")
    shutil.make_archive(str(tmp_path / "VIEWER"), "zip", folder, "readme.txt")
    shutil.move(tmp_path / "VIEWER.zip", folder / "VIEWER.ZIP")
    rows = _run(folder, tmp_path / "out")
    assert _status(rows) == [("bad", "failed"), ("flat-P2", "done"), ("flat-T1", "done")]
    skipped = {row["scan"]: row["reason"] for row in rows if row["status"] == "skipped"}
    assert skipped == {
        "readme.txt": "no scan", "VIEWER.ZIP": "a zip without a scan", "series 9 of flat-T1": "12 places"
    }  # fmt: skip
    with open(tmp_path / "out" / "scans.csv", newline="", encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    assert [row["status"] for row in table] == [row["status"] for row in rows]
    by_name = {row["scan"]: row for row in table}
    assert by_name["flat-T1"]["series_number"] == "3" and by_name["flat-T1"]["files"] == "24"
    assert by_name["series 9 of flat-T1"]["series_uid"].startswith(dicom_files.STUDY)
    assert rows_lib.print_rows(rows, tmp_path / "out") == 1
    printed = capsys.readouterr().out
    assert (
        "skipped: series 9 of flat-T1 'CHEST, Torso'" in printed
        or "skipped: series 9 of flat-T1 'CHEST'" in printed
    )
    assert "skipped: readme.txt" in printed and "2 of 3 scans done" in printed


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("findings", ["x"]),
        ("findings", {"a": 1}),
        ("skipped", [{"name": "a", "path": "b", "reason": "c", "files": 1, "series": "d"}]),
        ("lungs_ml", [1.0]),
        ("lungs_ml", ["1", "2"]),
        ("others_ml", [1]),
        ("files", [["mask.nii.gz"]]),
        ("series", {"number": "3"}),
        ("settings", None),
    ],
)
def test_a_damaged_prediction_json_is_one_line(tmp_path, name, value):
    sound = {
        "settings": {},
        "findings": [],
        "skipped": [],
        "lungs_ml": [1.5, None],
        "others_ml": {"airway": 2},
        "series": {},
    }
    (tmp_path / "prediction.json").write_text(json.dumps(sound))
    assert done.read_about(tmp_path) == sound
    (tmp_path / "prediction.json").write_text(json.dumps(sound | {name: value}))
    with pytest.raises(
        InputError, match=f"prediction.json: {name} is none of auxseg's.*remove it and start again"
    ):
        done.read_about(tmp_path)
