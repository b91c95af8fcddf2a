"""Segments the lungs and nodules of any chest CT, or of a folder of them, with a trained network.

    python -m auxseg.predict --input=PATH --output=DIR [--workdir=RUN] [--slice=middle] [--format=nii.gz]

The networks that come with auxseg segment, unless RUN names others: a run's folder or an exported bundle; several,
separated by commas, are averaged. PATH is a DICOM
folder, a zip of one, .mhd, .mha, .nrrd, .nii, .nii.gz, .npz, or a folder of many scans. DIR receives, for
each scan, the mask in the scan's own geometry, measurements.csv, overview.png, report.html and, last,
prediction.json: a scan that has it is done and is skipped when the command is repeated.

The lungs of a whole scan are cleaned in three dimensions: what lies outside the body and the airway are left out,
loose pieces dropped or given to their lung, holes filled. `--noclean_lungs` leaves them as the network marked them.

From Python: `segment(PATH)`, or `segment(PATH, [load_network(RUN)])`.
"""

from __future__ import annotations

import contextlib
import re
import threading

from absl import flags

from auxseg.base import command, files
from auxseg.base.errors import InputError, check_choice


def _define_flags():
    flags.DEFINE_string(
        "workdir",
        None,
        "a run's folder or a bundle; several, with commas, are averaged; default: the networks in the box",
    )
    flags.DEFINE_string("input", None, "the scan, or a folder of scans")
    flags.DEFINE_string("output", None, "folder for the results")
    flags.DEFINE_string("slice", "all", "'all', 'middle' (n // 2), or an index from 0, counted from the feet")
    flags.DEFINE_list(
        "format", ["nii.gz"], "of the mask: nii.gz, nii, nrrd, mha, npz, dicom-seg; several with commas"
    )
    flags.DEFINE_string("series", None, "DICOM: UID or number of the series; default: the chest CT")
    flags.DEFINE_bool("probabilities", False, "also write the probability of each class")
    flags.DEFINE_integer("batch_size", 8, "slices at once")
    flags.DEFINE_bool("flip", False, "test-time augmentation: average with the mirrored slices")
    flags.DEFINE_bool("clean_lungs", True, "clean the lungs of a whole scan in three dimensions")
    flags.DEFINE_bool("largest_components", False, "keep the largest piece of each lung only")
    flags.DEFINE_bool("fill_holes", False, "fill holes that a lung encloses in a slice")
    flags.DEFINE_float("min_nodule_mm", 0.0, "drop nodules of a smaller equivalent diameter")
    flags.DEFINE_float(
        "nodule_threshold", 0.5, "share of a nodule's probability, against the next best class"
    )
    flags.DEFINE_float(
        "false_per_scan", 1.0, "false nodules accepted in a scan on average, with the networks in the box"
    )
    flags.DEFINE_bool("tuned", False, "nodule threshold and least size as `evaluate --tune` stored them")
    flags.DEFINE_bool("force", False, "segment whatever is not plainly impossible, with warnings")
    flags.DEFINE_bool("overwrite", False, "segment again what is done")
    flags.DEFINE_string("part", "1/1", "K/N: the K-th of N parts of the scans, each for a machine of its own")


def main(argv):
    """Runs the command; returns the exit status: 0, or 1 where some of many scans failed."""
    del argv
    values = flags.FLAGS
    for name in ("input", "output"):
        if not getattr(values, name):
            raise InputError(f"--{name}: not given (try --help)")
    # What computes is imported here: --help and a mistake in a flag are answered at once.
    with command.importing():
        from auxseg.ct import writers
        from auxseg.devices import parallel
        from auxseg.prediction import outputs, rows

    parallel.keep_compiled_programs(files.default_cache_dir() / "compiled")
    options = read_options(values)
    for form in values.format:
        check_choice("--format", form, writers.FORMATS)
    part = read_part(values.part)
    networks, box = load(values.workdir)
    get_ready(networks, options)
    found = outputs.predict(
        values.input,
        values.output,
        networks,
        options=options,
        formats=values.format,
        series=values.series,
        box=box,
        overwrite=values.overwrite,
        part=part,
    )
    return rows.print_rows(found, values.output, outputs.table_name(part))


def read_options(values):
    """Returns the `segment.Options` of the flags.

    Raises:
        InputError: a value out of its range, or flags that do not go together.
    """
    from auxseg.prediction.segment import Options
    from auxseg.runs import decisions
    from auxseg.scoring import components, operating_point

    chosen, tuned_on = operating_point.Decision(values.nodule_threshold, values.min_nodule_mm), None
    if values.tuned:
        if not values.workdir:
            raise InputError(
                "--tuned: given without --workdir; the networks in the box have their own choice"
            )
        if chosen != operating_point.Decision():
            raise InputError(
                "--tuned: also got --nodule_threshold or --min_nodule_mm; give the one or the other"
            )
        chosen = decisions.read_common_decision(values.workdir.split(","), flip=values.flip)
        tuned_on = decisions.count_nodules(values.workdir.split(","))
    return Options(
        slices=values.slice,
        batch_size=values.batch_size,
        flip=values.flip,
        clean=components.CleanUp(values.largest_components, values.fill_holes, chosen.min_mm, chosen.min_px),
        probabilities=values.probabilities,
        force=values.force,
        nodule_threshold=chosen.threshold,
        clean_lungs=values.clean_lungs,
        false_per_scan=values.false_per_scan,
        tuned_on=tuned_on,
    )


def load(workdir):
    """Returns (networks, box): of the runs that are named, with None; else those in the box, which it says."""
    from auxseg.prediction.box import load_box
    from auxseg.runs.networks import load_network

    if workdir:
        return [load_network(one) for one in workdir.split(",")], None
    box = load_box()
    print(box)
    return [box.lungs], box


def get_ready(networks, options):
    """Makes the networks' programs in a thread while the scan is found, opened and checked; returns the thread."""

    def work():
        with contextlib.suppress(Exception):  # it will be met again, where it can be said
            for one in networks:
                one.get_ready(options.batch_size if options.slices == "all" else 1)

    thread = threading.Thread(target=work)
    thread.start()
    return thread


def read_part(text):
    """Returns (k, n) of a text such as '3/8'.

    Raises:
        InputError: it is none.
    """
    found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
    part = (int(found[1]), int(found[2])) if found else (0, 0)
    if not 1 <= part[0] <= part[1]:
        raise InputError(f"--part: got {text!r}, expected K/N such as 3/8, K from 1 to N")
    return part


if __name__ == "__main__":
    _define_flags()
    command.run(main, positional=("input", "output"))
