"""The page of a report: its sections in their order."""

from __future__ import annotations

from auxseg.report import all_tables, findings, model_card, run_sections, score_sections, tables, viewer
from auxseg.report.document import create_document
from auxseg.report.figure_parts import show_figures
from auxseg.report.markup import element, join
from auxseg.scoring import case_scores


def create_page(report, pictures, named=None):
    """Returns the HTML of a report.

    Args:
        report: `report.Report`.
        pictures: of `pictures.draw_all`.
        named: of `all_tables.name_tables`, where it is at hand: its intervals take a second.
    """
    named = all_tables.name_tables(report) if named is None else named
    sections = _sections(report, pictures, named)
    title = f"{report.run.name}: {report.split} split"
    links = [element("li", element("a", heading, href=f"#{anchor}")) for anchor, heading, _ in sections]
    head = element(
        "header",
        element("h1", title),
        element("p", element("span", model_card.NOT_CLINICAL, class_="badge")),
        element("p", _lead(report), class_="lead"),
        class_="top",
    )
    body = [
        element(
            "section",
            element("h2", heading, id=f"{anchor}-title"),
            content,
            id=anchor,
            aria_labelledby=f"{anchor}-title",
        )
        for anchor, heading, content in sections
    ]
    foot = element("footer", element("p", f"auxseg {_version(report)}. {model_card.NOT_CLINICAL}"))
    skip = element("a", "Skip to the content", class_="skip", href="#checks")
    nav = element("nav", element("ul", links), aria_label="Sections")
    page = join(skip, head, nav, element("main", body, id="main"), foot)
    return create_document(title, page, script=bool(report.cases), classes=report.evaluation.classes)


def _version(report):
    return report.run.versions.get("packages", {}).get("auxseg") or ""


def _lead(report):
    owners = len(set(tables.patients(report.evaluation)))
    cases = len(report.evaluation.rows)
    data = (
        report.data or report.run.summary.get("dataset") or report.run.config.get("data", {}).get("name", "")
    )
    counts = f"{findings.count_of(cases, 'case')} of {findings.count_of(owners, 'patient')}"
    return f"{counts}, {report.resolution}. Data: {data}."


def _sections(report, pictures, named):
    """Returns (anchor, heading, content) of each section that has something to show, in the page's order."""
    every = [
        ("checks", "Automatic checks", _checks(report)),
        ("cases", "Cases", _cases(report)),
        ("panels", "Panels", show_figures(pictures, "panels")),
        ("scores", "Scores", score_sections.scores_section(report, pictures, named)),
        ("confusion", "Where pixels went", show_figures(pictures, "confusion", "shift")),
        ("nodules", "Nodules as objects", score_sections.nodules_section(report, pictures, named)),
        ("agreement", "Agreement of areas", score_sections.agreement_section(pictures, named)),
        ("calibration", "Calibration", score_sections.calibration_section(pictures, named)),
        ("explanations", "What drives the network", run_sections.explanations_section(report, pictures)),
        ("training", "Training", run_sections.training_section(report, pictures)),
        ("paper", "Beside the paper", run_sections.paper_section(report, named)),
        ("run", "What was run", run_sections.run_section(report)),
        ("card", "Model card", run_sections.card_section(report, named)),
        ("rules", "Rules of the scores", _rules()),
        ("files", "Files", run_sections.files_section(pictures, named)),
    ]
    return [each for each in every if each[2]]


def _checks(report):
    found = findings.find_all(
        report.evaluation,
        split=report.split,
        splits=report.run.splits,
        finished=bool(report.run.summary),
        num_steps=report.run.epochs[-1].get("step") if report.run.epochs else None,
    )
    open_ones = [each for each in found if each.level != findings.PASSED]
    passed = [each for each in found if each.level == findings.PASSED]
    calm = None if open_ones else element("p", f"All {len(passed)} checks passed.")
    rest = element(
        "details",
        element("summary", f"{len(passed)} checks passed"),
        element("ul", map_list(_finding, passed), class_="findings"),
    )
    return join(
        calm, element("ul", map_list(_finding, open_ones), class_="findings"), rest if passed else None
    )


def map_list(function, values):
    """Returns [function(value), ...], which `element` takes as content."""
    return [function(value) for value in values]


def _finding(finding):
    return element(
        "li",
        element("span", finding.level, class_="tag"),
        element("strong", finding.title),
        finding.text,
        " ",
        element("a", "See", href=f"#{finding.section}"),
        class_=f"finding {finding.level}",
    )


def _cases(report):
    if not report.cases:
        return None
    keys = {
        "b": " and ",
        "n": ". ",
        "t": " truth, ",
        "p": " prediction, ",
        "d": " where they differ. Image left is the patient's right.",
    }
    return join(
        element(
            "p",
            "Worst, median and best of each class by Dice, and the largest false positive. Click a "
            "picture, or use ",
            [[element("kbd", key), text] for key, text in keys.items()],
        ),
        element(
            "noscript",
            element("p", "The viewer needs JavaScript; the figure of panels below shows the same cases."),
        ),
        viewer.create_case_viewer(report.cases),
    )


def _rules():
    return element("ul", [element("li", rule) for rule in case_scores.RULES])
