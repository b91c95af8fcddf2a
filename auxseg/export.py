"""Exports a trained network as a self-describing bundle that runs without auxseg.

    python -m auxseg.export --workdir=RUN --format=stablehlo|onnx|saved [--output=DIR] [--input=SCAN]

The bundle's outputs are compared with the original's on real slices, of the run's own validation cases or of
--input, before it takes its place: beyond 1e-4 nothing is written. `auxseg.bundle` says what is in a bundle.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import shutil
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from auxseg import bundle, evaluate, onnx_graph, runs
from auxseg.base import command
from auxseg.base.errors import InputError, check_choice
from auxseg.ct import scans
from auxseg.datasets import load
from auxseg.datasets.resize import resize_image
from auxseg.scoring import operating_point

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
        kind: one of `bundle.KINDS`.
        output: folder of the bundle; an older bundle there is replaced.
        images: int16 [n, H, W] in HU, of the network's size, to compare on.
        checked_on: what those are, for `bundle.json`.

    Raises:
        InputError: no run there, a kind that the network cannot be written as, a package that is missing, or
            another thing than a bundle at `output`.
        RuntimeError: the bundle's probabilities differ from the original's.
    """
    check_choice("--format", kind, tuple(bundle.KINDS))
    output = pathlib.Path(output)
    if (
        output.exists()
        and not (output / bundle.FILE).is_file()
        and (output.is_file() or any(output.iterdir()))
    ):
        raise InputError(f"--output: {output} exists and is no bundle; give another folder")
    trained = _to_float32(bundle.read_trained(workdir))
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".exporting-", dir=output.parent) as folder:
        part = pathlib.Path(folder) / output.name
        part.mkdir()
        chosen = pathlib.Path(workdir) / operating_point.FILE
        if chosen.is_file():
            shutil.copy(chosen, part)  # for `predict --tuned`
        write_bundle(part, trained, kind)
        about = check_bundle(part, trained, images, checked_on)
        if output.exists():
            shutil.rmtree(output)
        part.rename(output)
    return about


def _to_float32(trained):
    """Returns the network computing in float32: what a bundle promises, whatever the training used.

    Lowered as 'shifted', the form that takes any number of slices and is the same program everywhere.
    """
    config = bundle.to_config(runs.config_to_dict(trained.config))
    config.model.update({"dtype": "float32", "lowering": "shifted"})
    return dataclasses.replace(trained, config=config)


def write_bundle(folder, trained, kind):
    """Writes a bundle's files to a folder; `bundle.json` says nothing of a check yet."""
    {"stablehlo": _write_stablehlo, "onnx": _write_onnx, "saved": _write_saved}[kind](folder, trained)
    if kind != "saved":
        (folder / "run.py").write_text(_RUNNER, encoding="utf-8")
    about = bundle.describe(trained, kind)
    about |= {"needs": list(_NEEDS[kind]), **_details(kind)}
    about["versions"] = runs.describe_machine(jax.devices())["packages"]
    about["files"] = {file.name: bundle.file_checksum(file) for file in sorted(folder.iterdir())}
    (folder / bundle.FILE).write_text(bundle.dump_description(about), encoding="utf-8")


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
    original, copy = bundle.create_network(trained, classes=True), bundle.read_bundle(folder)
    expected, got = original.forward(images), copy.forward(images)
    pairs = [(a, b) for a, b in zip(expected, got, strict=True) if b is not None]
    apart = [float(np.max(np.abs(np.asarray(a) - np.asarray(b)))) for a, b in pairs]
    if not max(apart) <= TOLERANCE:
        raise RuntimeError(
            f"the {copy.name} bundle differs from the original by {max(apart):.2g} > {TOLERANCE}"
        )
    hard = [np.asarray(masks).argmax(-1) for masks, _ in (expected, got)]
    about = json.loads((folder / bundle.FILE).read_text(encoding="utf-8"))
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
    (folder / bundle.FILE).write_text(bundle.dump_description(about), encoding="utf-8")
    return about


def _write_stablehlo(folder, trained):
    from jax import export as jax_export

    forward = bundle.create_forward(trained.config, trained.variables)
    (count,) = jax_export.symbolic_shape("n")
    images = jax.ShapeDtypeStruct((count, *trained.config.data.size), jnp.float32)
    program = jax_export.export(jax.jit(forward), platforms=PLATFORMS)(images)
    (folder / bundle.KINDS["stablehlo"]).write_bytes(program.serialize())


def _write_onnx(folder, trained):
    try:
        import onnx  # noqa: F401
    except ImportError as error:
        raise InputError("--format=onnx: needs onnx and onnxruntime: pip install 'auxseg[onnx]'") from error
    if trained.config.model.name not in ("aux_unet", "unet"):
        raise InputError(f"--format=onnx: cannot write {trained.config.model.name!r}; use stablehlo")
    about = bundle.describe(trained, "onnx")
    metadata = {key: about[key] if isinstance(about[key], str) else json.dumps(about[key]) for key in about}
    proto = onnx_graph.create_model(trained.config, trained.variables, metadata)
    (folder / bundle.KINDS["onnx"]).write_bytes(proto.SerializeToString())


def _write_saved(folder, trained):
    np.savez(folder / bundle.KINDS["saved"], **bundle.flatten(trained.variables))


def read_check_slices(config, workdir, scan_path):
    """Returns (int16 [n, H, W] of the network's size, what they are), to compare a bundle on.

    Args:
        config: the run's settings.
        workdir: the run.
        scan_path: a scan or a folder of scans, or None for the run's validation cases.

    Raises:
        InputError: the scan or the run's data cannot be read.
    """
    size = tuple(config.data.size)
    if scan_path:
        return _read_scans(scan_path, size)
    try:
        dataset = load(config.data)
        members = evaluate.read_splits(pathlib.Path(workdir), dataset)
    except InputError as error:
        raise InputError(
            f"--input: give a scan to check the export on; the run's own data: {error}"
        ) from error
    return dataset.read(members["val"][:NUM_SLICES])[0], f"validation cases of {dataset.name}"


def _read_scans(path, size):
    """Returns (int16 [n, *size], what they are): `NUM_SLICES` spread over the scans there."""
    found = scans.find_scans(path)
    chosen = [found[k] for k in np.unique(np.linspace(0, len(found) - 1, NUM_SLICES).astype(int))]
    images, num_slices = [], 0
    for source in chosen:
        with tempfile.TemporaryDirectory(prefix="auxseg-") as scratch:
            scan = scans.open_scan(source, scratch)
            num_slices = scan.num_slices
            count = max(1, NUM_SLICES // len(chosen))
            wanted = np.unique(np.linspace(0, num_slices - 1, count + 2).astype(int)[1:-1])
            images += [resize_image(scan.read(int(k), int(k) + 1)[0], size) for k in wanted]
    name = pathlib.Path(path).resolve().name
    what = f"{num_slices}-slice scan {name}" if len(found) == 1 else f"{len(chosen)} scans of {name}"
    return np.stack(images), what


def _define_flags():
    flags.DEFINE_string("workdir", None, "the run's folder, or a bundle of the format 'saved'")
    flags.DEFINE_string("format", None, f"one of {', '.join(bundle.KINDS)}")
    flags.DEFINE_string("output", None, "folder of the bundle; default: WORKDIR/export/FORMAT")
    flags.DEFINE_string(
        "input", None, "a chest CT, or a folder of some, to check on; default: the run's validation cases"
    )


def main(argv):
    """Runs the command."""
    del argv
    values = flags.FLAGS
    for name in ("workdir", "format"):
        if not getattr(values, name):
            raise InputError(f"--{name}: not given (try --help)")
    check_choice("--format", values.format, tuple(bundle.KINDS))
    config = bundle.read_trained(values.workdir).config
    images, checked_on = read_check_slices(config, values.workdir, values.input)
    output = pathlib.Path(values.output or pathlib.Path(values.workdir) / "export" / values.format)
    about = export(values.workdir, values.format, output, images=images, checked_on=checked_on)
    checked = about["checked"]
    print(
        f"{output}: {values.format} of {about['name']}, within "
        f"{checked['largest_difference_of_mask_probabilities']:.1e} of the original on "
        f"{checked['slices']} slices "
        f"({checked['on']})"
    )


_RUNNER = '''"""Segments one slice with this bundle, without auxseg, by NumPy and ONNX Runtime or JAX.

    python run.py SLICE.npy MASK.npy    (SLICE: HU, [H, W], oriented as bundle.json says)

The packages that it needs are listed in bundle.json under "needs"; pip installs each by that name.
"""

import json
import pathlib
import sys

import numpy as np

HERE = pathlib.Path(__file__).parent
ABOUT = json.loads((HERE / "bundle.json").read_text(encoding="utf-8"))


def load():
    """Returns the network: float32 [N, *size] in HU -> probabilities [N, *size, classes]."""
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


def segment(image_hu, network):
    """Returns uint8 [H, W], indices into ABOUT["classes"], of one transverse slice in HU."""
    size, image = ABOUT["size_yx"], np.maximum(np.asarray(image_hu, float), -1024)
    rows, columns = (weights(*pair) for pair in zip(image.shape, size))
    small = np.rint(rows @ image @ columns.T).astype(np.float32)
    probabilities = network(small[None])[0]
    rows, columns = (weights(*pair) for pair in zip(size, image.shape))
    probabilities = np.einsum("yh,hwc,xw->yxc", rows, probabilities, columns, optimize=True)
    return probabilities.argmax(-1).astype(np.uint8)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    np.save(sys.argv[2], segment(np.load(sys.argv[1], allow_pickle=False), load()))
'''


if __name__ == "__main__":
    _define_flags()
    command.run(main)
