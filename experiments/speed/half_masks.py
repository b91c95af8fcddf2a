"""What bfloat16 changes in masks: the lungs network of the box on real slices, in bfloat16 beside float32.

    python -m experiments.speed.half_masks --slices=FOLDER

FOLDER holds slices as .npz with `image` (HU) and `mask`. Each is cut to the body, as prediction does. Writes to
`experiments/results/half_masks.json`, for each unit that multiplies bfloat16 here and each other library that is
installed: the share of pixels whose class differs from float32's, and the change of each lung's Dice, whose
reference is brought to the network's size.
"""

import pathlib
import types

import jax
import numpy as np
from absl import flags

from auxseg.base import command, files
from auxseg.base.classes import LEFT, RIGHT
from auxseg.base.errors import InputError
from auxseg.ct import body
from auxseg.datasets.resize import resize_image, resize_mask
from auxseg.models import create_inference, create_model, interface
from auxseg.models.kernels import build
from auxseg.prediction import box
from auxseg.runs import networks
from experiments.made_by import made_by
from experiments.speed import machine

RESULT = pathlib.Path(__file__).parents[1] / "results" / "half_masks.json"
SPACING_MM = (0.7, 0.7)
"""Of slices whose spacing is not known; the box around the body hardly depends on it."""
BATCH_SIZE = 8


def read_slices(folder, size_yx):
    """Returns images int16 [N, *size_yx], in HU, and masks uint8 [N, *size_yx], cut to the body.

    Raises:
        InputError: no slices there.
    """
    images, masks = [], []
    for path in sorted(pathlib.Path(folder).glob("*.npz")):
        with np.load(path, allow_pickle=False) as archive:
            image, mask = archive["image"], archive["mask"]
        found = body.find_body(lambda start, stop, image=image: image[None][start:stop], 1, SPACING_MM)
        if found is not None:
            image, mask = found.cut(image), found.cut_mask(mask)
        images.append(np.round(resize_image(image, size_yx)).astype(np.int16))
        masks.append(resize_mask(mask, size_yx))
    if not images:
        raise InputError(f"--slices: {folder} holds no .npz")
    return np.stack(images), np.stack(masks)


def create_classify(trained, dtype):
    """Returns the function from images in HU to classes uint8 [N, H, W] of our kernels."""
    model = create_model(trained.config.model)
    apply_fn, weights = create_inference(model, trained.variables, dtype=dtype)
    window = tuple(trained.config.data.window_hu)

    @jax.jit
    def classify(weights, images):
        return apply_fn(weights, interface.to_input(images, window)).argmax(-1).astype(np.uint8)

    return lambda images: np.asarray(classify(weights, images))


def create_peers(trained):
    """Returns {name: function like `create_classify`'s} of other libraries in bfloat16, those installed."""
    window = tuple(trained.config.data.window_hu)
    settings = types.SimpleNamespace(**{**trained.config.model.to_dict(), "num_classes": 4})
    try:
        from experiments.speed.peers import run_torch
    except ImportError:
        return {}

    def after(forward):
        def classify(images):
            given = np.asarray(interface.to_input(images, window)).transpose(0, 3, 1, 2)
            return forward(np.ascontiguousarray(given)).argmax(1).astype(np.uint8)

        return classify

    created = run_torch.create_half_forwards(
        settings, trained.variables, BATCH_SIZE, trained.config.data.size
    )
    return {name: after(forward) for name, forward in created.items()}


def classify_all(classify, images):
    """Returns the classes of all images, a batch at a time; the last is filled up."""
    found = []
    for start in range(0, len(images), BATCH_SIZE):
        batch = images[start : start + BATCH_SIZE]
        filled = np.concatenate([batch, np.repeat(batch[-1:], BATCH_SIZE - len(batch), 0)])
        found.append(classify(filled)[: len(batch)])
    return np.concatenate(found)


def mean_dice(found, masks, value):
    """Returns the mean Dice of a class over slices that show it."""
    scores = []
    for one, reference in zip(found == value, masks == value, strict=True):
        if reference.any():
            scores.append(2.0 * np.sum(one & reference) / (one.sum() + reference.sum()))
    return float(np.mean(scores))


def compare(exact, found, masks):
    """Returns a row of the result."""
    row = {"differing_pixels": float(np.mean(exact != found))}
    for name, value in (("left_lung", LEFT), ("right_lung", RIGHT)):
        before, after = (mean_dice(each, masks, value) for each in (exact, found))
        row[name] = {"dice_float32": before, "dice": after, "change": after - before}
    return row


def main(_):
    """Runs the command."""
    trained = networks.read_trained(box.FOLDER / "lungs")
    images, masks = read_slices(flags.FLAGS.slices, tuple(trained.config.data.size))
    exact = classify_all(create_classify(trained, "float32"), images)
    rows = {}

    def add(name, classify):
        rows[name] = compare(exact, classify_all(classify, images), masks)
        print(f"{name}: {rows[name]['differing_pixels']:.4%} of pixels differ", rows[name], flush=True)

    for unit in build.UNITS[1 : build.UNITS.index(build.find_unit()) + 1]:
        build.choose_unit(unit)
        add(unit, create_classify(trained, "bfloat16"))
    for name, classify in create_peers(trained).items():
        add(name, classify)
    asked = "python -m experiments.speed.half_masks --slices=FOLDER"
    data = f"{len(images)} real slices of LUNA16 at {images.shape[1]} x {images.shape[2]}, the box's lungs network"
    result = {
        "made_by": made_by(asked, data=data, seeds=()),
        "machine": machine.describe_machine(),
        "rows": rows,
    }
    files.write_json(pathlib.Path(flags.FLAGS.out), result)
    return 0


if __name__ == "__main__":
    flags.DEFINE_string("slices", None, "folder of slices as .npz", required=True)
    flags.DEFINE_string("out", str(RESULT), "JSON file to write")
    command.run(main)
