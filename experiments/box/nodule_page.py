"""The page of the nodule looks, from the figures that the studies wrote.

    python -m experiments.box.nodule_page [--results=experiments/results]

Reads `box_nodules.json`, `box_nodule_crops.json` and `box_nodule_test.json` in a folder, writes `box_nodules.md` beside
them.
"""

import pathlib

from absl import flags

from auxseg.base import command, files

RESULTS = pathlib.Path(__file__).parents[1] / "results"
SHOWN_RATES = ("1", "2", "4")
SHOWN_THRESHOLDS = ("0.4", "0.5", "0.6")


def page(study, crops, test):
    """Returns the page as text.

    Args:
        study: of `nodule_study`.
        crops: of `nodule_crops`.
        test: of `nodule_crops --test`.
    """
    parts = [
        "# Nodules in two looks: what each stage finds",
        f"`{study['made_by']['command']}` at commit {study['made_by']['commit']}, "
        f"`{crops['made_by']['command']}` at {crops['made_by']['commit']}. Seeds {study['made_by']['seeds']}.",
        f"Data: {study['made_by']['data']}. No network scored here saw the patient.",
        "## Whole scans",
        "False ones are findings that hit no nodule, by LUNA16's rule. In the Lung_Dx scans nobody looked for nodules; "
        "their one 'nodule' is the mass, and a finding outside it is not known to be false.",
        _stages(study["stages"]),
        "The judge is a small network with three sizes of view, trained on what the look marks. It is not in the box: "
        "with it no scan's lesion ranks higher, some rank lower, and of the crops' nodules it finds more at some rates "
        "and fewer at others.",
        f"At {study['default_rate']:g} false one a scan on average, the least probability chosen on the other scans:",
        _default(study["default_point_chosen_on_the_other_scans"]),
        "Findings by operating point, the points chosen on all these scans (found of known, false):",
        _rates(study["at_the_rates"]),
        "## Held-out crops",
        f"{crops['made_by']['data']}. The networks are those of the outlines, from whose weights the looks start; the mean "
        "of both cycles' weights and of the crop in eight turns and three sizes. Dice is over all pixels that the network marks in the crop; found means an overlap "
        "(IoU) of at least 0.1; over all slices means a nodule's slices together. The threshold of a fold was chosen on "
        "the other fold.",
        _crops({"chosen": crops["at_the_chosen"], **{t: crops["thresholds"][t] for t in SHOWN_THRESHOLDS}}),
        "## Among the readers",
        "Each reader and the network against the consensus of the other readers, by patient; inside the spread means that "
        f"the interval of the difference lies above -{crops['readers']['largest slice']['margin']:g}. Ratings are medians "
        "of the readers.",
        _readers(crops["readers"]),
        "## The network in the box, on the test patients",
        f"{test['made_by']['data']}; `{test['made_by']['command']}` at commit {test['made_by']['commit']}. These patients "
        "were named before the first training. They were opened once or twice for each generation of the weights, and looked at "
        "once more before one of two networks was chosen: they are no test any more (`box_nodule_test.json`).",
        _crops({t: test["thresholds"][t] for t in SHOWN_THRESHOLDS}),
        _readers(test["readers"]),
    ]
    return "\n\n".join(parts) + "\n"


def table(head, rows):
    """Returns a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def _stages(stages):
    first = next(iter(stages.values()))
    scans, groups = list(first["false_above_the_nodule"]), list(first["crops_found_at"])
    head = ["candidates ranked by", *(f"false above, {name}" for name in scans)]
    head += [f"crops found at {rate} a scan ({group})" for group in groups for rate in SHOWN_RATES]
    rows = []
    for name, found in stages.items():
        above = [
            ", ".join("missed" if n is None else str(n) for n in found["false_above_the_nodule"][scan])
            for scan in scans
        ]
        shares = [found["crops_found_at"][group][rate] for group in groups for rate in SHOWN_RATES]
        rows.append([name, *above, *(f"{share:.2f}" for share in shares)])
    return table(head, rows)


def _default(point):
    head = ["scan", "least probability", "found", "false"]
    return table(
        head,
        [
            [name, f"{p['least_probability']:.3f}", f"{p['found']} of {p['nodules']}", p["false"]]
            for name, p in point.items()
        ],
    )


def _rates(scans):
    rates = list(next(iter(scans.values())))
    rows = [
        [name, *(f"{p['found']} of {p['nodules']}, {p['false']}" for p in found.values())]
        for name, found in scans.items()
    ]
    return table(["scan", *(f"{rate} a scan" for rate in rates)], rows)


def _crops(thresholds):
    head = ["threshold", "diameter", "nodules", "Dice, largest slice", "median", "found", "Dice, all slices"]
    rows = []
    for threshold, strata in thresholds.items():
        for stratum, s in strata.items():
            name = "all" if stratum == "0-99 mm" else stratum.replace("10-99 mm", "10 mm and more")
            values = (s["dice_largest"], s["dice_largest_median"], s["found"], s["dice_all_slices"])
            rows.append([threshold, name, s["nodules"], *(f"{v:.3f}" for v in values)])
    return table(head, rows)


def _readers(readers):
    head = ["slices", "diameter", "nodules", "patients", "a reader", "the network", "difference", "inside"]
    rows = []
    for slices, found in readers.items():
        for stratum, s in found.items():
            if stratum == "margin" or s["interval"] is None:
                continue
            low, high = s["interval"]
            difference = f"{s['difference']:.3f} [{low:.3f}, {high:.3f}]"
            inside = "yes" if s["inside"] else "no"
            counts = (s["nodules"], s["patients"], f"{s['reader']:.3f}", f"{s['network']:.3f}")
            rows.append([slices, stratum, *counts, difference, inside])
    return table(head, rows)


def main(argv):
    """Writes the page."""
    del argv
    results = pathlib.Path(flags.FLAGS.results)
    names = ("box_nodules", "box_nodule_crops", "box_nodule_test")
    files.write_text(
        results / "box_nodules.md", page(*(files.read_json(results / f"{name}.json") for name in names))
    )


if __name__ == "__main__":
    flags.DEFINE_string("results", str(RESULTS), "folder of the figures and of the page")
    command.run(main)
