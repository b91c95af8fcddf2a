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

import ml_collections

from auxseg.base import files
from auxseg.base.errors import InputError

PACKAGES = ("auxseg", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "scipy")
FREE_SETTINGS = (
    "train.max_minutes",
    "train.num_devices",
    "train.wait_minutes",
    "data.dir",
    "data.cache_dir",
    "data.placement",
    "eval.num_panels",
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
    """Returns the locked ConfigDict that a run was started with."""
    return to_config(_read_object(pathlib.Path(workdir) / "config.json")).lock()


def to_config(settings):
    """Returns a ConfigDict of settings that come from JSON, in which every list becomes a tuple again."""
    return ml_collections.ConfigDict(_to_tuples(settings))


def _to_tuples(value):
    if isinstance(value, dict):
        return {name: _to_tuples(each) for name, each in value.items()}
    return tuple(map(_to_tuples, value)) if isinstance(value, list) else value


def claim_config(workdir, config):
    """Stores the settings in a new workdir; in an old one checks that they are the same.

    Raises:
        InputError: the run was started with other settings; each difference is named.
    """
    path, new = workdir / "config.json", config_to_dict(config)
    if path.exists():
        differences = list_differences(_read_object(path), new)
        if differences:
            raise InputError(
                f"workdir {workdir} was started with other settings: {'; '.join(differences)} "
                "(give the settings it was started with, or another --workdir=DIR)"
            )
    files.write_json(path, new)


def list_differences(old, new):
    """Returns 'name: old -> new' for each setting that differs and matters to the result."""
    old, new = _flatten(old), _flatten(new)
    names = sorted(n for n in old.keys() | new.keys() if n not in FREE_SETTINGS)
    missing = "(not there)"
    pairs = ((n, old.get(n, missing), new.get(n, missing)) for n in names)
    return [f"{name}: {json.dumps(a)} -> {json.dumps(b)}" for name, a, b in pairs if a != b]


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
    rows = [row for row in files.read_rows(path) if row["epoch"] <= last_epoch]
    files.write_text(path, "".join(json.dumps(row) + "\n" for row in rows))


def _flatten(tree, prefix=""):
    if not isinstance(tree, dict):
        return {prefix: tree}
    flat = {}
    for name, value in tree.items():
        flat |= _flatten(value, f"{prefix}.{name}" if prefix else name)
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
        versions=_read_object(workdir / "versions.json", required=False),
        splits=_read_object(workdir / "splits.json"),
        epochs=tuple(files.read_rows(workdir / "metrics.jsonl")),
        summary=_read_object(workdir / "summary.json", required=False),
    )


def _read_object(path, *, required=True):
    if not required and not path.exists():
        return {}
    return files.read_object(path, hint=f"is {path.parent} the workdir of a run? Restore it, or train again")
