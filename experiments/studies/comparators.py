"""The systems that the paper compares with, as settings: at their published width, and matched to the paper's size.

Matched: the base width whose count of parameters and statistics is nearest to the paper's 6,577,217.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from auxseg import models
from auxseg.runs import state
from experiments.studies import runner


@dataclasses.dataclass(frozen=True)
class System:
    """A network of Table 2 or of the text.

    Attributes:
        title: in words.
        model: settings of config.model beside the width.
        published_width: base width of its source, or of its usual form where the source names none.
        matched_width: base width of the paper's size.
        source: where it is described.
        paper_percent: what the paper prints for it (Table 2 or the text), in percent; None: nothing.
        slices: of the slab that it takes; 1: a slice alone.
    """

    title: str
    model: dict
    published_width: int
    matched_width: int
    source: str
    paper_percent: float | None = None
    slices: int = 1


SYSTEMS = {
    "aux_unet": System("Auxiliary U-Net (the paper's)", {}, 64, 64, "the paper, section 3.1", 98.42),
    "plain": System(
        "plain separable U-Net (control)",
        {"se": False, "aux": False},
        64,
        67,
        "the paper's, without SE and head",
    ),
    "unet": System("U-Net", {"name": "unet"}, 64, 29, "Ronneberger et al. 2015"),
    "unet3d": System(
        "3D U-Net", {"name": "unet3d", "depth": 3}, 32, 35, "Nam et al. 2018; Cicek et al. 2016", 78.78, 7
    ),
    "bidirectional_unet": System(
        "bi-directional U-Net with Mish",
        {"name": "bidirectional_unet"},
        64,
        31,
        "Bhattacharyya et al. 2023; arXiv:2003.09293",
        88.89,
    ),
    "attention_res_unet": System(
        "Attention Res-UNet", {"name": "attention_res_unet"}, 64, 29, "Zafaranchi et al. 2024", 81.00
    ),
    "attention_unet": System("Attention U-Net", {"name": "attention_unet"}, 64, 29, "arXiv:1804.03999"),
    "unet_plus_plus": System("UNet++", {"name": "unet_plus_plus"}, 32, 27, "arXiv:1807.10165"),
}
WITH_NEIGHBOURS = {
    f"aux_unet_slab{slices}": System(
        "Auxiliary U-Net", {}, 64, 64, "the paper's, slices as channels", slices=slices
    )
    for slices in (3, 5, 7)
} | {
    "aux_unet3d": System(
        "Auxiliary U-Net in 3D", {"name": "aux_unet3d"}, 64, 63, "the paper, section 5: our reading", slices=7
    )
}
"""The paper's network with the slices around the one that it marks; no rows of Table 2."""
SECOND_DATA = System("U-Net with a second data set", {"name": "unet"}, 64, 29, "Li et al. 2024", 92.60)
"""A row of data, not of a network: `--extra_data`."""
SAM_PERCENT = 97.08
"""What the text prints for SAM with transfer learning (Asha et al. 2024); `experiments.sam.study`."""


def create_changes(system, width):
    """Returns {'model.name': ..., ...}, the settings of a System at a base width."""
    changes = {f"model.{name}": value for name, value in system.model.items()} | {"model.base_width": width}
    return changes | ({"data.slab": system.slices} if system.slices > 1 else {})


def create_network(config, system, width):
    """Returns the network of a System at a base width, with the other settings of a config."""
    return models.create_model(runner.override(config, create_changes(system, width)).model)


def count_values(config, system, width):
    """Returns the parameters and statistics of a System at a base width; nothing is computed."""
    model = create_network(config, system, width)
    size = 2 ** (model.settings.depth + 1)  # any will do
    images = jax.ShapeDtypeStruct((1, size, size, system.slices), jnp.float32)
    return state.count_values(jax.eval_shape(model.init, jax.random.key(0), images))
