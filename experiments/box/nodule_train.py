"""Trains the network of the nodule look for one fold, or the one in the box; resumes where it stopped.

    python -m experiments.box.nodule_train --real=DIR --output=DIR --fold=0 --recipe=outlines
    python -m experiments.box.nodule_train --real=DIR --output=DIR --fold=0 --init_from=DIR

The steps may be cut into cycles, each with a schedule of its own (Loshchilov and Hutter 2017, SGDR); the weights at the
end of each are kept, and the outlines are the mean of all (Huang et al. 2017, snapshot ensembles).

A fold's network sees neither the crops of the fold's patients, nor the scans that judge it, nor the test patients.
Fold -1 is the network in the box. Batches are a function of (seed, step). Twice on the way the network is run over
the slices without nodules, and what it marks there comes back as hard negatives.
"""

import dataclasses
import functools
import json
import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.ndimage
from absl import flags

from auxseg.base import command
from auxseg.base.errors import InputError
from auxseg.datasets import windows
from auxseg.models.aux_unet import AuxUNet
from auxseg.models.inference import create_inference
from auxseg.models.layers import resolve_lowering
from auxseg.prediction import nodule_look, nodules
from experiments.box import nodule_data

BOX = nodule_data.BOX
ENTROPY_WEIGHT = 5.0


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a network is trained."""

    base_width: int = 16
    depth: int = 4
    window_px: int = 80
    positives: int = 22  # windows with a nodule in a batch
    negatives: int = 10  # windows of slices without one
    hard_share: float = 0.5  # of the negatives, once some were mined
    middle_share: float = 0.3  # of the negatives, from the middle slices
    outlined: float = 0.1  # share of the windows with a nodule, from whole scans where sisters outlined it
    ranges: windows.Ranges = windows.Ranges()
    enlarged: float = 0.0  # share of the windows with a nodule that show it larger, up to a mass
    steps: int = 1200  # of all cycles
    cycles: int = 1
    mine_at: tuple[float, ...] = (0.0, 0.5)  # shares of a cycle
    mine_above: float = 0.3  # probability of a pixel
    learning_rate: float = 1e-3
    target: str = "share"
    seed: int = 1
    save_every: int = 250


RECIPES = {
    "look": Recipe(enlarged=0.15),
    "outlines": Recipe(
        window_px=96,
        positives=28,
        negatives=4,
        hard_share=0.25,
        mine_at=(0.3, 0.65),
        steps=10000,
        cycles=2,
        learning_rate=3e-3,
        ranges=windows.Ranges(hu_scale=0.1, offset_hu=20.0, noise_hu=15.0, step_hu=6.0),
    ),
}
"""Who outlines a nodule in a crop around it meets few windows without one. The look of the box meets whole lungs: it
starts from the weights of the outlines, and a third of its windows hold no nodule. None of the crops holds a mass, so some
nodules are shown as large as one."""
ENLARGED_MM = (8.0, 60.0)
"""Least diameter of nodules that are enlarged, and the largest that they then have."""


@dataclasses.dataclass
class Material:
    """What batches are drawn from."""

    crops: object
    rows: np.ndarray
    by_nodule: list
    volumes: list
    mined: list  # for each volume, int [n, 3]: slice, row, column
    outlined: list = dataclasses.field(
        default_factory=list
    )  # (HU of a slice, its nodule as a sister outlined it)


def read_material(real, fold, sisters=None):
    """Returns the `Material` of a fold's training.

    Args:
        real: folder of the real data.
        fold: that is held out.
        sisters: of the network in the box: folder of the folds' runs, with what `nodule_scans` marked. A scan whose
            every window is without a nodule is known by that, and nothing is marked in it any more. So the box's network is
            shown the nodules of its scans too, as the sisters outlined them that never saw the scan.
    """
    real = pathlib.Path(real)
    crops = nodule_data.read_crops(real)
    folds = nodule_data.assign_folds(crops, nodule_data.read_test_patients())
    rows = nodule_data.training_rows(folds, fold)
    by_nodule = [rows[crops.nodule[rows] == name] for name in sorted(set(crops.nodule[rows].tolist()))]
    volumes = [nodule_data.read_middle(real / "luna16_middle")]
    for name in nodule_data.READ_COMPLETELY:
        if nodule_data.FOLD_OF_SCAN[name] != fold:
            volumes.append(nodule_data.to_negative(nodule_data.read_scan(real / "scans", name)))
    outlined = []
    if fold == BOX and sisters:
        for name, own in nodule_data.FOLD_OF_SCAN.items():
            scan = nodule_data.read_scan(real / "scans", name)
            outlined += list_outlined(scan, pathlib.Path(sisters) / f"fold{own}" / f"marked_{name}.npz")
    return Material(crops, rows, by_nodule, volumes, [np.zeros((0, 3), np.int32) for _ in volumes], outlined)


def list_outlined(scan, path):
    """Returns (HU int16 [H, W], probability of its nodule float32 [H, W]) of each slice in which a sister marked one.

    Args:
        scan: `nodule_data.WholeScan`.
        path: what the sister marked in it, from `nodule_scans`.
    """
    with np.load(path, allow_pickle=False) as arrays:
        marked = arrays["marked"]
    inside = np.zeros(marked.shape, bool)
    for x, y, z, diameter in scan.nodules:
        inside |= nodule_data.ball(scan.geometry, (x, y, z), 0.8 * diameter)
    found = np.where(inside, marked, 0)
    chosen = np.flatnonzero((found > 127).any(axis=(1, 2)))
    return [(scan.hu[index], (found[index] / 255.0).astype(np.float32)) for index in chosen]


def draw_batch(material, places, recipe, step):
    """Returns (images float32 [N, S, S, 1] in [0, 1], targets float32 [N, S, S], known float32 [N, S, S])."""
    generator = np.random.Generator(np.random.PCG64([recipe.seed, step]))
    drawn = [_draw_positive(material, recipe, generator) for _ in range(recipe.positives)]
    drawn += [_draw_negative(material, places, recipe, generator) for _ in range(recipe.negatives)]
    images, targets, known = (np.stack(part) for part in zip(*drawn, strict=True))
    return nodule_look.to_input(images)[..., None], targets, known


def _draw_positive(material, recipe, generator):
    if material.outlined and generator.random() < recipe.outlined:
        return _draw_outlined(material, recipe, generator)
    crops = material.crops
    rows = (
        material.rows
        if generator.random() < 0.5
        else material.by_nodule[generator.integers(len(material.by_nodule))]
    )
    row = rows[generator.integers(len(rows))]
    planes = (crops.image_hu(row), crops.target(row, recipe.target, generator))
    centre = (np.array(crops.images.shape[1:]) - 1) / 2.0
    image, target = windows.draw_window(
        generator,
        planes,
        centre,
        size=recipe.window_px,
        ranges=recipe.ranges,
        enlarge=_draw_enlargement(crops.diameter_mm[row], recipe, generator),
    )
    return image, target, np.ones_like(target)


def _draw_outlined(material, recipe, generator):
    hu, target = material.outlined[generator.integers(len(material.outlined))]
    centre = np.argwhere(target > 0.5).mean(axis=0)
    parts = _cut_around(centre, recipe.window_px)
    planes = hu[parts].astype(np.float32), target[parts]
    at = centre - [part.start for part in parts]
    image, target = windows.draw_window(generator, planes, at, size=recipe.window_px, ranges=recipe.ranges)
    return image, target, np.ones_like(target)


def _cut_around(centre_yx, reach):
    """Returns the slices of rows and columns within a reach of a place."""
    return tuple(slice(max(0, round(at) - reach), round(at) + reach) for at in centre_yx)


def _draw_enlargement(diameter_mm, recipe, generator):
    least, most = ENLARGED_MM
    if not recipe.enlarged or generator.random() >= recipe.enlarged or not least <= diameter_mm < most:
        return 1.0
    return float(np.exp(generator.uniform(0.0, np.log(most / diameter_mm))))


def _draw_negative(material, places, recipe, generator):
    number = 0
    if len(material.volumes) > 1 and generator.random() >= recipe.middle_share:
        number = 1 + generator.integers(len(material.volumes) - 1)
    volume, mined = material.volumes[number], material.mined[number]
    chosen = mined if len(mined) and generator.random() < recipe.hard_share else places[number]
    index, row, column = chosen[generator.integers(len(chosen))]
    rows, columns = _cut_around((row, column), recipe.window_px)
    planes = (
        volume.hu[index, rows, columns].astype(np.float32),
        volume.known[index, rows, columns].astype(np.float32),
    )
    centre = (row - rows.start, column - columns.start)
    image, known = windows.draw_window(generator, planes, centre, size=recipe.window_px, ranges=recipe.ranges)
    return image, np.zeros_like(image), (known > 0.99).astype(np.float32)


def region_places(volume, generator, most=200_000):
    """Returns some places of the region, int32 [n, 3]: slice, row, column."""
    places = np.argwhere(volume.region & volume.known).astype(np.int32)
    return places[generator.permutation(len(places))[:most]]


def loss_of(logits, targets, known):
    """Returns cross-entropy plus the mean of each window's Dice loss, where known; targets may be shares.

    By window, so that a nodule of 4 mm counts as much as one of 30; a window without one is an object of no pixel.
    """
    score = logits[..., 1] - logits[..., 0]
    entropy = optax.sigmoid_binary_cross_entropy(score, targets) * known
    probability, targets = jax.nn.sigmoid(score) * known, targets * known
    overlap = 2.0 * (probability * targets).sum(axis=(1, 2)) + 1.0
    overlap = overlap / (probability.sum(axis=(1, 2)) + targets.sum(axis=(1, 2)) + 1.0)
    return ENTROPY_WEIGHT * entropy.sum() / known.sum() + (1.0 - overlap).mean()


def create_network(recipe):
    """Returns the network of a recipe."""
    settings = nodule_look.network_settings(
        resolve_lowering("auto"), base_width=recipe.base_width, depth=recipe.depth
    )
    return AuxUNet(settings)


def create_forward(recipe, *networks):
    """Returns images float32 [N, H, W, 1] -> probability of nodule float32 [N, H, W], the mean of the networks.

    Args:
        recipe: `Recipe`.
        networks: variables of each.
    """
    parts = [create_inference(create_network(recipe), variables) for variables in networks]

    @jax.jit
    def forward(images):
        logits = [apply_fn(weights, images) for apply_fn, weights in parts]
        return sum(jax.nn.sigmoid(each[..., 1] - each[..., 0]) for each in logits) / len(logits)

    return forward


def mine(material, recipe, variables):
    """Returns for each volume the places that the network marks as nodule, int32 [n, 3]; one for each patch."""
    forward = create_forward(recipe, variables)
    return [_mine_volume(volume, forward, recipe) for volume in material.volumes]


def _mine_volume(volume, forward, recipe):
    marked = nodule_look.mark(lambda index: volume.hu[index], volume.region & volume.known, forward)
    found = []
    for index in np.flatnonzero(marked.any(axis=(1, 2))):
        labels, count = scipy.ndimage.label(marked[index] > 255 * recipe.mine_above)
        centres = scipy.ndimage.center_of_mass(labels > 0, labels, range(1, count + 1))
        found += [(index, round(row), round(column)) for row, column in centres]
    return np.array(found, np.int32).reshape(-1, 3)


def train(real, output, fold, recipe, init_from=None, sisters=None):
    """Trains to the end and returns the variables of the network.

    Args:
        real, output, fold, recipe, sisters: as the command takes them.
        init_from: folder of the run whose weights it starts from; None: new ones.

    Raises:
        InputError: that run saw the patients that this one holds out.
    """
    output = pathlib.Path(output)
    output.mkdir(parents=True, exist_ok=True)
    material = read_material(real, fold, sisters)
    about = {"fold": fold, "recipe": dataclasses.asdict(recipe), "rows": len(material.rows)}
    if init_from:
        about["started_from"] = _check_start(init_from, fold)
    (output / "recipe.json").write_text(json.dumps(about, indent=1) + "\n")
    generator = np.random.Generator(np.random.PCG64([recipe.seed, 77]))
    places = [region_places(volume, generator) for volume in material.volumes]
    model = create_network(recipe)
    window = jnp.zeros((1, recipe.window_px, recipe.window_px, 1))
    variables = model.init(jax.random.key(recipe.seed), window)
    if init_from:
        variables = read_variables(init_from)[1]
    optimizer = optax.adam(create_schedule(recipe))
    state = (variables["params"], variables["batch_stats"], optimizer.init(variables["params"]))
    state, first, material.mined = _restore(output, state, material.mined)
    step_fn = jax.jit(functools.partial(_step, model=model, optimizer=optimizer), donate_argnums=0)
    cycle = recipe.steps // recipe.cycles
    mine_steps = {
        number * cycle + round(share * cycle) for number in range(recipe.cycles) for share in recipe.mine_at
    }
    began, recent = time.monotonic(), []
    for step in range(first, recipe.steps):
        if step in mine_steps:
            material.mined = mine(material, recipe, {"params": state[0], "batch_stats": state[1]})
            print(f"step {step}: mined {[len(places) for places in material.mined]}", flush=True)
        state, loss = step_fn(state, *draw_batch(material, places, recipe, step))
        recent.append(loss)
        if (step + 1) % recipe.save_every == 0 or step + 1 == recipe.steps:
            _save(output, state, step + 1, material.mined)
            mean = float(np.mean(jax.device_get(recent)))
            print(f"step {step + 1}: loss {mean:.4f}, {time.monotonic() - began:.0f} s", flush=True)
            recent = []
        if (step + 1) % cycle == 0:
            nodules.write_weights(
                output / cycle_name((step + 1) // cycle), {"params": state[0], "batch_stats": state[1]}
            )
    variables = jax.device_get({"params": state[0], "batch_stats": state[1]})
    return variables


def create_schedule(recipe):
    """Returns step -> learning rate: in each cycle a thirtieth of warm-up, then a cosine down to 0."""
    cycle = recipe.steps // recipe.cycles
    one = {
        "init_value": 0.0,
        "peak_value": recipe.learning_rate,
        "warmup_steps": cycle // 30,
        "decay_steps": cycle,
    }
    return optax.sgdr_schedule([one] * recipe.cycles)


def cycle_name(number):
    """Returns the file of a run that holds the weights at the end of a cycle, from 1."""
    return f"cycle{number}.npz"


def _step(state, images, targets, known, *, model, optimizer):
    params, batch_stats, opt_state = state

    def loss_fn(params):
        outputs, updates = model.apply(
            {"params": params, "batch_stats": batch_stats}, images, train=True, mutable=["batch_stats"]
        )
        return loss_of(outputs.mask_logits, targets, known), updates["batch_stats"]

    (loss, batch_stats_new), gradients = jax.value_and_grad(loss_fn, has_aux=True)(params)
    updates, opt_state = optimizer.update(gradients, opt_state, params)
    return (optax.apply_updates(params, updates), batch_stats_new, opt_state), loss


def _save(output, state, step, mined):
    leaves = jax.tree.leaves(jax.device_get(state))
    arrays = {f"leaf_{n:04d}": leaf for n, leaf in enumerate(leaves)} | {
        f"mined_{n}": m for n, m in enumerate(mined)
    }
    temporary = output / "state.tmp.npz"
    np.savez(temporary, step=step, **arrays)
    temporary.replace(output / "state.npz")


def _restore(output, state, mined):
    path = output / "state.npz"
    if not path.exists():
        return state, 0, mined
    with np.load(path, allow_pickle=False) as arrays:
        leaves = [arrays[name] for name in sorted(arrays.files) if name.startswith("leaf_")]
        mined = [arrays[f"mined_{number}"] for number in range(len(mined))]
        step = int(arrays["step"])
    return jax.tree.unflatten(jax.tree.structure(state), leaves), step, mined


def _check_start(init_from, fold):
    """Returns what `recipe.json` keeps of the run that a training starts from."""
    first = json.loads((pathlib.Path(init_from) / "recipe.json").read_text())
    if fold not in (BOX, first["fold"]):
        raise InputError(
            f"--init_from: {init_from} holds out fold {first['fold']}, expected {fold}: it saw the patients of this one"
        )
    return {"fold": first["fold"], "recipe": first["recipe"]}


def _recipe_of(values):
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    return Recipe(**values | {"ranges": windows.Ranges(*values.get("ranges", ()))})


def read_variables(output):
    """Returns (`Recipe`, variables) of a finished or saved training."""
    about = json.loads((pathlib.Path(output) / "recipe.json").read_text())
    recipe = _recipe_of(about["recipe"])
    model = create_network(recipe)
    window = jnp.zeros((1, recipe.window_px, recipe.window_px, 1))
    variables = model.init(jax.random.key(0), window)
    optimizer = optax.adam(optax.constant_schedule(1.0))
    state = (variables["params"], variables["batch_stats"], optimizer.init(variables["params"]))
    (params, batch_stats, _), _, _ = _restore(pathlib.Path(output), state, [])
    return recipe, {"params": params, "batch_stats": batch_stats}


def read_cycles(output):
    """Returns (`Recipe`, variables at the end of each cycle) of a finished training."""
    output = pathlib.Path(output)
    recipe, last = read_variables(output)
    paths = [output / cycle_name(number) for number in range(1, recipe.cycles)]
    return recipe, *(nodules.read_weights(path) for path in paths), last


def main(argv):
    """Trains one fold from the command line."""
    del argv
    options = flags.FLAGS
    recipe = RECIPES[options.recipe]
    recipe = dataclasses.replace(recipe, steps=options.steps or recipe.steps)
    train(options.real, options.output, options.fold, recipe, options.init_from, options.sisters)


if __name__ == "__main__":
    flags.DEFINE_string(
        "real", None, "folder of the real data: lidc_nodules, luna16_middle, scans", required=True
    )
    flags.DEFINE_string("output", None, "folder of the run", required=True)
    flags.DEFINE_integer("fold", None, "that is held out; -1: the network of the box", required=True)
    flags.DEFINE_enum("recipe", "look", list(RECIPES), "what the network is for")
    flags.DEFINE_string("init_from", None, "folder of a run of the same fold whose weights to start from")
    flags.DEFINE_string(
        "sisters", None, "folder of the folds' runs, whose outlines the network of the box sees"
    )
    flags.DEFINE_integer("steps", None, "of the training, in place of the recipe's")
    command.run(main)
