"""Files: whole or not at all, one line for what cannot be read or written, one holder of a folder."""

import json
import os
import pathlib
import threading
import time

import numpy as np
import pytest

from auxseg.base import files
from auxseg.base.errors import InputError

ROOT = pathlib.Path(__file__).parents[2]


def full(*_):
    raise OSError(28, "No space left on device")


def test_a_file_has_another_name_until_it_is_whole(tmp_path):
    path = tmp_path / "new" / "a.bin"
    with files.write_whole(path) as file:
        file.write(b"half")
        assert os.listdir(path.parent) == [f".a.bin.{os.getpid()}.part"]
    assert os.listdir(path.parent) == ["a.bin"] and path.read_bytes() == b"half"


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_full_disk_leaves_the_former_file_and_nothing_else(step, tmp_path, monkeypatch):
    path = tmp_path / "summary.json"
    files.write_json(path, {"a": 1})
    monkeypatch.setattr(os, step, full)
    with pytest.raises(
        InputError, match=r"summary.json: cannot be written \(No space left on device\); check"
    ):
        files.write_json(path, {"a": 2})
    assert json.loads(path.read_text(encoding="utf-8")) == {"a": 1}
    assert os.listdir(tmp_path) == ["summary.json"]


def test_another_fault_while_writing_leaves_nothing(tmp_path):
    with pytest.raises(KeyError), files.write_whole(tmp_path / "a.bin"):
        raise KeyError("a")
    assert os.listdir(tmp_path) == []


def test_a_file_in_the_way_of_the_folder_is_one_line(tmp_path):
    (tmp_path / "a").write_text("")
    with pytest.raises(InputError, match="a/b.txt: cannot be written"):
        files.write_text(tmp_path / "a" / "b.txt", "x")


def test_a_folder_takes_the_place_of_the_former_one(tmp_path):
    for name in ("new", "old"):
        files.write_text(tmp_path / name / "sub" / f"{name}.txt", name)
    files.replace_folder(tmp_path / "new", tmp_path / "old")
    assert os.listdir(tmp_path) == ["old"] and os.listdir(tmp_path / "old" / "sub") == ["new.txt"]


def test_json_has_no_nan_and_no_numpy(tmp_path):
    files.write_json(
        tmp_path / "a.json", {"a": np.float32(0.5), "b": (np.nan, np.arange(2)), 3: float("inf")}
    )
    assert files.read_json(tmp_path / "a.json") == {"a": 0.5, "b": [None, [0, 1]], "3": None}


def test_one_process_holds_a_folder_and_leaves_no_lock(tmp_path):
    with files.locked(tmp_path / "new", name="--output", hint="give another") as folder:
        assert folder == tmp_path / "new" and os.listdir(folder) == [files.LOCK]
        with pytest.raises(
            InputError, match="--output .*new: another process is working in it; .*, or give another"
        ):
            with files.locked(folder, name="--output", hint="give another"):
                pass
    assert os.listdir(folder) == []


def test_who_waits_for_a_folder_gets_the_lock_that_is_there_then(tmp_path):
    """The one before removes its lock: the one that waited for that file must lock the next, not the removed one."""
    events = []

    def hold(name):
        with files.locked(tmp_path, name="cache", hint="", wait=True):
            events.append(f"{name} in")
            time.sleep(0.05)
            events.append(f"{name} out")

    with files.locked(tmp_path, name="cache", hint=""):
        threads = [threading.Thread(target=hold, args=(name,)) for name in "abc"]
        for thread in threads:
            thread.start()
        time.sleep(0.1)
        assert events == []
    for thread in threads:
        thread.join(30)
    assert len(events) == 6
    assert all(events[at].split()[0] == events[at + 1].split()[0] for at in (0, 2, 4))


def test_tables_come_back_as_they_were_or_have_few_digits(tmp_path):
    rows = [{"case_id": "007", "a": 0.1 + 0.2, "b": None}, {"case_id": "x, y", "a": np.nan, "c": 3}]
    files.write_csv(tmp_path / "a.csv", rows)
    text = 'case_id,a,b,c\n007,0.30000000000000004,,\n"x, y",,,3\n'
    assert (tmp_path / "a.csv").read_text(encoding="utf-8") == text
    found = files.read_csv(tmp_path / "a.csv")
    assert found[0]["case_id"] == "007" and found[0]["a"] == 0.1 + 0.2 and found[1]["c"] == 3.0
    files.write_csv(tmp_path / "few.csv", rows, digits=6)
    assert (tmp_path / "few.csv").read_text(encoding="utf-8").splitlines()[1] == "007,0.3,,"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "cannot be read as CSV .*No such file"),
        ("uid\na\n", "has no column area, expected uid, area; copy it"),
        ("uid,area\na,1\nb\n", "line 3: got another number of cells"),
        ('uid,area\n"a"b,1\n', "cannot be read as CSV"),
        (b"uid,area\n\xff,1\n", "cannot be read as CSV"),
    ],
)
def test_damaged_tables_are_one_line(text, words, tmp_path):
    path = tmp_path / "a.csv"
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=f"a.csv.*{words}"):
        files.read_cells(path, ("uid", "area"), hint="copy it")


def test_columns_are_there_without_rows(tmp_path):
    files.write_csv(tmp_path / "a.csv", [], ("uid", "x"))
    assert (tmp_path / "a.csv").read_text(encoding="utf-8") == "uid,x\n"
    files.write_csv(tmp_path / "none.csv", [])
    assert not (tmp_path / "none.csv").exists()


def test_a_byte_order_mark_is_no_part_of_a_name(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbfid,n\r\nx,1\r\n")
    assert files.read_cells(tmp_path / "a.csv", ("id",)) == [{"id": "x", "n": "1"}]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "a.json: no such file; ask"),
        ("{", "a.json: cannot be read as JSON .*; ask"),
        ("[" * 100_000, "a.json: cannot be read as JSON .*; ask"),
        ("[1]", "a.json: got a JSON list, expected an object; ask"),
    ],
)
def test_damaged_json_is_one_line(text, words, tmp_path):
    if text is not None:
        (tmp_path / "a.json").write_text(text)
    with pytest.raises(InputError, match=words):
        files.read_object(tmp_path / "a.json", hint="ask")


def test_a_folder_that_others_may_write_is_not_private(tmp_path):
    files.make_private(tmp_path / "new")
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o700
    (tmp_path / "new").chmod(0o770)
    with pytest.raises(OSError, match="others may write there"):
        files.make_private(tmp_path / "new")


def test_a_name_that_is_no_text_is_written_by_its_bytes(tmp_path):
    files.write_csv(tmp_path / "a.csv", [{"scan": "M\udcfcller"}])
    assert (tmp_path / "a.csv").read_text() == "scan\nM\\udcfcller\n"
