"""The networks of Table 2: counts, gradients, padding, devices, and their own parts by hand."""

import types
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from auxseg.base.errors import InputError
from auxseg.models import NAMES, create_inference, create_model, initial
from auxseg.models.compared import attention_res_unet, bidirectional_unet, parts, unet3d
from auxseg.training import steps
from configs.base import get_config

IMAGES = np.random.default_rng(0).random((4, 16, 16, 1), np.float32)
COMPARATORS = [name for name in NAMES if not name.startswith("aux_unet")]
PUBLISHED = {
    "unet": (64, 31_054_340),
    "unet3d": (32, 5_605_444),
    "bidirectional_unet": (64, 28_585_220),
    "attention_res_unet": (64, 32_815_224),
    "unet_plus_plus": (32, 9_056_688),
    "attention_unet": (64, 31_407_800),
}
MATCHED = {
    "unet": (29, 6_383_890),
    "unet3d": (35, 6_704_884),
    "bidirectional_unet": (31, 6_710_543),
    "attention_res_unet": (29, 6_750_392),
    "unet_plus_plus": (27, 6_450_208),
    "attention_unet": (29, 6_457_753),
}


def config_of(name, **changes):
    config = get_config().model.copy_and_resolve_references().unlock()
    config.update({"name": name, "depth": 3 if name == "unet3d" else 4, **changes})
    return config


def small(name, num_classes=4, **changes):
    return create_model(config_of(name, **{"base_width": 2, "depth": 2, **changes}), num_classes=num_classes)


def images_of(name):
    """Returns a batch; for the 3D network slabs of three slices."""
    return np.concatenate([IMAGES, IMAGES[:, ::-1], 1 - IMAGES], -1) if name == "unet3d" else IMAGES


def init(model, images):
    return jax.jit(model.init)(jax.random.key(0), images)


def count(config):
    images = jax.ShapeDtypeStruct((1, 32, 32, 3 if config.name == "unet3d" else 1), jnp.float32)
    shapes = jax.eval_shape(create_model(config).init, jax.random.key(0), images)
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


def gradients_of(model, variables, images, weights, **call):
    """Returns the gradients of a loss over the examples that count, and the new statistics."""

    def loss(params):
        outputs, updates = model.apply(
            {"params": params, "batch_stats": variables.get("batch_stats", {})},
            images,
            train=True,
            weights=weights,
            mutable=["batch_stats"],
            **call,
        )
        return jnp.sum(jnp.square(outputs.mask_logits).sum((1, 2, 3)) * weights), updates["batch_stats"]

    return jax.grad(loss, has_aux=True)(variables["params"])


def assert_close(found, expected, limit=1e-4):
    def compare(path, value, reference):
        atol = limit * max(1.0, float(np.abs(reference).max()))
        np.testing.assert_allclose(value, reference, atol=atol, err_msg=jax.tree_util.keystr(path))

    jax.tree_util.tree_map_with_path(compare, found, expected)


@pytest.mark.parametrize("name", COMPARATORS)
def test_counts_at_the_published_and_at_the_matched_width(name):
    """Every docstring explains its sum; the paper's network has 6,577,217."""
    for width, expected in (PUBLISHED[name], MATCHED[name]):
        assert count(config_of(name, base_width=width)) == expected


def test_counts_of_the_parts_explain_the_attention_gates():
    unet = PUBLISHED["unet"][1]
    assert PUBLISHED["attention_unet"][1] - unet == sum(f * f + 11 * f // 2 + 5 for f in (64, 128, 256, 512))
    shortcuts = sum(5 * f + c * f for c, f in ((1, 64), (64, 128), (128, 256), (256, 512), (512, 1024)))
    shortcuts += sum(5 * f + 2 * f * f for f in (64, 128, 256, 512))
    assert PUBLISHED["attention_res_unet"][1] == PUBLISHED["attention_unet"][1] + shortcuts
    one = count(config_of("attention_res_unet", base_width=8))
    assert count(config_of("attention_res_unet", base_width=8, lung_first=True)) == 2 * one - 4 * 9


@pytest.mark.parametrize("name", [*COMPARATORS[1:], "lung_first"])
def test_padding_changes_nothing_and_every_weight_learns(name):
    """All but the U-Net, which is the Auxiliary U-Net's code; nested ones with two levels."""
    changes = {"depth": 2 if name in ("unet_plus_plus", "bidirectional_unet") else 1}
    if name == "lung_first":
        name, changes = "attention_res_unet", changes | {"lung_first": True}
    model = small(name, **changes)
    images = images_of(name)
    variables = init(model, images)
    weights = jnp.array([1.0, 1.0, 0.0, 1.0])
    run = jax.jit(partial(gradients_of, model))
    gradients, statistics = run(variables, images, weights)
    other = images.copy()
    other[2] = 9.0
    assert_close(run(variables, other, weights), (gradients, statistics), 1e-5)
    assert any(
        np.abs(a - b).max() > 1e-4
        for a, b in zip(*map(jax.tree.leaves, (statistics, variables["batch_stats"])), strict=True)
    )
    for part, leaves in gradients.items():
        size = sum(float(jnp.abs(leaf).sum()) for leaf in jax.tree.leaves(leaves))
        # The coarsest node of the way up has no reader, as the file's docstring says.
        assert np.isfinite(size) and (size > 0) == (part != "fuse_2"), part


@pytest.mark.parametrize("name", COMPARATORS)
def test_outputs_are_float32_logits_of_float32_weights(name):
    model, images = small(name, dtype="bfloat16", num_classes=3), images_of(name)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    outputs = jax.eval_shape(model.apply, variables, images)
    assert outputs.class_logits is None
    assert (outputs.mask_logits.shape, outputs.mask_logits.dtype) == ((4, 16, 16, 3), jnp.float32)


@pytest.mark.parametrize("name", ["unet", "attention_unet"])
def test_inference_gives_the_same(name):
    """With batch norm folded where the network is of the Auxiliary U-Net's parts alone."""
    model = small(name, depth=1)
    variables = init(model, IMAGES)
    statistics = jax.tree.map(lambda leaf: leaf + 0.3, variables["batch_stats"])
    variables = {"params": variables["params"], "batch_stats": statistics}
    apply_fn, weights = create_inference(model, variables)
    assert ("batch_stats" in weights) == (name != "unet")
    expected = jax.jit(model.apply)(variables, IMAGES).mask_logits
    np.testing.assert_allclose(jax.jit(apply_fn)(weights, IMAGES), expected, atol=1e-5)


def test_lowerings_agree():
    """With all parts that the other networks add: gates, strided, 1x1 and depthwise convolutions."""
    weights = jnp.ones(4)
    for name, changes in (("attention_res_unet", {"gate": "grid"}), ("bidirectional_unet", {})):
        plain, fast = (
            small(name, depth=1, lowering=lowering, **changes) for lowering in ("plain", "blocked")
        )
        variables = init(plain, IMAGES)
        expected = jax.jit(partial(gradients_of, plain))(variables, IMAGES, weights)
        assert_close(jax.jit(partial(gradients_of, fast))(variables, IMAGES, weights), expected)


def test_devices_share_statistics():
    """Two devices with uneven weights give the statistics and the summed gradients of one."""
    weights = jnp.array([1.0, 0.0, 1.0, 1.0])
    variables = init(small("attention_unet", depth=1), IMAGES)
    expected = jax.jit(partial(gradients_of, small("attention_unet", depth=1)))(variables, IMAGES, weights)
    shared = create_model(config_of("attention_unet", base_width=2, depth=1), axis_name="devices")

    def step(variables, images, weights):
        gradients, statistics = gradients_of(shared, variables, images, weights)
        return jax.lax.psum(gradients, "devices"), statistics

    run = jax.pmap(step, "devices", in_axes=(None, 0, 0), devices=jax.devices()[:2])
    found = run(variables, IMAGES.reshape(2, 2, 16, 16, 1), weights.reshape(2, 2))
    assert_close(jax.tree.map(lambda leaf: leaf[0], found), expected)


def test_conv_with_batch_norm_by_hand():
    """Normalised values of a 1x1 convolution of one channel by 2, over three pixels that count."""
    settings = small("unet").settings
    conv = parts.Conv(settings, 1, "1x1")
    images = np.array([1.0, 2.0, 3.0, 100.0], np.float32).reshape(4, 1, 1, 1)
    variables = conv.init(jax.random.key(0), images, parts.Context())
    params = variables["params"] | {"kernel": np.full((1, 1), 2.0, np.float32), "bias": np.full(1, 7.0)}
    context = parts.Context(True, jnp.array([1.0, 1.0, 1.0, 0.0]), 0.0)
    found, updates = conv.apply(
        {"params": params, "batch_stats": variables["batch_stats"]}, images, context, mutable=["batch_stats"]
    )
    spread = np.sqrt(8 / 3 + 1e-3)
    np.testing.assert_allclose(found[:3, 0, 0, 0], np.array([-2, 0, 2]) / spread, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(updates["batch_stats"]["mean"], [4 + 7], rtol=1e-6)
    np.testing.assert_allclose(updates["batch_stats"]["variance"], [8 / 3], rtol=1e-6)


def test_additive_gate_by_hand():
    """With all weights 1, biases 0 and batch norm at its start the gate is sigmoid(relu(skip + gating))."""
    gate = parts.Gate(small("unet", bn_epsilon=1e-12).settings, 2)
    skip = np.array([1.0, 0.0], np.float32).reshape(1, 1, 1, 2)
    gating = np.array([0.5, -2.0], np.float32).reshape(1, 1, 1, 2)
    variables = gate.init(jax.random.key(0), skip, gating, parts.Context())
    ones = jax.tree_util.tree_map_with_path(
        lambda path, leaf: jnp.ones_like(leaf) if path[-1].key in ("kernel", "scale") else leaf,
        variables["params"],
    )
    variables = {"params": ones, "batch_stats": variables["batch_stats"]}
    found = gate.apply(variables, skip, gating, parts.Context())
    np.testing.assert_allclose(found, skip * 0.5, rtol=1e-5)  # relu(1 - 1.5) = 0, sigmoid 0.5
    found = gate.apply(variables, skip, -gating, parts.Context())
    np.testing.assert_allclose(found, skip / (1 + np.exp(-2.5)), rtol=1e-5)


def test_lung_first_gives_probabilities_and_hides_what_is_not_lung():
    model = small("attention_res_unet", lung_first=True)
    variables = init(model, IMAGES)
    logits = jax.jit(model.apply)(variables, IMAGES).mask_logits
    np.testing.assert_allclose(jnp.exp(logits).sum(-1), 1.0, rtol=1e-5)
    lungs = np.zeros((1, 32, 32, 1), np.float32)
    lungs[0, 16, 16] = 0.7
    region = np.asarray(attention_res_unet.lung_region(jnp.asarray(lungs)))[0, ..., 0]
    reach = attention_res_unet.REGION_PIXELS
    inside = np.zeros((32, 32), bool)
    inside[16 - reach : 17 + reach, 16 - reach : 17 + reach] = True
    np.testing.assert_allclose(region, np.where(inside, np.float32(0.7), 0))


def test_dropout_is_by_example_and_only_in_training():
    values = jnp.ones((2, 50, 50, 2))
    keys = jax.random.split(jax.random.key(0), 2)
    dropped = bidirectional_unet.drop(values, keys, 0.5)
    assert set(np.unique(dropped)) == {0.0, 2.0}
    assert abs(float(dropped.mean()) - 1.0) < 0.05 and (dropped[0] != dropped[1]).any()
    alone = bidirectional_unet.drop(values[1:], keys[1:], 0.5)
    np.testing.assert_array_equal(alone[0], dropped[1])
    model = small("bidirectional_unet", depth=1)
    settings = types.SimpleNamespace(model=model, augment_seed=1)
    keys = steps._dropout_keys(settings, 0, np.arange(4))["keys"]
    settings.model = small("unet")
    assert keys.shape == (4,) and steps._dropout_keys(settings, 0, np.arange(4)) == {}
    variables, weights = init(model, IMAGES), jnp.ones(4)
    run = jax.jit(partial(gradients_of, model))
    first, again, other = (run(variables, IMAGES, weights, keys=k)[0] for k in (keys, keys, keys[::-1]))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    leaves = zip(jax.tree.leaves(first), jax.tree.leaves(other), strict=True)
    assert any((a != b).any() for a, b in leaves)


def test_mish_and_enlarge_by_hand():
    np.testing.assert_allclose(
        bidirectional_unet.mish(jnp.array([-1.0, 0.0, 2.0])), [-0.30340147, 0.0, 1.9439590], rtol=1e-6
    )
    found = bidirectional_unet.enlarge(jnp.arange(2.0).reshape(1, 1, 2, 1))[0, ..., 0]
    np.testing.assert_array_equal(found, [[0, 0, 1, 1], [0, 0, 1, 1]])


def test_parts_of_the_3d_network_against_xla():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(1, 2, 4, 4, 3)).astype(np.float32)
    up = unet3d.Upsample3D(small("unet").settings, 2)
    params = {"kernel": rng.normal(size=(3, 2, 2, 2, 2)).astype(np.float32), "bias": np.array([1.0, -1.0])}
    kernel = jnp.transpose(params["kernel"][:, ::-1, ::-1, ::-1], (1, 2, 3, 0, 4))
    numbers = ("NDHWC", "DHWIO", "NDHWC")
    expected = jax.lax.conv_transpose(values, kernel, (2, 2, 2), "VALID", dimension_numbers=numbers)
    bias = params["bias"].reshape(1, 1, 1, 1, 2)
    np.testing.assert_allclose(up.apply({"params": params}, values), expected + bias, atol=1e-5)
    window = (1, 2, 2, 2, 1)
    pooled = jax.lax.reduce_window(values, -jnp.inf, jax.lax.max, window, window, "VALID")
    np.testing.assert_array_equal(unet3d.max_pool_3d(jnp.asarray(values), lowering="blocked"), pooled)


def test_a_slab_is_filled_up_around_its_middle():
    model = small("unet3d").bind({})
    slab = jnp.broadcast_to(jnp.arange(5.0).reshape(1, 1, 1, 5), (1, 8, 8, 5))
    volume, middle = model._to_volume(slab)
    assert volume.shape == (1, 8, 8, 8, 1)
    np.testing.assert_array_equal(volume[0, :, 0, 0, 0], [0, 0, 1, 2, 3, 4, 4, 4])
    assert volume[0, middle, 0, 0, 0] == 2.0
    with pytest.raises(InputError, match="a slab of 4 slices, expected an odd number"):
        model._to_volume(slab[..., :4])


def test_initial_values():
    """Ronneberger's U-Net has He's normal rule, the others Keras' glorot-uniform."""
    kernel = init(small("unet", base_width=16, depth=1), IMAGES)["params"]["bottleneck"]["unit_1"]["ordinary"]
    assert abs(float(kernel.std()) / np.sqrt(2 / (9 * 32)) - 1) < 0.05
    assert float(jnp.abs(kernel).max()) > initial.kernel_limit(kernel.shape)
    other = init(small("attention_unet", base_width=16, depth=1), IMAGES)["params"]
    kernel = other["bottleneck"]["unit_1"]["ordinary"]
    assert 0.95 < float(jnp.abs(kernel).max()) / np.sqrt(6 / (9 * 64)) <= 1
    assert initial.kernel_limit((2, 2, 6, 5)) == initial.kernel_limit((6, 2, 2, 5)) == np.sqrt(6 / (4 * 11))
    assert initial.kernel_limit((3, 3, 3, 6, 5)) == np.sqrt(6 / (27 * 11))
    assert initial.normal_deviation((6, 2, 2, 5)) == np.sqrt(2 / 6)
    assert initial.normal_deviation((3, 3, 6, 5)) == np.sqrt(2 / 54)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("attention_res_unet", {"gate": "wide"}, "model.gate: got 'wide'"),
        ("bidirectional_unet", {"dropout": 1.0}, "model.dropout: got 1.0"),
        ("vnet", {}, "model.name: got 'vnet', expected one of 'aux_unet', 'unet'"),
    ],
)
def test_settings_out_of_range_are_refused(name, changes, message):
    with pytest.raises(InputError, match=message):
        create_model(config_of(name, **changes))
