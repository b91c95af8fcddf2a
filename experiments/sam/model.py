"""Segment Anything (Kirillov et al., arXiv:2304.02643), box-prompted, from weights that the user has.

An image encoder (ViT: windowed attention with some global blocks, relative positions), an encoder of the box's
two corners, and a mask decoder of two two-way attention layers. Written from the publication and its weights'
names (`weights.py`); every size is read from the weights, so that ViT-B, -L and -H and a tiny one are the
same code. Only the mask for a single box is computed, as is usual for boxes (mask token 0).

Weights are {name: float32 array} with the names and layouts of the published checkpoints: matrices [out, in],
convolutions [out, in, k, k], transposed ones [in, out, k, k].
"""

from __future__ import annotations

import dataclasses
import math
import re

import jax
import jax.numpy as jnp
from jax import lax

from auxseg.base.errors import InputError

PIXEL_MEAN = (123.675, 116.28, 103.53)
PIXEL_STD = (58.395, 57.12, 57.375)
"""Of red, green and blue in 0..255, as the published weights were trained."""
NUM_DECODER_HEADS = 8
"""Of the mask decoder in all published weights; the one number that their shapes do not show."""


@dataclasses.dataclass(frozen=True)
class SamSettings:
    """Sizes of a model, from its weights' shapes.

    Attributes:
        image_size: rows and columns that the encoder sees (1024).
        patch_size: rows and columns of a patch (16).
        depth: blocks of the encoder.
        heads: of its attention.
        windows: of each block, rows and columns of a window (14), or 0 for global attention.
        decoder_depth: two-way layers.
    """

    image_size: int
    patch_size: int
    depth: int
    heads: int
    windows: tuple[int, ...]
    decoder_depth: int


def read_settings(weights):
    """Returns the SamSettings of weights.

    Raises:
        InputError: they are not those of a SAM, or sizes do not fit.
    """
    try:
        patch = weights["image_encoder.patch_embed.proj.weight"].shape[-1]
        grid = weights["image_encoder.pos_embed"].shape[1]
        depth = _count(weights, r"image_encoder\.blocks\.(\d+)\.norm1\.weight")
        relative = [weights[f"image_encoder.blocks.{i}.attn.rel_pos_h"].shape for i in range(depth)]
        width = weights["image_encoder.pos_embed"].shape[-1]
        decoder = _count(weights, r"mask_decoder\.transformer\.layers\.(\d+)\.norm1\.weight")
    except KeyError as error:
        raise InputError(f"weights: no {error.args[0]} in them; they are not those of a SAM") from error
    sizes = [(length + 1) // 2 for length, _ in relative]
    windows = tuple(0 if size == grid else size for size in sizes)
    if not depth or not decoder or width % relative[0][1]:
        raise InputError("weights: the sizes in them do not fit a SAM's image encoder and mask decoder")
    return SamSettings(grid * patch, patch, depth, width // relative[0][1], windows, decoder)


def _count(weights, pattern):
    return sum(re.fullmatch(pattern, name) is not None for name in weights)


def preprocess(images, settings):
    """Returns normalised colour images [N, S, S, 3] of the encoder's size.

    Args:
        images: float [N, H, W] in [0, 1], grey; they are enlarged (bilinear) to the encoder's size, so that
            other than square ones are stretched.
        settings: SamSettings.
    """
    size = settings.image_size
    resized = jax.image.resize(images.astype(jnp.float32), (images.shape[0], size, size), "bilinear")
    mean, std = (jnp.array(values).reshape(1, 1, 1, 3) for values in (PIXEL_MEAN, PIXEL_STD))
    return (255.0 * resized[..., None] - mean) / std


def encode_images(weights, images, settings):
    """Returns the image embedding, float32 [N, S / patch, S / patch, C].

    Args:
        weights: {name: array}.
        images: from `preprocess`.
        settings: SamSettings.
    """
    prefix, patch = "image_encoder", settings.patch_size
    tokens = _conv(weights, f"{prefix}.patch_embed.proj", images, stride=patch, padding="VALID")
    tokens = tokens + weights[f"{prefix}.pos_embed"]
    for index, window in enumerate(settings.windows):
        tokens = _encoder_block(weights, f"{prefix}.blocks.{index}", tokens, settings.heads, window)
    tokens = _conv(weights, f"{prefix}.neck.0", tokens)
    tokens = _norm(weights, f"{prefix}.neck.1", tokens, 1e-6)
    tokens = _conv(weights, f"{prefix}.neck.2", tokens)
    return _norm(weights, f"{prefix}.neck.3", tokens, 1e-6)


def _encoder_block(weights, name, tokens, heads, window):
    inner = _norm(weights, f"{name}.norm1", tokens, 1e-6)
    if window:
        windows, padded = _split_windows(inner, window)
        windows = _image_attention(weights, f"{name}.attn", windows, heads)
        inner = _join_windows(windows, padded, tokens.shape)
    else:
        inner = _image_attention(weights, f"{name}.attn", inner, heads)
    tokens = tokens + inner
    inner = _linear(weights, f"{name}.mlp.lin1", _norm(weights, f"{name}.norm2", tokens, 1e-6))
    return tokens + _linear(weights, f"{name}.mlp.lin2", jax.nn.gelu(inner, approximate=False))


def _split_windows(tokens, window):
    """Returns windows [N * n, window, window, C], and rows and columns after padding with zeros."""
    examples, rows, columns, channels = tokens.shape
    down, right = -rows % window, -columns % window
    tokens = jnp.pad(tokens, ((0, 0), (0, down), (0, right), (0, 0)))
    height, width = rows + down, columns + right
    split = tokens.reshape(examples, height // window, window, width // window, window, channels)
    return split.transpose(0, 1, 3, 2, 4, 5).reshape(-1, window, window, channels), (height, width)


def _join_windows(windows, padded, shape):
    (height, width), (examples, rows, columns, channels) = padded, shape
    window = windows.shape[1]
    joined = windows.reshape(examples, height // window, width // window, window, window, channels)
    joined = joined.transpose(0, 1, 3, 2, 4, 5).reshape(examples, height, width, channels)
    return joined[:, :rows, :columns]


def _image_attention(weights, name, tokens, heads):
    """Returns self-attention of all tokens [N, H, W, C] of a window, with relative positions by axis."""
    examples, rows, columns, channels = tokens.shape
    joint = _linear(weights, f"{name}.qkv", tokens).reshape(examples, rows * columns, 3, heads, -1)
    query, key, value = jnp.moveaxis(joint, 2, 0).transpose(0, 1, 3, 2, 4)  # each [N, heads, HW, c]
    logits = jnp.einsum("nhqc,nhkc->nhqk", query, key) / math.sqrt(query.shape[-1])
    placed = query.reshape(examples, heads, rows, columns, -1)
    by_row = jnp.einsum("nhyxc,ykc->nhyxk", placed, _relative(weights[f"{name}.rel_pos_h"], rows))
    by_column = jnp.einsum("nhyxc,xkc->nhyxk", placed, _relative(weights[f"{name}.rel_pos_w"], columns))
    shape = (examples, heads, rows, columns, rows, columns)
    logits = logits.reshape(shape) + by_row[..., :, None] + by_column[..., None, :]
    shares = jax.nn.softmax(logits.reshape(examples, heads, rows * columns, -1), axis=-1)
    mixed = jnp.einsum("nhqk,nhkc->nqhc", shares, value).reshape(examples, rows, columns, channels)
    return _linear(weights, f"{name}.proj", mixed)


def _relative(table, size):
    """Returns the rows [size, size, c] of a table [2 * size - 1, c] for each query and key."""
    distances = jnp.arange(size)[:, None] - jnp.arange(size)[None] + size - 1
    return table[distances]


def encode_boxes(weights, boxes, settings):
    """Returns the two tokens of each box, float32 [N, 2, C].

    Args:
        weights: {name: array}.
        boxes: float32 [N, 4]: left, top, right, bottom in pixels of the encoder's image.
        settings: SamSettings.
    """
    corners = (boxes.reshape(-1, 2, 2) + 0.5) / settings.image_size
    kinds = [weights[f"prompt_encoder.point_embeddings.{index}.weight"] for index in (2, 3)]
    return _place(weights, corners) + jnp.concatenate(kinds)[None]


def _place(weights, points):
    """Returns the random Fourier features [..., C] of points (x, y) in [0, 1], float [..., 2]."""
    matrix = weights["prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"]
    angles = 2.0 * math.pi * ((2.0 * points - 1.0) @ matrix)
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], -1)


def decode_masks(weights, embeddings, boxes, settings):
    """Returns (mask logits float32 [N, 4h, 4w], predicted IoU float32 [N]), one mask a box.

    Args:
        weights: {name: array}.
        embeddings: from `encode_images`, [N, h, w, C], one for each box.
        boxes: as in `encode_boxes`.
        settings: SamSettings.
    """
    examples, rows, columns, channels = embeddings.shape
    grid = jnp.stack(jnp.meshgrid((jnp.arange(columns) + 0.5) / columns, (jnp.arange(rows) + 0.5) / rows), -1)
    places = jnp.broadcast_to(
        _place(weights, grid).reshape(1, -1, channels), (examples, rows * columns, channels)
    )
    fixed = [weights["mask_decoder.iou_token.weight"], weights["mask_decoder.mask_tokens.weight"]]
    fixed = jnp.broadcast_to(jnp.concatenate(fixed)[None], (examples, 1 + len(fixed[1]), channels))
    tokens = jnp.concatenate([fixed, encode_boxes(weights, boxes, settings)], 1)
    image = embeddings + weights["prompt_encoder.no_mask_embed.weight"].reshape(1, 1, 1, channels)
    tokens, image = _two_way(weights, tokens, image.reshape(examples, -1, channels), places, settings)
    image = image.reshape(examples, rows, columns, channels)
    enlarged = _transposed_conv(weights, "mask_decoder.output_upscaling.0", image)
    enlarged = jax.nn.gelu(
        _norm(weights, "mask_decoder.output_upscaling.1", enlarged, 1e-6), approximate=False
    )
    enlarged = _transposed_conv(weights, "mask_decoder.output_upscaling.3", enlarged)
    enlarged = jax.nn.gelu(enlarged, approximate=False)
    factors = _layers(weights, "mask_decoder.output_hypernetworks_mlps.0", tokens[:, 1])
    masks = jnp.einsum("nhwc,nc->nhw", enlarged, factors)
    return masks, _layers(weights, "mask_decoder.iou_prediction_head", tokens[:, 0])[:, 0]


def _two_way(weights, tokens, image, places, settings):
    """Returns tokens and image after attention in both directions; tokens are their own positions."""
    name, queries, keys = "mask_decoder.transformer", tokens, image
    for index in range(settings.decoder_depth):
        layer = f"{name}.layers.{index}"
        placed = queries if index == 0 else queries + tokens
        attended = _attention(weights, f"{layer}.self_attn", placed, placed, queries)
        queries = attended if index == 0 else queries + attended
        queries = _norm(weights, f"{layer}.norm1", queries, 1e-5)
        attend = f"{layer}.cross_attn_token_to_image"
        queries = queries + _attention(weights, attend, queries + tokens, keys + places, keys)
        queries = _norm(weights, f"{layer}.norm2", queries, 1e-5)
        hidden = jax.nn.relu(_linear(weights, f"{layer}.mlp.lin1", queries))
        queries = queries + _linear(weights, f"{layer}.mlp.lin2", hidden)
        queries = _norm(weights, f"{layer}.norm3", queries, 1e-5)
        attend = f"{layer}.cross_attn_image_to_token"
        keys = keys + _attention(weights, attend, keys + places, queries + tokens, queries)
        keys = _norm(weights, f"{layer}.norm4", keys, 1e-5)
    attend = f"{name}.final_attn_token_to_image"
    queries = queries + _attention(weights, attend, queries + tokens, keys + places, keys)
    return _norm(weights, f"{name}.norm_final_attn", queries, 1e-5), keys


def _attention(weights, name, query, key, value):
    parts = {"q_proj": query, "k_proj": key, "v_proj": value}
    query, key, value = (_heads(_linear(weights, f"{name}.{part}", each)) for part, each in parts.items())
    logits = jnp.einsum("nqhc,nkhc->nhqk", query, key) / math.sqrt(query.shape[-1])
    mixed = jnp.einsum("nhqk,nkhc->nqhc", jax.nn.softmax(logits, axis=-1), value)
    return _linear(weights, f"{name}.out_proj", mixed.reshape(*mixed.shape[:2], -1))


def _heads(values):
    return values.reshape(*values.shape[:2], NUM_DECODER_HEADS, -1)


def _layers(weights, name, values):
    """Returns the result of linear layers with ReLU between them."""
    count = _count(weights, re.escape(name) + r"\.layers\.(\d+)\.weight")
    for index in range(count):
        values = _linear(weights, f"{name}.layers.{index}", values)
        values = jax.nn.relu(values) if index < count - 1 else values
    return values


def _linear(weights, name, values):
    return values @ weights[f"{name}.weight"].T + _bias(weights, name, values.ndim)


def _bias(weights, name, rank):
    """Returns a bias with as many axes as what it is added to; 0 where there is none."""
    bias = weights.get(f"{name}.bias")
    return 0.0 if bias is None else bias.reshape((1,) * (rank - 1) + (-1,))


def _norm(weights, name, values, epsilon):
    mean = values.mean(-1, keepdims=True)
    spread = jnp.square(values - mean).mean(-1, keepdims=True)
    scale = weights[f"{name}.weight"].reshape((1,) * (values.ndim - 1) + (-1,))
    return (values - mean) * lax.rsqrt(spread + epsilon) * scale + _bias(weights, name, values.ndim)


def _conv(weights, name, images, *, stride=1, padding="SAME"):
    numbers = ("NHWC", "OIHW", "NHWC")
    kernel = weights[f"{name}.weight"]
    outputs = lax.conv_general_dilated(images, kernel, (stride, stride), padding, dimension_numbers=numbers)
    return outputs + _bias(weights, name, 4)


def _transposed_conv(weights, name, images):
    """Returns the transposed 2x2 convolution of stride 2: a product and a reshape."""
    kernel = weights[f"{name}.weight"]
    examples, rows, columns, _ = images.shape
    products = jnp.einsum("nhwc,cfyx->nhywxf", images, kernel)
    return products.reshape(examples, 2 * rows, 2 * columns, -1) + _bias(weights, name, 4)
