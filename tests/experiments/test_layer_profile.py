"""The profile by layer: every layer, in its own shapes, with its multiply-adds."""

import jax
import jax.numpy as jnp
import pytest

from auxseg.models import create_model
from auxseg.report import macs
from experiments.speed import layer_profile
from experiments.speed.peers.task import Task, create_config

TASK = Task(32, 4, "float32", "")


@pytest.fixture(scope="module")
def calls():
    model = create_model(create_config(TASK))
    images = jax.ShapeDtypeStruct((2, 32, 32, 1), jnp.float32)
    return layer_profile.create_calls(model, layer_profile.record_layers(model, images))


def test_every_layer_is_there(calls):
    """4 levels down with 2 units, SE and pooling, the bottleneck, 4 up with one layer more, and two heads."""
    assert len(calls) == 4 * 4 + 3 + 4 * 4 + 2
    counted = macs.trace_macs(create_model(create_config(TASK)), size_yx=(32, 32))
    assert set(counted) <= set(calls)
    assert set(calls) - set(counted) == {f"encoder_{level}/pool" for level in range(4)}


def test_shapes_are_those_of_the_network(calls):
    function, variables, signals = calls["decoder_1/unit_0"]
    assert [signal.values.shape for signal in signals] == [(2, 16, 16, 8), (2, 16, 16, 8)]
    assert jax.eval_shape(function, variables, signals).values.shape == (2, 16, 16, 8)
    function, variables, signal = calls["encoder_0/pool"]
    assert jax.eval_shape(function, variables, signal).shape == (2, 16, 16, 4)


def test_a_layer_is_measured(calls):
    forward, both = layer_profile.measure(calls["encoder_3/unit_0"], turns=1)
    assert forward > 0 and both > 0


def test_table():
    row = {"layer": "up_0", "forward_s": 0.01, "gradient_s": 0.02, "macs": 10**9}
    row |= {"forward_gflop_per_s": 200.0, "gradient_gflop_per_s": 200.0}
    report = {
        "machine": {"processor": "P", "cores": 2},
        "limits": {"product_tflop_per_s": 0.5, "copy_gb_per_s": 10.0},
        "batch": 2,
        "size": 320,
        "base_width": 64,
        "lowering": "kernels",
        "layers": [row],
        "train_step_s": 0.04,
        "inference_s": 0.02,
    }
    text = layer_profile.to_markdown(report)
    assert "| up_0 | 10.0 | 100.0% | 200 | 20.0 | 100.0% | 200 |" in text
    assert "training step: 40 ms, 10 ms more than its layers" in text
    assert "150 GFLOP/s, 30% of the product" in text and "20 ms, 100 GFLOP/s, 20% of the product" in text
