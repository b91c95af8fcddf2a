"""The console command and the public names: light, and the same as `python -m auxseg.COMMAND`."""

import configparser
import importlib
import pathlib
import re
import subprocess
import sys

import pytest

import auxseg
from auxseg import __main__ as console
from auxseg.ct import writers
from auxseg.datasets import labels
from auxseg.datasets.luna16 import layout
from auxseg.runs import networks

ROOT = pathlib.Path(__file__).parent.parent
HEAVY = ("jax", "numpy", "absl", "SimpleITK", "matplotlib")
SLOW = ("jax", "flax", "tensorflow", "orbax", "SimpleITK", "scipy", "pydicom", "matplotlib")


def run_python(code):
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, encoding="utf-8", timeout=120
    )


def test_names_and_help_import_nothing_heavy():
    code = f"""
import sys, auxseg.__main__
sys.argv = ["auxseg", "--help"]
auxseg.__main__.main()
print([name for name in {HEAVY} if name in sys.modules])
print(auxseg.create_model.__module__)
"""
    done = run_python(code)
    *usage, loaded, module = done.stdout.splitlines()
    assert loaded == "[]" and module == "auxseg.models", done.stderr
    assert all(any(line.startswith(f"  auxseg {name} ") for line in usage) for name in console.COMMANDS)


@pytest.mark.parametrize("command", console.COMMANDS)
def test_help_of_a_command_imports_nothing_slow(command):
    code = f"""
import sys, auxseg.__main__
sys.argv = ["auxseg", "{command}", "--help"]
try:
    auxseg.__main__.main()
finally:
    print([name for name in {SLOW} if name in sys.modules])
"""
    done = run_python(code)
    *usage, loaded = done.stdout.splitlines()
    assert loaded == "[]" and any(
        "--workdir" in line or "--input" in line or "--data_dir" in line for line in usage
    )


def test_what_predicts_imports_neither_networks_nor_what_one_slice_does_without():
    """A tenth of the start each: where a program is kept, no network is built."""
    others = (
        "flax",
        "orbax",
        "optax",
        "tensorflow",
        "scipy.spatial",
        "matplotlib",
        "nibabel",
        "pydicom",
        "SimpleITK",
    )
    done = run_python(
        f"import sys, auxseg.prediction.outputs; print([n for n in {others} if n in sys.modules])"
    )
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.parametrize(
    ("command", "flag", "choices"),
    [
        ("predict", "--format", writers.FORMATS),
        ("export", "--format", tuple(networks.KINDS)),
        ("prepare", "--slices", layout.SLICES),
        ("prepare", "--labels", labels.LABEL_SETS),
        ("prepare", "--nodules", layout.NODULES),
    ],
)
def test_help_names_every_choice(command, flag, choices):
    """They are written out in the commands, which import nothing slow for --help."""
    text = (ROOT / "auxseg" / f"{command}.py").read_text(encoding="utf-8")
    (line,) = re.findall(rf'DEFINE_[a-z]+\(\s*"{flag[2:]}".*?\)\n', text, re.DOTALL)
    assert ", ".join(choices) in " ".join(line.split())


def test_public_names_are_the_functions():
    for name in auxseg.__all__:
        assert getattr(auxseg, name).__name__ == name and name in dir(auxseg)
    with pytest.raises(AttributeError, match="no attribute 'segmnt'"):
        auxseg.segmnt  # noqa: B018


def test_a_command_gets_the_other_arguments(monkeypatch):
    seen = []
    monkeypatch.setattr(
        console.runpy, "run_module", lambda module, **how: seen.append((module, sys.argv, how))
    )
    monkeypatch.setattr(sys, "argv", ["auxseg", "train", "--config=configs/smoke.py"])
    assert console.main() == 0
    how = {"run_name": "__main__", "alter_sys": True}
    assert seen == [("auxseg.main", ["auxseg", "--config=configs/smoke.py"], how)]


def test_wrong_command_lists_the_names(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["auxseg", "predct"])
    assert console.main() == console.EXIT_USER_ERROR
    assert "got 'predct', expected one of predict, train" in capsys.readouterr().err


def test_a_user_s_mistake_is_one_line():
    command = [sys.executable, "-m", "auxseg", "predict", "no_such_scan", "--workdir=no_such_run"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, encoding="utf-8", timeout=120)
    assert done.returncode == 2
    assert done.stderr.startswith("auxseg.predict: error: ") and done.stderr.count("\n") == 1


def test_entry_point_is_there():
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg")
    entry = settings["options.entry_points"]["console_scripts"].strip()
    name, target = (part.strip() for part in entry.split("="))
    module, function = target.split(":")
    assert name == "auxseg" and getattr(importlib.import_module(module), function) is console.main


def test_windows_is_told_where_to_go():
    done = run_python("import sys; sys.platform = 'win32'; import auxseg")
    assert "ImportError: auxseg runs on Linux and macOS; on Windows install it in WSL" in done.stderr
    assert "fcntl" not in done.stderr


def test_the_wheel_holds_every_file_that_is_no_code():
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg")
    packed = set()
    for package, patterns in settings["options.package_data"].items():
        for pattern in patterns.split():
            packed |= set((ROOT / package.replace(".", "/")).glob(pattern))
    code = {".py", ".pyc", ".md"}
    here = {path for path in (ROOT / "auxseg").rglob("*") if path.is_file() and path.suffix not in code}
    assert here and here <= packed, f"setup.cfg packs none of {sorted(map(str, here - packed))}"
