"""A SAM's weights from a file that the user has: safetensors, NPZ, or a PyTorch checkpoint.

Nothing in a file is run. Safetensors is read here (a JSON header and raw arrays); NPZ without pickles; a
PyTorch checkpoint (.pth, .pt, .bin) is a pickle and is read by PyTorch itself, where it is installed, with
`weights_only=True`, which admits arrays alone. The published checkpoints' names are used; the names of the Hugging Face
`transformers` library are changed to them.
"""

from __future__ import annotations

import json
import math
import pathlib
import re

import numpy as np

from auxseg.base import npz
from auxseg.base.errors import InputError

SUFFIXES = (".safetensors", ".npz", ".pth", ".pt", ".bin")
_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "I32": "<i4", "U8": "u1"}
_MAX_HEADER_BYTES = 64 << 20
_MOST_BYTES = 16 << 30
_RENAMED = (
    (r"vision_encoder\.", "image_encoder."),
    (r"image_encoder\.patch_embed\.projection\.", "image_encoder.patch_embed.proj."),
    (r"image_encoder\.layers\.(\d+)\.layer_norm", r"image_encoder.blocks.\1.norm"),
    (r"image_encoder\.layers\.", "image_encoder.blocks."),
    (r"image_encoder\.neck\.conv1\.", "image_encoder.neck.0."),
    (r"image_encoder\.neck\.layer_norm1\.", "image_encoder.neck.1."),
    (r"image_encoder\.neck\.conv2\.", "image_encoder.neck.2."),
    (r"image_encoder\.neck\.layer_norm2\.", "image_encoder.neck.3."),
    (
        r"(shared_image_embedding|prompt_encoder\.shared_embedding)\.positional_embedding",
        "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix",
    ),
    (r"prompt_encoder\.point_embed\.", "prompt_encoder.point_embeddings."),
    (r"mask_decoder\.transformer\.layers\.(\d+)\.layer_norm", r"mask_decoder.transformer.layers.\1.norm"),
    (r"mask_decoder\.transformer\.layer_norm_final_attn\.", "mask_decoder.transformer.norm_final_attn."),
    (r"mask_decoder\.upscale_conv1\.", "mask_decoder.output_upscaling.0."),
    (r"mask_decoder\.upscale_layer_norm\.", "mask_decoder.output_upscaling.1."),
    (r"mask_decoder\.upscale_conv2\.", "mask_decoder.output_upscaling.3."),
)
"""Names of `transformers`, as expressions that match from the start, and the published ones."""
_HEADS = r"mask_decoder\.(?:output_hypernetworks_mlps\.\d+|iou_prediction_head)"
_HEAD_LAYERS = ("proj_in", "layers.0", "proj_out")


def read_weights(path):
    """Returns {published name: float32 array} of a file.

    Raises:
        InputError: no such file, another kind of file, a damaged one, or a checkpoint without PyTorch.
    """
    path = pathlib.Path(path)
    if path.suffix not in SUFFIXES:
        raise InputError(f"--weights: got {path.name}, expected a file that ends in {', '.join(SUFFIXES)}")
    if not path.is_file():
        raise InputError(f"--weights: {path} does not exist")
    read = {".safetensors": _read_safetensors, ".npz": _read_npz}.get(path.suffix, _read_checkpoint)
    return rename(read(path))


def rename(weights):
    """Returns the weights by their published names, floating ones as float32; others are left out."""
    renamed = any(name.startswith("vision_encoder.") for name in weights)
    found = {}
    for name, array in weights.items():
        array = np.asarray(array)
        if np.issubdtype(array.dtype, np.floating):
            found[_published_name(name) if renamed else name] = array.astype(np.float32)
    return found


def _published_name(name):
    for pattern, replacement in _RENAMED:
        name = re.sub(f"^{pattern}", replacement, name)
    # The heads' three linear layers are 'proj_in', 'layers.0', 'proj_out' there, and 'layers.0' to '.2' here.
    head = re.fullmatch(rf"({_HEADS})\.(proj_in|layers\.0|proj_out)\.(weight|bias)", name)
    return f"{head[1]}.layers.{_HEAD_LAYERS.index(head[2])}.{head[3]}" if head else name


def _read_npz(path):
    try:
        return npz.read_npz(path, most_bytes=_MOST_BYTES)
    except npz.UNREADABLE as error:
        raise InputError(f"--weights: {path} cannot be read: {error}") from error


def _read_safetensors(path):
    data = path.read_bytes()
    try:
        length = int.from_bytes(data[:8], "little")
        if not 2 <= length <= min(_MAX_HEADER_BYTES, len(data) - 8):
            raise ValueError(f"a header of {length} bytes in a file of {len(data)}")
        header = json.loads(data[8 : 8 + length])
        body = memoryview(data)[8 + length :]
        return {name: _read_tensor(body, entry) for name, entry in header.items() if name != "__metadata__"}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"--weights: {path} is no intact safetensors file: {error}") from error


def _read_tensor(body, entry):
    kind, shape, (start, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
    dtype = np.dtype(_DTYPES[kind])
    if not 0 <= start <= end <= len(body) or end - start != dtype.itemsize * math.prod(shape):
        raise ValueError("an array that lies outside the file or has another size than its shape")
    array = np.frombuffer(body[start:end], dtype).reshape(shape)
    # bfloat16 is the upper half of a float32.
    return (array.astype(np.uint32) << 16).view(np.float32) if kind == "BF16" else array


def _read_checkpoint(path):
    try:
        import torch
    except ImportError as error:
        raise InputError(
            f"--weights: {path.name} is a PyTorch checkpoint, which only PyTorch reads safely: install torch, or "
            "convert it to safetensors"
        ) from error
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zip and torch raise whatever they like
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise InputError(f"--weights: {path} holds more than arrays, or is damaged: {reason[0]}") from error
    if not isinstance(loaded, dict):
        raise InputError(f"--weights: {path} holds a {type(loaded).__name__}, expected arrays by name")
    nested = next(
        (loaded[key] for key in ("model", "state_dict") if isinstance(loaded.get(key), dict)), loaded
    )
    arrays = {name: value for name, value in nested.items() if isinstance(value, torch.Tensor)}
    return {name: value.detach().to(torch.float32).numpy() for name, value in arrays.items()}
