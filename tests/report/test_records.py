"""The records of a run: whole, unfinished, damaged."""

import made_up_run
import pytest

from auxseg.base.errors import InputError
from auxseg.runs import run_folder


def test_records_are_read(tmp_path):
    run = run_folder.read_records(made_up_run.write_workdir(tmp_path / "a"))
    assert run.name == "a" and len(run.epochs) == 7 and run.splits["test"][0] == "case_000"
    assert run.summary["best_epoch"] == 7


def test_a_run_that_goes_on(tmp_path):
    folder = made_up_run.write_workdir(tmp_path)
    (folder / "summary.json").unlink()
    with open(folder / "metrics.jsonl", "a") as handle:
        handle.write('{"epoch": 8, "half')
    run = run_folder.read_records(folder)
    assert run.summary == {} and len(run.epochs) == 7


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("config.json", None, "is .* the workdir of a run"),
        ("splits.json", "{", "cannot be read as JSON"),
        ("splits.json", '{"train": [["a"]], "val": []}', "expected lists of case ids by split"),
        ("summary.json", "[1]", "got a JSON list, expected an object"),
        ("summary.json", '{"epochs": 3, "best_epoch": "x"}', "best_epoch is 'x'; it is damaged"),
        ("versions.json", '{"packages": "jax"}', "packages is 'jax'; it is damaged"),
    ],
)
def test_damaged_records_are_one_clear_line(tmp_path, name, text, words):
    folder = made_up_run.write_workdir(tmp_path)
    if text is None:
        (folder / name).unlink()
    else:
        (folder / name).write_text(text)
    with pytest.raises(InputError, match=words) as error:
        run_folder.read_records(folder)
    assert name in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"epoch": 2', '"epocg": 2'),
        ('"epoch": 2', '"epoch": "2"'),
        ('"seconds": 3.0', '"seconds": NaN'),
        ('"learning_rate"', '"learning-rate"'),
        ('"train": {', '"train": [], "t": {'),
        ('"dice": {', '"dice": 5, "d": {'),
        ('"left_lung": 0.', '"left_lung": "x", "l": 0.'),
        ('"val": ', '"val" '),
    ],
)
def test_a_row_of_an_epoch_that_is_none_is_left_out_and_named(tmp_path, capsys, old, new):
    folder = made_up_run.write_workdir(tmp_path)
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    assert old in lines[1]
    lines[1] = lines[1].replace(old, new)
    (folder / "metrics.jsonl").write_text("".join(lines))
    assert [row["epoch"] for row in run_folder.read_records(folder).epochs] == [1, 3, 4, 5, 6, 7]
    assert "metrics.jsonl: line 2 is damaged and left out" in capsys.readouterr().out
