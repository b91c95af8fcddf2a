"""How training scales with devices: measured for correctness and overhead, and on paper for 8 to 64 GPUs.

    python -m experiments.speed.benchmark --devices=8 --json=experiments/results/scaling.json

Measured: a small network takes the same steps, an uneven last batch among them, on 1, 2, 4 and 8 simulated
CPU devices. All must end with the same loss, statistics and parameters to `TOLERANCE`, or the exit status is
1. The simulated devices share this machine's cores, so that without overhead a step would take the same time
on any number; the device counts take turns, and only the ratios count.

On paper: `predict_step` from `ASSUMPTIONS`, which are printed and stored with the result. Nothing of it was
measured on GPUs.
"""

from __future__ import annotations

import dataclasses
import math
import os
import statistics
import time

import jax
import numpy as np

from auxseg.devices import parallel
from auxseg.training import batching, loop, setup, steps
from configs import base

TOLERANCE = 1e-5
COUNTS = (1, 2, 4, 8)
GPUS = (1, 8, 16, 32, 64)
GPUS_PER_NODE = 8
SIZE, WIDTH, DEPTH, BATCH, NUM_STEPS = 16, 4, 1, 8, 4
"""Of what is measured: pixels a side, channels of the first level, poolings, examples, steps compared."""


@dataclasses.dataclass(frozen=True)
class Assumptions:
    """What the numbers on paper rest on; H100 SXM nodes of 8, figures of the vendor's data sheets.

    Attributes:
        step_bytes_per_image: memory traffic of a training step at 320x320 in float32, each array moved once.
        memory_bytes_per_s: of a GPU.
        reached: share of that which the step's kernels reach; a guess, a well-tuned memory-bound step reaches
        it.
        fixed_s: of a step, whatever the batch: launches of a few hundred small kernels.
        parameters: whose float32 gradients are summed in every step.
        norm_channels: channels of all batch norms: sum and sum of squares forward, two sums backward,
        float32.
        norm_layers: batch norms; each waits for its sums, forward and backward.
        link_bytes_per_s: between GPUs of a node, one way (NVLink 4).
        network_bytes_per_s: between nodes, for each GPU (400 Gbit/s).
        link_latency_s, network_latency_s: of one small all-reduce within a node, and across nodes.
        image_bytes: int16 image and uint8 mask at 320x320, as they are stored and sent.
        disk_bytes_per_s: that a node reads.
        training_cases: of the paper's split, and about that of all slices with lung.
    """

    step_bytes_per_image: float = 49e9 / 8
    memory_bytes_per_s: float = 3.35e12
    reached: float = 0.6
    fixed_s: float = 2e-3
    parameters: int = 6_565_441
    norm_channels: int = 5_888
    norm_layers: int = 18
    link_bytes_per_s: float = 450e9
    network_bytes_per_s: float = 50e9
    link_latency_s: float = 20e-6
    network_latency_s: float = 40e-6
    image_bytes: int = 320 * 320 * 3
    disk_bytes_per_s: float = 2e9
    training_cases: tuple[int, int] = (799, 90_000)


ASSUMPTIONS = Assumptions()


def small_config():
    """Returns the settings of what is measured."""
    config = base.get_config()
    with config.unlocked():
        config.data.size = (SIZE, SIZE)
        config.model.base_width, config.model.depth = WIDTH, DEPTH
    return config


def draw_examples(count, seed=0):
    """Returns (images int16, masks uint8) [count, SIZE, SIZE]: noise with two discs."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:SIZE, :SIZE] / SIZE
    images = rng.normal(40, 20, (count, SIZE, SIZE)).astype(np.int16)
    masks = np.zeros(images.shape, np.uint8)
    for image, mask in zip(images, masks, strict=True):
        for label, x in ((2, 0.3), (1, 0.7)):
            disc = np.hypot(columns - x, rows - rng.uniform(0.4, 0.6)) < rng.uniform(0.12, 0.2)
            image[disc], mask[disc] = -850, label
    return images, masks


class Trainer:
    """Training on some of the devices."""

    def __init__(self, num_devices, config, initial, examples):
        self.devices = parallel.choose_devices(num_devices)
        self._step = setup.create_train_fn(config, self.devices)
        self._initial, self._examples, self._config = initial, examples, config
        self.restart()

    def restart(self):
        """Goes back to the initial weights."""
        current = parallel.replicate(self._initial, self.devices)
        rate = self._config.optim.learning_rate
        self._current = loop.set_learning_rate(current, rate, self.devices)
        self._sums = parallel.replicate(jax.device_get(steps.empty_sums(4)), self.devices)

    def step(self, number):
        """Takes a step on the next examples, in the last of `NUM_STEPS` on five of eight; returns its
        seconds."""
        images, masks = self._examples
        indices = (np.arange(BATCH) + number * BATCH) % len(images)
        weights = np.ones(BATCH, np.float32)
        if number % NUM_STEPS == NUM_STEPS - 1:
            weights[5:] = 0.0
        rows = parallel.round_up(BATCH, self.devices) - BATCH
        indices, weights = np.pad(indices, (0, rows)), np.pad(weights, (0, rows))
        raw = batching.RawBatch(images[indices], masks[indices], indices.astype(np.int32), weights)
        batch = jax.block_until_ready(parallel.shard(raw, self.devices))
        start = time.perf_counter()
        self._current, self._sums = self._step(self._current, self._sums, batch)
        jax.block_until_ready(self._current)
        return time.perf_counter() - start

    def result(self):
        """Returns (TrainState, EpochSums) on the host."""
        return parallel.fetch_first((self._current, self._sums))


def measure(counts, turns):
    """Returns one row for each number of devices: differences from one device, and the ratio of step
    times."""
    config = small_config()
    initial = jax.device_get(setup.create_initial_state(config))
    examples = draw_examples(NUM_STEPS * BATCH)
    trainers = {count: Trainer(count, config, initial, examples) for count in counts}
    for trainer in trainers.values():
        for number in range(NUM_STEPS):
            trainer.step(number)
    results = {count: trainer.result() for count, trainer in trainers.items()}
    seconds = {count: [] for count in counts}
    for number in range(turns):
        for count, trainer in trainers.items():
            seconds[count].append(trainer.step(number))
    reference = statistics.median(seconds[counts[0]])
    return [
        {
            "devices": count,
            **compare(results[counts[0]], results[count]),
            "step_time_ratio": statistics.median(seconds[count]) / reference,
        }
        for count in counts
    ]


def compare(one, other):
    """Returns the largest differences of loss, statistics and parameters after the steps.

    'cancelled' are the biases before a batch norm, which takes them out again: whatever gradient they have is
    rounding, and Adam makes steps of it as long as of any other.
    """
    (state, sums), (state2, sums2) = one, other
    params, cancelled = _part(state.params), _part(state.params, cancelled=True)
    params2, cancelled2 = _part(state2.params), _part(state2.params, cancelled=True)
    return {
        "loss": abs(float(sums.loss - sums2.loss) / float(sums.weight)),
        "statistics": _largest(state.batch_stats, state2.batch_stats),
        "parameters": _largest(params, params2),
        "cancelled": _largest(cancelled, cancelled2),
        "moments": _largest(state.opt_state, state2.opt_state),
    }


def _part(params, cancelled=False):
    """Returns the leaves that are, or are not, a bias before a batch norm."""
    named = ((jax.tree_util.keystr(path), x) for path, x in jax.tree_util.tree_leaves_with_path(params))
    return [x for name, x in named if ("'unit_" in name and name.endswith("['bias']")) == cancelled]


def _largest(one, other):
    leaves = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return max((float(np.abs(a - b).max(initial=0.0)) for a, b in leaves), default=0.0)


def predict_step(gpus, images_per_gpu, about=ASSUMPTIONS):
    """Returns the times of a training step on `gpus`, seconds, and the bytes it moves; see `Assumptions`.

    Gradients are summed by a reduce-scatter and gather within each node around one all-reduce between nodes,
    after the step's computation: nothing is assumed to overlap.
    """
    local, nodes = min(gpus, GPUS_PER_NODE), math.ceil(gpus / GPUS_PER_NODE)
    gradient_bytes = 4 * about.parameters
    compute = about.fixed_s + images_per_gpu * about.step_bytes_per_image / (
        about.memory_bytes_per_s * about.reached
    )
    within = 2 * (local - 1) / local * gradient_bytes / about.link_bytes_per_s
    between = 2 * (nodes - 1) / nodes * gradient_bytes / local / about.network_bytes_per_s
    latency = 0.0 if gpus == 1 else about.link_latency_s if nodes == 1 else about.network_latency_s
    norm = 2 * about.norm_layers * latency
    step = compute + within + between + norm + latency
    input_bytes = gpus * images_per_gpu * about.image_bytes
    return {
        "gpus": gpus,
        "images": gpus * images_per_gpu,
        "compute_s": compute,
        "gradients_s": within + between + latency,
        "norm_s": norm,
        "step_s": step,
        "gradient_bytes": gradient_bytes if gpus > 1 else 0,
        "norm_bytes": 4 * 4 * about.norm_channels if gpus > 1 else 0,
        "input_bytes": input_bytes,
        "disk_s": input_bytes / nodes / about.disk_bytes_per_s,
    }


def predict(gpus=GPUS, about=ASSUMPTIONS):
    """Returns rows of `predict_step` for the paper's batch of 8, and for 8 and 64 images on each GPU.

    'efficiency' is the rate of images a GPU relative to one GPU with the same batch (fixed batch) or with as
    many images (fixed images a GPU); 'disk_share' the reading of a step beside its computing: above 1 a
    streamed set waits for the disk. 'steps_per_epoch' is that of the two data sets of `Assumptions`.
    """
    rows = []
    for name, per_gpu in (("batch of 8", None), ("8 a GPU", 8), ("64 a GPU", 64)):
        for count in gpus:
            images = per_gpu or 8 / count
            if images < 1:
                continue
            row = predict_step(count, images, about)
            alone = predict_step(1, per_gpu or 8, about)
            rate, alone_rate = row["images"] / row["step_s"], alone["images"] / alone["step_s"]
            rows.append(
                row
                | {
                    "batch": name,
                    "efficiency": rate / count / alone_rate,
                    "disk_share": row["disk_s"] / row["step_s"],
                    "steps_per_epoch": [math.ceil(cases / row["images"]) for cases in about.training_cases],
                }
            )
    return rows


def format_tables(measured, predicted, about=ASSUMPTIONS):
    """Returns the lines of two Markdown tables with what they rest on."""
    lines = [
        f"Measured: width {WIDTH}, {SIZE}x{SIZE}, batch {BATCH}, {NUM_STEPS} steps, the last of 5 examples; "
        "largest differences from one device, and the time of a step relative to one device's (simulated on "
        "shared cores)",
        "",
        "| devices | loss | statistics | parameters | biases that batch norm cancels | Adam's moments | "
        "time of a step |",
        "|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in measured:
        differences = " | ".join(
            f"{row[name]:.1e}" for name in ("loss", "statistics", "parameters", "cancelled", "moments")
        )
        lines.append(f"| {row['devices']} | {differences} | {row['step_time_ratio']:.2f} |")
    lines += [
        "",
        "On paper, float32 at 320x320: " + _list_assumptions(about),
        "",
        "| batch | GPUs | images | step, ms | of it gradients, ms | of it batch norm, ms | efficiency | "
        "gradients, MB | input, MB | reading / step | steps an epoch of 799 / 90,000 |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in predicted:
        lines.append(
            f"| {row['batch']} | {row['gpus']} | {row['images']:.0f} | {1e3 * row['step_s']:.2f} | "
            f"{1e3 * row['gradients_s']:.2f} | {1e3 * row['norm_s']:.2f} | {row['efficiency']:.0%} | "
            f"{row['gradient_bytes'] / 1e6:.1f} | {row['input_bytes'] / 1e6:.1f} | {row['disk_share']:.2f} | "
            f"{row['steps_per_epoch'][0]} / {row['steps_per_epoch'][1]} |"
        )
    return lines


def _list_assumptions(about):
    found = dataclasses.asdict(about).items()
    return ", ".join(f"{k}={v:g}" if isinstance(v, (int, float)) else f"{k}={v}" for k, v in found)


def run(num_devices, turns=20):
    """Returns (report, JSON types; whether every number of devices gave the same) after printing the
    tables."""
    # The programs run for milliseconds: what takes the time is to compile them.
    quick = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    os.environ.setdefault("XLA_FLAGS", quick)
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", num_devices)
    counts = [count for count in COUNTS if count <= num_devices]
    measured, predicted = measure(counts, turns), predict()
    print("\n".join(format_tables(measured, predicted)))
    agreed = all(
        row[name] <= TOLERANCE for row in measured for name in ("loss", "statistics", "parameters", "moments")
    )
    report = {
        "command": f"python -m experiments.speed.benchmark --devices={num_devices}",
        "measured": measured,
        "tolerance": TOLERANCE,
        "assumptions": dataclasses.asdict(ASSUMPTIONS),
        "predicted": predicted,
    }
    return report, agreed
