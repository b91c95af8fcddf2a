"""Tries what goes wrong in the wild: kills of every command, mutated scans, mutated files of runs.

    python -m experiments.checks.campaign --work=FOLDER [--parts=scans,runs,kills] [--minutes=60] [--seed=0]

Each act must end in one of: the right result, one with a warning, what the changed file says, one clear line. A
traceback, a crash, a half-written file or a wrong result taken for whole is a fault. FOLDER keeps what is done, so that
the same command goes on where it stopped: the result names the commits of each part's acts, and what was a fault at
another commit is done again. Ends with 1 where there is a fault.
"""

from __future__ import annotations

import collections
import json
import math
import pathlib
import tempfile
import time
import traceback

from absl import flags

from auxseg.base import command, files
from auxseg.base.errors import InputError
from experiments import made_by
from experiments.checks import campaign_kills, campaign_runs, campaign_scans, forked

RESULTS = made_by.ROOT / "experiments/results/campaign.json"
PARTS = {"scans": campaign_scans, "runs": campaign_runs, "kills": campaign_kills}
WORDS = {
    "scans": "mutated scans", "runs": "mutated files of runs, bundles and predictions", "kills": "kills and signals",
}  # fmt: skip


def run_part(part, numbers, seed, work, record, deadline=math.inf):
    """Does acts of a part.

    Args:
        part: of `PARTS`.
        numbers: of the acts.
        seed: of the campaign.
        work: pathlib.Path, which keeps what is prepared once.
        record: (number, what was done, outcome, more) is called as each is done.
        deadline: by `time.monotonic`, after which no other is started.
    """
    module, original = PARTS[part], work / f"{part}-original"
    if hasattr(module, "prepare") and not (original / "ready").exists():
        files.write_text(original / ".started", "")
        status, said = forked.call(lambda: module.prepare(original))
        if status:
            raise InputError(f"{part}: preparing it ended with {status}: {said[-300:]}; empty {original}")
        files.write_text(original / "ready", "")
    if part == "kills":  # each forks by itself
        for number in numbers:
            if time.monotonic() > deadline:
                break
            record(number, *_guarded(lambda number=number: module.act(number, seed, original)))
        return

    def act(number):
        with tempfile.TemporaryDirectory(dir=work) as scratch:
            more = () if part == "scans" else (original,)
            return _guarded(lambda: module.act(number, seed, pathlib.Path(scratch), *more))

    def keep(number, answer, how):
        record(number, *(answer or ("not known", "fault: crash", how)))

    forked.run_all(numbers, act, keep, deadline)


def _guarded(act):
    """Returns what an act returns, or the traceback that it ends with as a fault."""
    try:
        return act()
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        name = pathlib.Path(place.filename).name
        return (
            "not known",
            "fault: traceback",
            f"{type(error).__name__}: {error} ({name}, {place.lineno})"[:500],
        )


def summarise(rows, seed):
    """Returns what is written: JSON types.

    Args:
        rows: dicts of part, number, what, outcome, more, seed, commit.
        seed: of the campaign.
    """
    parts = {}
    for part in PARTS:
        done = [row for row in rows if row["part"] == part]
        outcomes = collections.Counter(row["outcome"] for row in done)
        kinds = collections.Counter(row["what"].split(":")[0] for row in done)
        parts[part] = {
            "what": WORDS[part], "planned": PARTS[part].COUNT, "done": len(done), "outcomes": dict(sorted(outcomes.items())),
            "kinds": dict(sorted(kinds.items())), "commits": sorted({row["commit"] for row in done}),
        }  # fmt: skip
    faults = [row for row in rows if row["outcome"].startswith("fault")]
    origin = made_by.made_by(
        "python -m experiments.checks.campaign --work=FOLDER", data="made by the campaign", seeds=[seed]
    )
    return {"made_by": origin, "parts": parts, "faults": faults}


def format_table(report):
    """Returns the page: a table of outcomes by part."""
    names = sorted({name for part in report["parts"].values() for name in part["outcomes"]})
    lines = [
        "# Faults met in the wild",
        "",
        "Kills, mutated scans and mutated files, drawn by a seed. Each must end in the right result, in one with a warning,",
        "in what the changed file says, or in one clear line. All of it is in [campaign.json](campaign.json).",
        "",
        "<!-- from: campaign.json -->",
        f"| part | done | {' | '.join(names)} |",
        "| --- | --- |" + " --- |" * len(names),
    ]
    for part in report["parts"].values():
        cells = [str(part["outcomes"].get(name, 0)) for name in names]
        lines.append(f"| {part['what']} | {part['done']} | {' | '.join(cells)} |")
    lines += ["", "```bash", report["made_by"]["command"], "```", ""]
    return "\n".join(lines)


def main(argv):
    """Runs the command; returns the exit status."""
    del argv
    given = flags.FLAGS
    if not given.work:
        raise InputError("--work: not given, expected a folder that keeps what is done")
    work, out = pathlib.Path(given.work).absolute(), pathlib.Path(given.out)
    deadline = time.monotonic() + 60 * given.minutes
    work.mkdir(parents=True, exist_ok=True)
    log = work / "acts.jsonl"
    commit = made_by.made_by("", data="", seeds=())["commit"]
    rows = [row for row in files.read_rows(log) if row["seed"] == given.seed]
    rows = [row for row in rows if row["commit"] == commit or not row["outcome"].startswith("fault")]
    for part in given.parts:
        done = {row["number"] for row in rows if row["part"] == part}
        left = [number for number in range(PARTS[part].COUNT) if number not in done]

        def record(number, what, outcome, more, part=part):
            row = {"part": part, "number": number, "what": what, "outcome": outcome, "more": more}
            row |= {"seed": given.seed, "commit": commit}
            files.append_row(log, row)
            rows.append(row)
            if outcome.startswith("fault"):
                print(json.dumps(row), flush=True)

        run_part(part, left, given.seed, work, record, deadline)
    report = summarise(rows, given.seed)
    files.write_json(out, report)
    files.write_text(out.with_suffix(".md"), format_table(report))
    counted = ", ".join(
        f"{part['done']} of {part['planned']} {part['what']}" for part in report["parts"].values()
    )
    print(f"{counted}: {len(report['faults'])} faults; {out}")
    return 1 if report["faults"] else 0


if __name__ == "__main__":
    flags.DEFINE_string("work", None, "folder that keeps what is done")
    flags.DEFINE_list("parts", list(PARTS), f"of {', '.join(PARTS)}")
    flags.DEFINE_float("minutes", 60.0, "after which no other act is started")
    flags.DEFINE_integer("seed", 0, "of all that is drawn")
    flags.DEFINE_string("out", str(RESULTS), "JSON file to write; a page goes beside it")
    command.run(main)
