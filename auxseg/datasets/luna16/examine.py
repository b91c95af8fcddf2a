"""What a path holds: a scan, a label map, a folder of them, or a LUNA16 folder, of which a sample is opened."""

from __future__ import annotations

import pathlib

import numpy as np

from auxseg.base.errors import InputError
from auxseg.ct import checks, scans
from auxseg.ct.checks import ERROR, WARNING, Finding
from auxseg.ct.examine import Examination, examine_source
from auxseg.datasets import nodules
from auxseg.datasets.luna16 import layout


def examine(path, *, num_scans=10):
    """Yields a `Examination` for each thing that a path holds.

    Args:
        path: a scan, a label map, a folder of them, or a LUNA16 folder.
        num_scans: of a LUNA16 folder, how many scans to open; 0 for all.

    Raises:
        InputError: nothing there that can be examined.
    """
    path = pathlib.Path(path)
    if path.is_dir() and _is_luna16(path):
        yield from _examine_folder(path, num_scans)
        return
    for source in scans.find_scans(path):
        yield examine_source(source)


def _is_luna16(path):
    """Returns whether a folder is laid out as LUNA16: subset folders with .mhd files."""
    return any(any(folder.rglob("*.mhd")) for folder in path.glob("subset[0-9]") if folder.is_dir())


def _examine_folder(path, num_scans):
    """Yields a `Examination` of a LUNA16 folder, then of a sample of its scans and masks."""
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
    yield Examination(f"LUNA16 folder {path}", tuple(facts), tuple(findings))
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
