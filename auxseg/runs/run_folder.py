"""A run's folder: who writes to it, what it was started with, one row an epoch.

    config.json    every setting             splits.json    case ids by split
    versions.json  packages and hardware     metrics.jsonl  one row an epoch
    checkpoints/   see auxseg.runs.checkpoints    summary.json, cases.csv, figures/  at the end

None is ever half there: see `files.write_whole`.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import os
import pathlib
import platform
import re

import ml_collections

from auxseg.base import files
from auxseg.base.classes import classes_of
from auxseg.base.errors import InputError
from auxseg.datasets import check_size
from auxseg.runs import kinds, older

PACKAGES = ("auxseg", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "scipy")
FEW_STEPS = 100
"""Of training: a run of fewer shows that everything works, and its scores mean nothing."""
FREE_SETTINGS = (
    "train.max_minutes",
    "train.num_devices",
    "train.wait_minutes",
    "data.dir",
    "data.cache_dir",
    "data.placement",
    "eval.num_panels",
    "eval.num_pictures",
    "eval.batch_size",
    "checkpoint.every_epochs",
)
"""Settings that change no result, but for rounding: they may change when a run is resumed, and set no arm apart."""


def hold(workdir):
    """Returns a context that holds a run's folder for one writing process; see `files.locked`.

    Raises:
        InputError: another process holds it, it cannot be written, or its name is not text, as Orbax needs it.
    """
    hint = "choose another with --workdir=DIR"
    try:
        str(workdir).encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(
            f"workdir {os.fsencode(workdir)}: its name is no text in this locale; set PYTHONUTF8=1, or {hint}"
        ) from error
    return files.locked(workdir, name="workdir", hint=hint)


def config_to_dict(config):
    """Returns the settings as JSON types: tuples become lists, unset placeholders None."""
    return json.loads(config.to_json())


def read_config(workdir):
    """Returns the locked ConfigDict that a run was started with.

    Raises:
        InputError: it is no run's workdir, or its settings are none.
    """
    path = pathlib.Path(workdir) / "config.json"
    return check_settings(to_config(_read_object(path)), where=path).lock()


def check_settings(config, *, where):
    """Returns settings from JSON, which may be a stranger's, after looking at their kinds and at what the data need.

    Args:
        config: ConfigDict.
        where: file that they are from.

    Raises:
        InputError: one of them is missing, of another kind, or a size out of its range.
    """
    kinds.check_kinds(config, where=where)
    try:
        check_size(config.data.size)
        classes_of(config.data)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
    if len(config.data.window_hu) != 2:
        raise InputError(f"{where}: data.window_hu is {config.data.window_hu!r}, expected two numbers")
    return config


def to_config(settings):
    """Returns a ConfigDict of settings that come from JSON: lists become tuples again, older settings are completed."""
    return ml_collections.ConfigDict(_to_tuples(older.complete(settings)))


def _to_tuples(value):
    if isinstance(value, dict):
        return {name: _to_tuples(each) for name, each in value.items()}
    return tuple(map(_to_tuples, value)) if isinstance(value, list) else value


def claim_config(workdir, config):
    """Stores the settings in a new workdir; in an old one checks that they are the same.

    `train.num_epochs` may grow: nothing that was done depends on it.

    Raises:
        InputError: the run was started with other settings; each difference is named.
    """
    path, new = workdir / "config.json", config_to_dict(config)
    if path.exists():
        old = _read_object(path)
        differences = [] if _only_more_epochs(old, new) else list_differences(old, new)
        if differences:
            raise InputError(
                f"workdir {workdir} was started with other settings: {'; '.join(differences)} "
                "(give the settings it was started with, or another --workdir=DIR)"
            )
    files.write_json(path, new)


def _only_more_epochs(old, new):
    """Returns whether a run is given more epochs and nothing else; then says so."""
    before, after = (flatten(each).get("train.num_epochs") for each in (old, new))
    if not isinstance(before, int) or not before < after:
        return False
    same = {**old, "train": {**old["train"], "num_epochs": after}}
    if list_differences(same, new):
        return False
    print(f"train.num_epochs: {before} -> {after}: the run goes on", flush=True)
    return True


def list_differences(old, new):
    """Returns 'name: old -> new' for each setting that differs and matters to the result.

    One that was not there yet has the value at which everything was as it was (`older`).
    """
    old, new = (flatten(older.complete(each)) for each in (old, new))
    names = sorted(n for n in old.keys() | new.keys() if not _is_free(n))
    missing = "(not there)"
    pairs = ((n, old.get(n, missing), new.get(n, missing)) for n in names)
    return [f"{name}: {json.dumps(a)} -> {json.dumps(b)}" for name, a, b in pairs if a != b]


def _is_free(name):
    """Returns whether a setting changes no result; the folder of a source of a mixture is as free as `data.dir`."""
    return re.sub(r"^data\.sources\.\w+\.", "data.", name) in FREE_SETTINGS


def describe_machine(devices):
    """Returns versions and hardware, JSON types; `devices` from `parallel.choose_devices`."""
    return {
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "processors": os.cpu_count(),
        "backend": devices[0].platform,
        "devices": [d.device_kind for d in devices],
    }


def keep_rows(path, last_epoch):
    """Drops the rows after `last_epoch`: epochs that a killed run recorded and will repeat."""
    rows = [row for row in read_epochs(path) if row["epoch"] <= last_epoch]
    files.write_text(path, "".join(json.dumps(row) + "\n" for row in rows))


def read_epochs(path):
    """Returns the rows of `metrics.jsonl`, one an epoch.

    A line that is damaged is left out and named: it is of the report, and no reason not to go on.
    """
    damaged = []
    rows = files.read_rows(path, damaged=damaged, is_sound=_is_epoch)
    if damaged:
        print(f"note: {path}: line {', '.join(map(str, damaged))} is damaged and left out", flush=True)
    return rows


def _is_epoch(row):
    """Returns whether a row has what a report reads, and nothing but numbers."""
    groups = (row.get("train"), row.get("val"))
    if not all(isinstance(group, dict) for group in groups) or not isinstance(row["val"].get("dice"), dict):
        return False
    values = {name: value for name, value in flatten(row).items() if name != "memory_of"}
    numbers = (value for value in values.values() if value is not None)
    return (
        all(isinstance(value, (int, float)) and abs(value) < 1e12 for value in numbers)
        and isinstance(values.get("epoch"), int)
        and values["epoch"] > 0
        and None not in (values.get("seconds"), values.get("learning_rate"))
    )


def flatten(tree, prefix=""):
    """Returns {'a.b': value} of nested mappings."""
    flat = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        flat |= flatten(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return flat


def _version(package):
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


@dataclasses.dataclass(frozen=True)
class Records:
    """The records in a run's workdir.

    Attributes:
        name: of the workdir.
        config: `config.json`.
        versions: `versions.json`: packages and hardware.
        splits: {name: case ids} of `splits.json`.
        epochs: rows of `metrics.jsonl`.
        summary: `summary.json`, {} while the run goes on.
    """

    name: str
    config: dict
    versions: dict
    splits: dict
    epochs: tuple[dict, ...]
    summary: dict


def read_records(workdir):
    """Returns the Records of a workdir; only `config.json` and `splits.json` must be there.

    Raises:
        InputError: it is no run's workdir, or a file of it is damaged.
    """
    workdir = pathlib.Path(workdir)
    return Records(
        name=workdir.resolve().name,
        config=_read_object(workdir / "config.json"),
        versions=_read_kinds(workdir / "versions.json", {"packages": dict}),
        splits=read_split_lists(workdir),
        epochs=tuple(read_epochs(workdir / "metrics.jsonl")),
        summary=_read_kinds(
            workdir / "summary.json", _SUMMARY_KINDS, needed=("epochs", "best_epoch", "seconds")
        ),
    )


_SUMMARY_KINDS = {"epochs": int, "best_epoch": int, "seconds": (int, float), "dataset": str, "notes": list}


def _read_kinds(path, expected, needed=()):
    """Returns the object of a file whose values are of these kinds, {} without the file."""
    found = _read_object(path, required=False)
    for name, kind in expected.items() if found else ():
        if (name in needed or name in found) and not isinstance(found.get(name), kind):
            raise InputError(
                f"{path}: {name} is {found.get(name)!r:.80}; it is damaged: restore it, or remove it"
            )
    return found


def read_split_lists(workdir):
    """Returns {split: case ids} of `splits.json`.

    Raises:
        InputError: it is not there, damaged or forged.
    """
    path = workdir / "splits.json"
    stored = _read_object(path)
    if not stored or not all(
        isinstance(cases, list) and all(isinstance(case, str) for case in cases) for cases in stored.values()
    ):
        raise InputError(f"{path}: expected lists of case ids by split; restore it, or start a new run")
    return stored


def _read_object(path, *, required=True):
    if not required and not path.exists():
        return {}
    return files.read_object(path, hint=f"is {path.parent} the workdir of a run? Restore it, or train again")
