"""Trains the network that judges candidates, of one fold or of the box, on what the nodule look of that fold marks.

    python -m experiments.box.nodule_judge --real=DIR --runs=DIR --fold=0

True ones are the readers' nodules. False ones are what the look marks where there is none: in the scans that were
read completely and train this fold, in the middle slices, and in the crops away from every reader's mark. Both are
seen through the slices that they themselves span, in half of the batches through one slice alone, with the same
changes of scale, HU and noise, so that neither the number of slices nor the source of an image says what it is.
"""

import dataclasses
import json
import pathlib
import time

import jax
import numpy as np
import optax
import scipy.ndimage
from absl import flags

from auxseg.base import command
from auxseg.base.errors import InputError
from auxseg.datasets import windows
from auxseg.prediction import nodule_candidates, nodule_look, nodules
from experiments.box import judge_views, nodule_data, nodule_train
from experiments.box.judge_network import CandidateNetwork

KINDS = ("scan", "crop", "middle")


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How the network is trained."""

    batch: int = 48
    steps: int = 450
    learning_rate: float = 1e-3
    weight_decay: float = 1e-3
    above: float = 0.1  # probability that a candidate's voxels exceed
    shares: tuple[float, ...] = (0.5, 0.4, 0.1)  # of the false ones, by `KINDS`
    margin_px: int = 4  # around readers' marks, where nothing is false
    seed: int = 1


@dataclasses.dataclass(frozen=True)
class Example:
    """A candidate to train on.

    Attributes:
        planes: int16 [slices, h, w] in HU, those that it spans.
        centre_yx: its place in them.
        spacing_mm: of rows and columns.
        jitter_mm: how far its centre is moved at most.
    """

    planes: np.ndarray
    centre_yx: tuple[float, float]
    spacing_mm: float
    jitter_mm: float = 1.0


def true_examples(crops, rows):
    """Returns an `Example` of each nodule of the rows."""
    found = []
    for name in sorted(set(crops.nodule[rows].tolist())):
        own = rows[crops.nodule[rows] == name]
        own = own[np.argsort(crops.place[own])]
        share = np.stack([crops.share(row) for row in own])
        centre = scipy.ndimage.center_of_mass(share)[1:]
        planes = np.stack([crops.image_hu(row) for row in own]).astype(np.int16)
        jitter = 1.0 + 0.1 * float(crops.diameter_mm[own[0]])
        found.append(Example(planes, centre, float(crops.spacing_mm[own[0]]), jitter))
    return found


def false_in_crops(crops, rows, forward, recipe):
    """Returns the `Example`s of what the look marks in the crops of the rows, away from every reader's mark."""
    found = []
    for name in sorted(set(crops.nodule[rows].tolist())):
        own = rows[crops.nodule[rows] == name]
        own = own[np.argsort(crops.place[own])]
        images = np.stack([crops.image_hu(row) for row in own])
        near = scipy.ndimage.binary_dilation(
            (crops.readers[own] > 0).any(axis=0), iterations=recipe.margin_px
        )
        spacing = (float(crops.gap_mm[own[0]]), *(float(crops.spacing_mm[own[0]]),) * 2)
        marked = nodule_look.mark(lambda i, images=images: images[i], np.ones(images.shape, bool), forward)
        found += [
            example
            for candidate, example in _examples(marked, images, spacing, recipe)
            if not near[candidate.box[1], candidate.box[2]].any()
        ]
    return found


def false_in_volume(volume, spacing_zyx_mm, forward, recipe, *, apart=False):
    """Returns the `Example`s of what the look marks in a `Volume`; `apart`: its slices have nothing to do with each other."""
    region = volume.region & volume.known
    marked = nodule_look.mark(lambda index: volume.hu[index], region, forward)
    if not apart:
        return [example for _, example in _examples(marked, volume.hu, spacing_zyx_mm, recipe)]
    parts = ((marked[i : i + 1], volume.hu[i : i + 1]) for i in range(len(marked)))
    return [example for part, hu in parts for _, example in _examples(part, hu, spacing_zyx_mm, recipe)]


def _examples(marked, hu, spacing_zyx_mm, recipe):
    candidates = nodule_candidates.find_candidates(
        marked, lambda i: hu[i], spacing_zyx_mm, above=recipe.above
    )
    for candidate in candidates:
        slices = judge_views.choose_planes(candidate.box[0].start, candidate.box[0].stop - 1)
        images = [hu[index] for index in sorted(set(slices.tolist()))]
        planes, centre = judge_views.cut_around(images, candidate.centre_zyx[1:], spacing_zyx_mm[1:])
        yield candidate, Example(np.round(planes).astype(np.int16), centre, float(spacing_zyx_mm[1]))


def draw_views(generator, example, single):
    """Returns an example as the network is trained on it, float32 [views, planes, H, W] in [0, 1]."""
    first, last = 0, len(example.planes) - 1
    if single:
        first = last = int(generator.integers(len(example.planes)))
    elif last > 2:
        first, last = first + int(generator.integers(2)), last - int(generator.integers(2))
    planes = example.planes[judge_views.choose_planes(first, last)].astype(np.float32)
    if generator.random() < 0.5:
        planes = planes[::-1]
    angle, scale = generator.uniform(0, 2 * np.pi), np.exp(generator.uniform(-0.15, 0.15))
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = scale * turn @ np.diag((generator.choice((-1.0, 1.0)), 1.0))
    shift = generator.uniform(-1.0, 1.0, 2) * example.jitter_mm / example.spacing_mm
    centre = np.asarray(example.centre_yx) + shift
    views = judge_views.cut_views(planes, centre, (example.spacing_mm,) * 2, matrix=matrix)
    return nodule_look.to_input(windows.blur_scale(generator, views, windows.Ranges()))


def draw_batch(true, false, recipe, step):
    """Returns (views float32 [N, views, planes, H, W], labels float32 [N]); a function of (seed, step)."""
    generator = np.random.Generator(np.random.PCG64([recipe.seed, step]))
    shares = np.array([share * bool(false[kind]) for kind, share in zip(KINDS, recipe.shares, strict=True)])
    views, labels = [], []
    for place in range(recipe.batch):
        single, label = place % 4 < 2, place % 2
        kind = KINDS[generator.choice(len(KINDS), p=shares / shares.sum())]
        several = false["scan"] or false[kind]  # a middle slice stands alone
        pool = true if label else false[kind] if single or kind != "middle" else several
        if not single:
            pool = [example for example in pool if len(example.planes) > 1] or pool
        views.append(draw_views(generator, pool[generator.integers(len(pool))], single))
        labels.append(label)
    return np.stack(views), np.array(labels, np.float32)


def read_examples(real, runs, fold, recipe):
    """Returns (true `Example`s, {kind: false ones}) of a fold's training."""
    forward = nodule_train.create_forward(*nodule_train.read_variables(pathlib.Path(runs) / f"fold{fold}"))
    material = nodule_train.read_material(real, fold)
    crops, rows = material.crops, material.rows
    false = {"crop": false_in_crops(crops, rows, forward, recipe), "scan": []}
    false["middle"] = false_in_volume(material.volumes[0], (1.0, 0.68, 0.68), forward, recipe, apart=True)
    for volume in material.volumes[1:]:
        spacing = nodule_data.read_scan(pathlib.Path(real) / "scans", volume.name).geometry.spacing_zyx_mm
        false["scan"] += false_in_volume(volume, spacing, forward, recipe)
    return true_examples(crops, rows), false


def train(real, runs, fold, recipe):
    """Trains to the end, from the beginning each time, and writes `judge.npz` into the fold's run."""
    true, false = read_examples(real, runs, fold, recipe)
    print(f"true {len(true)}, false { ({kind: len(part) for kind, part in false.items()}) }", flush=True)
    if not any(false.values()):
        raise InputError(
            f"--runs: the look of fold {fold} marks nothing that is no nodule; train it for longer"
        )
    network = CandidateNetwork()
    params = network.init(jax.random.key(recipe.seed), draw_batch(true, false, recipe, 0)[0][:1])["params"]
    schedule = optax.cosine_decay_schedule(recipe.learning_rate, recipe.steps)
    optimizer = optax.adamw(schedule, weight_decay=recipe.weight_decay)
    state = (params, optimizer.init(params))

    @jax.jit
    def step_fn(state, views, labels):
        params, opt_state = state

        def loss_fn(params):
            logits = network.apply({"params": params}, views)
            return optax.sigmoid_binary_cross_entropy(logits, labels).mean(), (
                (logits > 0) == (labels > 0)
            ).mean()

        (loss, right), gradients = jax.value_and_grad(loss_fn, has_aux=True)(params)
        updates, opt_state = optimizer.update(gradients, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), (loss, right)

    began, recent = time.monotonic(), []
    for step in range(recipe.steps):
        state, values = step_fn(state, *draw_batch(true, false, recipe, step))
        recent.append(values)
        if (step + 1) % 50 == 0:
            loss, right = np.mean(jax.device_get(recent), axis=0)
            print(
                f"step {step + 1}: loss {loss:.3f}, right {right:.3f}, {time.monotonic() - began:.0f} s",
                flush=True,
            )
            recent = []
    nodules.write_weights(pathlib.Path(runs) / f"fold{fold}" / "judge.npz", jax.device_get(state[0]))


def answer(params, views):
    """Returns the logits of a list of views, float32 [n]; compiled for a few numbers of them."""
    if not views:
        return np.zeros(0, np.float32)
    filled = np.zeros((-(-len(views) // 16) * 16, *views[0].shape), np.float32)
    filled[: len(views)] = np.stack(views)
    return np.asarray(_apply(params, filled))[: len(views)]


@jax.jit
def _apply(params, views):
    return CandidateNetwork().apply({"params": params}, views)


def main(argv):
    """Trains the judge of one fold."""
    del argv
    options = flags.FLAGS
    train(options.real, options.runs, options.fold, Recipe(steps=options.steps))
    print(json.dumps(dataclasses.asdict(Recipe(steps=options.steps))))


if __name__ == "__main__":
    flags.DEFINE_string(
        "real", None, "folder of the real data: lidc_nodules, luna16_middle, scans", required=True
    )
    flags.DEFINE_string("runs", None, "folder with a folder foldN for each fold", required=True)
    flags.DEFINE_integer("fold", None, "that is held out; -1: the network of the box", required=True)
    flags.DEFINE_integer("steps", Recipe.steps, "of the training")
    command.run(main)
