"""Says all that it finds in a scan, a label map, a folder of them or a LUNA16 folder, without segmenting.

    python -m auxseg.doctor PATH [--scans=10]

For a scan: format, size, spacing, orientation, range of HU, what the thresholds see of a chest and on which
side. For a label map: each value with what it means, its volume and place, and whether left is left. For a
LUNA16 folder: what is missing, and a sample of its scans and masks. Ends with the problems; the exit status
is 1 if there are any.
"""

from __future__ import annotations

import pathlib

import numpy as np
from absl import flags

from auxseg.base import command
from auxseg.base.errors import InputError
from auxseg.ct import checks, scans
from auxseg.ct.checks import ERROR, WARNING, Finding
from auxseg.ct.examine import Report, examine_source
from auxseg.datasets import nodules
from auxseg.datasets.luna16 import layout


def examine(path, *, num_scans=10):
    """Yields a `Report` for each thing that a path holds.

    Args:
        path: a scan, a label map, a folder of them, or a LUNA16 folder.
        num_scans: of a LUNA16 folder, how many scans to open; 0 for all.

    Raises:
        InputError: nothing there that can be examined.
    """
    path = pathlib.Path(path)
    if path.is_dir() and is_luna16(path):
        yield from examine_luna16(path, num_scans)
        return
    for source in scans.find_scans(path):
        yield examine_source(source)


def is_luna16(path):
    """Returns whether a folder is laid out as LUNA16: subset folders with .mhd files."""
    return any(any(folder.rglob("*.mhd")) for folder in path.glob("subset[0-9]") if folder.is_dir())


def examine_luna16(path, num_scans):
    """Yields a `Report` of a LUNA16 folder, then of a sample of its scans and masks."""
    folder = layout.list_folder(path)
    subsets = np.bincount([scan.subset for scan in folder.scans], minlength=10)
    facts = [
        ("scans", f"{len(folder.scans)} with a mask (LUNA16 has 888)"),
        ("by subset", ", ".join(f"{index}: {count}" for index, count in enumerate(subsets))),
    ]
    findings = [Finding(ERROR, "scan", problem) for problem in folder.problems]
    findings += [Finding(WARNING, "folder", note) for note in folder.notes]
    if folder.annotations is not None:
        spheres = nodules.read_annotations(folder.annotations)
        here = sum(len(spheres.get(scan.uid, ())) for scan in folder.scans)
        total = sum(map(len, spheres.values()))
        facts.append(
            ("nodules", f"{total} in annotations.csv (LUNA16 has 1186), {here} of them in these scans")
        )
    headers, broken = _read_headers(folder.scans)
    findings += broken
    if headers:
        depths = [header.stored.size_xyz[2] for header in headers.values()]
        thickness = [header.stored.spacing_xyz_mm[2] for header in headers.values()]
        facts.append(
            (
                "slices",
                f"{min(depths)} to {max(depths)} a scan, {min(thickness):.3g} to {max(thickness):.3g} mm",
            )
        )
        turned = sum(any(header.orientation.flips) for header in headers.values())
        facts.append(
            ("orientation", f"{turned} of {len(headers)} scans have reversed axes (as prone ones have)")
        )
    yield Report(f"LUNA16 folder {path}", tuple(facts), tuple(findings))
    usable = [scan for scan in folder.scans if scan.uid in headers]
    chosen = checks.pick_slices(len(usable), num_scans) if num_scans and usable else range(len(usable))
    for index in chosen:
        for file in (usable[index].path, usable[index].mask_path):
            yield examine_source(scans.find_scans(file)[0])


def _read_headers(found):
    """Returns ({series UID: header}, findings) of a LUNA16 folder's scans, each compared with its mask."""
    headers, findings = {}, []
    for scan in found:
        try:
            headers[scan.uid] = layout.check_scan(scan)
        except InputError as error:
            findings.append(Finding(ERROR, "scan", str(error)))
    return headers, findings


def format_report(report):
    """Returns a `Report` as lines of text."""
    width = max((len(name) for name, _ in report.facts), default=0)
    lines = [report.title, *(f"  {name:{width}}  {value}" for name, value in report.facts)]
    lines += [f"  {finding.severity}: {finding.text}" for finding in report.findings]
    return "\n".join(lines)


def _define_flags():
    flags.DEFINE_string("input", None, "what to examine; may be given without --input=")
    flags.DEFINE_integer("scans", 10, "of a LUNA16 folder: scans to open; 0 for all")


def main(argv):
    """Runs the command; returns the exit status: 1 where there are problems."""
    del argv
    if not flags.FLAGS.input:
        raise InputError("got no path, expected a scan or a folder: python -m auxseg.doctor PATH")
    problems = warnings = 0
    for report in examine(flags.FLAGS.input, num_scans=flags.FLAGS.scans):
        print(format_report(report), flush=True)
        severities = [finding.severity for finding in report.findings]
        problems, warnings = problems + severities.count(ERROR), warnings + severities.count(WARNING)
    counted = [f"{n} {what}" + "s" * (n != 1) for n, what in ((problems, "problem"), (warnings, "warning"))]
    print(", ".join(counted))
    return 1 if problems else 0


if __name__ == "__main__":
    _define_flags()
    command.run(main, positional=("input",))
