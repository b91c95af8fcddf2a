"""The report of an evaluation: one page that needs no network, its figures as PNG, its tables as CSV.

matplotlib is imported when a report is written, not before: training does without it.
"""

from __future__ import annotations

import dataclasses
import pathlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # `predict` needs the parts of a page alone, and no scores
    from auxseg.runs import run_folder
    from auxseg.scoring import case_scores


@dataclasses.dataclass(frozen=True)
class Report:
    """Everything that a page shows.

    Attributes:
        run: its records.
        split: that was scored.
        resolution: of the scores, in words, such as '320 x 320 pixels, as the network sees'.
        evaluation: case_scores.Evaluation at that resolution.
        native: case_scores.Evaluation at the scan's own resolution, or None.
        cases: viewer.CaseImage, to look at.
        explanations: explain.Explanation.
        facts: name -> text: parameters, MACs, seconds, hardware.
        data: name of the data set that was scored; '' for the run's own.
    """

    run: run_folder.Records
    split: str
    resolution: str
    evaluation: case_scores.Evaluation
    native: case_scores.Evaluation | None = None
    cases: tuple[Any, ...] = ()
    explanations: tuple[Any, ...] = ()
    facts: dict = dataclasses.field(default_factory=dict)
    data: str = ""


def write_report(folder, report):
    """Writes `index.html`, `figures/*.png`, `tables/*.csv` and `scores.json`; returns the page's path.

    Args:
        folder: pathlib.Path or str, made where it is not there.
        report: `Report`.

    Raises:
        InputError: the folder cannot be written.
    """
    from auxseg.base import files
    from auxseg.report import all_tables, html, pictures

    folder = pathlib.Path(folder)
    drawn = pictures.draw_all(report)
    for picture in drawn.values():
        files.write_bytes(folder / "figures" / f"{picture.name}.png", picture.png)
    named = all_tables.name_tables(report)
    for name, rows in named.items():
        files.write_csv(folder / "tables" / f"{name}.csv", rows)
    left_out = ("cases", "cases_native", "objects", "objects_native", "se_scales")
    files.write_json(
        folder / "scores.json", {name: rows for name, rows in named.items() if name not in left_out}
    )
    files.write_text(folder / "index.html", html.create_page(report, drawn, named))
    return folder / "index.html"
