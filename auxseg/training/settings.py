"""What the steps of a run are made of, read from its config in one place."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from auxseg import models
from auxseg.base.classes import NODULE, classes_of, mirrored, value_of
from auxseg.datasets import scale
from auxseg.training import augment, losses, optim
from auxseg.training.facts import asks_readers


@dataclasses.dataclass(frozen=True)
class StepSettings:
    """What stays the same from step to step; the steps take it whole.

    Attributes:
        model: linen module, created with the same `axis_name`.
        optimizer: optax transformation.
        segmentation_loss: from `losses.create_segmentation_loss`, or another of its keywords.
        aux_weight: factor of the auxiliary loss.
        num_classes: C.
        window_hu: (low, high).
        window_yx: rows and columns that training cuts out of slices at a fixed scale, or None: it sees them whole.
        bn_momentum: of the moving statistics.
        bn_warmup: see `steps.statistics_momentum`.
        augmentation: augment.Ranges, or None for none.
        augment_seed: of the augmentation, of windows, and of dropout where the network has it.
        accumulate_steps: parts of the batch that are computed one after another, for less memory; the gradient is
            that of the whole batch, but for batch norm, which knows only a part at a time.
        frozen: names of the parts of the network whose weights stay; their statistics follow the data.
        facts: facts.CaseFacts of the data set, or None.
        target: 'reader' or 'share', where masks that train hold votes; None: they hold none.
        nodule: value of nodules.
        insertion_plan: insertion.Plan, or None for none.
        axis_name: of the devices, or None.
    """

    model: Any
    optimizer: Any
    segmentation_loss: Callable
    aux_weight: float
    num_classes: int
    window_hu: tuple[float, float]
    bn_momentum: float
    bn_warmup: bool
    window_yx: tuple[int, int] | None = None
    augmentation: augment.Ranges | None = None
    augment_seed: int = 0
    accumulate_steps: int = 1
    frozen: tuple[str, ...] = ()
    facts: Any = None
    target: str | None = None
    nodule: int = NODULE
    insertion_plan: Any = None
    axis_name: str | None = None


def create_step_settings(config, *, axis_name=None, facts=None, insertion_plan=None):
    """Returns the StepSettings of a run.

    Args:
        config: a ConfigDict with the settings of configs/base.py.
        axis_name: of the devices, or None.
        facts: facts.CaseFacts of the data set, or None.
        insertion_plan: from `insertion.create_plan` of the same settings, or None.
    """
    num_classes = len(classes_of(config.data))
    return StepSettings(
        model=models.create_model(config.model, num_classes=num_classes, axis_name=axis_name),
        optimizer=create_optimizer(config.optim),
        segmentation_loss=losses.create_segmentation_loss(config.loss, num_classes, axis_name),
        aux_weight=config.loss.aux_weight,
        num_classes=num_classes,
        window_hu=tuple(config.data.window_hu),
        bn_momentum=config.model.bn_momentum,
        bn_warmup=config.train.bn_warmup,
        window_yx=tuple(config.data.size) if scale.read_scale(config.data) else None,
        augmentation=_create_augmentation(config),
        augment_seed=config.augment.seed,
        accumulate_steps=config.train.accumulate_steps,
        frozen=tuple(config.train.get("freeze", ())),
        facts=facts,
        target=asks_readers(config.data),
        nodule=value_of("nodule", classes_of(config.data)),
        insertion_plan=insertion_plan,
        axis_name=axis_name,
    )


def create_optimizer(config):
    """Returns the optimiser of `config.optim`."""
    return optim.create_optimizer(beta1=config.beta1, beta2=config.beta2, epsilon=config.epsilon)


def _create_augmentation(config):
    """Returns the augment.Ranges of a config, or None where it is off."""
    if not config.augment.enabled:
        return None
    reach = {name: config.augment.get(name, 0.0) for name in augment.Ranges._fields if name != "mirror"}
    return augment.Ranges(**reach, mirror=mirrored(classes_of(config.data)))
