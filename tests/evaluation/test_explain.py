"""Grad-CAM and channel scales of a small network: by hand where that is simple."""

import types

import jax
import numpy as np
import pytest

from auxseg import models
from auxseg.base.errors import InputError
from auxseg.evaluation import explain
from auxseg.models import blocks
from auxseg.report import figures

SIZE = (32, 32)


@pytest.fixture(scope="module")
def network():
    return create()


@pytest.fixture(scope="module")
def explain_fn(network):
    return explain.create_explain_fn(network[0])


@pytest.fixture(scope="module")
def found(network, explain_fn):
    return explain_case(explain_fn, network[1])


def create(**changes):
    settings = {
        "name": "aux_unet",
        "base_width": 8,
        "depth": 2,
        "num_classes": 4,
        "separable": True,
        "se": True,
        "se_ratio": 8,
        "aux": True,
        "aux_width": 16,
        "dtype": "float32",
        "bn_momentum": 0.99,
        "bn_epsilon": 1e-3,
        "lowering": "auto",
        "dropout": 0.5,
        "deep_supervision": True,
        "gate": "additive",
    }
    model = models.create_model(types.SimpleNamespace(**settings | changes))
    return model, jax.jit(model.init)(jax.random.key(0), np.zeros((1, *SIZE, 1), np.float32))


def make_case():
    image = np.random.default_rng(0).normal(-600, 300, SIZE).astype(np.int16)
    reference = np.zeros(SIZE, np.uint8)
    reference[8:20, 10:16] = 3
    return image, reference


def explain_case(explain_fn, variables, class_name="nodule"):
    image, reference = make_case()
    return explain.explain(
        explain_fn,
        variables,
        image=image,
        reference=reference,
        window_hu=(-1000.0, 400.0),
        class_name=class_name,
        case_id="a",
    )


def test_maps_of_every_layer(found):
    assert list(found.maps) == ["aux head (bottleneck)", "bottleneck", "decoder_1", "decoder_0"]
    for heat in found.maps.values():
        assert heat.shape == SIZE and heat.min() >= 0 and heat.max() <= 1
    assert any(heat.max() == 1 for heat in found.maps.values())


def test_map_of_the_last_layer_by_hand(network, explain_fn):
    """The mask head is linear in decoder_0: a channel's mean gradient is its weight by the pixels' share."""
    model, variables = network
    image, reference = make_case()
    scaled = np.clip((image.astype(np.float32) + 1000) / 1400, 0, 1)
    pixels = (reference == 3).astype(np.float32)
    maps, _ = explain_fn(variables, scaled, pixels, 3)
    read = jax.jit(lambda images: explain._read_features(model, variables, images)["mask"][0])
    features = read(scaled[None, ..., None])
    weights = variables["params"]["mask"]["kernel"][:, 3] * pixels.mean()
    np.testing.assert_allclose(maps["decoder_0"], features @ weights, rtol=1e-4, atol=1e-6)


def read_unit(model, variables, images):
    """Returns float [1, h, w, C], what the squeeze-and-excitation of encoder_1 reads."""
    _, stored = model.apply(
        variables,
        images,
        train=False,
        mutable=["intermediates"],
        capture_intermediates=lambda module, _: module.name == "unit_1",
    )
    return blocks.activate(stored["intermediates"]["encoder_1"]["unit_1"]["__call__"][0])


def test_scales_are_those_of_squeeze_and_excitation(network):
    model, variables = network
    scaled = np.full((1, *SIZE, 1), 0.3, np.float32)
    scales = jax.jit(lambda images: explain._read_scales(model, variables, images))(scaled)
    assert set(scales) == {"encoder_0", "encoder_1", "bottleneck", "decoder_1", "decoder_0"}
    images = jax.jit(lambda images: read_unit(model, variables, images))(scaled)
    weights = variables["params"]["encoder_1"]["se"]
    hidden = np.maximum(images.mean((1, 2)) @ weights["squeeze"] + weights["squeeze_bias"][None], 0)
    expected = 1 / (1 + np.exp(-(hidden @ weights["excite"] + weights["excite_bias"][None])))[0]
    alive = np.isfinite(scales["encoder_1"])
    assert alive.any()
    np.testing.assert_allclose(scales["encoder_1"][alive], expected[alive], rtol=1e-4)


def test_network_without_se_and_aux():
    model, variables = create(se=False, aux=False, depth=1)
    found = explain_case(explain.create_explain_fn(model), variables, "left_lung")
    assert list(found.maps) == ["bottleneck", "decoder_0"] and found.se_scales == {}
    assert "all pixels" in found.caption
    assert figures.to_png(figures.draw_explanation(found)).startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("name", "changes"),
    [("attention_res_unet", {"lung_first": True}), ("unet_plus_plus", {}), ("bidirectional_unet", {})],
)
def test_other_networks(name, changes):
    """The same layers as in a U-Net; of two stages those of the second."""
    model, variables = create(name=name, base_width=4, depth=2 if name == "unet_plus_plus" else 1, **changes)
    found = explain_case(explain.create_explain_fn(model), variables)
    expected = (
        ["bottleneck", "decoder_1", "decoder_0"] if name == "unet_plus_plus" else ["bottleneck", "decoder_0"]
    )
    assert list(found.maps) == expected and found.se_scales == {}
    assert explain.can_explain(name) and not explain.can_explain("unet3d")
    assert any(heat.max() == 1 for heat in found.maps.values())


def test_figure_with_scales(found):
    assert figures.to_png(figures.draw_explanation(found)).startswith(b"\x89PNG")


def test_unknown_class_is_refused():
    with pytest.raises(InputError, match="expected one of 'background', 'left_lung'"):
        explain_case(None, None, "heart")
