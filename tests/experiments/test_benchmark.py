"""What the benchmark says of its measurements; that it goes on without a peer that fails."""

import json

import jax
import numpy as np
import pytest
from PIL import Image

from auxseg.base.errors import InputError
from auxseg.models import create_model
from configs import base
from experiments.speed import benchmark, machine, prepare_cost, scan_cost
from experiments.speed.peers import run_epoch
from experiments.speed.peers.task import PAPER, Task, create_config

TASK = Task(32, 8, "float32", "")


def test_the_network_is_that_of_the_base_config():
    config = create_config(Task(320, 64, "float32", ""))
    model = base.get_config().model
    names = [*(name for name in PAPER if name != "num_classes"), "base_width", "dtype"]
    assert {name: getattr(config, name) for name in names} == {name: model[name] for name in names}
    assert PAPER["num_classes"] == len(base.get_config().data.classes)


def test_rows_by_name():
    assert benchmark.parse_rows(["train:8", "infer:1"]) == [("train", 8), ("infer", 1)]
    with pytest.raises(InputError, match="--rows: got 'fit', expected one of"):
        benchmark.parse_rows(["fit:8"])
    with pytest.raises(InputError, match="expected kind:batch size"):
        benchmark.parse_rows(["train:0"])


def test_medians_an_image_and_ratios():
    results = {
        "auxseg": {"seconds": [2.0, 4.0, 9.0], "losses": [], "peak_bytes": 5},
        "torch": {"seconds": [8.0, 8.0, 8.0], "losses": []},
        "flax": {"error": "out of memory"},
    }
    figures = benchmark.summarise("train", 2, results)
    assert figures["auxseg"] == {
        "median_s": 2.0,
        "least_s": 1.0,
        "turns": 3,
        "peak_bytes": 5,
        "times_auxseg": 1.0,
    }
    assert figures["torch"]["times_auxseg"] == 2.0
    assert figures["flax"] == {"error": "out of memory"}
    row = {"kind": "train", "batch": 2, "figures": figures}
    table = benchmark.format_table([row])
    assert (
        table[2]
        == "| training step, s an image, batch 2 | auxseg | 2 | 1 | 1.00 | " + table[2].split("| 1.00 | ")[1]
    )
    assert "out of memory" in table[4]


@pytest.mark.parametrize(("loss", "agrees"), [(1.0009, True), (1.0011, False), (float("nan"), False)])
def test_losses_must_agree(loss, agrees):
    results = {
        "auxseg": {"losses": [2.0, 1.0]},
        "torch": {"losses": [2.0, loss]},
        "flax": {"error": "not there"},
    }
    assert (benchmark.find_disagreement(results) is None) == agrees


def test_a_peer_that_fails_is_reported_and_the_others_go_on():
    """A worker that has no such implementation answers with its error; one that has ended is found out."""
    worker = benchmark.Worker("nothing", TASK)
    try:
        results = benchmark.measure_row([worker], "train", 2, 4)
        assert results == {"nothing": {"error": "KeyError: 'nothing'"}}
        worker.process.kill()
        worker.process.wait()
        assert worker.ask(run=True)["error"].startswith("the process ended")
    finally:
        worker.close()


def test_what_would_take_too_long_is_left_out():
    measured = [
        {"kind": "train", "batch": 2, "figures": {"flax": {"median_s": 6.0}, "torch": {"error": "x"}}}
    ]
    expected = benchmark._expected_seconds(measured, "train", 8)
    assert expected == {"flax": 48.0, "torch": float("inf")}

    class Never:
        name = "flax"

        def ask(self, **command):
            assert command == {"release": True}
            return {}

    results = benchmark.measure_row([Never()], "train", 8, 4, expected, turn_seconds=20.0)
    assert results == {"flax": {"error": "left out: a turn would take about 48 s"}}


def test_the_report_is_json_and_a_table(tmp_path):
    row = {
        "kind": "infer",
        "batch": 1,
        "void": None,
        "figures": benchmark.summarise("infer", 1, {"auxseg": {"seconds": [0.5], "losses": []}}),
    }
    report = {
        "machine": machine.describe_machine(),
        "left_out": {"torch": "torch is not installed"},
        "size": 320,
        "base_width": 64,
        "dtype": "float32",
        "rows": [row],
    }
    benchmark.write_report(report, tmp_path / "speed.json")
    assert json.loads((tmp_path / "speed.json").read_text(encoding="utf-8"))["rows"] == [row]
    text = (tmp_path / "speed.md").read_text(encoding="utf-8")
    assert "| inference, s an image, batch 1 | auxseg | 0.5 | 0.5 | 1.00 |" in text
    assert "Left out: torch (torch is not installed)." in text


def test_the_chart_shows_what_was_measured(tmp_path):
    results = {"auxseg": {"seconds": [0.5], "losses": []}, "flax": {"error": "left out"}}
    figures = benchmark.summarise("infer", 1, results)
    void = {"kind": "train", "batch": 2, "void": "losses", "figures": figures}
    once = {"kind": "feed", "batch": 8, "void": None, "figures": figures}
    report = {
        "machine": {"processor": "none", "cores": 2},
        "size": 320,
        "dtype": "float32",
        "rows": [{"kind": "infer", "batch": 1, "void": None, "figures": figures}, void, once],
    }
    path = tmp_path / "speed.json"
    path.write_text(json.dumps(report), encoding="utf-8")
    with Image.open(benchmark.draw(path)) as picture:
        assert picture.size == (396, 308)


def test_an_epoch_with_and_without_the_model(monkeypatch):
    monkeypatch.setattr(run_epoch, "NUM_IMAGES", 5)
    run_epoch.create_feed_epoch(TASK, 2)()
    model = create_model(create_config(TASK))
    variables = jax.jit(model.init)(jax.random.key(0), np.zeros((1, 32, 32, 1), np.float32))
    epoch = run_epoch.create_train_epoch(jax.device_get(variables), TASK, 2)
    assert epoch() > epoch() > 0


@pytest.fixture
def fake_cost(tmp_path, monkeypatch):
    """Replaces what is measured in a process of its own by a script that says what it was asked."""
    (tmp_path / "fake_cost.py").write_text(
        "import json, sys\n"
        "assert 'fail' not in sys.argv[1], 'no memory'\n"
        "print('so far')\n"
        "seconds = {'seconds_per_scan': 2.0, 'predict_seconds': 3.0}\n"
        "print(json.dumps({**seconds, 'peak_mib': 4, 'peak_mib_after': 5, 'asked': sys.argv[1]}))\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    for script in (prepare_cost, scan_cost):
        monkeypatch.setattr(script, "MODULE", "fake_cost")
    monkeypatch.setattr(prepare_cost, "write_scan", lambda folder: None)
    monkeypatch.setattr(prepare_cost, "link_folder", lambda *_: None)


def test_work_of_scripts_is_measured_in_processes_of_their_own(fake_cost):
    found = benchmark.measure_alone("scan", 60)["auxseg"]
    assert (found["seconds"], found["peak_bytes"]) == ([3.0], 5 * 2**20)
    assert found["details"]["asked"] == "--measure=60"
    found = benchmark.measure_alone("prepare", 8)["auxseg"]
    assert (found["seconds"], found["peak_bytes"]) == ([2.0], 4 * 2**20)
    assert found["details"]["asked"].endswith(",middle,8")


def test_a_script_that_fails_is_a_row_that_says_why(fake_cost):
    assert benchmark.measure_alone("scan", "fail") == {"auxseg": {"error": "AssertionError: no memory"}}


def test_the_peak_is_of_this_process():
    assert 10 < machine.peak_mib() < 100_000
