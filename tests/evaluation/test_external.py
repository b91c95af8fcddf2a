"""A run judged on another data set: all cases, none of patients that it learned from, in a folder of its own."""

import json
import subprocess
import sys

import fakes
import pytest

from auxseg.base import files
from auxseg.base.errors import InputError
from auxseg.datasets import npz
from auxseg.evaluation import evaluate_run, external
from auxseg.training import loop
from configs import base


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """Returns the workdir of a run of one epoch on 24 small slices, each of a patient of its own."""
    folder = tmp_path_factory.mktemp("external")
    config = base.get_config()
    with config.unlocked():
        config.data.name, config.data.size, config.data.split = "npz", (16, 16), "train_val_test"
        config.data.dir = str(fakes.write_npz(folder / "npz", fakes.two_discs(24, size=24)))
        config.model.base_width, config.model.depth, config.model.lowering = 4, 1, "plain"
        config.train.num_epochs, config.train.num_devices, config.eval.num_panels = 1, 1, 0
    loop.train(config, folder / "run", finish=evaluate_run.finish)
    return folder / "run"


def write_other(folder, workdir, *, new=3):
    """Writes six cases by other names, of which three are of patients of the run: one of train, of val and of test."""
    fakes.write_npz(folder, fakes.two_discs(6, size=24))
    splits = files.read_json(workdir / "splits.json")
    known = [splits[name][0] for name in ("train", "val", "test")]
    paths = sorted(folder.glob("*.npz"))
    for number, path in enumerate(paths):
        path.rename(folder / f"other_{number}.npz")
    patients = [*known, *(f"new_{number}" for number in range(new))][:6]
    rows = [{"id": f"other_{number}", "patient": patient} for number, patient in enumerate(patients)]
    files.write_csv(folder / "index.csv", rows)
    return known


def run_command(workdir, *flags):
    command = [sys.executable, "-m", "auxseg.evaluate", f"--workdir={workdir}", "--explain=none", *flags]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def test_cases_of_known_patients_are_left_out_and_the_run_stays_as_it_was(workdir, tmp_path):
    train, val, test = write_other(tmp_path / "other", workdir)
    before = {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()}
    done = run_command(workdir, f"--config.data.dir={tmp_path / 'other'}")
    assert done.returncode == 0, done.stderr
    (folder,) = (workdir / "external").iterdir()
    assert (
        folder.name.startswith("other-")
        and done.stdout.splitlines()[-1] == f"report: {folder / 'report' / 'index.html'}"
    )
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["left_out_patients"] == sorted([train, val]) and summary["cases"] == 4
    assert (
        summary["notes"][0]
        == f"left out, as the run has learned from them: {', '.join(sorted([train, val]))}"
    )
    rows = files.read_csv(folder / "cases.csv")
    assert [row["case_id"] for row in rows] == ["other_2", "other_3", "other_4", "other_5"]
    assert {row["split"] for row in rows} == {"external"} and rows[0]["patient"] == test
    text = (folder / "report" / "index.html").read_text()
    assert "left out, as the run has learned from them" in text and "Cases are in two splits" not in text
    assert {path: path.read_bytes() for path in before} == before


def test_without_the_run_s_data_its_cases_are_still_known(workdir, tmp_path):
    train, val, _ = write_other(tmp_path / "other", workdir)
    own = base.get_config().data
    with own.unlocked():
        own.name, own.dir, own.size = "npz", str(tmp_path / "gone"), (16, 16)
    dataset = npz.read_npz(tmp_path / "other", size_yx=(16, 16))
    kept, left_out, notes = external.leave_out_known(workdir, own, dataset)
    assert left_out == sorted([train, val]) and kept.tolist() == [2, 3, 4, 5]
    assert "known by the names of cases alone: data.dir: " in notes[1]


def test_only_known_patients_are_refused(workdir, tmp_path):
    splits = files.read_json(workdir / "splits.json")
    fakes.write_npz(tmp_path / "other", fakes.two_discs(2, size=24))
    rows = [{"id": path.stem, "patient": splits["train"][0]} for path in (tmp_path / "other").glob("*.npz")]
    files.write_csv(tmp_path / "other" / "index.csv", rows)
    dataset = npz.read_npz(tmp_path / "other", size_yx=(16, 16))
    config = base.get_config().data
    with config.unlocked():
        config.name, config.dir, config.size = "npz", str(workdir.parent / "npz"), (16, 16)
    with pytest.raises(InputError, match="has learned from all 1 patients"):
        external.leave_out_known(workdir, config, dataset)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (["data.dir", "data.size"], "--config.data.size: belongs to the run"),
        (["model.base_width"], "--config.model.base_width: belongs to the run"),
        (["data.slices"], "--config.data.slices: given without --config.data.dir"),
    ],
)
def test_settings_that_belong_to_the_network_stay(changed, message):
    with pytest.raises(InputError, match=message):
        external.check_changes(dict.fromkeys(changed), None)


def test_what_says_which_data_may_be_given():
    config = base.get_config()
    with config.unlocked():
        config.data.meanings = ("background", "left_lung+nodule", "right_lung")
    given = dict.fromkeys(["data.name", "data.dir", "data.label_map", "data.phantom.seed"])
    assert external.check_changes({**given, "data.meanings": None}, config).data.meanings
    assert (
        external.check_changes(given, config).data.meanings == ()
    )  # what the run's labels mean is no other's
