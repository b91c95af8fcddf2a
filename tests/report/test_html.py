"""The page: whole, escaped, without the network, right in a real browser where there is one."""

import dataclasses
import html.parser
import json
import re

import browser
import made_up_run
import numpy as np
import pytest

from auxseg.base.classes import COLOURS, to_rgb
from auxseg.base.files import read_csv
from auxseg.report import Report, markup, paper, pictures, write_report
from auxseg.report.all_tables import group_rates, name_tables
from auxseg.report.html import create_page
from auxseg.runs import run_folder

VOID = {"meta", "img", "input", "br", "hr"}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Returns the folder of a whole report, written once."""
    folder = tmp_path_factory.mktemp("whole")
    report = made_up_run.make_report(folder / "run")
    write_report(folder / "report", report)
    return folder / "report"


class Checker(html.parser.HTMLParser):
    """Collects ids and addresses, and fails where tags do not balance."""

    def __init__(self):
        super().__init__()
        self.open, self.ids, self.addresses, self.labels = [], [], [], []

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.ids += [values["id"]] if "id" in values else []
        self.addresses += [values[key] for key in ("href", "src", "action") if key in values]
        self.labels += [values["for"]] if "for" in values else []
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag


def check(text):
    checker = Checker()
    checker.feed(text)
    assert checker.open == []
    return checker


def quick_page(folder, change=lambda prediction, seed: prediction, **settings):
    """Returns the HTML of a made-up run without its figures."""
    return create_page(made_up_run.make_report(folder, change, **settings), {})


def test_page_is_whole_and_stands_alone(written):
    text = (written / "index.html").read_text(encoding="utf-8")
    checker = check(text)
    assert len(checker.ids) == len(set(checker.ids))
    assert all(address.startswith(("#", "data:image/png;base64,")) for address in checker.addresses)
    anchors = [address[1:] for address in checker.addresses if address.startswith("#")]
    assert set(anchors) | set(checker.labels) <= set(checker.ids)
    outside = re.sub(r"http://www\.w3\.org/2000/svg", "", text)
    assert (
        "http:" not in outside
        and "https:" not in outside
        and "@import" not in outside
        and "url(" not in outside
    )
    assert "Not for clinical use" in text and "default-src &#x27;none&#x27;" in text


def test_files_stand_beside_the_page(written):
    text = (written / "index.html").read_text(encoding="utf-8")
    for name in re.findall(r"<code>((?:figures|tables)/[\w./]+)</code>", text):
        assert (written / name).stat().st_size > 0
    expected = {
        "curves",
        "schedule",
        "dice",
        "confusion",
        "shift",
        "lung_nodule",
        "bland_altman_nodule",
        "panels",
        "bland_altman_left_lung",
        "bland_altman_right_lung",
        "reliability",
        "objects",
    }
    assert {path.stem for path in (written / "figures").iterdir()} == expected
    assert len(read_csv(written / "tables" / "cases.csv")) == 18
    assert (
        json.loads((written / "scores.json").read_text(encoding="utf-8"))["pooled"][0]["score"]
        == "pooled DSC (paper)"
    )


def test_page_shows_what_was_asked_for(written):
    text = (written / "index.html").read_text(encoding="utf-8")
    sections = ("Automatic checks", "Model card", "Rules of the scores", "train split")
    for words in (*sections, "pooled DSC (paper)", "model.base_width", "n = 18", "synthetic slices"):
        assert words in text, words
    for words in ("98.42", "Fig 1", "Table 2", "Table 3", "Beside the paper"):
        assert words not in text, words  # of other data than this
    order = [text.index(f'id="{section}"') for section in ("checks", "cases", "panels", "scores", "run")]
    assert order == sorted(order)


def test_the_papers_numbers_stand_beside_the_papers_data_alone(tmp_path):
    report = made_up_run.make_report(tmp_path, name="luna16")
    captions = " ".join(caption for _, _, _, caption in pictures._draw(report))
    text = create_page(report, {}) + captions
    for words in ("Table 2", "Table 3", "98.42", "Fig 11", "Fig 12", "Fig 13", "Fig 14", "Figs 5, 7, 9"):
        assert words in text, words
    assert not paper.is_papers({"data": {"name": "luna16", "slices": "nodule"}})
    assert not paper.is_papers({"data": {"name": "luna16", "classes": ["background", "lung"]}})


def test_cases_of_one_patient_have_no_interval(tmp_path):
    report = made_up_run.make_report(tmp_path)
    rows = tuple(row | {"patient": "one"} for row in report.evaluation.rows)
    objects = tuple(item | {"patient": "one"} for item in report.evaluation.objects)
    evaluation = dataclasses.replace(report.evaluation, rows=rows, objects=objects)
    text = create_page(dataclasses.replace(report, evaluation=evaluation), {})
    scores = text[text.index('id="checks"') : text.index('id="run"')]
    assert "95 %" not in scores and "18 cases of 1 patient" in text
    assert not re.search(r"-?\d\.\d+ \[-?\d|[>\[ ]nan\b", scores)
    assert "95 %" in create_page(report, {})


@pytest.mark.parametrize(
    ("fault", "title"),
    [
        ("shift", "Predictions are shifted"),
        ("swap", "Left and right are swapped"),
        ("lost", "Right lung is never found"),
    ],
)
def test_a_planted_fault_stands_first(tmp_path, fault, title):
    text = quick_page(tmp_path, made_up_run.FAULTS[fault])
    first = re.search(r'<li class="finding (\w+)">.*?<strong>(.*?)</strong>', text)
    assert first.groups() == ("fault", title)


def test_names_from_outside_are_escaped(tmp_path):
    evil = '</script><script>alert("x")</script><img src=x onerror=alert(1)>'
    report = made_up_run.make_report(tmp_path)
    case = report.cases[0]
    rows = [
        row | {"case_id": evil} if row["case_id"] == case.case_id else row for row in report.evaluation.rows
    ]
    evaluation = type(report.evaluation)(tuple(rows), report.evaluation.objects, None)
    named = type(case)(
        evil,
        (evil,),
        case.image,
        case.reference,
        case.prediction,
        case.window_hu,
        case.row | {"case_id": evil},
    )
    run = run_folder.Records(
        evil, {"data": {"name": evil}}, {evil: evil}, {evil: [evil]}, (), {"dataset": evil, "notes": [evil]}
    )
    text = create_page(Report(run, evil, evil, evaluation, cases=(named,), facts={evil: evil}), {})
    check(text)
    assert "alert(" in text and "<script>alert" not in text and "<img src=x" not in text
    assert text.count("<script") == 2


def test_a_run_without_nodules_epochs_cases_or_probabilities(tmp_path):
    def erase(prediction, seed):
        return np.zeros_like(prediction)

    evaluation, _ = made_up_run.make_evaluation(
        erase, num_cases=1, probabilities=False, spacing=(np.nan, np.nan)
    )
    run = run_folder.Records("bare", {}, {}, {}, (), {})
    report = Report(run, "test", "96 x 96 pixels", evaluation)
    drawn = pictures.draw_all(report)
    assert "curves" not in drawn and "reliability" not in drawn and "dice" in drawn
    text = create_page(report, drawn)
    check(text)
    assert "The run has not ended" in text and "There is no nodule" in text and "HD95 px" in text


def test_both_resolutions_are_shown_and_named(tmp_path):
    report = made_up_run.make_report(tmp_path)
    both = Report(report.run, report.split, "96 x 96", report.evaluation, native=report.evaluation)
    text = create_page(both, {})
    assert "own resolution" in text and "96 x 96" in text
    assert {"cases_native", "scores_native"} <= name_tables(both).keys()


def test_rates_are_grouped_as_in_table_3():
    rows = group_rates(made_up_run.make_epochs())
    assert [(row["epochs"], row["learning_rate"]) for row in rows] == [("1-4", 1e-3), ("5-7", 5e-4)]
    assert rows[0]["memory_gb"] == pytest.approx(0.904)


def test_markup_escapes_all_that_is_not_markup():
    made = markup.element(
        "p", "<b>", markup.element("i", "&"), 3, None, class_="a", data_x='"<', hidden=True, title=None
    )
    assert made == '<p class="a" data-x="&quot;&lt;" hidden>&lt;b&gt;<i>&amp;</i>3</p>'
    assert "</script" not in markup.script_data("x", {"a": "</script><!--"})[:-9]


def test_numbers():
    assert [markup.number(v) for v in (float("nan"), None, 3, 0.12345, 12345.6)] == [
        "n/a",
        "n/a",
        "3",
        "0.123",
        "12,346",
    ]


SCRIPT = (
    browser.START
    + """
(async () => {
  const out = {};
  const paths = () => document.querySelectorAll("#outlines path").length;
  await until(viewer);
  out.thumbs = document.querySelectorAll("#strip button canvas").length;
  out.first = byId("item-title").textContent;
  out.all = paths();
  out.differ = coloured("canvas");
  press("t"); out.without_truth = paths();
  press("p"); out.without_outlines = paths();
  press("d"); out.without_fill = coloured("canvas");
  byId("fill-prediction").click(); out.filled = coloured("canvas");
  byId("opacity").value = 100; send(byId("opacity"), new Event("input", {bubbles: true}));
  out.lung = pixel("canvas", [48, 28]);
  byId("class-left_lung").click(); out.one_less = coloured("canvas");
  press("n"); await until(() => viewer() !== out.first); out.second = byId("item-title").textContent;
  press("b"); out.again = byId("item-title").textContent;
  document.querySelectorAll("#strip button")[2].click(); out.third = byId("item-title").textContent;
  out.pressed = document.querySelectorAll("#strip button[aria-pressed=true]").length;
  out.rows = byId("item-scores").rows.length;
  out.overflow = document.documentElement.scrollWidth - window.innerWidth;
  out.width = window.innerWidth;
  await until(() => viewer() === document.querySelectorAll("#strip button")[2].title);
  out.readout = point(0.5, 0.29);
  finish(out);
})();
"""
)


@pytest.mark.parametrize("width", [1280, 500])
def test_the_viewer_works_in_a_real_browser(written, width):
    dom, logged = browser.browse(written / "index.html", script=SCRIPT, width=width)
    assert logged == []
    out = browser.results(dom)
    assert out["thumbs"] >= 6 and out["pressed"] == 1 and out["rows"] == 9
    assert out["all"] > out["without_truth"] > out["without_outlines"] == 0
    assert out["filled"] > out["one_less"] > out["differ"] > out["without_fill"] == 0
    assert out["lung"] == list(to_rgb(COLOURS["right_lung"]))
    assert out["first"] == out["again"] != out["second"] and out["third"] not in (
        out["first"],
        out["second"],
    )
    assert re.search(
        r"row \d+, column \d+: (about|at most) -?\d+ HU; truth (right lung|nodule), prediction",
        out["readout"],
    )
    assert out["overflow"] <= 0 and out["width"] == width
