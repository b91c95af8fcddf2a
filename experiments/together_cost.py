"""Are independent runs faster in one program? A training step of K runs by `vmap` against K steps in turn.

    python -m experiments.together_cost

Writes `experiments/results/together_cost.json`. Both take turns in one process, so that what else the machine
does hits both alike: trust the ratio. Above 1 the runs are better off one after another. Runs of a study
differ in weights, order and patients and have one shape, which is all that `vmap` needs; that their results
are the same is checked on the first step.
"""

from __future__ import annotations

import json
import pathlib
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from auxseg import input_pipeline, optim, runs, steps, train
from auxseg.parallel import choose_devices
from configs import base

RESULT = pathlib.Path(__file__).parent / "results" / "together_cost.json"

SHAPES = ((8, 96, 4), (8, 192, 4))
"""Base width, rows and columns, batch: those of the small studies here."""

NUM_RUNS = 4
NUM_TURNS = 7
TOLERANCE = 1e-3


def main():
    """Measures each shape, prints a line each and writes the result."""
    rows = []
    for shape in SHAPES:
        rows.append(measure(*shape))
        print(json.dumps(rows[-1]), flush=True)
    runs.write_json(RESULT, {"machine": runs.describe_machine(choose_devices(1)), "rows": rows})


def create_config(base_width, size, batch_size):
    """Returns the paper's settings at another width and size."""
    config = base.get_config()
    config.model.base_width = base_width
    config.data.size = (size, size)
    config.train.batch_size = batch_size
    return config


def create_runs(config, num_runs):
    """Returns [(TrainState, EpochSums, RawBatch)] of runs with weights and images of their own."""
    made = []
    for seed in range(num_runs):
        config.seed = seed
        initial = train.create_initial_state(config)
        rate = jnp.float32(config.optim.learning_rate)
        initial = initial._replace(opt_state=optim.set_learning_rate(initial.opt_state, rate))
        rng, shape = np.random.default_rng(seed), (config.train.batch_size, *config.data.size)
        raw = input_pipeline.RawBatch(
            jnp.asarray(rng.integers(-1000, 400, shape), jnp.int16),
            jnp.asarray(rng.integers(0, 4, shape), jnp.uint8),
            jnp.zeros(shape[0], jnp.int32),
            jnp.ones(shape[0], jnp.float32),
        )
        made.append((initial, steps.empty_sums(config.model.num_classes), raw))
    return made


def measure(base_width, size, batch_size, *, num_runs=NUM_RUNS, num_turns=NUM_TURNS):
    """Returns one row: seconds of a step of all runs, in turn and together, and their ratio."""
    config = create_config(base_width, size, batch_size)
    step = train.bind_train_step(config)
    alone, together = jax.jit(step), jax.jit(jax.vmap(step))
    made = create_runs(config, num_runs)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *made)
    ways = {
        "in_turn": lambda: [alone(*each) for each in made],
        "together": lambda: together(*stacked),
    }
    compiling, results, seconds = {}, {}, {way: [] for way in ways}
    for way, run in ways.items():
        compiling[way], results[way] = timed(run)
    _check_same(results)
    for _ in range(num_turns):
        for way, run in ways.items():
            seconds[way].append(timed(run)[0])
    ratios = [b / a for a, b in zip(seconds["in_turn"], seconds["together"], strict=True)]
    return {
        "base_width": base_width,
        "size": size,
        "batch_size": batch_size,
        "runs": num_runs,
        **{f"{way}_median_s": statistics.median(values) for way, values in seconds.items()},
        **{f"{way}_first_s": value for way, value in compiling.items()},
        "together_over_in_turn": statistics.median(ratios),
        "lowest_ratio": min(ratios),
        "highest_ratio": max(ratios),
    }


def timed(run):
    """Returns (seconds, result) of a call, its arrays ready."""
    start = time.perf_counter()
    result = jax.block_until_ready(run())
    return time.perf_counter() - start, result


def _check_same(results):
    losses = [float(sums.loss) for _, sums in results["in_turn"]]
    np.testing.assert_allclose(np.asarray(results["together"][1].loss), losses, rtol=TOLERANCE)


if __name__ == "__main__":
    main()
