"""Exports a trained network as a self-describing bundle that runs without auxseg.

    python -m auxseg.export --workdir=RUN --format=stablehlo|onnx|saved [--output=DIR] [--input=SCAN]

The bundle's outputs are compared with the original's on real slices, of the run's own validation cases or of
--input, before it takes its place: beyond 1e-4 nothing is written. `auxseg.runs.networks` says what is in a bundle.
"""

from __future__ import annotations

import pathlib
import tempfile

from absl import flags

from auxseg.base import command
from auxseg.base.errors import InputError, check_choice


def read_check_slices(config, workdir, scan_path):
    """Returns (images or slabs, int16, of the network's size, what they are), to compare a bundle on.

    Args:
        config: the run's settings.
        workdir: the run.
        scan_path: a scan or a folder of scans, or None for the run's validation cases.

    Raises:
        InputError: the scan or the run's data cannot be read.
    """
    from auxseg.datasets import load
    from auxseg.runs import bundles, splits

    if scan_path:
        return _read_scans(scan_path, config)
    try:
        dataset = load(config.data)
        members = splits.read_splits(pathlib.Path(workdir), dataset)
    except InputError as error:
        raise InputError(
            f"--input: give a scan to check the export on; the run's own data: {error}"
        ) from error
    return dataset.read_seen(members["val"][: bundles.NUM_SLICES])[0], f"validation cases of {dataset.name}"


def _read_scans(path, config):
    """Returns (images or slabs, what they are): `bundles.NUM_SLICES` slices spread over the scans there."""
    import numpy as np

    from auxseg.ct import checks, scans
    from auxseg.datasets import scale
    from auxseg.runs.bundles import NUM_SLICES

    found = scans.find_scans(path)
    chosen = [found[k] for k in np.unique(np.linspace(0, len(found) - 1, NUM_SLICES).astype(int))]
    images, num_slices = [], 0
    for source in chosen:
        with tempfile.TemporaryDirectory(prefix="auxseg-") as scratch:
            scan = scans.open_scan(source, scratch)
            checks.raise_errors(scan.findings, scan.path)
            num_slices = scan.num_slices
            count = max(1, NUM_SLICES // len(chosen))
            wanted = np.unique(np.linspace(0, num_slices - 1, count + 2).astype(int)[1:-1])
            images += [_read_slab(scan, int(k), config) for k in wanted]
    name = pathlib.Path(path).resolve().name
    what = f"{num_slices}-slice scan {name}" if len(found) == 1 else f"{len(chosen)} scans of {name}"
    largest = scale.round_up(np.max([image.shape[:2] for image in images], axis=0), 1)
    return np.stack([scale.fit(image, largest) for image in images]), what


def _read_slab(scan, index, config):
    """Returns a slice as the network sees it, int16 [H, W], or with its neighbours [H, W, slices]."""
    import numpy as np

    from auxseg.datasets import check_slab_step, scale, slabs
    from auxseg.datasets.resize import resize_image

    spacing = scan.geometry.spacing_zyx_mm if scan.has_geometry else (float("nan"),) * 3
    size, seen = tuple(config.data.size), scale.seen_scale(config.data)[0]
    shown = size
    if seen is not None:
        hint = "state it, or check on other scans"
        scale.check_spacing(seen, [spacing[1:]], [scan.name], where=str(scan.path), hint=hint)
        shown = scale.filled_size(scan.geometry.shape_zyx[1:], spacing[1:], seen)
        size = scale.round_up(shown, scale.step_of(size))
    slab = config.data.slab
    apart = slabs.slices_apart(spacing[0], check_slab_step(config.data))
    places = slabs.places_around(index, num_slices=slab, apart=apart, in_scan=scan.num_slices)
    images = [scale.fit(resize_image(scan.read(k, k + 1)[0], shown), size) for k in places.tolist()]
    return images[0] if slab == 1 else np.stack(images, -1)


def _define_flags():
    flags.DEFINE_string("workdir", None, "the run's folder, or a bundle of the format 'saved'")
    flags.DEFINE_string("format", None, "one of stablehlo, onnx, saved")
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
    from auxseg.runs import bundles, networks  # here, for --help to be answered at once

    check_choice("--format", values.format, tuple(networks.KINDS))
    config = networks.read_trained(values.workdir).config
    images, checked_on = read_check_slices(config, values.workdir, values.input)
    output = pathlib.Path(values.output or pathlib.Path(values.workdir) / "export" / values.format)
    about = bundles.export(values.workdir, values.format, output, images=images, checked_on=checked_on)
    checked = about["checked"]
    print(
        f"{output}: {values.format} of {about['name']}, within "
        f"{checked['largest_difference_of_mask_probabilities']:.1e} of the original on {checked['slices']} "
        f"slices ({checked['on']})"
    )


if __name__ == "__main__":
    _define_flags()
    command.run(main)
