"""Trains the detector on cubes of whole scans, and looks with it at whole scans, cube by cube."""

from __future__ import annotations

import dataclasses
import functools
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

from auxseg.devices import parallel
from auxseg.runs.networks import flatten, unflatten
from experiments.deepseed import anchors, model, volumes

VOXEL_MM = 2.0
TRAIN_SIDE, LOOK_SIDE, LOOK_MARGIN = 32, 80, 8
"""Voxels of a cube in training, and in a whole scan; of the latter so many next to each face are not looked at."""
LEAST_SCORE, MOST_FINDINGS = 0.02, 300
"""Of what is a candidate, and of how many a scan before overlapping ones are suppressed."""


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How it is trained.

    Attributes:
        steps: updates.
        batch: cubes in one; half of them hold a nodule.
        learning_rate: at the start of a cosine.
        seed: of the weights and of what is drawn.
    """

    steps: int = 300
    batch: int = 4
    learning_rate: float = 2e-3
    seed: int = 1


def create_grid(side, settings=model.SMALL):
    """Returns the `anchors.Grid` of a cube of `side` voxels."""
    places = (side // settings.stride,) * 3
    return anchors.Grid(places, settings.stride, tuple(mm / VOXEL_MM for mm in anchors.SIDES_MM))


def draw_batch(scans, recipe, step):
    """Returns one batch of a step: (cubes [N, S, S, S, 1], places [N, s, s, s, 3], kinds, targets), NumPy arrays.

    Each cube is mirrored or not along each axis.

    Args:
        scans: `volumes.Volume`s.
        recipe: `Recipe`.
        step: 0-based.
    """
    generator = np.random.default_rng([recipe.seed, step])
    grid, parts = create_grid(TRAIN_SIDE), []
    for number in range(recipe.batch):
        scan = scans[generator.integers(len(scans))]
        corner = volumes.draw_corner(scan, TRAIN_SIDE, generator, at_nodule=number % 2 == 0)
        cube, places = volumes.cut(scan, corner, TRAIN_SIDE), volumes.find_places(scan, corner, grid)
        nodules = volumes.nodules_in(scan, corner, TRAIN_SIDE)
        for axis in np.flatnonzero(generator.random(3) < 0.5):
            cube, places = np.flip(cube, axis), np.flip(places, axis)
            nodules[:, axis] = TRAIN_SIDE - 1 - nodules[:, axis]
        parts.append((cube[..., None], places, *anchors.encode(grid, nodules)))
    return tuple(np.stack(each) for each in zip(*parts, strict=True))


def train(scans, recipe, start=None):
    """Returns (variables, losses of the steps) of a detector trained on scans.

    Args:
        scans: `volumes.Volume`s.
        recipe: `Recipe`.
        start: variables to start from, or None.
    """
    network = model.DeepSEED(model.SMALL)
    first = draw_batch(scans, recipe, 0)
    variables = start or jax.jit(network.init)(jax.random.key(recipe.seed), *first[:2])
    schedule = optax.cosine_decay_schedule(recipe.learning_rate, recipe.steps)
    optimizer = optax.adamw(schedule, weight_decay=1e-4)
    state = (variables["params"], variables["batch_stats"], optimizer.init(variables["params"]))
    step_fn = jax.jit(functools.partial(take_step, network, optimizer))
    losses, began = [], time.process_time()
    for step in range(recipe.steps):
        key = jax.random.fold_in(jax.random.key(recipe.seed), step)
        state, loss = step_fn(state, key, *draw_batch(scans, recipe, step))
        losses.append(float(loss))
        if (step + 1) % 20 == 0:
            recent = np.mean(losses[-20:])
            print(f"step {step + 1}: loss {recent:.3f}, {time.process_time() - began:.0f} s", flush=True)
    params, statistics, _ = jax.device_get(state)
    return {"params": params, "batch_stats": statistics}, losses


def take_step(network, optimizer, state, key, cubes, places, kinds, targets):
    """Returns (state, loss) after one update; state is (params, statistics, moments)."""
    params, statistics, moments = state

    def loss_fn(params):
        (logits, offsets), updates = network.apply(
            {"params": params, "batch_stats": statistics},
            cubes,
            places,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": key},
        )
        loss = anchors.focal_loss(logits=logits, kinds=kinds)
        loss += anchors.offset_loss(offsets=offsets, targets=targets, kinds=kinds)
        return loss, updates["batch_stats"]

    (loss, statistics), gradients = jax.value_and_grad(loss_fn, has_aux=True)(params)
    updates, moments = optimizer.update(gradients, moments, params)
    return (optax.apply_updates(params, updates), statistics, moments), loss


def write_weights(path, variables):
    """Writes variables as .npz, arrays by name."""
    np.savez(path, **flatten(variables))


def read_weights(path):
    """Returns the variables that `write_weights` wrote."""
    with np.load(path, allow_pickle=False) as arrays:
        return unflatten(dict(arrays))


def find(scan, forward):
    """Returns the candidates of a whole scan, float64 [n, 4]: x, y, z in mm (LPS) and the score, the highest first.

    Args:
        scan: `volumes.Volume`.
        forward: of `create_forward`.
    """
    grid, found = create_grid(LOOK_SIDE), []
    inner = grid.centres()[..., 0, :]
    core = ((inner > LOOK_MARGIN - 1) & (inner < LOOK_SIDE - LOOK_MARGIN)).all(axis=-1)
    for corner in volumes.tile(scan.values.shape, LOOK_SIDE, LOOK_MARGIN):
        if not _shows_lung(scan, corner):
            continue
        cube, places = volumes.cut(scan, corner, LOOK_SIDE), volumes.find_places(scan, corner, grid)
        scores, offsets = (np.asarray(part[0]) for part in forward(cube[None, ..., None], places[None]))
        chosen = core[..., None] & (scores > LEAST_SCORE)
        cubes = anchors.decode(grid, offsets)[chosen] + np.array([*corner, 0], np.float32)
        found.append(np.column_stack([cubes, scores[chosen]]))
    found = np.concatenate([np.zeros((0, 5)), *found])
    found = found[np.argsort(-found[:, 4], kind="stable")][:MOST_FINDINGS]
    kept = found[anchors.suppress(found[:, :4], found[:, 4])] if len(found) else found
    return np.column_stack([scan.to_mm(kept[:, :4])[:, :3], kept[:, 4]])


def _shows_lung(scan, corner):
    low = np.maximum(corner + LOOK_MARGIN, 0)
    high = corner + LOOK_SIDE - LOOK_MARGIN
    return scan.lungs[tuple(slice(a, b) for a, b in zip(low, high, strict=True))].any()


def create_forward(variables):
    """Returns (cubes, places) -> (scores float32 [N, d, h, w, anchors] from 0 to 1, offsets), compiled."""
    network = model.DeepSEED(model.SMALL)

    @jax.jit
    def forward(cubes, places):
        logits, offsets = network.apply(variables, cubes, places)
        return jax.nn.sigmoid(logits), offsets

    return lambda cubes, places: forward(jnp.asarray(cubes), jnp.asarray(places))


def prepare(cache):
    """Keeps compiled programs below a folder."""
    parallel.keep_compiled_programs(cache / "compiled")
