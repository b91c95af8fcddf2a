"""Changes the code of scoring, splitting and choosing in one place at a time: does a test notice?

    python -m experiments.checks.mutants [--count=200] [--seed=0] [--minutes=20] [--out=FILE.json]
    python -m experiments.checks.mutants --again=FILE.json

A mutant is a file with one comparison, operator, number or condition exchanged. Each runs the tests of its file
in a process of its own; one that they all pass survives, and is a guard without a test, or no change at all. Which
places are drawn, and in which order, is a function of the seed. Ends with 1 where a survivor is not in `EXPLAINED`.
`--again` runs the survivors of a former result alone, after tests were added for them.
"""

from __future__ import annotations

import ast
import contextlib
import importlib.machinery
import importlib.util
import os
import pathlib
import random
import resource
import signal
import sys
import time

from absl import flags

from auxseg.base import command, files
from experiments import made_by

ROOT = pathlib.Path(__file__).parents[2]
RESULTS = ROOT / "experiments/results/mutants.json"
TESTS = {
    "auxseg/scoring/matching.py": ("tests/scoring/test_matching.py", "tests/scoring/test_case_scores.py"),
    "auxseg/scoring/case_scores.py": (
        "tests/scoring/test_case_scores.py",
        "tests/scoring/test_unknown_pixels.py",
    ),
    "auxseg/scoring/surfaces.py": ("tests/scoring/test_case_scores.py",),
    "auxseg/scoring/calibration.py": (
        "tests/scoring/test_statistics.py",
        "tests/scoring/test_case_scores.py",
    ),
    "auxseg/scoring/components.py": ("tests/scoring/test_components.py",),
    "auxseg/scoring/operating_point.py": ("tests/scoring/test_operating_point.py",),
    "auxseg/scoring/statistics.py": ("tests/scoring/test_statistics.py",),
    "auxseg/scoring/froc.py": ("tests/scoring/test_froc.py",),
    "auxseg/datasets/splits.py": ("tests/datasets/test_splits.py",),
    "auxseg/datasets/select.py": ("tests/datasets/test_select.py",),
    "auxseg/runs/splits.py": ("tests/runs/test_trust.py",),
    "auxseg/training/optim.py": ("tests/training/test_optim.py",),
}
"""Files that are changed, and the tests that are to notice."""
SECONDS = 60
"""Of a processor for a mutant's tests; one that takes longer, such as an endless loop, is noticed."""
EXPLAINED = {
    "auxseg/scoring/operating_point.py, GtE -> Gt: "
    "kept = components.equivalent_diameter(overlaps.given_px * scale) >= least": "no whole number of pixels has a "
    "diameter of exactly 3, 4, 5 or 6",
    "auxseg/scoring/matching.py, True -> False: for axis, start in zip((rows, columns), origin, strict=True)": "both are two",
    "auxseg/scoring/matching.py, 0 -> 1: "
    "return tuple(slice(span[0], span[-1] + 1) if len(span) else slice(0, 0) for span in spans)": "from 1 to 0 is as empty "
    "as from 0 to 0; from 0 to 1 is noticed",
    "auxseg/scoring/components.py, 1 -> 2: "
    "numbers * num_values + mask.ravel()[places], minlength=(int(pieces.max(initial=0)) + 1) * num_values": "a row more, "
    "which no piece reads",
    "auxseg/scoring/components.py, 1 -> 2: return np.zeros(1, bool)": "where there is no piece only True ones are looked for",
    "auxseg/scoring/case_scores.py, 1 -> 2: slice(max(0, span.start - 1), span.stop + 1)": "a wider margin than is needed",
    "auxseg/scoring/surfaces.py, True -> False: for tolerance, value in zip(TOLERANCES, surface_dice, strict=True):": "the "
    "one is made of the other",
    "auxseg/scoring/surfaces.py, False -> True: "
    "trees = [spatial.cKDTree(each, balanced_tree=False, compact_nodes=False) for each in points]": "only costs time: the "
    "tree is built otherwise and finds the same",
    "auxseg/scoring/statistics.py, 2000 -> 2001: NUM_RESAMPLES = 2000": "as good a number of resamples",
    "auxseg/scoring/operating_point.py, True -> False: "
    "for choice, f, n, d in zip(choices, found, false / counts.slices, dice / with_nodule, strict=True)": "all are counts of "
    "the choices",
    "auxseg/scoring/operating_point.py, True -> False: "
    "for row, choice in zip(counted, choices, strict=True):": "both are made with one length, a few lines before",
    "auxseg/scoring/statistics.py, 0 -> 1: def paired_test(first, second, patients, *, seed=0):": "as good a seed",
    "auxseg/datasets/splits.py, 1 -> 2: def make_splits(table, *, split, fold=0, seed=1, num_folds=5):": "as good a seed",
    "auxseg/scoring/components.py, Eq -> NotEq: if not (mask == value).any():": "only saves time: where a slice has none "
    "of the lung nothing is filled",
    "auxseg/scoring/components.py, USub left out: "
    "for pair in np.unique(pairs[np.flatnonzero(np.diff(pairs, prepend=-1))]).tolist():": "no pair is 1, nor -1",
}
"""Survivors that change nothing that a test could see: 'file, change: line' -> why."""
_COMPARISONS = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
}  # fmt: skip
_OPERATORS = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd, ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult,
}  # fmt: skip


def list_sites(tree):
    """Returns the nodes of a module that can be changed, in the order of the text; none of annotations or `raise`."""
    found = []

    def visit(node):
        if isinstance(node, (ast.Raise, ast.Assert, ast.JoinedStr)):
            return  # words for people: no test is to hold each of them
        if _change(node) is not None:
            found.append(node)
        for name, value in ast.iter_fields(node):
            if name in ("annotation", "returns", "decorator_list"):
                continue
            for each in value if isinstance(value, list) else [value]:
                if isinstance(each, ast.AST):
                    visit(each)

    visit(tree)
    return found


def _change(node):
    """Returns (function that changes the node in place, what it does in words), or None."""
    if isinstance(node, ast.Compare) and type(node.ops[0]) in _COMPARISONS:
        new = _COMPARISONS[type(node.ops[0])]()
        return (lambda: node.ops.__setitem__(0, new)), f"{_name(node.ops[0])} -> {_name(new)}"
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        new = _OPERATORS[type(node.op)]()
        return (lambda: setattr(node, "op", new)), f"{_name(node.op)} -> {_name(new)}"
    if isinstance(node, ast.BoolOp):
        new = ast.Or() if isinstance(node.op, ast.And) else ast.And()
        return (lambda: setattr(node, "op", new)), f"{_name(node.op)} -> {_name(new)}"
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.Not, ast.Invert, ast.USub)):
        return (lambda: setattr(node, "op", ast.UAdd())), f"{_name(node.op)} left out"
    if isinstance(node, ast.Constant) and type(node.value) in (int, float, bool):
        new = (not node.value) if isinstance(node.value, bool) else node.value + 1
        return (lambda: setattr(node, "value", new)), f"{node.value} -> {new}"
    if isinstance(node, (ast.If, ast.IfExp)):
        new = ast.UnaryOp(ast.Not(), node.test)
        return (lambda: setattr(node, "test", new)), "condition turned round"
    return None


def _name(node):
    return type(node).__name__


def mutate(text, place):
    """Returns (syntax tree with the site number `place` changed, 'what was changed: the line')."""
    tree = ast.parse(text)
    node = list_sites(tree)[place]
    apply, what = _change(node)
    # `not x` and `~x` without their operator: +x is no boolean, so the operand itself takes the place.
    if what.endswith("left out"):
        _replace(tree, node, node.operand)
    else:
        apply()
    return ast.fix_missing_locations(tree), f"{what}: {text.splitlines()[node.lineno - 1].strip()}"


def _replace(tree, old, new):
    for parent in ast.walk(tree):
        for name, value in ast.iter_fields(parent):
            if value is old:
                setattr(parent, name, new)
            elif isinstance(value, list) and old in value:
                value[value.index(old)] = new


def draw(seed):
    """Returns (file, place) of all sites in a shuffled order."""
    sites = [
        (path, place)
        for path in TESTS
        for place in range(len(list_sites(ast.parse((ROOT / path).read_text(encoding="utf-8")))))
    ]
    random.Random(seed).shuffle(sites)
    return sites


class _Exchange(importlib.machinery.SourceFileLoader):
    """Finds one module, and gives another text for it."""

    def __init__(self, name, text, path):
        super().__init__(name, str(path))
        self._text = text

    def find_spec(self, name, path=None, target=None):
        if name != self.name:
            return None
        return importlib.util.spec_from_file_location(name, self.path, loader=self)

    def get_data(self, path):
        return self._text.encode("utf-8")

    def path_stats(self, path):
        raise OSError("neither reads nor writes compiled files")


def run_mutant(path, place):
    """Returns ('file, change: line', 'killed', 'slow' or 'survived'), from a process of its own."""
    tree, what = mutate((ROOT / path).read_text(encoding="utf-8"), place)
    child = os.fork()
    if child == 0:
        os._exit(_test(path, tree))
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        outcome = "slow" if os.WTERMSIG(status) == signal.SIGXCPU else "killed"
    else:
        outcome = "survived" if os.WEXITSTATUS(status) == 0 else "killed"
    return f"{path}, {what}", outcome


def _test(path, tree):
    """Returns the exit status of a changed file's tests; 0 where all pass."""
    import pytest

    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS + 5))
    name = path.removesuffix(".py").replace("/", ".")
    sys.meta_path.insert(0, _Exchange(name, ast.unparse(tree), ROOT / path))
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    with contextlib.suppress(BaseException):
        return int(pytest.main(["-q", "-x", "-p", "no:cacheprovider", *TESTS[path]]))
    return 1


def main(argv):
    """Runs the command; returns the exit status."""
    del argv
    given = flags.FLAGS
    os.chdir(ROOT)
    import jax  # noqa: F401  what the tests import, once for all mutants
    import numpy  # noqa: F401
    import pytest  # noqa: F401
    import scipy.ndimage  # noqa: F401

    if given.again:
        report = run_again(files.read_object(given.again))
        _write(given.out, report)
        print(f"{report['survived']} survive of {report['again']['survivors_then']}; {given.out}")
        return 1 if report["unexplained"] else 0
    sites, start, outcomes = draw(given.seed), time.monotonic(), []
    for path, place in sites[: given.count]:
        if time.monotonic() - start > 60 * given.minutes:
            break
        what, outcome = run_mutant(path, place)
        outcomes.append((what, outcome))
        if outcome == "survived":
            print(f"survived: {what}", flush=True)
    report = summarise(outcomes, len(sites), given.seed)
    _write(given.out, report)
    print(f"{report['survived']} of {report['mutants']} mutants survived; {given.out}")
    return 1 if report["unexplained"] else 0


def _write(out, report):
    files.write_json(out, report)
    files.write_text(pathlib.Path(out).with_suffix(".md"), format_page(report))


def format_page(report):
    """Returns the page: mutants by file, and why a survivor is none."""
    lines = [
        "# Guards that a test holds",
        "",
        "The code of scoring, splitting and choosing is changed in one place at a time, drawn by a seed. The tests of the",
        "file should fail. All of it is in [mutants.json](mutants.json).",
        "",
        "<!-- from: mutants.json -->",
        "| file | mutants | survived |",
        "| --- | --- | --- |",
        *(
            f"| {path} | {about['mutants']} | {about['survived']} |"
            for path, about in report["by_file"].items()
        ),
        f"| all | {report['mutants']} | {report['survived']} |",
    ]
    if again := report.get("again"):
        lines += [
            "",
            f"All were drawn and run at commit {again['commit_then']}, where {again['survivors_then']} survived. Those alone were run again",
            f"at commit {report['made_by']['commit']}. Neither killed nor survivors, as their line is no more: {len(again['rewritten'])}.",
        ]
    if report["explained"]:
        lines += ["", "Some survivors change nothing that a test could see:", ""]
        lines += [f"* {why}: `{what}`" for what, why in report["explained"].items()]
    if report["unexplained"]:
        lines += ["", "These have no test yet:", "", *(f"* `{what}`" for what in report["unexplained"])]
    return "\n".join([*lines, "", "```bash", report["made_by"]["command"], "```", ""])


def run_again(former):
    """Returns a former result, JSON types, in which only those count as survivors that survive today's tests.

    One whose line was rewritten since is neither killed nor a survivor.
    """
    then = [*former["unexplained"], *former["explained"]]
    survivors, there = [], set()
    for path in TESTS:
        text = (ROOT / path).read_text(encoding="utf-8")
        for place in range(len(list_sites(ast.parse(text)))):
            what = f"{path}, {mutate(text, place)[1]}"
            if what not in then:
                continue
            there.add(what)
            if what not in survivors and run_mutant(path, place)[1] == "survived":
                survivors.append(what)
    gone = [what for what in then if what not in there]
    seed = former["seed"]
    origin = made_by.made_by(
        f"python -m experiments.checks.mutants --seed={seed} --again=FILE",
        data="the code itself",
        seeds=[seed],
    )
    return former | {
        "made_by": origin,
        "again": {
            "commit_then": former["made_by"]["commit"],
            "survivors_then": former["survived"],
            "rewritten": gone,
        },
        "killed": former["mutants"] - len(survivors) - len(gone),
        **_count_survivors(survivors),
        "by_file": {
            path: about | {"survived": sum(what.startswith(path) for what in survivors)}
            for path, about in former["by_file"].items()
        },
    }


def _count_survivors(survivors):
    return {
        "survived": len(survivors),
        "unexplained": [what for what in survivors if what not in EXPLAINED],
        "explained": {what: EXPLAINED[what] for what in survivors if what in EXPLAINED},
    }


def summarise(outcomes, num_sites, seed):
    """Returns what is written: JSON types.

    Args:
        outcomes: ('file, change: line', 'killed', 'slow' or 'survived') of each mutant.
        num_sites: places in all files.
        seed: of the draw.
    """
    survivors = [what for what, outcome in outcomes if outcome == "survived"]
    return {
        "made_by": made_by.made_by(
            f"python -m experiments.checks.mutants --seed={seed}", data="the code itself", seeds=[seed]
        ),
        "seed": seed,
        "places": num_sites,
        "mutants": len(outcomes),
        "killed": sum(outcome != "survived" for _, outcome in outcomes),
        **_count_survivors(survivors),
        "by_file": {
            path: {
                "mutants": sum(what.startswith(path) for what, _ in outcomes),
                "survived": sum(what.startswith(path) for what in survivors),
            }
            for path in TESTS
        },
    }


if __name__ == "__main__":
    flags.DEFINE_integer("count", 200, "mutants to run, at most")
    flags.DEFINE_integer("seed", 0, "of the order in which they are drawn")
    flags.DEFINE_float("minutes", 20.0, "after which no other is started")
    flags.DEFINE_string("again", None, "a former result, whose survivors alone are run")
    flags.DEFINE_string("out", str(RESULTS), "JSON file to write")
    command.run(main)
