"""The study of a recipe's parts: what counts as a part, and what each arm sets back."""

import re

import pytest
from test_runner import calls, npz, small_protocol  # noqa: F401

from auxseg.base.errors import InputError
from configs import base, recommended
from experiments.nodules import window_config
from experiments.studies import parts, runner


def test_a_part_is_what_the_recipe_changes_and_not_how_long_it_trains():
    config = runner.override(
        window_config.get_config(), {"train.order_seed": 7, "augment.shift_fraction": 0.3}
    )
    assert parts.list_parts(config) == {
        "augment.enabled": False,
        "optim.cosine_epochs": 0,
        "train.bn_refresh_batches": 0,
    }


def test_the_recommended_recipe_lists_its_parts_and_has_no_others():
    config = recommended.get_config()
    named = set(re.findall(r"^\* `(.+?)`", recommended.__doc__, re.MULTILINE))
    assert named == set(parts.list_parts(config)) != set()


def test_each_arm_sets_one_part_back_to_the_papers():
    config = window_config.get_config()
    arms = parts.create_arms(config)
    assert list(arms) == [
        "whole",
        "no_optim.cosine_epochs",
        "no_train.bn_refresh_batches",
        "no_augment.enabled",
        "none",
    ]
    for changes in arms.values():
        left = parts.list_parts(runner.override(config, changes))
        assert left.keys() == parts.list_parts(config).keys() - changes.keys()
    titles = parts.create_titles(arms, config)
    assert titles["no_optim.cosine_epochs"] == "optim.cosine_epochs=0, not 14"
    weighted = runner.override(config, {"loss.class_weights": (1.0, 5.0)})
    titles = parts.create_titles(parts.create_arms(weighted), weighted)
    assert titles["no_loss.class_weights"] == "loss.class_weights=1.0, not 1.0,5.0"
    found = parts.create_effects(titles)
    assert [effect.key for effect in found] == [arm for arm in titles if arm != "whole"]
    assert all(
        effect.weights["the whole recipe"] == 1 and sum(effect.weights.values()) == 0 for effect in found
    )


def test_a_start_and_what_of_it_stands_still_are_one_part():
    changes = {"train.init_from": "runs/start", "train.freeze": ("encoder_0",), "train.max_minutes": 2.0}
    arms = parts.create_arms(runner.override(base.get_config(), changes))
    assert arms == {"whole": {}, "no_train.init_from": {"train.init_from": None, "train.freeze": ()}}


def test_arms_are_compared_with_the_whole(npz):  # noqa: F811
    with pytest.raises(InputError, match="--arms: got none, expected whole among them"):
        parts.STUDY.plan(small_protocol(npz), only=("none",))


def test_the_papers_own_settings_have_no_parts():
    with pytest.raises(InputError, match="--config: it adds nothing"):
        parts.create_arms(base.get_config())


def test_a_study_runs_the_arms_of_each_seed(npz, tmp_path, calls):  # noqa: F811
    protocol = small_protocol(npz, seeds=(1, 2))
    with protocol.config.unlocked():
        protocol.config.loss.aux_weight = 0.1
    parts.STUDY.run(protocol, tmp_path)
    names = [f"{arm}-f0-s{seed}" for seed in (1, 2) for arm in ("whole", "no_loss.aux_weight")]
    assert calls == names  # without its one part it is the paper's
    text = (tmp_path / "summary.md").read_text(encoding="utf-8")
    assert "| loss.aux_weight=0.3, not 0.1 |" in text
