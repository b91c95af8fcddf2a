"""Writes what `experiments.box.score` measured as a table, into the model card of the box.

python -m experiments.box.card [--results=experiments/results/box_lungs.json]
"""

from __future__ import annotations

import pathlib

from absl import flags

from auxseg.base import command, errors, files
from auxseg.prediction import box

RESULTS = "experiments/results/box_lungs.json"
START, END = "<!-- lungs: begin -->", "<!-- lungs: end -->"
_HEAD = (
    "scan",
    "slices",
    "Dice left, right",
    "with the map moved",
    "mL outside",
    "of it further than {far_mm:g} mm",
    "airway marked",
    "pieces left, right",
    "the moved map itself with edges at -400 HU: Dice, mL outside",
)


def main(argv):
    """Runs the command."""
    del argv
    given = flags.FLAGS
    card = pathlib.Path(given.card)
    text = card.read_text(encoding="utf-8")
    files.write_text(card, put_between(text, "\n".join(describe(files.read_object(given.results)))))


def put_between(text, table):
    """Returns a text with another table between the two marks.

    Raises:
        InputError: the text has no marks.
    """
    if START not in text or END not in text:
        raise errors.InputError(f"--card: no {START} and {END} in the card; put them where the scores belong")
    before, rest = text.split(START, 1)
    return f"{before}{START}\n{table}\n{END}{rest.split(END, 1)[1]}"


def describe(result):
    """Returns the lines of a table, a row a scan, and what else was measured."""
    head = [name.format(**result) for name in _HEAD]
    sources = " ; #".join(f"scans/scan={row['scan']}" for row in result["scans"])
    lines = [
        f"<!-- from: {RESULTS}#{sources} -->",
        "| " + " | ".join(head) + " |",
        "| --- " * len(head) + "|",
    ]
    lines += ["| " + " | ".join(_cells(row)) + " |" for row in result["scans"]]
    last = []
    if result["kernels"]:
        left, right = result["kernels"]["relative_difference"]
        last.append(
            f"Both kernels of one scan ({', '.join(result['kernels']['scans'])}): volumes differ by {left:.1%} (left) and "
            f"{right:.1%} (right)."
        )
    padded = result["padded"]
    last.append(
        f"{padded['scan']} with twice its field, filled up with air: Dice with itself {padded['left_dice']:.4f} (left) and "
        f"{padded['right_dice']:.4f} (right)."
    )
    return [*lines, "", *last]


def _cells(row):
    given, moved = row["scores"][0], row["scores"][-1]
    limit = row["map_with_edges"][-1]
    share = given["airway_share"]
    return [
        row["scan"],
        str(row["slices"]),
        f"{given['left_dice']:.3f}, {given['right_dice']:.3f}",
        f"{moved['left_dice']:.3f}, {moved['right_dice']:.3f}",
        f"{moved['outside_ml']:.0f}",
        f"{moved['far_outside_ml']:.1f}",
        "-" if share is None else f"{moved['airway_marked_ml']:.1f} of {moved['airway_ml']:.1f} mL",
        f"{given['left_pieces']}, {given['right_pieces']}",
        f"{limit['left_dice']:.3f}, {limit['right_dice']:.3f}; {limit['outside_ml']:.0f}",
    ]


if __name__ == "__main__":
    flags.DEFINE_string("results", RESULTS, "what score wrote")
    flags.DEFINE_string("card", str(box.FOLDER / "MODEL_CARD.md"), "the model card")
    command.run(main)
