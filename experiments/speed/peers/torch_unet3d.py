"""The Auxiliary U-Net in 3D of PyTorch's own layers, channels last, with our weights (`auxseg.models.aux_unet3d`)."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from auxseg.models.interface import Outputs
from experiments.speed.peers.torch_unet import Block


class TorchUNet3D(nn.Module):
    """The network of `settings`; slabs [N, 1, D, H, W] give `Outputs` of [N, C, H, W] and [N, C].

    Args:
        settings: `auxseg.models.settings.Settings` or the `model` group of a config, separable, with SE and head.
        halvings: levels at which slices are halved, of `aux_unet3d.count_halvings`; D is a multiple of 2^halvings.
    """

    def __init__(self, settings, halvings):
        super().__init__()
        self.settings, self.halvings = settings, halvings
        widths = [settings.base_width << level for level in range(settings.depth + 1)]
        inputs = [1, *widths]
        for level in range(settings.depth):
            window = self.window(level)
            self.add_module(f"encoder_{level}", Block(settings, inputs[level], widths[level], dims=3))
            self.add_module(
                f"up_{level}", nn.ConvTranspose3d(widths[level + 1], widths[level], window, window)
            )
            self.add_module(f"decoder_{level}", Block(settings, 2 * widths[level], widths[level], dims=3))
        self.bottleneck = Block(settings, widths[-2], widths[-1], dims=3)
        self.mask = nn.Conv3d(widths[0], settings.num_classes, 1)
        self.aux_hidden = nn.Linear(widths[-1], settings.aux_width)
        self.aux = nn.Linear(settings.aux_width, settings.num_classes)

    def window(self, level):
        """Returns what a level is halved by: slices, rows, columns."""
        return (2 if level < self.halvings else 1, 2, 2)

    def forward(self, slabs):
        skips, features = [], slabs
        for level in range(self.settings.depth):
            skips.append(self.get_submodule(f"encoder_{level}")(features))
            features = nn.functional.max_pool3d(skips[-1], self.window(level))
        features = self.bottleneck(features)
        class_logits = self.aux(torch.relu(self.aux_hidden(features.mean((2, 3, 4)))))
        for level in reversed(range(self.settings.depth)):
            features = torch.cat([self.get_submodule(f"up_{level}")(features), skips[level]], 1)
            features = self.get_submodule(f"decoder_{level}")(features)
        middle = slabs.shape[2] // 2
        return Outputs(self.mask(features[:, :, middle : middle + 1])[:, :, 0], class_logits)


def create_torch_unet3d(settings, variables, halvings):
    """Returns a channels-last `TorchUNet3D` that holds our variables.

    Raises:
        ValueError: they are of another network.
    """
    model = TorchUNet3D(settings, halvings)
    state = {}
    for group in variables.values():
        for owner, parts in group.items():
            for name, value in parts.items():
                for leaf, array in (value if hasattr(value, "items") else {"": value}).items():
                    key, laid_out = _layout(owner, name, leaf, np.asarray(array))
                    state[key] = torch.tensor(np.ascontiguousarray(laid_out))
    missing, unexpected = model.load_state_dict(state, strict=False)
    if unexpected or [name for name in missing if not name.endswith("num_batches_tracked")]:
        raise ValueError(f"PyTorch weights: missing {missing}, unexpected {unexpected}")
    return model.to(memory_format=torch.channels_last_3d)


_UNIT = {
    "bias": "pointwise.bias", "scale": "norm.weight", "offset": "norm.bias", "mean": "norm.running_mean",
    "variance": "norm.running_var",
}  # fmt: skip


def _layout(owner, name, leaf, value):
    """Returns (PyTorch's name, the array as PyTorch lays it out) of one of our weights."""
    prefix = f"{owner}.{name}"
    if leaf == "depthwise":
        return f"{prefix}.depthwise.weight", value.reshape(3, 3, 3, -1).transpose(3, 0, 1, 2)[:, None]
    if leaf == "pointwise":
        return f"{prefix}.pointwise.weight", value.T[:, :, None, None, None]
    if name == "se":
        part = leaf.removesuffix("_bias")
        return f"{prefix}.{part}.{'bias' if leaf.endswith('_bias') else 'weight'}", value.T
    if leaf:
        return f"{prefix}.{_UNIT[leaf]}", value
    if owner == "aux":
        layer = "aux_hidden" if name.startswith("hidden") else "aux"
        return f"{layer}.{'bias' if name.endswith('bias') else 'weight'}", value.T
    if name == "bias":
        return f"{owner}.bias", value
    if owner == "mask":
        return "mask.weight", value.T[:, :, None, None, None]
    volumes = value if value.ndim == 5 else value[:, None]
    return f"{owner}.weight", volumes.transpose(0, 4, 1, 2, 3)
