"""Which figures a report has, each with its words."""

from __future__ import annotations

import dataclasses

from auxseg.report import figures, paper, tables, viewer


@dataclasses.dataclass(frozen=True)
class Picture:
    """A figure as a page shows it.

    Attributes:
        name: of its file, without the ending.
        png: bytes.
        alt: what it shows, for who cannot see it.
        caption: what it means.
    """

    name: str
    png: bytes
    alt: str
    caption: str


def draw_all(report):
    """Returns {name: Picture} of an `report.Report`; a figure without data is left out."""
    return {
        name: Picture(name, figures.to_png(figure), alt, caption)
        for name, figure, alt, caption in _draw(report)
        if figure is not None
    }


def _draw(report):
    evaluation, epochs, papers = report.evaluation, report.run.epochs, paper.is_papers(report.run.config)
    count = report.run.config.get("eval", {}).get("num_panels", 6)
    yield (
        "curves",
        figures.draw_curves(epochs),
        "Loss, accuracy and Dice by epoch",
        f"Training and validation by epoch{' (the paper: Figs 5, 7, 9)' if papers else ''}. Yellow: the epoch whose "
        "weights were kept. Pixel accuracy is mostly background; look at Dice.",
    )
    yield (
        "schedule",
        figures.draw_schedule(epochs),
        "Learning rate and memory by epoch",
        "The paper's Table 3, from this run." if papers else "Learning rate and memory by epoch.",
    )
    yield (
        "dice",
        figures.draw_dice(evaluation),
        "Dice of every case by class",
        "Every case counts; crosses are structures that were missed.",
    )
    yield (
        "confusion",
        figures.draw_confusion(evaluation),
        "Confusion matrix of pixels by class",
        "Rows sum to 100 %. Left and right swapped shows off the diagonal, a lost lung as a row that "
        "goes to background.",
    )
    yield (
        "shift",
        figures.draw_shifts(evaluation),
        "Offset of the predicted lungs in each case",
        "One point a case, red cross the median. A systematic offset moves the whole cloud.",
    )
    yield (
        "lung_nodule",
        figures.draw_lungs_against_nodules(evaluation),
        "Lung Dice against nodule Dice",
        f"The paper's Fig 11 (R = {paper.FIG_11_R}), from this run."
        if papers
        else "One point a case that has both.",
    )
    for name in evaluation.foreground:
        beside = ""
        if papers and name in paper.BLAND_ALTMAN_PX:
            bias, low, high = paper.BLAND_ALTMAN_PX[name]
            beside = f"{_FIGS[name]}. The paper, at 320 x 320 pixels: bias {bias}, limits [{low}, {high}]. "
        yield (
            f"bland_altman_{name}",
            figures.draw_bland_altman(evaluation, name),
            f"Bland-Altman plot of the area of the {tables.TITLES[name].lower()}",
            beside
            + (
                "Grey: 95 % intervals of the bias and the limits; c"
                if tables.has_intervals(evaluation)
                else "C"
            )
            + "rosses: missed.",
        )
    yield (
        "reliability",
        figures.draw_reliability(evaluation),
        "Reliability diagram",
        "On the line, confidence is frequency.",
    )
    yield (
        "objects",
        figures.draw_objects(evaluation),
        "Nodules found, missed and false by size",
        "Counted as objects in the slice.",
    )
    yield (
        "panels",
        figures.draw_panels(viewer.choose_panels(report.cases, count)),
        "CT, truth, prediction and overlay of chosen cases",
        f"{'As in Figs 6, 8, 10 of the paper: n' if papers else 'N'}odule blue, left lung red, right lung green, yellow "
        "where the masks differ.",
    )
    for number, explanation in enumerate(report.explanations, start=1):
        yield (
            f"explanation_{number}",
            figures.draw_explanation(explanation),
            explanation.title,
            explanation.caption,
        )


_FIGS = {"nodule": "Fig 12", "right_lung": "Fig 13", "left_lung": "Fig 14"}
