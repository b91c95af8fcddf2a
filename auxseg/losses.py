"""Segmentation losses and the auxiliary term; per example, or per example and class.

The caller reduces over examples, because only the caller knows which rows are padding. All overlap
losses are soft (Milletari et al. 2016, arXiv:1606.04797): probabilities stand for the prediction, and
`smooth` pixels are added above and below, so that a class that is absent from both gives a loss of 0
and one that is absent from the reference alone still has a finite gradient that removes it.

Letters: N examples, H rows, W columns, C classes.
"""

import functools

import jax
import jax.numpy as jnp
import optax

from auxseg.errors import check_choice


def dice_loss(*, logits, masks, smooth=1.0):
    """Returns 1 - soft Dice, float32 [N, C].

    Args:
        logits: float32 [N, H, W, C].
        masks: integers [N, H, W], class indices.
        smooth: pixels added to numerator and denominator.
    """
    overlap, predicted, reference = _overlaps(logits, masks)
    return 1.0 - (2.0 * overlap + smooth) / (predicted + reference + smooth)


def iou_loss(*, logits, masks, smooth=1.0):
    """Returns 1 - soft intersection over union, float32 [N, C]; arguments as `dice_loss`."""
    overlap, predicted, reference = _overlaps(logits, masks)
    return 1.0 - (overlap + smooth) / (predicted + reference - overlap + smooth)


def tversky_loss(*, logits, masks, alpha=0.3, beta=0.7, smooth=1.0):
    """Returns 1 - Tversky index, float32 [N, C] (Salehi et al. 2017, arXiv:1706.05721).

    Args:
        logits: float32 [N, H, W, C].
        masks: integers [N, H, W], class indices.
        alpha: weight of false positives.
        beta: weight of false negatives; alpha = beta = 0.5 gives the Dice loss with smooth / 2.
        smooth: pixels added to numerator and denominator.
    """
    overlap, predicted, reference = _overlaps(logits, masks)
    errors = alpha * (predicted - overlap) + beta * (reference - overlap)
    return 1.0 - (overlap + smooth) / (overlap + errors + smooth)


def focal_tversky_loss(*, logits, masks, alpha=0.3, beta=0.7, gamma=0.75, smooth=1.0):
    """Returns the Tversky loss raised to `gamma`, float32 [N, C] (Abraham & Khan 2019, arXiv:1810.07842).

    The base is kept above 1e-7: the gradient of a power below 1 is infinite at 0.
    """
    loss = tversky_loss(logits=logits, masks=masks, alpha=alpha, beta=beta, smooth=smooth)
    return jnp.maximum(loss, 1e-7) ** gamma


def cross_entropy(*, logits, masks, class_weights=None):
    """Returns the cross-entropy averaged over the pixels, float32 [N].

    Args:
        logits: float32 [N, H, W, C].
        masks: integers [N, H, W], class indices.
        class_weights: float32 [C], the factor of each pixel by its reference class; None: all 1. As in
            Keras, the sum is divided by the number of pixels, not by the sum of the weights.
    """
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, masks.astype(jnp.int32))
    if class_weights is not None:
        losses = losses * jnp.asarray(class_weights, jnp.float32)[masks]
    return losses.mean(axis=(1, 2))


def focal_cross_entropy(*, logits, masks, gamma=2.0):
    """Returns (1 - p)^gamma times the cross-entropy, over the pixels, float32 [N] (arXiv:1708.02002)."""
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, masks.astype(jnp.int32))
    return ((1.0 - jnp.exp(-losses)) ** gamma * losses).mean(axis=(1, 2))


def auxiliary_loss(*, class_logits, labels):
    """Returns the multi-label binary cross-entropy averaged over the classes, float32 [N] (section 3.1).

    Args:
        class_logits: float32 [N, C] of the auxiliary head.
        labels: float32 [N, C], 1.0 where the class has a pixel in the slice.
    """
    return optax.sigmoid_binary_cross_entropy(class_logits, labels).mean(axis=1)


LOSSES = (
    "dice_ce",
    "dice",
    "ce",
    "iou",
    "tversky",
    "focal_tversky",
    "weighted_ce",
    "hybrid",
)


def create_segmentation_loss(config):
    """Returns a function of (logits, masks), keywords, to float32 [N], as `config.loss` names it.

    'dice_ce' is the paper's; its cross-entropy takes `class_weights` too, all 1 in the paper's configs.
    Of the losses that the paper tried, 'weighted_ce' and 'hybrid' are named there and not defined:
    'hybrid' is here focal cross-entropy + IoU (UNet 3+'s hybrid loss,
    arXiv:2004.08790, without its structural-similarity term).

    Raises:
        InputError: an unknown name.
    """
    check_choice("loss.name", config.name, LOSSES)
    mean = functools.partial(_class_mean, smooth=config.smooth)
    tversky = dict(alpha=config.tversky_alpha, beta=config.tversky_beta)
    dice, iou = mean(dice_loss), mean(iou_loss)
    weights = tuple(config.class_weights)
    weighted = functools.partial(cross_entropy, class_weights=None if set(weights) == {1.0} else weights)
    return {
        "dice_ce": lambda **kw: dice(**kw) + weighted(**kw),
        "dice": dice,
        "ce": cross_entropy,
        "iou": iou,
        "tversky": mean(tversky_loss, **tversky),
        "focal_tversky": mean(focal_tversky_loss, **tversky, gamma=config.focal_gamma),
        "weighted_ce": weighted,
        "hybrid": lambda **kw: focal_cross_entropy(**kw) + iou(**kw),
    }[config.name]


def _class_mean(loss, **settings):
    return lambda *, logits, masks: loss(logits=logits, masks=masks, **settings).mean(axis=1)


def _overlaps(logits, masks):
    probabilities = jax.nn.softmax(logits, axis=-1)
    references = jax.nn.one_hot(masks, logits.shape[-1], dtype=probabilities.dtype)
    overlap = (probabilities * references).sum(axis=(1, 2))
    return overlap, probabilities.sum(axis=(1, 2)), references.sum(axis=(1, 2))
