"""Draws a benchmark's result: seconds an image of each implementation, a panel for each row.

    python -m experiments.speed.chart experiments/results/benchmark_cpu.json

Writes a PNG beside the result.
"""

import json
import pathlib

import matplotlib
from absl import flags
from matplotlib import pyplot

from auxseg.base import command
from auxseg.base.errors import InputError

matplotlib.use("agg")
_KINDS = {"train": "training step", "infer": "inference"}
_OURS, _PEER = "#1f5fa8", "#b9bfc7"


def main(argv):
    """Draws the result file that the flags name, and names the picture."""
    del argv
    if not flags.FLAGS.input:
        raise InputError("got no path, expected a result: python -m experiments.speed.chart FILE.json")
    print(draw(pathlib.Path(flags.FLAGS.input)))


def draw(path):
    """Draws the result file `path`; returns the picture's path."""
    report = json.loads(path.read_text(encoding="utf-8"))
    rows = [row for row in report["rows"] if row["kind"] in _KINDS and not row["void"]]
    figure, panels = pyplot.subplots(1, len(rows), figsize=(3.6 * len(rows), 2.8), squeeze=False)
    for row, panel in zip(rows, panels[0], strict=True):
        _draw_row(panel, row)
    machine = report["machine"]
    where = f"{machine['processor']}, {machine['cores']} cores"
    figure.suptitle(f"{report['dtype']}, {report['size']}x{report['size']}; {where}", fontsize=9)
    figure.tight_layout()
    target = path.with_suffix(".png")
    figure.savefig(target, dpi=110, metadata={"Software": None})
    pyplot.close(figure)
    return target


def _draw_row(panel, row):
    """Draws one row: the fastest on top, what was not measured left out."""
    figures = {name: figure for name, figure in row["figures"].items() if "median_s" in figure}
    names = sorted(figures, key=lambda name: -figures[name]["median_s"])
    seconds = [figures[name]["median_s"] for name in names]
    bars = panel.barh(names, seconds, color=[_OURS if name == "auxseg" else _PEER for name in names])
    panel.bar_label(bars, [f"{value:.3g}" for value in seconds], padding=2, fontsize=7)
    panel.set_title(f"{_KINDS[row['kind']]}, batch {row['batch']}", fontsize=9)
    panel.set_xlabel("seconds an image (median)", fontsize=8)
    panel.set_xlim(0, 1.25 * max(seconds, default=1.0))
    panel.tick_params(labelsize=7)
    panel.spines[["top", "right"]].set_visible(False)


if __name__ == "__main__":
    flags.DEFINE_string("input", None, "result of the benchmark; may be given without --input=")
    command.run(main, positional=("input",))
