"""A training step of the Auxiliary U-Net in 3D on one slab, against PyTorch's equal network.

    python -m experiments.speed.slab_step [--slices=32] [--size=160] [--widths=16] [--repeats=3]
        [--implementations=auxseg,torch] [--dtype=float32] [--out=experiments/results/slab_step.json]

Both start from the same weights, slab, loss and optimiser; each runs in processes of its own, one after the other, and
the losses of their steps must agree to 1e-3. Time is the processor's, all threads together, beside the clock's; the
peak of memory is the process's. The first step, which compiles, is not counted.
"""

from __future__ import annotations

import json
import pathlib
import time
import types

import numpy as np
from absl import flags

from auxseg.base import command, files
from auxseg.base.errors import InputError, check_choice
from experiments import made_by
from experiments.speed import machine
from experiments.speed.peers import task as tasks

MODULE = "experiments.speed.slab_step"
IMPLEMENTATIONS = ("auxseg", "torch")
LOSS_TOLERANCE = 1e-3


def create_config(width, dtype="float32"):
    """Returns an object with the fields of `config.model` that `create_model` reads."""
    return types.SimpleNamespace(**(tasks.PAPER | {"name": "aux_unet3d"}), base_width=width, dtype=dtype)


def make_slab(slices, size):
    """Returns a slab float32 [1, size, size, slices], the mask int32 [1, size, size] of its middle slice, its labels."""
    images, masks, labels = tasks.make_batch(slices, size)
    middle = slices // 2
    return np.moveaxis(images[..., 0], 0, -1)[None], masks[middle][None], labels[middle][None]


def create_variables(width, slices):
    """Returns the network's initial variables, NumPy arrays."""
    import jax

    from auxseg.models import create_model

    images = np.zeros((1, 16, 16, slices), np.float32)
    return jax.device_get(jax.jit(create_model(create_config(width)).init)(jax.random.key(0), images))


def create_auxseg_step(config, slices, size, variables):
    """Returns a function that takes one training step and returns the loss before it."""
    import jax
    import jax.numpy as jnp
    import optax

    from auxseg.models import create_model
    from auxseg.training import optim
    from experiments.speed.peers import run_jax

    command.keep_freed_memory()  # as every command of auxseg does
    model, batch = create_model(config), jax.device_put(make_slab(slices, size))
    optimiser = optim.create_optimizer(beta1=0.9, beta2=0.999, epsilon=tasks.ADAM_EPSILON)
    moments = optim.set_learning_rate(optimiser.init(variables["params"]), jnp.float32(tasks.LEARNING_RATE))
    state = [variables["params"], variables["batch_stats"], moments]

    def loss_fn(params, statistics, images, masks, labels):
        outputs, updates = model.apply(
            {"params": params, "batch_stats": statistics}, images, train=True, mutable=["batch_stats"]
        )
        return run_jax._loss(outputs, masks, labels), updates["batch_stats"]

    @jax.jit
    def train_step(params, statistics, moments, *batch):
        (loss, statistics), gradients = jax.value_and_grad(loss_fn, has_aux=True)(params, statistics, *batch)
        updates, moments = optimiser.update(gradients, moments, params)
        return (optax.apply_updates(params, updates), statistics, moments), loss

    def step():
        state[:], loss = train_step(*state, *batch)
        return float(loss)

    return step


def create_torch_step(config, slices, size, variables):
    """Returns the same of PyTorch."""
    import os

    import torch

    from auxseg.models import aux_unet3d
    from experiments.speed.peers import run_torch
    from experiments.speed.peers.torch_unet3d import create_torch_unet3d

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    model = create_torch_unet3d(config, variables, aux_unet3d.count_halvings(slices, config.depth)).train()
    images, masks, labels = map(torch.from_numpy, make_slab(slices, size))
    images = images.permute(0, 3, 1, 2)[:, None].contiguous(memory_format=torch.channels_last_3d)
    optimiser = torch.optim.Adam(model.parameters(), tasks.LEARNING_RATE)
    num_steps = 0

    def step():
        nonlocal num_steps
        num_steps += 1
        # Keras adds epsilon to the root of the uncorrected moment, PyTorch to that of the corrected one.
        for group in optimiser.param_groups:
            group["eps"] = tasks.ADAM_EPSILON / (1.0 - 0.999**num_steps) ** 0.5
        optimiser.zero_grad()
        loss = run_torch._loss(model(images), masks.long(), labels)
        loss.backward()
        optimiser.step()
        return loss.item()

    return step


def measure(name, width, slices, size, repeats, dtype="float32"):
    """Returns losses of the steps, seconds by the processor and by the clock of all but the first, and the peak."""
    create = {"auxseg": create_auxseg_step, "torch": create_torch_step}[name]
    step = create(create_config(width, dtype), slices, size, create_variables(width, slices))
    losses, cpu, clock = [step()], [], []
    for _ in range(repeats):
        start_cpu, start = time.process_time(), time.perf_counter()
        losses.append(step())
        cpu.append(time.process_time() - start_cpu)
        clock.append(time.perf_counter() - start)
    return {"losses": losses, "cpu_s": cpu, "clock_s": clock, "peak_gb": machine.peak_mib() / 953.674}


def compare(widths, slices, size, repeats, names=IMPLEMENTATIONS, dtype="float32"):
    """Returns rows {'width', 'auxseg', 'torch'}, each with what `measure` gives; prints them.

    Args:
        widths: base widths.
        slices, size: of the slab.
        repeats: steps that are counted.
        names: of `IMPLEMENTATIONS`.
        dtype: of the computation.

    Raises:
        InputError: the losses of two differ, or PyTorch is to compute in bfloat16.
    """
    if dtype != "float32" and "torch" in names:
        raise InputError(
            f"--dtype: got {dtype!r}, but PyTorch's network is in float32; add --implementations=auxseg"
        )
    rows = []
    for width in widths:
        row = {"width": width}
        for name in names:
            row[name] = machine.measure_apart(MODULE, f"{name},{width},{slices},{size},{repeats},{dtype}")
        apart = np.max(np.ptp([row[name]["losses"] for name in names], axis=0))
        if not apart <= LOSS_TOLERANCE:
            raise InputError(
                f"losses at width {width} differ by {apart:.2g}, expected at most {LOSS_TOLERANCE}"
            )
        print(json.dumps(row), flush=True)
        rows.append(row)
    return rows


def format_table(report):
    """Returns the lines of a Markdown page."""
    yield f"# A training step of the network in 3D on a slab of {report['slices']} x {report['size']} x {report['size']}\n"
    yield f"By `{report['made_by']['command']}`; {report['machine']['processor']}, {report['machine']['cores']} cores. Least of the steps.\n"
    yield "| base width | implementation | processor s | clock s | peak GB |"
    yield "| --- | --- | --- | --- | --- |"
    for row in report["rows"]:
        for name in (name for name in IMPLEMENTATIONS if name in row):
            found = row[name]
            yield (
                f"| {row['width']} | {name} | {_least(found['cpu_s'])} | {_least(found['clock_s'])} | "
                f"{found['peak_gb']:.2f} |"
            )


def _least(seconds):
    return f"{min(seconds):.1f}" if seconds else "not timed"


def main(argv):
    """Runs the command."""
    del argv
    given = flags.FLAGS
    if given.measure:
        name, *numbers, dtype = given.measure.split(",")
        print(json.dumps(measure(name, *map(int, numbers), dtype)))
        return
    asked = f"python -m {MODULE} --widths={','.join(given.widths)} --repeats={given.repeats}"
    report = {
        "made_by": made_by.made_by(asked, data="one slab, seeded", seeds=[0]),
        "machine": machine.describe_machine(),
        "slices": given.slices,
        "size": given.size,
        "dtype": given.dtype,
    }
    names = [check_choice("--implementations", name, IMPLEMENTATIONS) for name in given.implementations]
    widths = [int(width) for width in given.widths]
    report["rows"] = compare(widths, given.slices, given.size, given.repeats, names, given.dtype)
    files.write_json(pathlib.Path(given.out), report)
    files.write_text(pathlib.Path(given.out).with_suffix(".md"), "\n".join(format_table(report)) + "\n")


if __name__ == "__main__":
    flags.DEFINE_integer("slices", 32, "of the slab")
    flags.DEFINE_integer("size", 160, "rows and columns")
    flags.DEFINE_list("widths", ["16"], "base widths; the paper's is 64")
    flags.DEFINE_integer("repeats", 3, "steps that are timed; 0: the peak of memory alone", lower_bound=0)
    flags.DEFINE_list("implementations", list(IMPLEMENTATIONS), "to measure")
    flags.DEFINE_enum("dtype", "float32", ("float32", "bfloat16"), "of auxseg's computation")
    flags.DEFINE_string("out", "experiments/results/slab_step.json", "JSON file to write")
    flags.DEFINE_string(
        "measure", None, "of the command's own processes: NAME,width,slices,size,repeats,dtype"
    )
    command.run(main)
