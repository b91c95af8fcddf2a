"""Data flows one way: a file imports only from rooms before its own."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parent.parent
ROOMS = (
    ("allocator", "errors", "npz_files", "structs", "progress"),
    ("ct", "scan_checks"),
    ("dicom", "inflate", "scans"),
    ("datasets",),
    ("augment", "insertion"),
    ("partners",),
    ("parallel",),
    ("input_pipeline",),
    ("models",),
    ("losses",),
    ("metrics", "scores", "statistics"),
    ("optim", "state"),
    ("steps",),
    ("runs",),
    ("postprocess",),
    ("decision",),
    ("checkpoints",),
    ("bundle",),
    ("explain", "report"),
    ("judge",),
    ("evaluate",),
    ("train",),
    ("native", "onnx_graph", "outputs"),
    ("export", "predict"),
    ("cli",),
    ("main", "prepare", "doctor"),
)
COMMANDS = {"main", "prepare", "doctor", "evaluate", "predict", "export"}
"""Files that are also commands; only these import `cli`."""


def files():
    return sorted((ROOT / "auxseg").rglob("*.py"))


def room(path):
    parts = path.relative_to(ROOT / "auxseg").with_suffix("").parts
    return parts[0]


def imported_rooms(path):
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "auxseg":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("auxseg."):
            found.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("auxseg.")}
    return found - {"__version__"}


def rank(name):
    ranks = [i for i, names in enumerate(ROOMS) if name in names]
    assert ranks, f"{name} has no room: give it one in ROOMS"
    return ranks[0]


@pytest.mark.parametrize("path", files(), ids=lambda p: str(p.relative_to(ROOT)))
def test_no_arrow_turns_back(path):
    name = room(path)
    if name == "__init__":
        return
    for other in imported_rooms(path) - {name}:
        if other == "cli":
            assert name in COMMANDS, f"{path.name} is no command and imports cli"
            continue
        assert rank(other) <= rank(name), f"{path.name} ({name}) imports {other}, which comes after it"


def test_an_arrow_that_turns_back_is_seen(tmp_path):
    bad = tmp_path / "bad.py"
    bad.write_text("from auxseg import train\nfrom auxseg.main import main\nimport auxseg.evaluate\n")
    assert imported_rooms(bad) == {"train", "main", "evaluate"}
    assert all(rank(name) > rank("losses") for name in imported_rooms(bad))


def test_only_checkpoints_imports_orbax_and_only_parallel_maps_over_devices():
    for path in files():
        text = path.read_text(encoding="utf-8")
        if room(path) != "checkpoints":
            assert "import orbax" not in text, path
        if room(path) != "parallel":
            assert "pmap(" not in text, path
