"""Data flows one way: a shelf imports only from shelves below its own."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parent.parent

SHELVES = (
    ("base",),
    ("ct", "models", "devices", "scoring"),
    ("datasets",),
    ("runs",),
    ("training",),
    ("report",),
    ("evaluation", "prediction"),
)
"""From the lowest; shelves that stand side by side know nothing of each other."""

COMMANDS = ("__main__", "main", "prepare", "evaluate", "predict", "export", "doctor")
"""Files at the top of the package; each imports shelves alone, and nothing imports it."""


def files():
    return sorted((ROOT / "auxseg").rglob("*.py"))


def shelf(path):
    parts = path.relative_to(ROOT / "auxseg").with_suffix("").parts
    return parts[0]


def imported_shelves(text):
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and node.module == "auxseg":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("auxseg."):
            found.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("auxseg.")}
    return found - {"__version__"}


def height(name):
    if name in COMMANDS:
        return len(SHELVES)
    heights = [i for i, names in enumerate(SHELVES) if name in names]
    assert heights, f"{name} stands on no shelf: give it a place in SHELVES"
    return heights[0]


def arrows_that_turn_back(name, text):
    """Returns the shelves and commands that `text`, a file on shelf `name`, imports and may not."""
    return {other for other in imported_shelves(text) - {name} if height(other) >= height(name)}


@pytest.mark.parametrize("path", files(), ids=lambda p: str(p.relative_to(ROOT)))
def test_no_arrow_turns_back(path):
    if shelf(path) != "__init__":
        assert not arrows_that_turn_back(shelf(path), path.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("name", "text", "seen"),
    [
        ("training", "from auxseg import evaluate, ct", {"evaluate"}),
        ("training", "def f():\n    import auxseg.report.html", {"report"}),
        (
            "training",
            "from auxseg.evaluation import score_cases\nfrom auxseg.training import steps",
            {"evaluation"},
        ),
        ("ct", "from auxseg.scoring import surfaces", {"scoring"}),
        ("main", "from auxseg.predict import main", {"predict"}),
    ],
)
def test_an_arrow_that_turns_back_is_seen(name, text, seen):
    assert arrows_that_turn_back(name, text) == seen


def test_only_checkpoints_imports_orbax_and_only_parallel_maps_over_devices():
    for path in files():
        text = path.read_text(encoding="utf-8")
        if path.name != "checkpoints.py":
            assert "import orbax" not in text, path
        if path.name != "parallel.py":
            assert "pmap(" not in text, path
