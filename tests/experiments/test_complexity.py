"""What is counted: the paper's formulas, each network's multiply-accumulates, XLA's own count."""

import json

import jax
import jax.numpy as jnp
import pytest

from auxseg.report import macs
from configs import base
from experiments.checks import complexity
from experiments.studies import comparators


@pytest.fixture(scope="module")
def config():
    return base.get_config()


def test_the_papers_formulas():
    assert complexity.se_formula(320, 320, 64, 8) == 6_555_648
    assert complexity.attention_formula(320, 320, 64) == 1_684_275_200
    assert round(1_684_275_200 / 6_555_648) == 257


def test_xla_counts_what_the_formulas_count():
    """At 16 x 16 x 64: a multiplication with its addition counts as two, so the ratio stays."""
    se, attention, gate = complexity.compare_attention((16, 16, 64))
    assert se["formula"] == 16 * 16 * 64 + 2 * 1024
    assert se["program"] == pytest.approx(2 * 16 * 16 * 64 + 2 * 2 * 64 * 8, rel=0.02)
    assert attention["program"] == pytest.approx(2 * attention["formula"], rel=0.02)
    # Two 1x1 convolutions from C to C / 2 and one to 1, and the product.
    assert gate["program"] == pytest.approx(16 * 16 * (2 * 64 * 64 + 2 * 32), rel=0.1)
    assert all(row["compiled"] == pytest.approx(row["program"], rel=0.05) for row in (se, attention, gate))


def test_macs_of_the_papers_network_by_two_ways(config):
    """From the program, and from the shapes of its weights; 11.83 GMAC."""
    model = comparators.create_network(config, comparators.SYSTEMS["aux_unet"], 64)
    images = jax.ShapeDtypeStruct((1, 320, 320, 1), jnp.float32)
    params = jax.eval_shape(model.init, jax.random.key(0), images)["params"]
    leaves = jax.tree_util.tree_leaves_with_path(params)
    shapes = {"/".join(key.key for key in path): leaf.shape for path, leaf in leaves}
    found = macs.trace_macs(model, size_yx=(320, 320))
    assert sum(found.values()) == macs.count_macs(shapes, size_yx=(320, 320), depth=4) == 11_832_580_608
    assert found["encoder_0/unit_1"] == 320 * 320 * 64 * (9 + 64)
    assert found["up_0"] == 160 * 160 * 128 * 4 * 64 and found["encoder_0/se"] == 2 * 64 * 8


def test_networks_are_described_by_layer(config, tmp_path):
    """The parameters of the layers sum to the network's; XLA's count is near two a multiply-accumulate."""
    names = ("aux_unet", "unet3d", "bidirectional_unet")
    systems = {name: comparators.SYSTEMS[name] for name in names}
    rows = complexity.describe_all(config, systems, size=32)
    assert [(row["name"], row["size"]) for row in rows] == [
        ("aux_unet", "published"),
        ("unet3d", "published"),
        ("unet3d", "matched"),
        ("bidirectional_unet", "published"),
        ("bidirectional_unet", "matched"),
    ]
    for row in rows:
        assert sum(layer["parameters"] for layer in row["layers"]) == row["trainable"]
        assert sum(layer["macs"] for layer in row["layers"]) == row["macs"]
        # At this size much of a 3D kernel lies on the padding, which XLA leaves out.
        assert 0.5 < row["program_operations"] / (2 * row["macs"]) < 1.2
    attention = complexity.compare_attention((8, 8, 64))
    page = complexity.write_complexity(tmp_path, rows, attention, size=32)
    text = page.read_text(encoding="utf-8")
    assert "6,577,217" in text and "5,605,444" in text and "| mask | 260 |" in text
    assert json.loads((tmp_path / "complexity.json").read_text(encoding="utf-8"))["networks"] == rows


def test_matched_widths_are_the_nearest_to_the_papers_size(config):
    """One channel more or less is further from 6,577,217."""

    def count(system, width):
        model = comparators.create_network(config, system, width)
        images = jax.ShapeDtypeStruct((1, 32, 32, system.slices), jnp.float32)
        return sum(
            leaf.size for leaf in jax.tree.leaves(jax.eval_shape(model.init, jax.random.key(0), images))
        )

    system = comparators.SYSTEMS["unet"]
    apart = [abs(count(system, width) - 6_577_217) for width in (28, 29, 30)]
    assert min(apart) == apart[1]
