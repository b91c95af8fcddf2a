"""The decision that was chosen for a run on its validation split, stored with it."""

from __future__ import annotations

import dataclasses
import pathlib

from auxseg.base import files
from auxseg.base.errors import InputError
from auxseg.scoring.operating_point import Decision

FILE = "nodules.json"


def read_decision(workdir, *, flip=False):
    """Returns the Decision that is stored with a run.

    Args:
        workdir: pathlib.Path of a run or a bundle.
        flip: whether it is for probabilities that are averaged with the mirrored slices'.

    Raises:
        InputError: none was chosen, or for other probabilities, or the file is damaged.
    """
    path = workdir / FILE
    if not path.exists():
        raise InputError(
            f"{path}: no such file; choose a threshold on the validation split first "
            f"(python -m auxseg.evaluate --workdir={workdir} --tune)"
        )
    try:
        stored = files.read_json(path)
        chosen = Decision(**{key: float(value) for key, value in stored["decision"].items()})
        chosen_for = bool(stored["flip"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{path}: cannot be read ({error!r}); choose the threshold again (--tune)"
        ) from error
    if chosen_for != flip:
        how, other = ("with", "give it here too") if chosen_for else ("without", "leave it out here too")
        raise InputError(
            f"{path}: the threshold was chosen {how} --flip; {other}, or choose again "
            f"(python -m auxseg.evaluate --workdir={workdir} --tune{' --flip' * flip})"
        )
    return chosen


def count_nodules(workdirs):
    """Returns on how few nodules the decision of one of some runs was chosen, None where none of them says it.

    Args:
        workdirs: paths of runs or bundles with a decision, see `read_decision`.
    """
    stored = [files.read_object(pathlib.Path(workdir) / FILE).get("nodules") for workdir in workdirs]
    return min((int(count) for count in stored if count is not None), default=None)


def write_decision(workdir, decision, found, *, flip=False):
    """Stores a Decision with what it found on validation, JSON types; `flip` as in `read_decision`."""
    files.write_json(workdir / FILE, {"decision": dataclasses.asdict(decision), "flip": flip, **found})


def read_common_decision(workdirs, *, flip=False):
    """Returns the `Decision` that was chosen for all of some runs.

    Args:
        workdirs: paths of runs or bundles.
        flip: whether their probabilities are averaged with the mirrored slices'.

    Raises:
        InputError: none was chosen for one of them, or with the other `flip`, or they differ.
    """
    chosen = {workdir: read_decision(pathlib.Path(workdir), flip=flip) for workdir in workdirs}
    if len(set(chosen.values())) > 1:
        listed = ", ".join(f"{one.threshold:g} in {workdir}" for workdir, one in chosen.items())
        raise InputError(
            f"--tuned: the runs have other nodule thresholds or sizes each ({listed}); give one with "
            "--nodule_threshold and --min_nodule_mm"
        )
    return next(iter(chosen.values()))
