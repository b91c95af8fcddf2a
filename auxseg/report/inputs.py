"""What a report is made of: the records of a run, and its scores."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from typing import Any

from auxseg.base.errors import InputError
from auxseg.scoring import case_scores


@dataclasses.dataclass(frozen=True)
class Run:
    """The records in a run's workdir.

    Attributes:
        name: of the workdir.
        config: `config.json`.
        versions: `versions.json`: packages and hardware.
        splits: {name: case ids} of `splits.json`.
        epochs: rows of `metrics.jsonl`.
        summary: `summary.json`, {} while the run goes on.
    """

    name: str
    config: dict
    versions: dict
    splits: dict
    epochs: tuple[dict, ...]
    summary: dict


@dataclasses.dataclass(frozen=True)
class Report:
    """Everything that a page shows.

    Attributes:
        run: its records.
        split: that was scored.
        resolution: of the scores, in words, such as '320 x 320 pixels, as the network sees'.
        evaluation: scores.Evaluation at that resolution.
        native: scores.Evaluation at the scan's own resolution, or None.
        cases: viewer.CaseImage, to look at.
        explanations: explain.Explanation.
        facts: name -> text: parameters, MACs, seconds, hardware.
    """

    run: Run
    split: str
    resolution: str
    evaluation: case_scores.Evaluation
    native: case_scores.Evaluation | None = None
    cases: tuple[Any, ...] = ()
    explanations: tuple[Any, ...] = ()
    facts: dict = dataclasses.field(default_factory=dict)


def read_run(workdir):
    """Returns the Run of a workdir; only `config.json` and `splits.json` must be there.

    Raises:
        InputError: it is no run's workdir, or a file of it is damaged.
    """
    workdir = pathlib.Path(workdir)
    return Run(
        name=workdir.resolve().name,
        config=_read_json(workdir / "config.json", required=True),
        versions=_read_json(workdir / "versions.json"),
        splits=_read_json(workdir / "splits.json", required=True),
        epochs=_read_lines(workdir / "metrics.jsonl"),
        summary=_read_json(workdir / "summary.json"),
    )


def _read_json(path, *, required=False):
    if not path.exists():
        if required:
            raise InputError(f"{path}: no such file; is {path.parent} the workdir of a run?")
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise InputError(f"{path}: cannot be read as JSON ({error}); restore it, or train again") from error
    if not isinstance(value, dict):
        raise InputError(
            f"{path}: got a {type(value).__name__}, expected an object; restore it, or train again"
        )
    return value


def _read_lines(path):
    """Returns the rows of a JSON-lines file; a last line without an end (a killed run's) is left out."""
    if not path.exists():
        return ()
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    try:
        return tuple(json.loads(line) for line in lines if line.endswith("\n"))
    except ValueError as error:
        raise InputError(f"{path}: a line is no JSON ({error}); restore it, or train again") from error
