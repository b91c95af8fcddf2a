"""What TensorBoard shows of a run: scores and pictures by epoch, its settings, its final scores beside them.

tensorboardX writes the events; nothing but a run that trains imports it.
"""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np

from auxseg import models
from auxseg.base.classes import COLOURS, to_rgb
from auxseg.models import interface
from auxseg.runs import run_folder

FOLDER = "hparams"
"""In the workdir: settings and final scores, as TensorBoard's page HPARAMS reads them."""
_UNKNOWN_COLOUR = (128, 128, 128)
_OPACITY = 0.45


def open_events(workdir, epoch):
    """Returns a writer of events that replaces those after `epoch`; of a new run it has the settings as text."""
    from tensorboardX import SummaryWriter

    writer = SummaryWriter(str(workdir), purge_step=epoch + 1)
    settings = workdir / "config.json"
    if epoch == 0 and settings.is_file():
        writer.add_text("settings", f"```\n{settings.read_text(encoding='utf-8')}\n```", 0)
    return writer


def write_row(writer, row):
    """Writes the numbers of an epoch, a row of `metrics.jsonl`."""
    for split in ("train", "val"):
        scores = {k: v for k, v in row[split].items() if isinstance(v, float)}
        scores |= {f"dice/{name}": v for name, v in row[split]["dice"].items() if v is not None}
        for name, value in scores.items():
            writer.add_scalar(f"{split}/{name}", value, row["epoch"])
    for name in ("learning_rate", "seconds", "images_per_second", "peak_memory_mb", "waited_for_data"):
        writer.add_scalar(name, row[name], row["epoch"])
    writer.flush()


def create_draw(config, dataset, members):
    """Returns draw(variables) -> {case id: uint8 [H, 3 W, 3]}: image, reference and prediction of some cases.

    They are the same `eval.num_pictures` validation cases in every epoch, spread over those with nodules and those
    without.

    Args:
        config: of the run.
        dataset: Dataset.
        members: {split: indices}.
    """
    chosen = choose_cases(members["val"], dataset.table.has_nodule, config.eval.num_pictures)
    images, masks = dataset.read_seen(chosen)
    model = models.create_model(config.model, num_classes=len(dataset.classes))
    window = tuple(config.data.window_hu)
    grey = np.asarray(interface.normalise_hu(jnp.asarray(images), window))
    grey = grey if grey.ndim == 3 else grey[..., grey.shape[-1] // 2]  # of a slab, the slice that is marked
    palette = create_palette(dataset.classes)

    @jax.jit
    def predict(variables, images):
        logits = model.apply(variables, interface.to_input(images, window)).mask_logits
        return logits.argmax(axis=-1).astype(jnp.uint8)

    def draw(variables):
        found = np.asarray(predict(variables, images))
        names = dataset.table.case_id[chosen]
        return {
            str(name): paint(*case, palette) for name, *case in zip(names, grey, masks, found, strict=True)
        }

    return draw


def choose_cases(indices, has_nodule, count):
    """Returns up to `count` of the cases `indices` int [n], evenly from those with nodules to those without.

    Args:
        indices: of a split.
        has_nodule: bool, of all cases of the data set.
        count: at least 1.
    """
    order = np.asarray(indices)[np.argsort(~has_nodule[indices], kind="stable")]
    return order[np.unique(np.linspace(0, len(order) - 1, min(count, len(order))).round().astype(int))]


def create_palette(classes):
    """Returns uint8 [256, 3], the colour of each mask value; what is unknown is grey."""
    palette = np.full((256, 3), _UNKNOWN_COLOUR, np.uint8)
    for value, name in enumerate(classes):
        palette[value] = to_rgb(COLOURS[name])
    return palette


def paint(grey, reference, prediction, palette):
    """Returns uint8 [H, 3 W, 3]: the image, and beside it the image under each mask.

    Args:
        grey: float [H, W] in [0, 1].
        reference, prediction: uint8 [H, W].
        palette: from `create_palette`.
    """
    plain = np.repeat(255.0 * grey[..., None], 3, axis=-1)
    panels = [plain]
    for mask in (reference, prediction):
        mixed = (1.0 - _OPACITY) * plain + _OPACITY * palette[mask]
        panels.append(np.where((mask > 0)[..., None], mixed, plain))
    return np.concatenate(panels, axis=1).round().astype(np.uint8)


def write_pictures(writer, pictures, epoch):
    """Writes the pictures {case id: uint8 [H, W, 3]} of an epoch."""
    for name, picture in pictures.items():
        writer.add_image(f"val/{name}", picture, epoch, dataformats="HWC")
    writer.flush()


def write_scores(workdir, config, scores):
    """Writes settings and final scores side by side, for comparing runs; those of before are replaced.

    Args:
        workdir: pathlib.Path of the run.
        config: its settings.
        scores: {split: of `validation.summarise`}.
    """
    from tensorboardX import SummaryWriter

    settings = run_folder.flatten(run_folder.config_to_dict(config))
    settings = {
        name: v if isinstance(v, (bool, int, float, str)) else json.dumps(v) for name, v in settings.items()
    }
    metrics = {f"final/{split}/loss": found["loss"] for split, found in scores.items()}
    for split, found in scores.items():
        metrics |= {f"final/{split}/dice/{name}": value for name, value in found["dice"].items()}
    metrics = {name: value for name, value in metrics.items() if value is not None}
    shutil.rmtree(workdir / FOLDER, ignore_errors=True)
    with SummaryWriter(str(workdir / FOLDER)) as writer:
        writer.add_hparams(settings, metrics, name=".")
