"""What drives a network's decision in one case: Grad-CAM of a class, the scales of squeeze-and-excitation.

Grad-CAM (Selvaraju et al., ICCV 2017) weighs the channels of a layer by the mean gradient of a score and
adds them up. For the mask the score is the sum of the class's logits over the pixels that have the class
(Seg-Grad-CAM, Vinogradova et al., AAAI 2020), for the auxiliary head the logit "this class is in the
slice". A map is coarse where its layer is.
"""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from auxseg import models
from auxseg.base.classes import CLASS_NAMES
from auxseg.base.errors import InputError, check_choice
from auxseg.models import blocks


@dataclasses.dataclass(frozen=True)
class Explanation:
    """What `figures.draw_explanation` draws.

    Attributes:
        title: in words.
        case_id: of the explained case.
        caption: which score was explained.
        class_name: of the explained class.
        image: int16 [H, W] in HU.
        window_hu: (low, high).
        target: bool [H, W], the class in the reference.
        maps: layer -> float32 [H, W] in [0, 1]; all 0 where nothing speaks for the class.
        se_scales: block -> float32 [channels], the scale of each channel (NaN of one that batch norm
            made 0); {} without squeeze-and-excitation.
    """

    title: str
    case_id: str
    caption: str
    class_name: str
    image: np.ndarray
    window_hu: tuple[float, float]
    target: np.ndarray
    maps: dict
    se_scales: dict


def can_explain(name):
    """Returns whether the network of `config.model.name` can be explained: all but those in 3D, whose layers
    are volumes."""
    return name not in models.IN_3D


def create_explain_fn(model):
    """Returns a compiled function (variables, image, pixels, class index) -> (maps, scales).

    It takes float32 [H, W] in [0, 1], or a slab [H, W, slices], for `image` and float32 [H, W] weights of the mask's logits for
    `pixels`, and gives `maps`, layer -> float32 [h, w] as they are, and `scales`, block -> float32
    [channels].

    Args:
        model: from `models.create_model`, one that `can_explain`.
    """
    return jax.jit(lambda variables, image, pixels, index: _explain(model, variables, image, pixels, index))


def explain(explain_fn, variables, *, image, reference, window_hu, class_name, case_id, classes=CLASS_NAMES):
    """Returns the Explanation of one class in one case.

    The score is taken over the pixels of the reference; where it does not have the class, over all pixels.

    Args:
        explain_fn: from `create_explain_fn`; one compilation serves all cases of one size.
        variables: 'params' and 'batch_stats'.
        image: int16 [H, W] in HU, or a slab [H, W, slices], of which the slice in the middle is shown.
        reference: uint8 [H, W].
        window_hu: (low, high), of the run's settings.
        class_name: of `classes`.
        case_id: for the title.
        classes: names by mask value.

    Raises:
        InputError: no such class, or a model that has no such layers.
    """
    index = classes.index(check_choice("class", class_name, classes))
    target = reference == index
    low, high = window_hu
    scaled = np.clip((image.astype(np.float32) - low) / (high - low), 0, 1)
    pixels = (target if target.any() else np.ones_like(target)).astype(np.float32)
    maps, scales = jax.device_get(explain_fn(variables, scaled, pixels, index))
    where = "its pixels in the reference" if target.any() else "all pixels (the reference does not have it)"
    name = class_name.replace("_", " ")
    shown = image if image.ndim == 2 else image[..., image.shape[-1] // 2]
    return Explanation(
        title=f"Grad-CAM of the class {name} in {case_id}",
        case_id=case_id,
        caption=f"{case_id}: what the logit of '{name}' rests on, summed over {where}; aux: the auxiliary "
        "head's logit that the class is in the slice. Bright: speaks for it. The outline is the reference.",
        class_name=class_name,
        image=shown,
        window_hu=tuple(window_hu),
        target=target,
        maps={layer: scale_map(maps[layer], shown.shape) for layer in sorted(maps, key=_place)},
        se_scales={block: scales[block] for block in sorted(scales, key=_place)},
    )


def _place(name):
    """Returns the key that sorts layers from the input to the output, the auxiliary head first."""
    kinds = ("aux", "encoder", "bottleneck", "decoder")
    kind = next(i for i, each in enumerate(kinds) if name.startswith(each))
    level = int(name.split("_")[1]) if name[-1].isdigit() else 0
    return kind, -level if kinds[kind] == "decoder" else level


def scale_map(heat, size_yx):
    """Returns float32 [H, W]: a map [h, w] enlarged (bilinear), its positive part, over its maximum."""
    enlarged = np.asarray(jax.image.resize(np.maximum(heat, 0), size_yx, "bilinear"))
    return (enlarged / max(float(enlarged.max()), 1e-12)).astype(np.float32)


def _explain(model, variables, image, pixels, index):
    images = image[None] if image.ndim == 3 else image[None, ..., None]
    features = _read_features(model, variables, images)

    def class_score(offsets):
        # Each offset moves one of the two scores alone, so that one gradient of their sum has both.
        outputs = _apply(model, variables, images, lambda name, value: value + offsets[name])
        mask = (outputs.mask_logits[0, ..., index] * pixels).sum()
        return mask if outputs.class_logits is None else mask + outputs.class_logits[0, index]

    gradients = jax.grad(class_score)(jax.tree.map(jnp.zeros_like, features))
    maps = {title: _weigh(features[name], gradients[name]) for name, title in _titles(features).items()}
    return maps, _read_scales(model, variables, images)


def _titles(features):
    """Returns {part that reads a layer: the layer's name}, from the input side to the output."""
    depth = sum(name.startswith("up_") for name in features)
    if "mask" not in features or not depth:
        raise InputError("explain: this network has no parts named up_0 and mask, whose inputs are explained")
    titles = {"aux": "aux head (bottleneck)"} if "aux" in features else {}
    titles[f"up_{depth - 1}"] = "bottleneck"
    titles |= {f"up_{level - 1}": f"decoder_{level}" for level in reversed(range(1, depth))}
    return titles | {"mask": "decoder_0"}


def _read_features(model, variables, images):
    """Returns {name: float [1, h, w, C]}: what the up-samplings and the two heads read."""
    features = {}

    def keep(name, value):
        features[name] = value
        return value

    _apply(model, variables, images, keep)
    return features


def _apply(model, variables, images, change):
    """Returns the model's outputs with `change(name, input)` in place of what `_read_features` names."""

    def intercept(call, args, kwargs, context):
        name = context.module.name or ""
        reads = name in ("mask", "aux") or name.startswith("up_")
        # Of two stages the second, which says where a nodule is, is explained.
        path = [part for part in context.module.path if part != "nodules"]
        if context.method_name == "__call__" and reads and len(path) == 1:
            args = (blocks.Signal(change(name, blocks.activate(args[0]))), *args[1:])
        return call(*args, **kwargs)

    with nn.intercept_methods(intercept):
        return model.apply(variables, images, train=False)


def _read_scales(model, variables, images):
    """Returns {block: float32 [C]}: each channel's scale; NaN of a channel that batch norm made 0."""

    def is_wanted(module, method):
        return method == "__call__" and module.name in ("unit_1", "se")

    _, stored = model.apply(
        variables, images, train=False, capture_intermediates=is_wanted, mutable=["intermediates"]
    )
    scales = {}
    for block, parts in stored.get("intermediates", {}).items():
        if "se" in parts:
            before, after = (parts[part]["__call__"][0].factor[0] for part in ("unit_1", "se"))
            scales[block] = jnp.where(before == 0, jnp.nan, after / before)
    return scales


def _weigh(features, gradients):
    weights = gradients.astype(jnp.float32).mean((1, 2), keepdims=True)
    return (features.astype(jnp.float32) * weights).sum(-1)[0]
