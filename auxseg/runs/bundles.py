"""Writes a trained network as a bundle that runs without auxseg, checked against the original."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import shutil
import tempfile

import jax
import jax.numpy as jnp
import numpy as np

from auxseg.base import files
from auxseg.base.errors import InputError, check_choice
from auxseg.datasets import scale
from auxseg.runs import decisions, networks, onnx_graph, run_folder

TOLERANCE = 1e-4
"""Largest difference of a probability between the bundle and the original."""
NUM_SLICES = 8
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
"""What a StableHLO program is made for."""
_NEEDS = {
    "stablehlo": ("numpy", "jax", "flatbuffers"),
    "onnx": ("numpy", "onnxruntime"),
    "saved": ("auxseg",),
}
"""Packages that a bundle runs with."""


def export(workdir, kind, output, *, images, checked_on):
    """Writes a bundle of a run's best weights and returns what `bundle.json` says.

    Args:
        workdir: a run's folder, or a 'saved' bundle.
        kind: one of `networks.KINDS`.
        output: folder of the bundle; an older bundle there is replaced.
        images: int16 [n, H, W] in HU, of the network's size, or slabs [n, H, W, slices], to compare on; at a fixed scale of
            any size.
        checked_on: what those are, for `bundle.json`.

    Raises:
        InputError: no run there, a kind that the network cannot be written as, a package that is missing, or
            another thing than a bundle at `output`.
        RuntimeError: the bundle's probabilities differ from the original's.
    """
    check_choice("--format", kind, tuple(networks.KINDS))
    output = pathlib.Path(output)
    if (
        output.exists()
        and not (output / networks.FILE).is_file()
        and (output.is_file() or any(output.iterdir()))
    ):
        raise InputError(f"--output: {output} exists and is no bundle; give another folder")
    trained = _to_float32(networks.read_trained(workdir))
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".exporting-", dir=output.parent) as folder:
        part = pathlib.Path(folder) / output.name
        part.mkdir()
        chosen = pathlib.Path(workdir) / decisions.FILE
        if chosen.is_file():
            shutil.copy(chosen, part)  # for `predict --tuned`
        write_bundle(part, trained, kind)
        about = check_bundle(part, trained, images, checked_on)
        files.replace_folder(part, output)
    return about


def _to_float32(trained):
    """Returns the network computing in float32: what a bundle promises, whatever the training used.

    Lowered as 'shifted', the form that takes any number of slices and is the same program everywhere.
    """
    config = run_folder.to_config(run_folder.config_to_dict(trained.config))
    config.model.update({"dtype": "float32", "lowering": "shifted"})
    return dataclasses.replace(trained, config=config)


def write_bundle(folder, trained, kind):
    """Writes a bundle's files to a folder; `bundle.json` says nothing of a check yet."""
    {"stablehlo": _write_stablehlo, "onnx": _write_onnx, "saved": _write_saved}[kind](folder, trained)
    if kind != "saved":
        (folder / "run.py").write_text(_RUNNER, encoding="utf-8")
    about = networks.describe(trained, kind)
    about |= {"needs": list(_NEEDS[kind]), **_details(kind)}
    about["versions"] = run_folder.describe_machine(jax.devices())["packages"]
    about["files"] = {file.name: networks.file_checksum(file) for file in sorted(folder.iterdir())}
    files.write_json(folder / networks.FILE, about)


def _details(kind):
    if kind == "stablehlo":
        return {
            "platforms": list(PLATFORMS),
            "calling_convention": jax.export.maximum_supported_calling_convention_version,
        }
    return {"opset": onnx_graph.OPSET} if kind == "onnx" else {}


def check_bundle(folder, trained, images, checked_on):
    """Returns `bundle.json` with how far the bundle is from the original, after writing it there.

    Raises:
        RuntimeError: further than `TOLERANCE`.
    """
    original, copy = networks.create_network(trained, classes=True), networks.read_bundle(folder)
    expected, got = original.forward(images), copy.forward(images)
    pairs = [(a, b) for a, b in zip(expected, got, strict=True) if b is not None]
    apart = [float(np.max(np.abs(np.asarray(a) - np.asarray(b)))) for a, b in pairs]
    if not max(apart) <= TOLERANCE:
        raise RuntimeError(
            f"the {copy.name} bundle differs from the original by {max(apart):.2g} > {TOLERANCE}"
        )
    hard = [np.asarray(masks).argmax(-1) for masks, _ in (expected, got)]
    about = files.read_object(folder / networks.FILE)
    about["checked"] = {
        "on": checked_on,
        "slices": len(images),
        "backend": jax.default_backend(),
        "tolerance": TOLERANCE,
        "largest_difference_of_mask_probabilities": apart[0],
        "largest_difference_of_class_probabilities": apart[1] if len(apart) > 1 else None,
        "pixels_of_another_class": int((hard[0] != hard[1]).sum()),
        "pixels": int(hard[0].size),
    }
    files.write_json(folder / networks.FILE, about)
    return about


def _write_stablehlo(folder, trained):
    from jax import export as jax_export

    forward = networks.create_forward(trained.config, trained.variables)
    data = trained.config.data
    text, slab = "n", data.slab
    if scale.seen_scale(data)[0] is not None:
        step = scale.step_of(data.size)
        text = f"n, {step}*h, {step}*w"
    sizes = jax_export.symbolic_shape(text)
    shape = (*sizes, *(data.size if len(sizes) == 1 else ()), *((slab,) if slab > 1 else ()))
    images = jax.ShapeDtypeStruct(shape, jnp.float32)
    program = jax_export.export(jax.jit(forward), platforms=PLATFORMS)(images)
    (folder / networks.KINDS["stablehlo"]).write_bytes(program.serialize())


def _write_onnx(folder, trained):
    try:
        import onnx  # noqa: F401
    except ImportError as error:
        raise InputError("--format=onnx: needs onnx and onnxruntime: pip install 'auxseg[onnx]'") from error
    if trained.config.model.name not in ("aux_unet", "unet"):
        raise InputError(f"--format=onnx: cannot write {trained.config.model.name!r}; use stablehlo")
    about = networks.describe(trained, "onnx")
    metadata = {key: about[key] if isinstance(about[key], str) else json.dumps(about[key]) for key in about}
    proto = onnx_graph.create_model(trained.config, trained.variables, metadata)
    (folder / networks.KINDS["onnx"]).write_bytes(proto.SerializeToString())


def _write_saved(folder, trained):
    np.savez(folder / networks.KINDS["saved"], **networks.flatten(trained.variables))


_RUNNER = '''"""Segments one slice with this bundle, without auxseg, by NumPy and ONNX Runtime or JAX.

    python run.py SLICE.npy MASK.npy [ROW_MM COLUMN_MM]    (SLICE: HU, [H, W], oriented as bundle.json says)

ROW_MM and COLUMN_MM, the distances of the slice's rows and of its columns, are needed where bundle.json names a
number of "mm_per_pixel": the slice is brought to that scale. Else it is brought to "size_yx", or stays as it is ("own").

Where bundle.json names a "slab" of more than one slice, SLICE holds so many, [H, W, slices], the one to segment in
the middle.

The packages that it needs are listed in bundle.json under "needs"; pip installs each by that name.
"""

import json
import pathlib
import sys

import numpy as np

HERE = pathlib.Path(__file__).parent
ABOUT = json.loads((HERE / "bundle.json").read_text(encoding="utf-8"))


def load():
    """Returns the network: float32 [N, H, W] or [N, H, W, slices] in HU -> probabilities [N, H, W, classes]."""
    if ABOUT["kind"] == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(HERE / "model.onnx", providers=["CPUExecutionProvider"])
        return lambda images: session.run(["mask_probabilities"], {"images": images})[0]
    from jax import export

    program = export.deserialize(bytearray((HERE / "model.stablehlo").read_bytes()))
    return lambda images: np.asarray(program.call(images)[0])


def weights(num_in, num_out):
    """Returns bilinear weights that widen with the reduction, [num_out, num_in]."""
    scale = num_in / num_out
    centres = (np.arange(num_out) + 0.5) * scale - 0.5
    near = np.maximum(1 - np.abs(np.arange(num_in) - centres[:, None]) / max(1, scale), 0)
    return near / near.sum(1, keepdims=True)


def choose_size(shape_yx, spacing_yx_mm):
    """Returns the rows and columns that a slice is resized to."""
    scale = ABOUT["mm_per_pixel"]
    if scale is None:
        return ABOUT["size_yx"]
    if scale == "own":
        return list(shape_yx)
    if not spacing_yx_mm:
        sys.exit(f"ROW_MM COLUMN_MM: not given; this network takes {scale} mm a pixel")
    return [max(1, round(n * mm / scale)) for n, mm in zip(shape_yx, spacing_yx_mm)]


def pad(image):
    """Returns an image with -1024 below and to the right, up to multiples of ABOUT["multiple"]."""
    if ABOUT["mm_per_pixel"] is None:
        return image
    more = [(0, -n % ABOUT["multiple"]) for n in image.shape[:2]]
    return np.pad(image, more + [(0, 0)] * (image.ndim - 2), constant_values=-1024)


def segment(image_hu, network, spacing_yx_mm=()):
    """Returns uint8 [H, W], indices into ABOUT["classes"], of one transverse slice in HU."""
    image = np.maximum(np.asarray(image_hu, float), -1024)
    size = choose_size(image.shape[:2], spacing_yx_mm)
    slices = (ABOUT["slab"],) if ABOUT["slab"] > 1 else ()
    if image.shape[2:] != slices:
        sys.exit(f"SLICE: got the shape {image.shape}, expected {('rows', 'columns', *slices)}")
    rows, columns = (weights(*pair) for pair in zip(image.shape, size))
    small = np.rint(np.einsum("yh,hw...,xw->yx...", rows, image, columns, optimize=True)).astype(np.float32)
    probabilities = network(pad(small)[None])[0][: size[0], : size[1]]
    rows, columns = (weights(*pair) for pair in zip(size, image.shape))
    probabilities = np.einsum("yh,hwc,xw->yxc", rows, probabilities, columns, optimize=True)
    return probabilities.argmax(-1).astype(np.uint8)


if __name__ == "__main__":
    if len(sys.argv) not in (3, 5):
        sys.exit(__doc__)
    mask = segment(np.load(sys.argv[1], allow_pickle=False), load(), tuple(map(float, sys.argv[3:])))
    np.save(sys.argv[2], mask)
'''
