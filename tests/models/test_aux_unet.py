"""Counts, shapes, statistics and lowerings of the whole network."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from auxseg.base.errors import InputError
from auxseg.models import blocks, create_inference, create_model
from auxseg.models.kernels import build
from configs.base import get_config

IMAGES = np.random.default_rng(0).random((4, 8, 16, 1), np.float32)


def _config(**changes):
    config = get_config().model.copy_and_resolve_references().unlock()
    config.update(changes)
    return config


def _small(**changes):
    return _config(**{"base_width": 4, "depth": 1, "se_ratio": 2, "aux_width": 8, **changes})


def _count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def _shapes(config):
    images = jax.ShapeDtypeStruct((1, 320, 320, 1), jnp.float32)
    return jax.eval_shape(create_model(config).init, jax.random.key(0), images)


def _variables(model):
    return jax.jit(model.init)(jax.random.key(0), IMAGES)


def _loss(outputs, weights):
    """Returns a weighted sum, so that padding enters neither loss nor gradients."""
    masks = jnp.sum(jnp.square(outputs.mask_logits), (1, 2, 3)) / 100.0
    return jnp.sum((masks + jnp.sum(jnp.sin(outputs.class_logits), 1)) * weights)


def _gradients(model, variables, images, weights, momentum=None):
    """Returns gradients of `_loss` and the updated statistics."""

    def loss(params):
        variables_now = {"params": params, "batch_stats": variables["batch_stats"]}
        outputs, updates = model.apply(
            variables_now, images, train=True, weights=weights, momentum=momentum, mutable=["batch_stats"]
        )
        return _loss(outputs, weights), updates["batch_stats"]

    return jax.grad(loss, has_aux=True)(variables["params"])


def _assert_close(found, expected, limit=1e-4):
    def compare(path, value, reference):
        atol = limit * max(1.0, float(np.abs(reference).max()))
        np.testing.assert_allclose(value, reference, atol=atol, err_msg=jax.tree_util.keystr(path))

    jax.tree_util.tree_map_with_path(compare, found, expected)


def test_counts_are_the_papers():
    shapes = _shapes(_config())
    assert _count(shapes["params"]) == 6_565_441
    assert _count(shapes["batch_stats"]) == 11_776
    assert _count(_shapes(_config(se=False, aux=False))) == 6_005_965


def test_counts_by_part():
    """Each part's weights, from its formula; they sum to the paper's number."""
    params = _shapes(_config())["params"]

    def unit(channels, features):
        return 9 * channels + channels * features + 3 * features

    def block(channels, features):
        squeezed = features // 8
        excite = 2 * features * squeezed + squeezed + features
        return unit(channels, features) + unit(features, features) + excite

    expected = {"aux": 1024 * 128 + 128 + 128 * 4 + 4, "mask": 64 * 4 + 4, "bottleneck": block(512, 1024)}
    for level, width in enumerate((64, 128, 256, 512)):
        expected[f"encoder_{level}"] = block(1 if level == 0 else width // 2, width)
        expected[f"up_{level}"] = 2 * width * 4 * width + width
        expected[f"decoder_{level}"] = block(2 * width, width)
    assert {name: _count(part) for name, part in params.items()} == expected
    assert sum(expected.values()) == 6_565_441


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_outputs_are_float32_logits(dtype):
    model = create_model(_small(dtype=dtype), num_classes=3)
    variables = _variables(model)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    outputs = jax.jit(model.apply)(variables, IMAGES)
    assert (outputs.mask_logits.shape, outputs.mask_logits.dtype) == ((4, 8, 16, 3), jnp.float32)
    assert (outputs.class_logits.shape, outputs.class_logits.dtype) == ((4, 3), jnp.float32)
    assert np.isfinite(outputs.mask_logits).all()


@pytest.mark.parametrize("lowering", ["shifted", "blocked", "kernels"])
def test_lowerings_agree(lowering, monkeypatch):
    if lowering == "kernels" and build.load():
        pytest.skip(f"no compiled kernels: {build.load()}")
    monkeypatch.setattr(blocks, "_CHUNK_BYTES", 8 * 16 * 4 * 4 * 2)  # two images of four a chunk
    weights = jnp.array([1.0, 1.0, 0.0, 1.0])
    plain = create_model(_small(lowering="plain"))
    variables = _variables(plain)
    expected = jax.jit(partial(_gradients, plain))(variables, IMAGES, weights)
    found = jax.jit(partial(_gradients, create_model(_small(lowering=lowering))))(variables, IMAGES, weights)
    _assert_close(found, expected)


def test_bfloat16_network_is_near_the_float32_one():
    exact, half = create_model(_small()), create_model(_small(dtype="bfloat16"))
    variables = _variables(exact)
    expected = jax.jit(exact.apply)(variables, IMAGES).mask_logits
    found = jax.jit(half.apply)(variables, IMAGES).mask_logits
    assert 0 < float(jnp.abs(found - expected).max()) < 0.03 * float(jnp.abs(expected).max())


def test_padding_changes_neither_statistics_nor_gradients():
    model = create_model(_small())
    variables = _variables(model)
    padded = np.concatenate([IMAGES[:2], 9.0 * np.ones_like(IMAGES[:2])])
    run = jax.jit(partial(_gradients, model))
    expected = run(variables, IMAGES[:2], jnp.ones(2))
    _assert_close(run(variables, padded, jnp.array([1.0, 1.0, 0.0, 0.0])), expected, 1e-5)


def test_a_batch_of_padding_keeps_the_statistics():
    model = create_model(_small())
    variables = _variables(model)
    gradients, statistics = jax.jit(partial(_gradients, model))(variables, IMAGES, jnp.zeros(4))
    jax.tree.map(np.testing.assert_array_equal, statistics, variables["batch_stats"])
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


def test_momentum_of_the_call():
    """new = momentum * old + (1 - momentum) * batch, with a traced momentum too."""
    model = create_model(_small())
    variables = _variables(model)
    run = jax.jit(partial(_gradients, model))
    batch = run(variables, IMAGES, jnp.ones(4), 0.0)[1]
    half = run(variables, IMAGES, jnp.ones(4), jnp.float32(0.5))[1]
    old = variables["batch_stats"]
    _assert_close(half, jax.tree.map(lambda a, b: 0.5 * a + 0.5 * b, old, batch), 1e-6)
    setting = run(variables, IMAGES, jnp.ones(4))[1]
    _assert_close(setting, jax.tree.map(lambda a, b: 0.99 * a + 0.01 * b, old, batch), 1e-6)


@pytest.mark.parametrize("transform", ["pmap", "shard_map"])
def test_devices_share_statistics(transform):
    """Four devices with uneven weights give the statistics and the summed gradients of one."""
    weights = jnp.array([1.0, 0.0, 1.0, 1.0])
    variables = _variables(create_model(_small()))
    expected = jax.jit(partial(_gradients, create_model(_small())))(variables, IMAGES, weights)
    parallel = create_model(_small(), axis_name="devices")

    def step(variables, images, weights):
        gradients, statistics = _gradients(parallel, variables, images, weights)
        return jax.lax.psum(gradients, "devices"), statistics

    if transform == "pmap":
        run = jax.pmap(step, "devices", in_axes=(None, 0, 0), devices=jax.devices()[:4])
        found = jax.tree.map(lambda leaf: leaf[0], run(variables, IMAGES[:, None], weights[:, None]))
    else:
        mesh = jax.sharding.Mesh(np.array(jax.devices()[:4]), ("devices",))
        split, whole = PartitionSpec("devices"), PartitionSpec()
        specs = {"in_specs": (whole, split, split), "out_specs": whole, "check_vma": False}
        found = jax.jit(jax.shard_map(step, mesh=mesh, **specs))(variables, IMAGES, weights)
    _assert_close(found, expected)


@pytest.mark.parametrize("size", [(320, 312), (8, 320), (0, 0)])
def test_sizes_that_cannot_be_halved_are_refused(size):
    model = create_model(_config())
    with pytest.raises(InputError, match="expected multiples of 16"):
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *size, 1)))


def test_a_slab_costs_its_first_taps_and_products_alone():
    """Of seven slices: six more 3x3 kernels, and six more rows of the first product, to 64 channels."""
    alone, slab = (
        jax.eval_shape(create_model(_config()).init, jax.random.key(0), jnp.zeros((1, 32, 32, slices)))
        for slices in (1, 7)
    )
    count = [sum(leaf.size for leaf in jax.tree.leaves(each)) for each in (alone, slab)]
    assert count == [6_577_217, 6_577_217 + 6 * 9 + 6 * 64]


@pytest.mark.parametrize("lowering", ["shifted", "blocked", "kernels"])
def test_slabs_give_the_same_however_they_are_computed(lowering):
    if lowering == "kernels" and build.load():
        pytest.skip(f"no compiled kernels: {build.load()}")
    slabs, weights = jnp.concatenate([IMAGES, 1 - IMAGES, IMAGES[:, ::-1]], -1), jnp.ones(len(IMAGES))
    plain = create_model(_small(lowering="plain"))
    variables = plain.init(jax.random.key(2), slabs)
    expected = jax.jit(partial(_gradients, plain))(variables, slabs, weights)
    found = jax.jit(partial(_gradients, create_model(_small(lowering=lowering))))(variables, slabs, weights)
    _assert_close(found, expected)


def test_images_of_other_channels_are_refused():
    with pytest.raises(InputError, match=r"expected \[N, H, W, 1\]"):
        model = create_model(_config(name="attention_unet"))
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "vnet"}, "model.name: got 'vnet'"),
        ({"dtype": "float16"}, "model.dtype: got 'float16'"),
        ({"depth": 0}, "model.depth: got 0, expected 1 to 12"),
        ({"bn_momentum": 1.5}, "model.bn_momentum: got 1.5"),
        ({"bn_epsilon": 0.0}, "model.bn_epsilon: got 0.0"),
        ({"lowering": "fast"}, "model.lowering: got 'fast'"),
    ],
)
def test_settings_out_of_range_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        create_model(_config(**changes))


@pytest.mark.slow
@pytest.mark.parametrize("lowering", ["blocked", "kernels"])
def test_memory_of_a_training_step(lowering):
    """A batch of 8 at 320 x 320 plans less than 8 GB, weights and activations together."""
    if lowering == "kernels" and build.load():
        pytest.skip(f"no compiled kernels: {build.load()}")
    model = create_model(_config(lowering=lowering))
    images = jax.ShapeDtypeStruct((8, 320, 320, 1), jnp.float32)
    step = jax.jit(partial(_gradients, model), compiler_options={"xla_backend_optimization_level": 0})
    plan = step.lower(_shapes(_config()), images, jax.ShapeDtypeStruct((8,), jnp.float32)).compile()
    assert plan.memory_analysis().temp_size_in_bytes < 7.5e9


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("lowering", ["shifted", "blocked"])
def test_lowers_for_cuda(dtype, lowering):
    """Nothing in training or inference is for the CPU only."""
    config = _config(dtype=dtype, lowering=lowering, depth=2)
    model = create_model(config)
    images = jax.ShapeDtypeStruct((8, 320, 320, 1), jnp.float32)
    weights = jax.ShapeDtypeStruct((8,), jnp.float32)
    step = jax.export.export(jax.jit(partial(_gradients, model)), platforms=("cuda",))
    exported = step(_shapes(config), images, weights)
    assert exported.platforms == ("cuda",)
    assert ("bf16" in exported.mlir_module()) == (dtype == "bfloat16")
    apply_fn, folded = create_inference(
        model, jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), _shapes(config))
    )
    prediction = jax.export.export(jax.jit(apply_fn), platforms=("cuda",))(folded, images)
    assert prediction.out_avals[0].shape == (8, 320, 320, 4)
