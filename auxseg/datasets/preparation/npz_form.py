"""A folder of scans in the paper's own storage: one `.npz` a slice with `index.csv`, all or nothing.

The slices are written to a folder beside the output, named by what they are made of, which then takes its place:
a preparation that was killed goes on with the scans that are there.
"""

from __future__ import annotations

import contextlib
import hashlib
import pathlib
import shutil

from auxseg.base import files, progress
from auxseg.base.errors import InputError
from auxseg.datasets.layouts import layout_of
from auxseg.datasets.preparation import pieces
from auxseg.datasets.preparation.source import BadScansError


def write(data_dir, output, *, settings, size_yx=None, skip_bad_scans=False, overwrite=False, write_all):
    """Returns (rows of index.csv, one line for each scan that was left out, notes), after writing the output.

    Args:
        data_dir: the folder of the scans.
        output: folder to write.
        settings: of a layout (`auxseg.datasets.layouts`).
        size_yx: rows and columns of the slices; None for those of the scan.
        skip_bad_scans: go on without scans that cannot be used.
        overwrite: replace what a former call wrote.
        write_all: who prepares the scans: `write_all` of `pieces` or of `beam`.

    Raises:
        BadScansError: scans cannot be used; nothing is left behind.
        InputError: the output is there and `overwrite` is not given, or holds other files; another process is
            writing it; no slice is left.
    """
    output = pathlib.Path(output).expanduser()
    _check_output(output, overwrite)
    layout = layout_of(settings)
    folder = layout.list_folder(data_dir)
    named = f"{settings.name}-{size_yx}-{layout.fingerprint(folder, settings)}"
    digest = hashlib.sha256(named.encode()).hexdigest()[:16]
    partial = output.with_name(f".partial-{output.name}-{digest}")
    for leftover in output.parent.glob(f".partial-{output.name}-*"):
        if leftover != partial or overwrite:
            shutil.rmtree(leftover, ignore_errors=True)
    with files.locked(partial, name="--output", hint="give another folder"):
        try:
            job = pieces.Job("npz", str(folder.path), settings, str(partial), size_yx)
            rows, problems, notes = _write_cases(job, folder, write_all, skip_bad_scans)
        except BadScansError:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        files.write_csv(partial / "index.csv", rows)
        for file in [*partial.glob("*.json"), *partial.glob(".*")]:
            if file.name != files.LOCK:
                file.unlink()
        files.replace_folder(partial, output)
        (output / files.LOCK).unlink()
    return rows, problems, notes


def _check_output(output, overwrite):
    """Refuses to replace what is not wanted gone, or was not written by `write`."""
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    if not overwrite:
        raise InputError(f"--output: {output} is there already; give --overwrite to replace it")
    ours = output.is_dir() and all(
        file.suffix == ".npz" or file.name == "index.csv" for file in output.iterdir()
    )
    if not ours:
        raise InputError(f"--output: {output} holds more than .npz files and index.csv; it is not replaced")


def _write_cases(job, folder, write_all, skip_bad_scans):
    """Returns (rows of index.csv, problems, notes)."""
    layout = layout_of(job.settings)
    nodules_of = layout.create_nodule_reader(folder, job.settings)
    scans, problems, notes = layout.check_scans(folder, job.settings, nodules_of)
    num_scans = len(folder.scans) + len(folder.problems)

    def check(problems):
        if problems and not skip_bad_scans:
            raise BadScansError(problems, num_scans)

    check(problems)
    rows, notes, failed = [], list(notes), {}
    with contextlib.closing(write_all(job, scans, nodules_of)) as results:
        for scan, problem in progress.track(results, total=len(scans), label="Writing NPZ", unit="scan"):
            if problem is not None:
                failed[scan.uid] = f"{scan.uid}: {problem}"
                check([*problems, failed[scan.uid]])
    for scan in scans:
        if scan.uid in failed:
            problems.append(failed[scan.uid])
            continue
        found, more = pieces.read_rows(job, scan)
        rows, notes = rows + found, notes + more
    if not rows:
        raise InputError(f"--data_dir: none of the {num_scans} scans in {folder.path} has a slice to write")
    return rows, problems, notes
