"""The measurements for a GPU run through, at a small size on a CPU, and read what they measured rightly."""

import json
import pathlib
import time
import types

from experiments.speed import gpu


def test_all_stages_have_a_command_and_a_file(tmp_path):
    stages = gpu.list_stages(gpu.PAPER, tmp_path)
    assert list(stages) == ["steps_bfloat16", "run", "profile", "steps_float32", "deterministic"]
    arguments, path = stages["steps_bfloat16"]
    assert "--rows=train:8,train:64,infer:1" in arguments and "--dtype=bfloat16" in arguments
    assert f"--json={path}" in arguments
    assert "--rows=epoch:8" in stages["run"][0] and "--repeats=34" in stages["run"][0]
    assert "--deterministic" in stages["deterministic"][0]


def test_a_stage_that_fails_or_has_no_time_says_so(tmp_path):
    found = gpu.run_stage(["experiments.speed.gpu", "--no_such_flag"], tmp_path / "none.json", 60)
    assert "no_such_flag" in found["error"]
    assert gpu.run_stage(["json"], tmp_path / "none.json", 0) == {"error": "left out: the time was used up"}


def test_a_stage_takes_its_own_processes_with_it_when_its_time_is_up(tmp_path, monkeypatch):
    (tmp_path / "slow_stage.py").write_text(
        "import pathlib, subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "pathlib.Path(sys.argv[1]).write_text(str(child.pid))\n"
        "time.sleep(60)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    found = gpu.run_stage(["slow_stage", str(tmp_path / "pid")], tmp_path / "none.json", 5)
    assert found == {"error": "ended after 5 s: the time was used up"}
    child = int((tmp_path / "pid").read_text())
    for _ in range(100):
        status = pathlib.Path(f"/proc/{child}/status")
        if not status.exists() or "zombie" in status.read_text():
            return
        time.sleep(0.05)
    raise AssertionError(f"process {child} goes on")


def test_the_run_is_its_epochs_the_first_with_compilation():
    raw = {"auxseg": {"first_seconds": 9.0, "seconds": [1.0, 2.0, 4.0]}}
    found = gpu.summarise_run({"rows": [{"raw": raw}]})
    assert found == {"epochs": 3, "seconds": 12.0, "first_seconds": 9.0}
    assert gpu.summarise_run({"error": "out of memory"}) == {"error": "out of memory"}


def test_kernels_by_time():
    def event(name, nanoseconds):
        return types.SimpleNamespace(name=name, duration_ns=nanoseconds)

    def plane(name, **lines):
        made = [types.SimpleNamespace(name=key, events=value) for key, value in lines.items()]
        return types.SimpleNamespace(name=name, lines=made)

    planes = [
        plane("/host:CPU", python=[event("call", 1e9)]),
        plane("/device:GPU:0", Stream_1=[event("conv", 3e6), event("add", 3e6), event("conv", 6e6)], XLA=[event("step", 1e9)]),
    ]  # fmt: skip
    first, second = gpu.list_kernels(planes)
    assert (first["kernel"], second["kernel"]) == ("conv", "add")
    assert abs(first["share"] - 0.75) < 1e-9 and abs(first["seconds_a_step"] - 3e-3) < 1e-9


def test_the_profile_of_a_small_network(tmp_path):
    gpu.profile(gpu.Sizes(16, 4, (1, 1), 4, 1), tmp_path / "profile.json")
    kernels = json.loads((tmp_path / "profile.json").read_text())["kernels"]
    assert kernels and all(kernel["seconds_a_step"] >= 0 for kernel in kernels)
