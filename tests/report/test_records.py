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
        ("summary.json", "[1]", "got a JSON list, expected an object"),
        ("metrics.jsonl", "{]\n", "line 1 cannot be read as JSON"),
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
