"""Where the time of the network goes, layer by layer, beside what the device can do.

    python -m experiments.speed.layer_profile --json=experiments/results/layers_cpu.json [--batch=2]

Each layer of the paper's network runs by itself, in the shapes that the network gives it, forward and with its
gradient: the least of some turns. Beside its seconds stand its multiply-adds, the rate that this makes, and that
of a large product of matrices and of a large copy, measured in the same run; at the end the whole training step
and prediction. What the sum of the layers leaves of these is the loss, the optimiser and what lies between. Writes
a table in Markdown beside the JSON.
"""

from __future__ import annotations

import functools
import pathlib
import tempfile
import time

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from auxseg.base import command, files
from auxseg.models import aux_unet, blocks, create_model
from auxseg.report import macs
from experiments.speed import machine
from experiments.speed.peers import run_jax
from experiments.speed.peers.task import Task, create_config, draw_variables

LAYERS = (aux_unet.Unit, aux_unet.SqueezeExcite, aux_unet.Upsample, aux_unet.MaskHead, aux_unet.AuxHead)
"""Modules that are a layer; pooling, which has no weights, is added by the shapes of the encoder."""


def record_layers(model, images):
    """Returns {'encoder_0/unit_0': (module, its variables, arguments)} in the network's order, shapes only.

    Args:
        model: from `create_model`.
        images: jax.ShapeDtypeStruct [N, H, W, 1].
    """
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    found = {}

    def record(call, args, kwargs, context):
        if isinstance(context.module, LAYERS) and context.method_name == "__call__":
            path = context.module.path
            found["/".join(path)] = (context.module.clone(parent=None, name=None), _shapes(_at(variables, path)),
                                     _shapes(args[0]))  # fmt: skip
        return call(*args, **kwargs)

    def run(variables, images):
        with nn.intercept_methods(record):
            return model.apply(variables, images, train=True, mutable=["batch_stats"])

    jax.eval_shape(run, variables, images)
    return found


def _at(variables, path):
    """Returns the collections of variables below a path of modules, those that have any."""
    found = {}
    for name, group in variables.items():
        for part in path:
            group = group.get(part, {})
        if group:
            found[name] = group
    return found


def _shapes(tree):
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)


def create_calls(model, layers):
    """Returns {layer: (function of (variables, signals), shapes of both)}, with the poolings in their places."""
    lowering, calls = model.settings.lowering, {}
    last = "se" if model.settings.se else "unit_1"
    for name, (module, variables, signals) in layers.items():
        calls[name] = (functools.partial(_apply, module), variables, signals)
        if name.startswith("encoder") and name.endswith(last):
            signal = _output(calls[name])
            pool = functools.partial(_pool, lowering)
            calls[name.split("/")[0] + "/pool"] = (pool, {}, signal)
    return calls


def _apply(module, variables, signals):
    if isinstance(module, aux_unet.Unit):
        return module.apply(variables, signals, True, None, None, mutable=["batch_stats"])[0]
    return module.apply(variables, signals)


def _pool(lowering, _, signal):
    return blocks.max_pool(signal, lowering=lowering)


def _output(call):
    function, variables, signals = call
    return _shapes(jax.eval_shape(function, variables, signals))


def measure(call, turns):
    """Returns the least seconds of a layer forward, and forward with its gradient."""
    function, variables, signals = call
    random = np.random.default_rng(0)
    arguments = jax.tree.map(
        lambda shape: jnp.asarray(random.random(shape.shape, np.float32), shape.dtype), (variables, signals)
    )
    weights = jax.tree.map(
        lambda shape: jnp.asarray(random.standard_normal(shape.shape, np.float32), shape.dtype), _output(call)
    )

    @jax.jit
    def with_gradient(arguments, weights):
        outputs, pull = jax.vjp(function, *arguments)
        return outputs, pull(weights)

    forward = run_jax.least_seconds(jax.jit(function), arguments, turns)
    return forward, run_jax.least_seconds(with_gradient, (arguments, weights), turns)


def profile(task, batch, turns):
    """Returns the report, JSON types: one row a layer, the whole, the device's limits.

    Args:
        task: `experiments.speed.peers.task.Task`, of which weights are not read.
        batch: images.
        turns: of each measurement.
    """
    model = create_model(create_config(task))
    images = jax.ShapeDtypeStruct((batch, task.size, task.size, 1), jnp.float32)
    counted = macs.trace_macs(model, size_yx=(task.size, task.size))
    rows = []
    for name, call in create_calls(model, record_layers(model, images)).items():
        forward, both = measure(call, turns)
        multiplied = batch * counted.get(name, 0)
        row = {"layer": name, "forward_s": forward, "gradient_s": both - forward, "macs": multiplied}
        row |= {"forward_gflop_per_s": 2e-9 * multiplied / forward}
        row |= {"gradient_gflop_per_s": 4e-9 * multiplied / max(both - forward, 1e-9)}
        rows.append(row)
        print(f"{name}: {1e3 * forward:.1f} ms, gradient {1e3 * (both - forward):.1f} ms", flush=True)
    parts = run_jax.create("auxseg", task)
    whole = {}
    for kind in ("train", "infer"):
        step = parts[kind](batch)
        step()
        whole[kind] = min(_seconds(step) for _ in range(turns))
    return {
        "machine": machine.describe_machine(),
        "limits": parts["limits"](),
        "batch": batch,
        "size": task.size,
        "base_width": task.base_width,
        "lowering": model.settings.lowering,
        "layers": rows,
        "train_step_s": whole["train"],
        "inference_s": whole["infer"],
    }


def _seconds(step):
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def to_markdown(report):
    """Returns the table, the sums and the limits."""
    rows = report["layers"]
    forward, gradient = (sum(row[name] for row in rows) for name in ("forward_s", "gradient_s"))
    limits = report["limits"]
    title = f"{report['size']}x{report['size']}, width {report['base_width']}, batch {report['batch']}"
    limit = f"A large product of matrices makes {1e3 * limits['product_tflop_per_s']:.0f} GFLOP/s"
    lines = [
        f"# Where the time goes: {title}, lowering '{report['lowering']}'",
        "",
        f"{report['machine']['processor']}, {report['machine']['cores']} cores. {limit}, a large copy moves "
        + f"{limits['copy_gb_per_s']:.0f} GB/s.",
        "",
        "| layer | forward, ms | share | GFLOP/s | gradient, ms | share | GFLOP/s |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        lines.append(
            f"| {row['layer']} | {1e3 * row['forward_s']:.1f} | {row['forward_s'] / forward:.1%} "
            f"| {row['forward_gflop_per_s']:.0f} | {1e3 * row['gradient_s']:.1f} "
            f"| {row['gradient_s'] / gradient:.1%} | {row['gradient_gflop_per_s']:.0f} |"
        )
    total = sum(row["macs"] for row in rows)
    step = report["train_step_s"]
    folded, product = report["inference_s"], 1e12 * limits["product_tflop_per_s"]
    lines.append(
        f"| all layers | {1e3 * forward:.0f} | 100.0% | {2e-9 * total / forward:.0f} | {1e3 * gradient:.0f} "
        f"| 100.0% | {4e-9 * total / gradient:.0f} |"
    )
    train = (
        f"The whole training step: {1e3 * step:.0f} ms, {1e3 * (step - forward - gradient):.0f} ms more than its "
        f"layers (loss, optimiser, sums of gradients); {6e-9 * total / step:.0f} GFLOP/s, "
        f"{6 * total / step / product:.0%} of the product."
    )
    infer = (
        f"Prediction, batch norm folded and without the auxiliary head: {1e3 * folded:.0f} ms, "
        f"{2e-9 * total / folded:.0f} GFLOP/s, {2 * total / folded / product:.0%} of the product."
    )
    return "\n".join([*lines, "", train, "", infer])


def main(_):
    """Runs the command."""
    given = flags.FLAGS
    command.keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        task = Task(given.size, given.base_width, "float32", str(pathlib.Path(folder) / "weights.npz"))
        draw_variables(task)
        report = profile(task, given.batch, given.turns)
    text = to_markdown(report)
    print(text)
    if given.json:
        path = pathlib.Path(given.json)
        files.write_json(path, report)
        files.write_text(path.with_suffix(".md"), text + "\n")


if __name__ == "__main__":
    flags.DEFINE_integer("size", 320, "rows and columns of an image", lower_bound=16)
    flags.DEFINE_integer("base_width", 64, "channels of the first level", lower_bound=1)
    flags.DEFINE_integer("batch", 2, "images", lower_bound=1)
    flags.DEFINE_integer("turns", 8, "of each measurement, of which the least counts", lower_bound=1)
    flags.DEFINE_string("json", None, "file to write the report to")
    command.run(main)
