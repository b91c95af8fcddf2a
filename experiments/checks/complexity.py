"""Parameters and multiply-accumulates of every network here, and SE against attention as the paper counts them.

    python -m experiments.checks.complexity [--size=320] [--out=experiments/results]

Writes `complexity.md` and `complexity.json` (with every layer). Nothing is trained and no network is run:
parameters come from shapes, multiply-accumulates from each network's program (`auxseg.report.macs`), and
beside them XLA's own count of that program (two operations a multiply-accumulate, activations and norms counted,
taps on the zeros of the padding not). The paper's section 3.1 compares squeeze-and-excitation with
attention by two formulas; both are here, with what XLA counts in the compiled operations.
"""

from __future__ import annotations

import dataclasses
import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
from absl import flags

from auxseg.base import command, files
from auxseg.models import create_settings, layers
from auxseg.models.compared import parts
from auxseg.report import macs
from configs import base
from experiments.studies import comparators

SE_SHAPE = (320, 320, 64)
"""Rows, columns and channels of the paper's example."""


def se_formula(rows, columns, channels, squeezed):
    """Returns the operations of squeeze-and-excitation by section 3.1, H W C + 2 (C N1 + N1 C)."""
    return rows * columns * channels + 2 * (channels * squeezed + squeezed * channels)


def attention_formula(rows, columns, channels):
    """Returns the operations of attention by section 3.1, 4 H W C C + H W C."""
    return 4 * rows * columns * channels**2 + rows * columns * channels


def count_program(function, *shapes, compiled=False):
    """Returns the operations that XLA counts in a function's program, an integer.

    Args:
        function: of arrays.
        shapes: `jax.ShapeDtypeStruct`s, or trees of them.
        compiled: of the program as it was optimised for the CPU; else as it was written.
    """
    lowered = jax.jit(function).lower(*shapes)
    return int((lowered.compile() if compiled else lowered).cost_analysis()["flops"])


class FourConvs(nn.Module):
    """Attention as the paper's formula reads: four 1x1 convolutions from C to C, and one product a value.

    Query, key and value of each pixel, a map in (0, 1) of query and key that multiplies the value, and the
    last convolution. The sum of query and key, its sigmoid and the residual are not in the formula.
    """

    features: int

    @nn.compact
    def __call__(self, images):
        """Returns float [N, H, W, C]."""
        kernels = [self.param(f"kernel_{i}", nn.initializers.ones, (self.features,) * 2) for i in range(4)]
        query, key, value = (layers.pointwise_conv(images, k, lowering="shifted") for k in kernels[:3])
        return layers.pointwise_conv(nn.sigmoid(query + key) * value, kernels[3], lowering="shifted")


class Excite(nn.Module):
    """Squeeze-and-excitation by itself: the network's own applies its scale together with batch norm."""

    squeezed: int

    @nn.compact
    def __call__(self, images):
        """Returns float [N, H, W, C]."""
        channels = images.shape[-1]
        shapes = {"squeeze": (channels, self.squeezed), "excite": (self.squeezed, channels)}
        squeeze, excite = (self.param(name, nn.initializers.ones, shape) for name, shape in shapes.items())
        first, second = (
            self.param(f"{name}_bias", nn.initializers.zeros, shape[1:]) for name, shape in shapes.items()
        )
        hidden = nn.relu(jnp.mean(images, (1, 2)) @ squeeze + first[None])
        return images * nn.sigmoid(hidden @ excite + second[None])[:, None, None]


def compare_attention(shape):
    """Returns rows {operation, formula, program, compiled} for the paper's example.

    Args:
        shape: rows, columns, channels.
    """
    rows, columns, channels = shape
    settings = dataclasses.replace(create_settings(base.get_config().model), lowering="plain")
    squeezed = channels // settings.se_ratio
    images = jax.ShapeDtypeStruct((1, *shape), jnp.float32)

    gate = parts.Gate(settings, channels)
    context = parts.Context()
    found = [
        (
            "squeeze-and-excitation",
            se_formula(rows, columns, channels, squeezed),
            Excite(squeezed),
            (images,),
        ),
        ("attention", attention_formula(rows, columns, channels), FourConvs(channels), (images,)),
        ("additive gate (Attention U-Net)", None, gate, (images, images, context)),
    ]
    return [_count_block(*each) for each in found]


def _count_block(title, formula, module, inputs):
    arrays = [each for each in inputs if isinstance(each, jax.ShapeDtypeStruct)]
    fixed = [each for each in inputs if not isinstance(each, jax.ShapeDtypeStruct)]

    def init(key, *arrays):
        return module.init(key, *arrays, *fixed)

    def apply(variables, *arrays):
        return module.apply(variables, *arrays, *fixed)

    variables = jax.eval_shape(init, jax.random.key(0), *arrays)
    return {
        "operation": title,
        "formula": formula,
        "program": count_program(apply, variables, *arrays),
        "compiled": count_program(apply, variables, *arrays, compiled=True),
    }


def describe_network(model, *, size_yx, slices=1):
    """Returns what a network has and does, by layer too; JSON types.

    Args:
        model: from `models.create_model`.
        size_yx: rows and columns of the image.
        slices: of the slab that it takes.
    """
    plain = model.clone(settings=dataclasses.replace(model.settings, lowering="plain"))
    images = jax.ShapeDtypeStruct((1, *size_yx, slices), jnp.float32)
    variables = jax.eval_shape(plain.init, jax.random.key(0), images)
    parameters = _count_by_part(variables["params"])
    multiplied = macs.trace_macs(model, size_yx=size_yx, slices=slices)
    program = count_program(lambda v, i: plain.apply(v, i).mask_logits, variables, images)
    return {
        "trainable": sum(parameters.values()),
        "statistics": sum(leaf.size for leaf in jax.tree.leaves(variables["batch_stats"])),
        "macs": sum(multiplied.values()),
        "program_operations": program,
        "layers": [
            {"layer": part, "parameters": parameters[part], "macs": multiplied.get(part, 0)}
            for part in [*multiplied, *(part for part in parameters if part not in multiplied)]
            if part in parameters
        ],
    }


def _count_by_part(params):
    """Returns {'encoder_0/unit_0': parameters}: a part is a module that holds weights itself."""
    counts = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        part = "/".join(key.key for key in path[:-1])
        counts[part] = counts.get(part, 0) + leaf.size
    return counts


def describe_all(config, systems, *, size):
    """Returns one row for each System and width, with `describe_network`'s values; prints as it goes."""
    rows = []
    for name, system in systems.items():
        widths = {"published": system.published_width, "matched": system.matched_width}
        if system.published_width == system.matched_width:
            widths = {"published": system.published_width}
        for kind, width in widths.items():
            model = comparators.create_network(config, system, width)
            found = describe_network(model, size_yx=(size, size), slices=system.slices)
            row = {"name": name, "title": system.title, "size": kind, "base_width": width}
            rows.append(row | {"slices": system.slices, "source": system.source} | found)
            print(f"{system.title}, width {width}: {found['macs'] / 1e9:.2f} G", flush=True)
    return rows


def write_complexity(out, rows, attention, *, size):
    """Writes `complexity.json` and `complexity.md` into a folder; returns the latter's path."""
    value = {"size": size, "networks": rows, "attention": attention, "attention_shape": list(SE_SHAPE)}
    files.write_json(out / "complexity.json", value)
    page = out / "complexity.md"
    files.write_text(page, "\n".join(_lines(rows, attention, size)) + "\n")
    return page


def _lines(rows, attention, size):
    yield f"# Complexity at {size} x {size}\n"
    yield "By `python -m experiments.checks.complexity`. GMAC: multiply-accumulates of convolutions and products for one"
    yield "image, in thousands of millions; XLA: half of the operations that XLA counts in the same program, which also"
    yield "counts norms and activations, and leaves out taps on the padding's zeros. With several slices the count is for"
    yield "the whole slab, which gives the mask of one slice.\n"
    yield "| network | width | trainable | statistics | together | GMAC | XLA / 2, G |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    for row in rows:
        together = row["trainable"] + row["statistics"]
        slab = f", {row['slices']} slices" if row["slices"] > 1 else ""
        yield (
            f"| {row['title']}{slab} | {row['base_width']} ({row['size']}) | {row['trainable']:,} | "
            f"{row['statistics']:,} | {together:,} | {row['macs'] / 1e9:.2f} | "
            f"{row['program_operations'] / 2e9:.2f} |"
        )
    yield "\n## Squeeze-and-excitation against attention\n"
    height, width, channels = SE_SHAPE
    yield f"On {height} x {width} x {channels} (section 3.1). The paper's formulas, and the operations that XLA counts in"
    yield "the operation as it is written and as it is compiled for the CPU.\n"
    yield "| operation | the paper's formula | as written | compiled |"
    yield "| --- | --- | --- | --- |"
    for row in attention:
        formula = "-" if row["formula"] is None else f"{row['formula']:,}"
        yield f"| {row['operation']} | {formula} | {row['program']:,} | {row['compiled']:,} |"
    first, second = attention[:2]
    ratios = [f"{second[key] / first[key]:.1f}" for key in ("formula", "program", "compiled")]
    yield f"| ratio of the first two | {ratios[0]} | {ratios[1]} | {ratios[2]} |"
    yield "\nThe formulas leave out the product of squeeze-and-excitation with each pixel, and count a multiplication with"
    yield "its addition as one operation; XLA counts both, which doubles the two numbers and so keeps their ratio."
    yield "\n## The paper's network by layer\n"
    yield "| layer | parameters | MMAC |"
    yield "| --- | --- | --- |"
    for layer in rows[0]["layers"]:
        yield f"| {layer['layer']} | {layer['parameters']:,} | {layer['macs'] / 1e6:.3f} |"


def main(argv):
    """Runs the command."""
    del argv
    size = flags.FLAGS.size
    systems = comparators.SYSTEMS | comparators.WITH_NEIGHBOURS
    rows = describe_all(base.get_config(), systems, size=size)
    page = write_complexity(pathlib.Path(flags.FLAGS.out), rows, compare_attention(SE_SHAPE), size=size)
    print(f"written: {page}")


if __name__ == "__main__":
    flags.DEFINE_integer("size", 320, "rows and columns; a multiple of 16", lower_bound=16)
    flags.DEFINE_string("out", "experiments/results", "folder of the tables")
    command.run(main)
