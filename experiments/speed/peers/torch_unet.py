"""The Auxiliary U-Net of PyTorch's own layers, channels last, with our weights."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from auxseg.models.interface import Outputs


class TorchUNet(nn.Module):
    """The network of `settings`; images [N, 1, H, W] give `Outputs` of [N, C, H, W] and [N, C]."""

    def __init__(self, settings):
        super().__init__()
        self.settings = settings
        widths = [settings.base_width << level for level in range(settings.depth + 1)]
        inputs = [1, *widths]
        for level in range(settings.depth):
            self.add_module(f"encoder_{level}", Block(settings, inputs[level], widths[level]))
            self.add_module(f"up_{level}", nn.ConvTranspose2d(widths[level + 1], widths[level], 2, 2))
            self.add_module(f"decoder_{level}", Block(settings, 2 * widths[level], widths[level]))
        self.bottleneck = Block(settings, widths[-2], widths[-1])
        self.mask = nn.Conv2d(widths[0], settings.num_classes, 1)
        if settings.aux:
            self.aux_hidden = nn.Linear(widths[-1], settings.aux_width)
            self.aux = nn.Linear(settings.aux_width, settings.num_classes)

    def forward(self, images):
        skips, features = [], images
        for level in range(self.settings.depth):
            skips.append(self.get_submodule(f"encoder_{level}")(features))
            features = nn.functional.max_pool2d(skips[-1], 2)
        features = self.bottleneck(features)
        class_logits = None
        if self.settings.aux:
            class_logits = self.aux(torch.relu(self.aux_hidden(features.mean((2, 3)))))
        for level in reversed(range(self.settings.depth)):
            features = torch.cat([self.get_submodule(f"up_{level}")(features), skips[level]], 1)
            features = self.get_submodule(f"decoder_{level}")(features)
        return Outputs(self.mask(features), class_logits)


class Block(nn.Module):
    """Two units and a squeeze-and-excitation, of images or, with `dims` 3, of volumes."""

    def __init__(self, settings, channels, features, dims=2):
        super().__init__()
        self.unit_0 = _Unit(settings, channels, features, dims)
        self.unit_1 = _Unit(settings, features, features, dims)
        self.se = _SqueezeExcite(settings, features) if settings.se else nn.Identity()

    def forward(self, images):
        return self.se(self.unit_1(self.unit_0(images)))


class _Unit(nn.Module):
    def __init__(self, settings, channels, features, dims):
        super().__init__()
        conv, norm = {2: (nn.Conv2d, nn.BatchNorm2d), 3: (nn.Conv3d, nn.BatchNorm3d)}[dims]
        self.depthwise = conv(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.pointwise = conv(channels, features, 1)
        self.norm = norm(features, settings.bn_epsilon, 1.0 - settings.bn_momentum)

    def forward(self, images):
        return torch.relu(self.norm(self.pointwise(self.depthwise(images))))


class _SqueezeExcite(nn.Module):
    def __init__(self, settings, channels):
        super().__init__()
        width = max(1, channels // settings.se_ratio)
        self.squeeze = nn.Linear(channels, width)
        self.excite = nn.Linear(width, channels)

    def forward(self, images):
        axes = tuple(range(2, images.ndim))
        gates = torch.sigmoid(self.excite(torch.relu(self.squeeze(images.mean(axes)))))
        return images * gates.reshape(gates.shape + (1,) * len(axes))


def create_torch_unet(settings, variables):
    """Returns a channels-last `TorchUNet` that holds our variables.

    Args:
        settings: `auxseg.models.settings.Settings` or the `model` group of a config, separable.
        variables: {'params', 'batch_stats'} of our network.
    """
    model = TorchUNet(settings)
    state = {}
    for owner, group in variables["params"].items():
        for name, value in group.items():
            if hasattr(value, "items"):
                state.update(_unit_state(f"{owner}.{name}", value))
            else:
                state.update(_head_state(owner, name, np.asarray(value)))
    for owner, group in variables["batch_stats"].items():
        for unit, statistics in group.items():
            state[f"{owner}.{unit}.norm.running_mean"] = np.asarray(statistics["mean"])
            state[f"{owner}.{unit}.norm.running_var"] = np.asarray(statistics["variance"])
    tensors = {name: torch.tensor(np.ascontiguousarray(value)) for name, value in state.items()}
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    if unexpected or [name for name in missing if not name.endswith("num_batches_tracked")]:
        raise ValueError(f"PyTorch weights: missing {missing}, unexpected {unexpected}")
    return model.to(memory_format=torch.channels_last)


def _unit_state(prefix, weights):
    """Returns the PyTorch names and layouts of a unit's or a squeeze-and-excitation's weights."""
    state = {}
    for name, value in weights.items():
        value = np.asarray(value)
        if name == "depthwise":
            state[f"{prefix}.depthwise.weight"] = value.transpose(2, 0, 1)[:, None]
        elif name == "pointwise":
            state[f"{prefix}.pointwise.weight"] = value.T[:, :, None, None]
        elif name in ("squeeze", "excite"):
            state[f"{prefix}.{name}.weight"] = value.T
        elif name in ("squeeze_bias", "excite_bias"):
            state[f"{prefix}.{name.removesuffix('_bias')}.bias"] = value
        else:
            state[
                prefix + {"bias": ".pointwise.bias", "scale": ".norm.weight", "offset": ".norm.bias"}[name]
            ] = value
    return state


def _head_state(owner, name, value):
    """Returns the PyTorch name and layout of a weight of an up-sampling or a head."""
    if owner == "aux":
        layer = "aux_hidden" if name.startswith("hidden") else "aux"
        return {f"{layer}.bias" if name.endswith("bias") else f"{layer}.weight": value.T}
    if name == "bias":
        return {f"{owner}.bias": value}
    kernel = value.T[:, :, None, None] if owner == "mask" else value.transpose(0, 3, 1, 2)
    return {f"{owner}.weight": kernel}
