"""Segmentation losses and the auxiliary term; per example, or per example and class.

The caller reduces over examples, because only the caller knows which rows are padding. All overlap
losses are soft (Milletari et al. 2016, arXiv:1606.04797): probabilities stand for the prediction, and
`smooth` pixels are added above and below, so that a class that is absent from both gives a loss of 0
and one that is absent from the reference alone still has a finite gradient that removes it.

The one loss that is no sum over examples is the batch Dice: its sums run over the batch, on all devices, so
that a class which few slices have still weighs as much as one that all have.

Pixels of `UNKNOWN` are in no loss. Where labels say less than one class of each pixel, every loss takes (as `partial`)
what `references` does: `meanings` of the values, and `shares` of them. The classes are then the labels' values.

Letters: N examples, H rows, W columns, C classes.
"""

import functools

import jax
import jax.numpy as jnp
import optax

from auxseg.base.classes import NUM_CLASSES, UNKNOWN
from auxseg.base.errors import InputError, check_choice
from auxseg.devices import parallel
from auxseg.training import references


def dice_loss(*, logits, masks, smooth=1.0, **partial):
    """Returns 1 - soft Dice, float32 [N, C].

    Args:
        logits: float32 [N, H, W, C].
        masks: integers [N, H, W], class indices.
        smooth: pixels added to numerator and denominator.
    """
    overlap, predicted, reference = references.overlaps(logits, masks, **partial)
    return 1.0 - (2.0 * overlap + smooth) / (predicted + reference + smooth)


def iou_loss(*, logits, masks, smooth=1.0, **partial):
    """Returns 1 - soft intersection over union, float32 [N, C]; arguments as `dice_loss`."""
    overlap, predicted, reference = references.overlaps(logits, masks, **partial)
    return 1.0 - (overlap + smooth) / (predicted + reference - overlap + smooth)


def tversky_loss(*, logits, masks, alpha=0.3, beta=0.7, smooth=1.0, **partial):
    """Returns 1 - Tversky index, float32 [N, C] (Salehi et al. 2017, arXiv:1706.05721).

    Args:
        logits: float32 [N, H, W, C].
        masks: integers [N, H, W], class indices.
        alpha: weight of false positives: a number, or one for each class.
        beta: weight of false negatives, likewise; alpha = beta = 0.5 gives the Dice loss with smooth / 2.
        smooth: pixels added to numerator and denominator.
    """
    overlap, predicted, reference = references.overlaps(logits, masks, **partial)
    alpha, beta = (jnp.broadcast_to(jnp.asarray(x, jnp.float32), overlap.shape) for x in (alpha, beta))
    errors = alpha * (predicted - overlap) + beta * (reference - overlap)
    return 1.0 - (overlap + smooth) / (overlap + errors + smooth)


def focal_tversky_loss(*, logits, masks, alpha=0.3, beta=0.7, gamma=0.75, smooth=1.0, **partial):
    """Returns the Tversky loss raised to `gamma`, float32 [N, C] (Abraham & Khan 2019, arXiv:1810.07842).

    The base is kept above 1e-7: the gradient of a power below 1 is infinite at 0.
    """
    loss = tversky_loss(logits=logits, masks=masks, alpha=alpha, beta=beta, smooth=smooth, **partial)
    return jnp.maximum(loss, 1e-7) ** gamma


def batch_dice_loss(*, logits, masks, weights, smooth=1.0, class_weights=None, axis_name=None, **partial):
    """Returns 1 - soft Dice of the whole batch, averaged over the classes that it has; float32 scalar.

    One ratio a class, of sums over all examples and devices (Isensee et al. 2021, nnU-Net, call it batch
    Dice); a class that the batch lacks is left out, and counts through the cross-entropy alone.

    Args:
        logits: float32 [N, H, W, C].
        masks: integers [N, H, W], class indices.
        weights: float32 [N], 1.0 for an example, 0.0 for padding.
        smooth: pixels added to numerator and denominator.
        class_weights: [C], weights of the mean; None: all 1.
        axis_name: of the devices that share the batch, or None.
    """
    rows = weights[:, None]
    sums = tuple((each * rows).sum(axis=0) for each in references.overlaps(logits, masks, **partial))
    overlap, predicted, reference = parallel.sum_over_devices(sums, axis_name)
    losses = 1.0 - (2.0 * overlap + smooth) / (predicted + reference + smooth)
    return _present_mean(losses, reference, class_weights)


def present_dice_loss(*, logits, masks, smooth=1.0, class_weights=None, **partial):
    """Returns 1 - soft Dice averaged over the classes that the case has, float32 [N].

    The batch Dice of batches of one: what validation reports for it. Arguments as `batch_dice_loss`.
    """
    overlap, predicted, reference = references.overlaps(logits, masks, **partial)
    losses = 1.0 - (2.0 * overlap + smooth) / (predicted + reference + smooth)
    return jax.vmap(lambda *case: _present_mean(*case, class_weights))(losses, reference)


def _present_mean(losses, reference, class_weights):
    """Returns the weighted mean of losses [C] over the classes with reference [C] above 0."""
    ones = jnp.ones_like(losses)
    weights = ones if class_weights is None else jnp.asarray(class_weights, jnp.float32)
    weights = jnp.where(reference > 0, weights, 0.0)
    return (losses * weights).sum() / jnp.maximum(weights.sum(), 1e-7)


def cross_entropy(*, logits, masks, class_weights=None, hard_fraction=1.0, **partial):
    """Returns the cross-entropy averaged over the pixels, float32 [N].

    Args:
        logits: float32 [N, H, W, C].
        masks: integers [N, H, W], class indices.
        class_weights: float32 [C], the factor of each pixel by its reference class; None: all 1. As in
            Keras, the sum is divided by the number of pixels, not by the sum of the weights.
        hard_fraction: the share of a case's pixels, those with the largest loss, that is averaged (online
            mining of hard pixels; Shrivastava et al. 2016, arXiv:1604.03540, mine regions); 1.0: all.
    """
    losses = references.pixel_losses(logits, masks, **partial)
    return _pixel_mean(losses, masks, class_weights, hard_fraction, **partial)


def focal_cross_entropy(*, logits, masks, gamma=2.0, class_weights=None, hard_fraction=1.0, **partial):
    """Returns (1 - p)^gamma times the cross-entropy, over the pixels, float32 [N] (arXiv:1708.02002).

    The other arguments are those of `cross_entropy`.
    """
    losses = references.pixel_losses(
        logits, masks, **partial, change=lambda losses: (1.0 - jnp.exp(-losses)) ** gamma * losses
    )
    return _pixel_mean(losses, masks, class_weights, hard_fraction, **partial)


def _pixel_mean(losses, masks, class_weights, hard_fraction, meanings=None, shares=None):
    """Returns float32 [N] of losses [N, H, W]: weighted by value, then averaged over the hardest known pixels."""
    del meanings  # what values mean, they weigh as values
    if class_weights is not None:
        weights = jnp.asarray(class_weights, jnp.float32)
        values = jnp.where(masks == UNKNOWN, 0, masks)
        losses = losses * (weights[values] if shares is None else shares @ weights)
    known = (masks != UNKNOWN).sum(axis=(1, 2))
    if hard_fraction >= 1.0:
        return losses.sum(axis=(1, 2)) / jnp.maximum(known, 1)
    num_hard = jnp.maximum(1, jnp.round(hard_fraction * known))
    return jax.vmap(_mean_of_largest)(losses, num_hard)


def _mean_of_largest(values, num):
    """Returns the mean of the `num` largest of some values that are not negative.

    Their least one is found by bisection: 40 passes over the values, where sorting them, or `top_k` of a
    share of them, would cost a CPU as much as a tenth of the network.
    """
    stopped = jax.lax.stop_gradient(values)

    def halve(_, ends):
        low, high = ends
        middle = 0.5 * (low + high)
        too_many = (stopped > middle).sum() >= num
        return jnp.where(too_many, middle, low), jnp.where(too_many, high, middle)

    low, high = jax.lax.fori_loop(0, 40, halve, (jnp.zeros(()), stopped.max()))
    above, equal = stopped > high, (stopped > low) & (stopped <= high)
    # Values between the two ends are as good as equal: together they fill up what is missing.
    missing = (num - above.sum()) / jnp.maximum(equal.sum(), 1)
    return (jnp.where(above, values, 0.0).sum() + missing * jnp.where(equal, values, 0.0).sum()) / num


def auxiliary_loss(*, class_logits, labels):
    """Returns the multi-label binary cross-entropy averaged over the known labels, float32 [N] (section 3.1).

    Args:
        class_logits: float32 [N, C] of the auxiliary head.
        labels: float32 [N, C], 1.0 where the class has a pixel in the slice, 0.0 where it has none, -1.0 where that
            is not known; 0 of a case without a known label.
    """
    known = labels >= 0.0
    losses = optax.sigmoid_binary_cross_entropy(class_logits, jnp.maximum(labels, 0.0))
    return jnp.where(known, losses, 0.0).sum(axis=1) / jnp.maximum(known.sum(axis=1), 1)


LOSSES = (
    "dice_ce",
    "dice",
    "ce",
    "iou",
    "tversky",
    "focal_tversky",
    "weighted_ce",
    "hybrid",
    "batch_dice_ce",
    "tversky_ce",
    "focal_tversky_ce",
)


def create_segmentation_loss(config, num_classes=NUM_CLASSES, axis_name=None):
    """Returns the loss that `config.loss` names: (logits, masks, weights=None), keywords, to float32 [N].

    'dice_ce' is the paper's. Of the losses that the paper tried, 'weighted_ce' and 'hybrid' are named there
    and not defined: 'hybrid' is here focal cross-entropy + IoU (UNet 3+'s hybrid loss, arXiv:2004.08790,
    without its structural-similarity term). Names with '_ce' add the cross-entropy to the overlap loss.

    `weights` [N], 1.0 for an example and 0.0 for padding, matter to 'batch_dice_ce' alone: with them its
    Dice is the batch's (the same number added to every case, so that their weighted mean is the loss),
    without, as in validation, each case's own.

    Args:
        config: `config.loss`; `class_weights` weigh the pixels of every cross-entropy, `overlap_weights`
            the classes in the mean of every overlap loss; all are 1 in the paper's configs. One number is
            that of all classes.
        num_classes: C.
        axis_name: of the devices that share the batch, or None.

    Raises:
        InputError: an unknown name, or a setting out of its range.
    """
    check_choice("loss.name", config.name, LOSSES)
    config = _complete(config, num_classes)
    _check_ranges(config, num_classes)
    weights = _unless_ones(config.class_weights)
    pixels = {"class_weights": weights, "hard_fraction": config.hard_fraction}
    tversky = {"alpha": tuple(config.tversky_alpha), "beta": tuple(config.tversky_beta)}
    mean = functools.partial(_class_mean, _unless_ones(config.overlap_weights), smooth=config.smooth)
    dice, iou = mean(dice_loss), mean(iou_loss)
    plain, focal = (
        mean(tversky_loss, **tversky),
        mean(focal_tversky_loss, **tversky, gamma=config.focal_gamma),
    )
    entropy, focal_entropy = _per_case(cross_entropy, **pixels), _per_case(focal_cross_entropy, **pixels)
    batch = functools.partial(
        _batch_dice,
        smooth=config.smooth,
        class_weights=_unless_ones(config.overlap_weights),
        axis_name=axis_name,
    )
    return {
        "dice_ce": _sum(dice, entropy),
        "dice": dice,
        "ce": entropy,
        "iou": iou,
        "tversky": plain,
        "focal_tversky": focal,
        "weighted_ce": entropy,
        "hybrid": _sum(focal_entropy, iou),
        "batch_dice_ce": _sum(batch, entropy),
        "tversky_ce": _sum(plain, entropy),
        "focal_tversky_ce": _sum(focal, entropy),
    }[config.name]


_BY_CLASS = ("class_weights", "overlap_weights", "tversky_alpha", "tversky_beta")


def _complete(config, num_classes):
    """Returns the settings with a number for every class."""
    settings = dict(config)
    for name in _BY_CLASS:
        given = settings[name]
        values = (given,) if isinstance(given, float) else tuple(given)
        settings[name] = values * num_classes if len(values) == 1 else values
    import ml_collections  # the losses themselves do without it

    return ml_collections.ConfigDict(settings)


def _check_ranges(config, num_classes):
    if config.name == "weighted_ce" and len(set(config.class_weights)) == 1:
        raise InputError(
            "loss.class_weights: all are the same, so that 'weighted_ce' would be 'ce'; give one number a class, "
            "or loss.name='ce'"
        )
    if not 0.0 < config.hard_fraction <= 1.0:
        raise InputError(f"loss.hard_fraction: got {config.hard_fraction}, expected above 0 and at most 1")
    for name in _BY_CLASS:
        values = config[name]
        if len(values) != num_classes or min(values) < 0:
            raise InputError(
                f"loss.{name}: got {tuple(values)}, expected one number, or {num_classes}, one a class, none below 0"
            )
    if not sum(config.overlap_weights) > 0:
        raise InputError("loss.overlap_weights: all are 0, expected at least one above")


def _unless_ones(weights):
    return None if set(weights) == {1.0} else tuple(weights)


def _per_case(loss, **settings):
    return lambda *, weights=None, **labelled: loss(**labelled, **settings)


def _class_mean(overlap_weights, loss, **settings):
    """Returns the mean of a loss [N, C] over the classes, or over the values that a case has where they mean others."""
    by_class = None if overlap_weights is None else jnp.asarray(overlap_weights, jnp.float32)

    def mean(*, weights=None, meanings=None, **labelled):
        losses = loss(meanings=meanings, **labelled, **settings)
        if meanings is not None:
            used = (meanings.sum(axis=2) > 0).astype(jnp.float32)
            factors = used if by_class is None else used * by_class[None]
            return (losses * factors).sum(axis=1) / jnp.maximum(factors.sum(axis=1), 1e-7)
        return losses.mean(axis=1) if by_class is None else losses @ (by_class / by_class.sum())

    return mean


def _batch_dice(*, weights=None, axis_name, **settings):
    if weights is None:
        return present_dice_loss(**settings)
    loss = batch_dice_loss(weights=weights, axis_name=axis_name, **settings)
    return jnp.broadcast_to(loss, weights.shape)


def _sum(first, second):
    return lambda **kw: first(**kw) + second(**kw)
