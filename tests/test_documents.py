"""Documents say what is so: their numbers, links, files, commands and code."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys

import documents
import pytest
import test_imports
from documents import RESULTS, ROOT, Table

DOCUMENTS = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in documents.documents()}
README = DOCUMENTS["README.md"]
WITHOUT_SOURCES = ("experiments/results/paper.md",)
"""Its tables hold the paper's printed figures, which no file here has."""
OF_BEFORE = (
    "benchmark_cpu.json",
    "cleanup_luna16_npz.json",
    "cleanup_phantom.json",
    "complexity.json",
    "inserted_beside_real.json",
    "label5_areas.json",
    "layers_cpu.json",
    "luna16_npz.json",
    "nodules.json",
    "nodules_flip.json",
    "phantom.json",
    "phantom_again.json",
    "phantom_no_aux.json",
    "phantom_no_se.json",
    "phantom_realism.json",
    "predict_cost.json",
    "prepare_cost.json",
    "scaling.json",
    "second_look.json",
    "table2_luna16_npz.json",
)
"""Results from before files said what made them; their pages name the command."""


def each_document(function):
    return pytest.mark.parametrize("name", DOCUMENTS)(function)


# Numbers


@each_document
def test_numbers_of_tables_stand_in_the_files_named_above_them(name):
    found = [table for table in documents.tables(DOCUMENTS[name]) if table.sources]
    wrong = [f"line {table.line}, {each}" for table in found for each in documents.unknown_numbers(table)]
    assert not wrong, f"{name}: not in {[table.sources for table in found]}: {wrong}"


@each_document
def test_tables_of_measured_numbers_name_their_files(name):
    for table in documents.tables(DOCUMENTS[name]):
        cells = [documents.plain(cell) for row in table.rows for cell in row[1:]]
        if any(re.search(r"(?<![\w.])\d\.\d{2}", cell) for cell in cells):
            assert table.sources or name in WITHOUT_SOURCES, f"{name}, line {table.line}: from which file?"


@pytest.fixture
def results(tmp_path):
    a = {"dice": 0.81249, "share": {"estimate": 0.75, "num_cases": 12}, "px": 6_577_217}
    text = json.dumps({"a": a, "list": [{"name": "b", "dice": 0.5}], "neither": True})
    (tmp_path / "x.json").write_text(text, encoding="utf-8")
    (tmp_path / "x.md").write_text("| one | 1.50 |\n| two | 2.50 |\n", encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize(
    ("sources", "cells", "wrong"),
    [
        ("x.json", ("0.81, 0.812, 6,577,217",), 0),
        ("x.json", ("0.82",), 1),
        ("x.json#a", ("0.5",), 1),
        ("x.json#list/name=b", ("0.5",), 0),
        ("x.json#a", ("9 of 12",), 0),
        ("x.json#a", ("8 of 12",), 1),
        ("x.md#one", ("1.5",), 0),
        ("x.md#one", ("2.5",), 1),
        ("x.md#one & #two", ("2.5",), 0),
        ("x.json#a", ("`7` and [seven](7.md)",), 0),
    ],
)
def test_a_number_that_is_not_in_its_file_is_seen(results, sources, cells, wrong):
    table = Table(1, sources, (("name 7", *cells),))
    assert len(documents.unknown_numbers(table, results)) == wrong


def test_sources_are_one_or_one_a_row(results):
    rows = (("a", "0.812"), ("b", "0.5"))
    assert not documents.unknown_numbers(Table(1, "x.json#a ; #list/name=b", rows), results)
    assert documents.unknown_numbers(Table(1, "x.json#list/name=b ; #a", rows), results)
    assert documents.unknown_numbers(Table(1, "x.json ; #a ; #a", rows), results)


def test_tables_are_found_with_their_comments():
    text = "<!-- from: x.json -->\n| a | b |\n| --- | --- |\n| c | 1 |\n\ntext\n\n| d |\n| --- |\n| 2 |\n```\n| no |\n```\n"
    first, second = documents.tables(text)
    assert first == Table(2, "x.json", (("c", "1"),)) and second == Table(8, None, (("2",),))


# Results


def test_new_results_say_what_made_them():
    for path in RESULTS.glob("*.json"):
        content = json.loads(path.read_text(encoding="utf-8"))
        origin = content.get("made_by") if isinstance(content, dict) else None
        if path.name in OF_BEFORE:
            assert origin is None, f"{path.name} says what made it now: take it from OF_BEFORE"
            continue
        assert origin, f"{path.name}: got no made_by, expected experiments.made_by's"
        assert set(origin) >= {"command", "commit", "data", "seeds"} and origin["command"] and origin["data"]
        assert re.fullmatch(r"[0-9a-f]{7,40}", origin["commit"]), f"{path.name}: made by {origin['commit']!r}"


def test_every_result_is_named_in_a_document():
    text = "\n".join(DOCUMENTS.values())
    assert not [path.name for path in RESULTS.iterdir() if path.name not in text]


# Links and files


@each_document
def test_links_lead_somewhere(name):
    folder = (ROOT / name).parent
    for target in documents.links(DOCUMENTS[name]):
        if target.startswith(("http:", "https:")):
            continue
        file, _, anchor = target.partition("#")
        path = folder / file if file else ROOT / name
        assert path.exists(), f"{name}: {target}"
        if anchor:
            assert anchor in documents.anchors(path.read_text(encoding="utf-8")), f"{name}: {target}"


@each_document
def test_named_files_are_there(name):
    assert not [path for path in documents.named_files(DOCUMENTS[name]) if not (ROOT / path).exists()]


# Commands


def documented_commands():
    """Returns {module: {flag}} of all commands in documents and in the docstrings of settings and programs."""
    programs = [*(ROOT / "configs").glob("*.py"), *(ROOT / "experiments").glob("*/*.py")]
    programs += (ROOT / "auxseg").glob("*.py")
    docstrings = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) for path in programs)
    texts = [*DOCUMENTS.values(), *filter(None, docstrings)]
    found = {}
    for words in (words for text in texts for words in documents.commands(text)):
        module = words[0].removesuffix(".py").replace("/", ".")
        flags = {word[2:].partition("=")[0] for word in words[1:] if word.startswith("--")}
        found.setdefault({"auxseg.train": "auxseg.main"}.get(module, module), set()).update(flags)
    return found


HELP = """
import contextlib, os, runpy, signal, sys
import jax, flax, optax, orbax.checkpoint, numpy, scipy.stats, SimpleITK, ml_collections, absl.flags

def write_help(module, path):
    sys.argv = [module, "--helpfull" if module.startswith("auxseg.") else "--help"]
    with open(path, "w") as file, contextlib.redirect_stdout(file):
        try:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        except SystemExit:
            pass

folder, *modules = sys.argv[1:]
for module in modules:  # a process each: flags are defined once in one
    child = os.fork()
    if not child:
        signal.alarm(60)  # a program without --help would do its work
        write_help(module, f"{folder}/{module}")
        os._exit(0)
    os.waitpid(child, 0)
"""


@pytest.fixture(scope="module")
def help_texts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("help")
    here = [name for name in documented_commands() if (ROOT / f"{name.replace('.', '/')}.py").is_file()]
    subprocess.run([sys.executable, "-W", "ignore", "-c", HELP, str(folder), *here], cwd=ROOT, check=True)
    return {name: (folder / name).read_text(encoding="utf-8") for name in here}


def test_commands_of_the_documents_have_the_flags_that_these_use(help_texts):
    removed = {"experiments.second_look", "experiments.together_cost", "experiments.nodules.study"}
    commands = documented_commands()
    assert set(commands) - set(help_texts) == removed, "a document names a command that is not there"
    assert len(help_texts) > 20
    for module, flags in commands.items():
        if module in removed:
            continue
        text = help_texts[module]
        general = {"help", "helpfull"}
        missing = [
            flag
            for flag in flags - general
            if not flag.startswith("config") and not re.search(rf"--(\[no\])?{flag}\b", text)
        ]
        assert not missing, f"{module} --help says nothing of {missing}"


def test_settings_of_the_documents_are_settings():
    from configs import base, recommended

    known = base.get_config()
    with known.unlocked():
        known.data.sources = recommended.get_config().data.sources
    text = "\n".join(DOCUMENTS.values())
    names = set(re.findall(r"--config\.([a-z_0-9.]+\w)", text))
    groups = "data|model|loss|optim|train|insert|augment|eval"
    names |= set(re.findall(rf"`((?:{groups})\.\w+)[=`]", text)) - {"model.stablehlo", "model.onnx"}
    for name in names:
        group = known
        for part in name.split("."):
            assert part in group, f"a document names the setting {name}, which is none"
            group = group[part]


def test_config_files_of_the_documents_are_there():
    text = "\n".join(DOCUMENTS.values())
    for name in set(re.findall(r"--config=([\w./]+)", text)):
        path = ROOT / name if "/" in name else ROOT / "configs" / f"{name}.py"
        assert path.is_file(), name


# Code


def code_blocks(name, mark):
    """Returns the Python after each comment `<!-- executed: MARK -->` of a document."""
    pattern = rf"<!-- executed: {mark} -->\n```python\n(.*?)^```$"
    return re.findall(pattern, DOCUMENTS[name], flags=re.S | re.M)


def apply_patch(folder, text):
    """Applies a `diff` block: hunks of context, removed and added lines, each of which fits at one place."""
    for part in re.split(r"^--- ", text, flags=re.M)[1:]:
        name, _, hunks = part.partition("\n")
        path = folder / name
        content = path.read_text(encoding="utf-8") if path.exists() else ""
        for hunk in re.split(r"^@@\n", hunks, flags=re.M)[1:]:
            lines = hunk.rstrip("\n").split("\n")
            old = "".join(f"{line[1:]}\n" for line in lines if line[:1] != "+")
            new = "".join(f"{line[1:]}\n" for line in lines if line[:1] != "-")
            assert not old or content.count(old) == 1, f"{name}: the document's patch no longer fits:\n{old}"
            content = content.replace(old, new) if old else new
        path.write_text(content, encoding="utf-8")


def run_python(code, folder, paths):
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(map(str, paths)))
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, encoding="utf-8"
    )
    assert done.returncode == 0, done.stderr


def test_how_to_add_a_loss_a_network_a_score_and_a_source(tmp_path):
    copy = tmp_path / "copy"
    for name in ("auxseg", "configs"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", "weights"))
    text = DOCUMENTS["auxseg/README.md"]
    patches = re.findall(r"<!-- patch -->\n```diff\n(.*?)^```$", text, flags=re.S | re.M)
    checks = code_blocks("auxseg/README.md", "after the patches")
    assert len(patches) == len(checks) == 4
    for patch in patches:
        apply_patch(copy, patch)
    own = code_blocks("auxseg/README.md", "create_model")
    assert len(own) == 1
    run_python("\n".join([*own, *checks]), tmp_path, [copy])


def test_readme_s_python_segments_a_scan(real_data, tmp_path):
    (block,) = code_blocks("README.md", "segment")
    run_python(block.replace("SCAN", str(real_data / "cip" / "ct-64.nrrd")), tmp_path, [ROOT])


def test_a_training_step_by_hand_lowers_the_loss(tmp_path):
    (block,) = code_blocks("auxseg/README.md", "train_step")
    rest = """
import jax.numpy as jnp
masks = jnp.zeros((2, 32, 32), jnp.uint8).at[:, 8:24, 4:14].set(2)
images = jnp.where(masks > 0, 0.1, 0.9)[..., None]
variables = model.init(jax.random.key(0), images)
opt_state, values = optimizer.init(variables["params"]), []
for _ in range(3):
    variables, opt_state, value = train_step(variables, opt_state, images, masks)
    values.append(float(value))
assert values[0] > values[1] > values[2], values
"""
    run_python(block + rest, tmp_path, [ROOT])


def test_a_patch_that_does_not_fit_is_seen(tmp_path):
    (tmp_path / "a.py").write_text("one\ntwo\n", encoding="utf-8")
    apply_patch(tmp_path, "--- a.py\n@@\n one\n+more\n")
    assert (tmp_path / "a.py").read_text(encoding="utf-8") == "one\nmore\ntwo\n"
    with pytest.raises(AssertionError, match="no longer fits"):
        apply_patch(tmp_path, "--- a.py\n@@\n three\n+more\n")


# Words


@each_document
def test_sentences_are_short(name):
    long = [each for each in documents.sentences(DOCUMENTS[name]) if len(each.split()) >= 32]
    assert not long, long


def test_a_long_sentence_is_seen():
    first, second, third = documents.sentences("# Head\n\n**A b.** C `d e` f\ng: h.\n\n* i\n\n| j | k |\n")[
        :3
    ]
    assert [first, second, third] == ["**A b.", "C f g:", "h."]


def test_the_readme_is_short():
    assert len(README.split()) <= 1000


def test_the_map_is_the_order_of_the_shelves():
    for name in ("README.md", "auxseg/README.md"):
        block = re.search(r"```text\nthe commands(.*?)```", DOCUMENTS[name], flags=re.S).group(1)
        commands, *shelves = block.strip().split("\n")
        assert tuple(tuple(line.split()) for line in reversed(shelves)) == test_imports.SHELVES
        assert set(re.findall(r"\w+", commands)) - {"train"} == set(test_imports.COMMANDS) - {"__main__"}


def test_readme_shows_both_commands_with_the_clone_installed():
    for mark in ("run", "test"):
        command = re.search(rf"<!-- the {mark} command -->\n```bash\n(.*?)\n```", README, flags=re.S).group(1)
        assert "pip install -q -e " in command and "\n" not in command
    assert "Not for clinical use" in README
