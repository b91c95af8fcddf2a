"""One training step, one evaluation step: pure functions that run untransformed, or on devices.

The caller binds the settings (`settings.StepSettings`) with `functools.partial` and applies the transform. On several
devices (`axis_name`) sums are taken over all of them before anything is divided, so that an uneven
last batch counts each example once.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from auxseg.base.errors import InputError
from auxseg.devices import parallel
from auxseg.scoring import pixel_counts
from auxseg.training import augment, batching, cutting, insertion, losses, targets


class EpochSums(NamedTuple):
    """Sums over the examples of an epoch, float32, divided once at its end.

    Attributes:
        weight: number of examples.
        loss, segmentation, auxiliary: losses.
        accuracy: fraction of right pixels; equals the pooled DSC of hard masks.
        dice: [C], over the cases whose reference has the class.
        dice_cases: [C], how many those are.
        bad_step: int32, the first step whose loss was not finite, else the largest int32.
    """

    weight: Any
    loss: Any
    segmentation: Any
    auxiliary: Any
    accuracy: Any
    dice: Any
    dice_cases: Any
    bad_step: Any


class CaseResults(NamedTuple):
    """What evaluation finds of each case.

    Attributes:
        loss, segmentation, auxiliary: float32 [N].
        counts: pixel_counts.Counts, [N, C].
        label_probabilities: float32 [N, C] of the auxiliary head; NaN without one.
    """

    loss: Any
    segmentation: Any
    auxiliary: Any
    counts: pixel_counts.Counts
    label_probabilities: Any


class CaseLosses(NamedTuple):
    """Losses of each case, float32 [N]; `loss` = `segmentation` + weight x `auxiliary`."""

    loss: Any
    segmentation: Any
    auxiliary: Any


def empty_sums(num_classes):
    """Returns the EpochSums before the first step."""
    zero, zeros = jnp.zeros(()), jnp.zeros((num_classes,))
    return EpochSums(zero, zero, zero, zero, zero, zeros, zeros, jnp.asarray(jnp.iinfo(jnp.int32).max))


def case_losses(outputs, batch, settings, *, train=False):
    """Returns the CaseLosses of a Batch: segmentation + `settings.aux_weight` x auxiliary (section 3).

    In training the segmentation loss is told which rows are examples: the batch Dice sums over them.
    """
    weights = batch.weights if train else None
    segmentation = settings.segmentation_loss(
        logits=outputs.mask_logits, masks=batch.masks, weights=weights, **batch.partial
    )
    if outputs.class_logits is None:
        return CaseLosses(segmentation, segmentation, jnp.zeros_like(segmentation))
    auxiliary = losses.auxiliary_loss(class_logits=outputs.class_logits, labels=batch.labels)
    return CaseLosses(segmentation + settings.aux_weight * auxiliary, segmentation, auxiliary)


def statistics_momentum(step, *, bn_momentum, warmup):
    """Returns the momentum of the moving statistics at update `step` (0-based int32 scalar).

    With `warmup` it is min(bn_momentum, (1 + step) / (10 + step)), the ramp that is usual for moving
    averages: the statistics average over about the last ninth of the steps so far, and never over more
    than `bn_momentum` allows. Without it the first 0.99^step of them is their initial value, and a run of
    few steps an epoch is validated, and its rate lowered, on statistics of weights long gone.
    """
    if not warmup:
        return jnp.full((), bn_momentum, jnp.float32)
    t = step.astype(jnp.float32)
    return jnp.minimum(bn_momentum, (1.0 + t) / (10.0 + t))


def train_step(state, sums, raw, *, settings):
    """Returns (TrainState, EpochSums) after one update on a RawBatch.

    Args:
        state: TrainState.
        sums: EpochSums of the epoch so far.
        raw: batching.RawBatch, this device's rows.
        settings: StepSettings.

    Raises:
        InputError: the rows of a device cannot be divided into as many parts as `settings.accumulate_steps`.
    """
    batch = _prepare(raw, state.step, settings)
    total_weight = parallel.sum_over_devices(batch.weights.sum(), settings.axis_name)
    momentum = statistics_momentum(
        state.step, bn_momentum=settings.bn_momentum, warmup=settings.bn_warmup
    ) ** (1.0 / settings.accumulate_steps)  # as many updates as there are parts weigh what one would

    def loss_fn(params, batch_stats, batch, indices):
        outputs, updates = settings.model.apply(
            {"params": params, "batch_stats": batch_stats},
            batch.images,
            train=True,
            weights=batch.weights,
            momentum=momentum,
            mutable=["batch_stats"],
            **_dropout_keys(settings, state.step, indices),
        )
        cases = case_losses(outputs, batch, settings, train=True)
        loss = (cases.loss * batch.weights).sum() / total_weight
        return loss, (outputs, cases, updates["batch_stats"])

    def compute(batch_stats, batch, indices):
        found = jax.grad(loss_fn, has_aux=True)(state.params, batch_stats, batch, indices)
        gradients, (outputs, cases, batch_stats) = found
        return batch_stats, (gradients, _batch_sums(outputs, cases, batch, state.step))

    batch_stats, sums_here = _accumulate(
        compute, state.batch_stats, (batch, raw.indices), settings.accumulate_steps
    )
    gradients, new = parallel.sum_over_devices(sums_here, settings.axis_name)
    # Adam moves nothing whose gradient was always 0.
    gradients = {
        name: jax.tree.map(jnp.zeros_like, part) if name in settings.frozen else part
        for name, part in gradients.items()
    }
    updates, opt_state = settings.optimizer.update(gradients, state.opt_state, state.params)
    state = state._replace(
        step=state.step + 1,
        params=optax.apply_updates(state.params, updates),
        batch_stats=batch_stats,
        opt_state=opt_state,
    )
    return state, _add_sums(sums, new, state.step - 1)


def _accumulate(compute, batch_stats, inputs, num_parts):
    """Returns (batch_stats, sums) of `compute(batch_stats, *part) -> (batch_stats, sums)` over the parts of inputs.

    Args:
        compute: as said.
        batch_stats: before the first part.
        inputs: tree of arrays [N, ...].
        num_parts: divisor of N.
    """
    if num_parts == 1:
        return compute(batch_stats, *inputs)
    rows = jax.tree.leaves(inputs)[0].shape[0]
    if rows % num_parts:
        raise InputError(
            f"train.accumulate_steps: got {num_parts}, expected a divisor of {rows}, the rows of a batch on a device"
        )
    parts = jax.tree.map(lambda x: x.reshape(num_parts, rows // num_parts, *x.shape[1:]), inputs)

    def add(carry, part):
        batch_stats, sums = carry
        batch_stats, new = compute(batch_stats, *part)
        return (batch_stats, jax.tree.map(jnp.add, sums, new)), None

    first = jax.tree.map(lambda x: x[0], parts)
    _, shapes = jax.eval_shape(compute, batch_stats, *first)
    zeros = jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), shapes)
    return jax.lax.scan(add, (batch_stats, zeros), parts)[0]


def statistics_step(state, raw, index, *, settings):
    """Returns TrainState with moving statistics that are the plain mean over batches 0 to `index`.

    Called once for each of some training batches while the weights stand still, it gives the statistics of
    these weights ("precise batch norm", Wu & Johnson 2021, arXiv:2105.07576); the moving averages of training
    are of weights that lie up to a hundred steps back.

    Args:
        index: int32 scalar, 0 for the first batch; the other arguments are those of `train_step`.
    """
    batch = _prepare(raw, state.step, settings)
    seen = index.astype(jnp.float32)
    _, updates = settings.model.apply(
        state.variables,
        batch.images,
        train=True,
        weights=batch.weights,
        momentum=seen / (seen + 1.0),
        mutable=["batch_stats"],
        **_dropout_keys(settings, state.step, raw.indices),
    )
    return state._replace(batch_stats=updates["batch_stats"])


def _prepare(raw, step, settings):
    """Returns the Batch that is trained on at update `step`."""
    facts = settings.facts
    is_cut = None if facts is None or facts.is_cut is None else jnp.asarray(facts.is_cut)[raw.indices]
    if settings.window_yx is not None:
        raw, inside = cutting.cut(
            raw,
            step,
            seed=settings.augment_seed,
            filled_yx=facts.filled_yx,
            window_yx=settings.window_yx,
            num_classes=settings.num_classes,
            nodule=settings.nodule,
        )
        is_cut = inside if is_cut is None else inside | is_cut
    if settings.insertion_plan is not None:
        raw = insertion.insert(raw, settings.insertion_plan, step)
    if settings.augmentation is not None:
        keys = augment.case_keys(settings.augment_seed, step, raw.indices)
        images, masks = augment.augment(
            raw.images,
            raw.masks,
            keys,
            ranges=settings.augmentation,
            window_hu=settings.window_hu,
            is_cut=is_cut,
        )
        raw = raw._replace(images=images, masks=masks)
    if settings.target is None or facts is None or facts.readers is None:
        return _to_batch(raw, settings)
    masks, shares = targets.decide(
        raw.masks,
        augment.case_keys(settings.augment_seed, step, raw.indices),
        jnp.asarray(facts.readers)[raw.indices],
        target=settings.target,
        nodule=settings.nodule,
        num_classes=settings.num_classes,
    )
    return _to_batch(raw._replace(masks=masks), settings, shares)


def _to_batch(raw, settings, shares=None):
    return batching.to_batch(
        raw,
        window_hu=settings.window_hu,
        num_classes=settings.num_classes,
        facts=settings.facts,
        shares=shares,
    )


def _dropout_keys(settings, step, indices):
    """Returns {'keys': [N]}, other ones than augmentation's, for a network with dropout; else {}."""
    if not getattr(settings.model, "DROPS", False):
        return {}
    return {"keys": augment.case_keys(settings.augment_seed + 1, step, indices)}


def eval_step(variables, raw, *, settings):
    """Returns the CaseResults of a RawBatch, with the moving statistics.

    Padded rows are for the caller to drop; the other arguments are those of `train_step`.
    """
    batch = _to_batch(raw, settings)
    outputs = settings.model.apply(variables, batch.images)
    cases = case_losses(outputs, batch, settings)
    counts = _count(outputs, batch)
    if outputs.class_logits is None:
        return CaseResults(*cases, counts, jnp.full(batch.labels.shape, jnp.nan))
    return CaseResults(*cases, counts, jax.nn.sigmoid(outputs.class_logits))


def _count(outputs, batch):
    predictions = outputs.mask_logits.argmax(axis=-1)
    return pixel_counts.count_pixels(
        predictions=predictions,
        masks=batch.masks,
        num_classes=outputs.mask_logits.shape[-1],
        meanings=batch.meanings,
    )


def _batch_sums(outputs, cases, batch, step):
    counts = _count(outputs, batch)
    present = pixel_counts.has_class(counts) * batch.weights[:, None]
    dice = 2.0 * counts.overlap / jnp.maximum(counts.predicted + counts.reference, 1.0)
    accuracy = counts.overlap.sum(axis=1) / jnp.maximum(counts.reference.sum(axis=1), 1.0)
    sums = ((x * batch.weights).sum() for x in (*cases, accuracy))
    return EpochSums(batch.weights.sum(), *sums, (dice * present).sum(axis=0), present.sum(axis=0), step * 0)


def _add_sums(sums, new, step):
    added = EpochSums(*(a + b for a, b in zip(sums, new, strict=True)))
    bad = jnp.where(jnp.isfinite(new.loss), sums.bad_step, jnp.minimum(sums.bad_step, step))
    return added._replace(bad_step=bad)
