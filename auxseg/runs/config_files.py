"""The flag --config: a settings file by its path or by its name, from any working directory.

`--config=phantom` is `configs/phantom.py` of auxseg, wherever the command runs. A file of one's own may start from
one of these by `from configs import phantom`, and from its neighbours where its own folder is called configs.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import io
import pathlib
import re
import sys
import tokenize
import traceback
import types

import ml_collections
from absl import flags
from ml_collections import config_flags

from auxseg.base import files
from auxseg.base.errors import InputError
from auxseg.runs import run_folder
from auxseg.runs.kinds import folder


def define(text):
    """Defines --config, whose value is a locked ConfigDict, or None; returns its holder.

    Args:
        text: what --help says of it.
    """
    holder = config_flags.DEFINE_config_file("config", None, text)
    flags.FLAGS["config"].parser = _Parser()
    return holder


class _Parser(flags.ArgumentParser):
    """Reads the settings as soon as the flag is parsed, so that a mistake is said at once."""

    def parse(self, path):
        return read_config(path)


def default_workdir():
    """Returns the folder of a run without --workdir: runs/NAME for NAME.py, the run's own for its `config.json`."""
    path = find(config_flags.get_config_filename(flags.FLAGS["config"]))
    return path.parent if path.suffix == ".json" else pathlib.Path("runs") / path.stem


def find(text):
    """Returns the settings file that a path or one of auxseg's names means.

    Raises:
        InputError: there is no such file.
    """
    path = pathlib.Path(text).expanduser()
    if path.is_file():
        return path
    own = folder() / f"{path.stem}.py"
    if str(path.parent) in (".", "configs") and path.suffix in ("", ".py") and own.is_file():
        return own
    names = ", ".join(sorted(each.stem for each in folder().glob("*.py")))
    raise InputError(f"--config: got {text!r}, expected a settings file (FILE.py) or one of {names}")


def read_config(text):
    """Returns the locked ConfigDict of a settings file, or of the `config.json` of a run.

    Args:
        text: as `find`.

    Raises:
        InputError: there is no such file, or it cannot be loaded.
    """
    path = find(text)
    if path.suffix == ".json":
        return _read_json(path)
    _let_import_from(path)
    try:
        config = _load(path).get_config()
    except Exception as error:
        line = traceback.extract_tb(error.__traceback__)[-1]
        raise InputError(
            f"--config: {path} cannot be loaded: {type(error).__name__}: {error} "
            f"(line {line.lineno} of {line.filename})"
        ) from error
    if not isinstance(config, ml_collections.ConfigDict):
        raise InputError(
            f"--config: get_config() of {path} gave {type(config).__name__}, expected a ConfigDict; does it return it?"
        )
    return config.lock()


def with_settings_of_workdir(argv):
    """Returns the arguments of a command; of a --workdir without a --config, those with the run's own settings.

    Of --helpfull each setting becomes a flag first, so that it is listed with what base.py says of it.

    Raises:
        InputError: the folder holds no `config.json`.
    """
    if any(re.fullmatch(r"--?helpfull(=true)?", each) for each in argv):
        for name, value, comment in describe_settings():
            default = None if value is None else str(value)
            flags.DEFINE_string(f"config.{name}", default, comment, module_name="configs.base: with --config")
    if any(re.match(r"--?(config=|config$|help)", each) for each in argv):
        return list(argv)
    given = re.search(r"\0--?workdir[=\0]([^\0]+)", "\0" + "\0".join(argv[1:]))
    if not given:
        return list(argv)
    settings = pathlib.Path(given[1]) / "config.json"
    if not settings.is_file():
        raise InputError(f"--workdir: {given[1]} holds no run to go on with; give --config to start one")
    return [argv[0], f"--config={settings}", *argv[1:]]


def list_changes():
    """Returns {setting: value} of the flags --config.SETTING that were given; none where there is no flag --config."""
    if "config" not in flags.FLAGS:
        return {}
    return dict(config_flags.get_override_values(flags.FLAGS["config"]))


def describe_settings():
    """Returns (name, value, comment) of each setting of base.py, in its order; a comment stands behind a value."""
    path = folder() / "base.py"
    text = path.read_text(encoding="utf-8")
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    comments = {each.start[0]: each.string for each in tokens if each.type == tokenize.COMMENT}
    config, groups, found = read_config(str(path)), {"config": ""}, []
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.Assign) or not isinstance(node.targets[0], ast.Attribute):
            continue
        target, *aliases = node.targets
        name = f"{groups[target.value.id]}{target.attr}"
        groups |= {alias.id: f"{name}." for alias in aliases}
        if not aliases:
            lines = [comments.get(number, "") for number in range(node.lineno, node.end_lineno + 1)]
            value = functools.reduce(lambda group, part: group[part], name.split("."), config)
            found.append((name, value, " ".join(lines).strip("# ")))
    return found


def _read_json(path):
    """Returns a run's settings; those not set keep their kind, so that a flag can set them."""
    _let_import_from(path)
    config = importlib.import_module("configs.base").get_config()
    found = run_folder.check_settings(run_folder.to_config(files.read_object(path)), where=path)
    try:
        with config.unlocked():
            config.update(found)
    except (TypeError, ValueError, AttributeError) as error:
        raise InputError(f"--config: {path} is not of a run: {error}") from error
    return config.lock()


def _load(path):
    spec = importlib.util.spec_from_file_location("auxseg_config", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _let_import_from(path):
    """Has `from configs import ...` in a settings file find its neighbours, then auxseg's own."""
    beside = [path.resolve().parent] if path.resolve().parent.name == "configs" else []
    package = types.ModuleType("configs")
    package.__path__ = [str(place) for place in dict.fromkeys([*beside, folder().resolve()])]
    for name in [name for name in sys.modules if name.partition(".")[0] == "configs"]:
        del sys.modules[name]
    sys.modules["configs"] = package
