"""The scaling study: its measurement on two devices, and its numbers on paper by hand."""

import dataclasses

import numpy as np
import pytest

from auxseg import models
from experiments.speed import scaling


def test_two_devices_agree_with_one(monkeypatch):
    monkeypatch.setattr(scaling, "SIZE", 16)
    monkeypatch.setattr(scaling, "WIDTH", 4)
    monkeypatch.setattr(scaling, "DEPTH", 1)
    one, two = scaling.measure((1, 2), turns=2)
    assert (one["devices"], two["devices"], one["step_time_ratio"]) == (1, 2, 1.0)
    for name in ("loss", "statistics", "parameters", "moments"):
        assert one[name] == 0 and two[name] <= scaling.TOLERANCE
    assert two["step_time_ratio"] > 0


def test_a_difference_is_seen():
    sums = dataclasses.make_dataclass("Sums", ["loss", "weight"])
    state = dataclasses.make_dataclass("State", ["batch_stats", "params", "opt_state"])
    one = state([np.zeros(2)], [np.zeros(2), np.ones(1)], [np.zeros(0)])
    other = state([np.zeros(2)], [np.zeros(2), np.full(1, 1.5)], [np.zeros(0)])
    found = scaling.compare((one, sums(8.0, 4.0)), (other, sums(6.0, 4.0)))
    assert found == {"loss": 0.5, "statistics": 0.0, "parameters": 0.5, "cancelled": 0.0, "moments": 0.0}


def test_a_step_on_paper_by_hand():
    about = scaling.Assumptions(
        step_bytes_per_image=100.0, memory_bytes_per_s=100.0, reached=0.5, fixed_s=1.0, parameters=25,
        norm_channels=3, norm_layers=2, link_bytes_per_s=100.0, network_bytes_per_s=10.0,
        link_latency_s=0.25, network_latency_s=0.5, image_bytes=7, disk_bytes_per_s=7.0,
    )  # fmt: skip
    one, node, two = (scaling.predict_step(gpus, 2, about) for gpus in (1, 8, 16))
    assert one["compute_s"] == 1.0 + 2 * 2.0 == one["step_s"] and one["gradient_bytes"] == 0
    assert node["gradients_s"] == 2 * 7 / 8 * 1.0 + 0.25 and node["norm_s"] == 4 * 0.25
    assert two["gradients_s"] == 1.75 + 2 * 0.5 * 100 / 8 / 10 + 0.5 and two["norm_s"] == 4 * 0.5
    assert two["input_bytes"] == 32 * 7 and two["disk_s"] == 16.0 and two["norm_bytes"] == 48


def test_rows_on_paper():
    rows = scaling.predict()
    fixed = [row for row in rows if row["batch"] == "batch of 8"]
    assert [row["gpus"] for row in fixed] == [1, 8]  # no GPU has less than one image
    assert all(0 < row["efficiency"] <= 1 for row in rows)
    assert next(row for row in rows if row["images"] == 512)["steps_per_epoch"] == [2, 176]
    lines = scaling.format_tables(
        [
            {
                "devices": 1,
                "loss": 0.0,
                "statistics": 0.0,
                "parameters": 0.0,
                "cancelled": 0.0,
                "moments": 0.0,
                "step_time_ratio": 1.0,
            }
        ],
        rows,
    )
    assert sum(line.startswith("| ") for line in lines) == 2 + 1 + len(rows)
    assert "reached=0.6" in "\n".join(lines)


def test_assumptions_are_those_of_the_network():
    """The counts are of the paper's network; batch norms as the model makes them."""
    import jax
    import jax.numpy as jnp

    from configs import base

    model = models.create_model(base.get_config().model)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 320, 320, 1)))
    sizes = [leaf.size for leaf in jax.tree.leaves(shapes["params"])]
    statistics = [leaf.size for leaf in jax.tree.leaves(shapes["batch_stats"])]
    assert sum(sizes) == scaling.ASSUMPTIONS.parameters
    assert (sum(statistics), len(statistics)) == pytest.approx(
        (2 * scaling.ASSUMPTIONS.norm_channels, 2 * scaling.ASSUMPTIONS.norm_layers)
    )
