"""Every config loads, is locked, and differs from base in what its docstring promises."""

import importlib
import pathlib

import jax
import pytest

from auxseg import models
from auxseg.runs import run_folder, state
from auxseg.training import setup
from configs import base

NAMES = sorted(
    p.stem for p in (pathlib.Path(__file__).parent.parent / "configs").glob("*.py") if p.stem != "__init__"
)
CHANGES = {
    "base": set(),
    "seed1": set(),
    "seed2": {"seed", "data.split_seed", "train.order_seed"},
    "seed3": {"seed", "data.split_seed", "train.order_seed"},
    "no_se": {"model.se"},
    "no_aux": {"model.aux"},
    "plain": {"model.se", "model.aux"},
}


def load(name):
    return importlib.import_module(f"configs.{name}")


def changes(name):
    ours, theirs = (run_folder.config_to_dict(load(n).get_config()) for n in (name, "base"))
    return {difference.split(":")[0] for difference in run_folder.list_differences(theirs, ours)}


@pytest.mark.parametrize("name", NAMES)
def test_config_loads_is_locked_and_can_be_run(name):
    module = load(name)
    config = module.get_config()
    assert config.is_locked
    with pytest.raises(AttributeError):
        config.model.typo = 1
    setup.check_settings(config)
    models.create_model(config.model)
    assert f"--config=configs/{name}.py" in module.__doc__


@pytest.mark.parametrize("name", NAMES)
def test_config_changes_few_settings_and_no_others_than_it_says(name):
    found = changes(name)
    assert found == CHANGES[name] if name in CHANGES else len(found) <= 16


@pytest.mark.parametrize(
    ("name", "count"),
    [("base", 6_577_217), ("no_se", 6_137_681), ("no_aux", 6_445_501), ("plain", 6_005_965)],
)
def test_parameters_of_the_ablations(name, count):
    """SE costs 439,536 parameters, the auxiliary head 131,716 (section 4 prints the total)."""
    config = load(name).get_config()
    shapes = jax.eval_shape(lambda: setup.create_initial_state(config))
    assert state.count_values(shapes.variables) == count


def test_seeds_of_the_paper_differ_in_split_and_initialisation():
    configs = [load(f"seed{i}").get_config() for i in (1, 2, 3)]
    assert [c.seed for c in configs] == [c.data.split_seed for c in configs] == [1, 2, 3]
    assert all(c.data.split == "paper" and c.data.slices == "middle" for c in configs)
    assert base.get_config().data.size == (320, 320)
