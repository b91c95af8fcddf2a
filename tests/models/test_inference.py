"""Folded networks give the same masks."""

import dataclasses

import jax
import numpy as np
import pytest

from auxseg.models import NAMES, create_inference, create_model
from auxseg.models.aux_unet import AuxUNet
from auxseg.models.inference import FOLDED, choose_dtype, is_folded
from auxseg.models.kernels import build
from configs.base import get_config

IMAGES = np.random.default_rng(0).random((2, 16, 32, 1), np.float32)


@pytest.mark.parametrize(
    "changes", [{}, {"separable": False, "se": False}, {"lowering": "plain", "aux": False}], ids=str
)
def test_folded_network_gives_the_same_masks(changes):
    config = get_config().model.copy_and_resolve_references().unlock()
    config.update({"base_width": 4, "depth": 1, **changes})
    model = create_model(config)
    random = np.random.default_rng(1)
    variables = jax.tree.map(
        lambda x: x + random.uniform(0.1, 0.4, x.shape).astype(np.float32),
        jax.jit(model.init)(jax.random.key(0), IMAGES),
    )
    apply_fn, weights = create_inference(model, variables)
    expected = jax.jit(model.apply)(variables, IMAGES).mask_logits
    atol = 1e-5 * float(np.abs(expected).max())
    np.testing.assert_allclose(jax.jit(apply_fn)(weights, IMAGES), expected, rtol=1e-4, atol=atol)
    assert "aux" not in weights
    assert len(jax.tree.leaves(weights)) < len(jax.tree.leaves(variables["params"]))


def test_networks_that_fold_are_named_without_importing_them():
    config = get_config().model.copy_and_resolve_references().unlock()
    found = set()
    for config.name in NAMES:
        found |= {config.name} if is_folded(create_model(config)) else set()
    assert found == set(FOLDED) == {"aux_unet", "unet", "aux_unet3d"}


def test_a_subclass_runs_as_it_is():
    class Bright(AuxUNet):
        """Adds 1 to the mask's logits: folding would lose that."""

        def __call__(self, images, **how):
            outputs = super().__call__(images, **how)
            return outputs._replace(mask_logits=outputs.mask_logits + 1.0)

    config = get_config().model.copy_and_resolve_references().unlock()
    config.update({"base_width": 2, "depth": 1})
    plain = create_model(config)
    model = Bright(plain.settings)
    variables = model.init(jax.random.key(0), IMAGES)
    apply_fn, weights = create_inference(model, variables)
    expected = model.apply(variables, IMAGES).mask_logits
    np.testing.assert_array_equal(apply_fn(weights, IMAGES), expected)
    assert not np.allclose(expected, plain.apply(variables, IMAGES).mask_logits)


def test_prediction_takes_bfloat16_where_it_is_faster(monkeypatch):
    """A wide network, in kernels, on a processor with AMX."""

    def choose(unit="amx", **changes):
        monkeypatch.setattr(build, "find_unit", lambda: unit)
        config = get_config().model.copy_and_resolve_references().unlock()
        settings = create_model(config).settings
        return choose_dtype(dataclasses.replace(settings, **{"lowering": "kernels", **changes}))

    assert choose() == "bfloat16"
    assert choose(unit="vdpbf16ps") == choose(unit="none") == "float32"
    assert choose(base_width=16) == choose(separable=False) == choose(lowering="blocked") == "float32"
    assert choose(lowering="blocked", dtype="bfloat16") == "bfloat16"
