"""What is saved comes back bit by bit; what is damaged is found, and the one before it is taken."""

import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from auxseg.base.errors import InputError
from auxseg.runs import checkpoints
from auxseg.runs.state import TrainState
from auxseg.training import loop, optim, steps

ROOT = pathlib.Path(__file__).parents[2]


def make_state(step, seed=0):
    generator = np.random.default_rng(seed + step)
    params = {"a": {"kernel": generator.normal(size=(3, 4)).astype(np.float32)}, "b": np.float32([1, 2])}
    statistics = {"a": {"mean": generator.normal(size=4).astype(np.float32)}}
    optimizer = optim.create_optimizer(beta1=0.9, beta2=0.999, epsilon=1e-7)
    made = TrainState(np.asarray(step, np.int32), params, statistics, optimizer.init(params))
    return jax.device_get(made)


def make_sums(value=0.0):
    return jax.tree.map(
        lambda x: np.asarray(x + np.asarray(value, x.dtype)), jax.device_get(steps.empty_sums(4))
    )


def assert_same(one, other):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert np.asarray(a).dtype == np.asarray(b).dtype
        np.testing.assert_array_equal(a, b)


def save(workdir, *numbers):
    for number in numbers:
        checkpoints.save_latest(
            workdir, state=make_state(number), sums=make_sums(-1), progress={"epoch": number}
        )


def restore(workdir):
    return checkpoints.restore_latest(workdir, state=make_state(0), sums=make_sums())


def files_of(workdir, number):
    found = [p for p in (workdir / "checkpoints" / "latest" / str(number)).rglob("*") if p.is_file()]
    return sorted(found, key=lambda p: p.stat().st_size)


def test_round_trip(tmp_path):
    assert restore(tmp_path) is None
    save(tmp_path, 3, 6)
    found, sums, progress = restore(tmp_path)
    assert_same(found, make_state(6))
    assert_same(sums, make_sums(-1))
    assert progress == {"epoch": 6} and isinstance(found, TrainState)


def test_two_are_kept(tmp_path):
    save(tmp_path, 1, 2, 3, 4)
    assert sorted(p.name for p in (tmp_path / "checkpoints/latest").iterdir()) == ["3", "4"]
    assert sorted(p.name for p in (tmp_path / "checkpoints").glob("*.json")) == [
        "latest-3.sha256.json",
        "latest-4.sha256.json",
    ]


@pytest.mark.parametrize("damage", ["flip", "truncate", "delete", "add", "manifest", "no manifest"])
def test_damage_is_found_and_the_one_before_is_taken(tmp_path, damage, caplog):
    save(tmp_path, 1, 2)
    largest = files_of(tmp_path, 2)[-1]
    manifest = tmp_path / "checkpoints" / "latest-2.sha256.json"
    content = bytearray(largest.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 1
        largest.write_bytes(content)
    elif damage == "truncate":
        largest.write_bytes(content[:-1])
    elif damage == "delete":
        largest.unlink()
    elif damage == "add":
        (largest.parent / "stranger").write_bytes(b"x")
    elif damage == "manifest":
        manifest.write_text(manifest.read_text(encoding="utf-8")[:-20])
    else:
        manifest.unlink()
    found, _, progress = restore(tmp_path)
    assert progress == {"epoch": 1}
    assert_same(found, make_state(1))
    assert "latest checkpoint 2" in caplog.text and "trying the one before" in caplog.text
    save(tmp_path, 2)  # the run repeats the epoch and saves it again
    assert restore(tmp_path)[2] == {"epoch": 2}


def test_nothing_intact_is_an_error_not_a_new_start(tmp_path):
    save(tmp_path, 1, 2)
    for number in (1, 2):
        files_of(tmp_path, number)[-1].write_bytes(b"")
    with pytest.raises(InputError, match="none of the 2 latest checkpoints is intact"):
        restore(tmp_path)


def test_best_weights_without_the_rest(tmp_path):
    with pytest.raises(InputError, match="no checkpoint in it"):
        checkpoints.restore_best(tmp_path)
    state = make_state(5)
    checkpoints.save_best(tmp_path, step=5, variables=state.variables, progress={"epoch": 1})
    variables, progress = checkpoints.restore_best(tmp_path)
    assert_same(variables, state.variables)
    assert progress == {"epoch": 1} and checkpoints.best_step(tmp_path) == 5
    names = [p.name for p in (tmp_path / "checkpoints/best/5").iterdir()]
    assert "training" not in names


def test_reading_writes_nothing(tmp_path):
    state = make_state(5)
    checkpoints.save_best(tmp_path, step=5, variables=state.variables, progress={"epoch": 1})
    before = {p: p.stat().st_mtime_ns for p in pathlib.Path(tmp_path).rglob("*")}
    checkpoints.restore_best(tmp_path)
    assert {p: p.stat().st_mtime_ns for p in pathlib.Path(tmp_path).rglob("*")} == before


def test_weights_of_another_network_are_named():
    got, expected = make_state(0).variables, make_state(0).variables
    got["params"]["a"]["kernel"] = np.zeros((3, 5), np.float32)
    with pytest.raises(InputError, match=r"\['kernel'\] in runs/x: got shape \(3, 5\), expected \(3, 4\)"):
        checkpoints.match_variables(got, expected, where="runs/x")
    del got["params"]["a"]
    with pytest.raises(InputError, match=r"got shape None, expected \(3, 4\)"):
        checkpoints.match_variables(got, expected, where="runs/x")


def test_a_full_disk_is_one_line(tmp_path):
    """Orbax and its threads would print a hundred lines beside it."""
    code = (
        "import pathlib, resource, signal, sys\n"
        "import numpy as np\n"
        "from auxseg.base.errors import InputError\n"
        "from auxseg.runs import checkpoints\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))\n"
        "weights = {'params': {'a': np.random.rand(1 << 18).astype(np.float32)}, 'batch_stats': {}}\n"
        "try:\n"
        "    checkpoints.save_best(pathlib.Path(sys.argv[1]), step=1, variables=weights, progress={'epoch': 1})\n"
        "except InputError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, cwd=ROOT)
    assert "could not be saved: File too large" in done.stdout and done.stdout.count("\n") == 1
    assert "Traceback" not in done.stderr, done.stderr


def test_a_forged_checkpoint_is_one_line(tmp_path):
    state = make_state(3)
    forged = state._replace(opt_state=(np.zeros(2, np.float32),))
    checkpoints.save_latest(tmp_path, state=forged, sums=make_sums(), progress={"epoch": 3})
    with pytest.raises(InputError, match="latest checkpoint 3 holds is not of this network and optimiser"):
        restore(tmp_path)
    checkpoints.save_best(tmp_path, step=3, variables=state.variables, progress=["epoch"])
    with pytest.raises(InputError, match="best checkpoint 3 names no epoch"):
        checkpoints.restore_best(tmp_path)
    whole = jax.tree.map(lambda x: np.zeros(x.shape, np.int64), state.variables)
    with pytest.raises(InputError, match="no floating-point numbers"):
        checkpoints.match_variables(whole, state.variables, where="there")
    stood = loop.Position(3, optim.Schedule(0.001)).to_json()
    assert loop.Position.from_json(stood).epoch == 3
    for forged in ({"epoch": 3}, stood | {"schedule": stood["schedule"] | {"stop_best": "x"}}):
        with pytest.raises(InputError, match="where its run stood cannot be read"):
            loop.Position.from_json(forged)


def test_what_is_no_checkpoint_beside_them_is_passed_over(tmp_path):
    (tmp_path / "checkpoints/best/\u00b2").mkdir(parents=True)
    (tmp_path / "checkpoints/best-x.sha256.json").write_text("{}")
    checkpoints.save_best(tmp_path, step=3, variables=make_state(3).variables, progress={"epoch": 1})
    assert checkpoints.best_step(tmp_path) == 3


def test_a_forged_checkpoint_beside_a_new_one_is_one_line(tmp_path):
    variables = make_state(3).variables
    checkpoints.save_best(tmp_path, step=3, variables=variables, progress={"epoch": 1})
    (tmp_path / "checkpoints/best/3/_CHECKPOINT_METADATA").write_text('{"item_handlers": 5}')
    with pytest.raises(
        InputError, match="best checkpoint 4 could not be saved: ValueError: .*; the ones before"
    ):
        checkpoints.save_best(tmp_path, step=4, variables=variables, progress={"epoch": 2})
