"""What a run is made of, without training it."""

import types

import fakes
import jax
import numpy as np
import pytest

from auxseg.base.errors import InputError
from auxseg.models import create_model
from auxseg.training import setup
from configs import base


def small(**changes):
    config = base.get_config()
    config.data.size = (16, 16)
    config.model.update({"base_width": 4, "depth": 1, "se_ratio": 2, "aux_width": 4, "lowering": "plain"})
    config.train.update(changes)
    return config


def test_outlines_of_the_held_out_series_alone_are_held_out():
    data = fakes.two_discs(6)
    members = {"train": np.array([0, 1, 2]), "val": np.array([3]), "test": np.array([4, 5])}
    assert setup._held_out_series(data, members) == {"case003", "case004", "case005"}


@pytest.mark.parametrize(("ratio", "width"), [(1, 16), (4, 4), (8, 2), (32, 1)])
def test_the_squeeze_is_as_wide_as_its_ratio_says(ratio, width):
    config = small()
    config.model.update({"base_width": 16, "se_ratio": ratio})
    shapes = jax.eval_shape(create_model(config.model).init, jax.random.key(0), np.zeros((1, 16, 16, 1)))
    assert shapes["params"]["encoder_0"]["se"]["squeeze"].shape == (16, width)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"freeze": ("encoder_9",), "init_from": "run"},
            "train.freeze: got 'encoder_9', expected one of 'aux'",
        ),
        (
            {"freeze": ("aux", "bottleneck", "decoder_0", "encoder_0", "mask", "up_0"), "init_from": "run"},
            "nothing is left to train",
        ),
    ],
)
def test_parts_that_cannot_be_frozen(changes, message):
    with pytest.raises(InputError, match=message):
        setup._check_frozen(small(**changes), setup.create_state(small()))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("loss.name", "dise", "loss.name: got 'dise', expected one of"),
        ("loss.name", "weighted_ce", "'weighted_ce' would be 'ce'"),
        ("model.name", "unett", "model.name: got 'unett', expected one of"),
        ("train.freeze", ("encoder_0",), "keeps the weights of train.init_from, which is not given"),
    ],
)
def test_what_cannot_be_is_said_before_data_are_read_or_a_run_is_begun(tmp_path, name, value, message):
    config, (group, field) = small(), name.split(".")
    config[group][field] = value
    with pytest.raises(InputError, match=message):
        setup.create_setup(config, tmp_path / "run")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("start", "freeze", "message"),
    [
        ("nowhere", (), "nowhere.config.json: no such file; is .* the workdir of a run"),
        ("narrow", (), "got shape .*, expected .*; the weights are of a network with other settings"),
        ("same", ("encoder_9",), "train.freeze: got 'encoder_9', expected one of 'aux'"),
    ],
)
def test_a_start_that_cannot_be_is_said_before_the_run_is_begun(
    tmp_path, monkeypatch, start, freeze, message
):
    monkeypatch.setattr(setup, "load_once", lambda config: fakes.two_discs(20))
    widths = {"same": 4, "narrow": 2}
    if start in widths:
        other = small()
        other.model.base_width = widths[start]
        weights = jax.device_get(setup.create_state(other).variables)
        trained = types.SimpleNamespace(variables=weights)
        monkeypatch.setattr(setup.networks, "read_trained", lambda source: trained)
    config = small(init_from=str(tmp_path / start), freeze=freeze)
    with pytest.raises(InputError, match=message):
        setup.create_setup(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_inserted_nodules_need_lungs():
    config = small()
    config.data.classes = ("background", "nodule")
    config.insert.enabled = True
    with pytest.raises(InputError, match="data.classes must name left_lung, right_lung and nodule"):
        setup.check_settings(config)
