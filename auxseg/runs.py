"""A run's folder: who writes to it, what it was started with, one row an epoch.

    config.json    every setting             splits.json    case ids by split
    versions.json  packages and hardware     metrics.jsonl  one row an epoch
    checkpoints/   see auxseg.checkpoints    summary.json, cases.csv, figures/  at the end

Every file is written beside its place and moved there whole, so that none is ever half there.
"""

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
    "data.workers",
    "eval.num_panels",
)
"""Settings that may change when a run is resumed: none of them changes its result."""


def write_text(path, text):
    """Writes a text file whole or not at all; `path` is a pathlib.Path."""
    temporary = path.with_name(f".{path.name}.part")
    with open(temporary, "w", encoding="utf-8") as handle:
        handle.write(text)
        handle.flush()
        os.fsync(handle.fileno())
    os.replace(temporary, path)


def write_json(path, value):
    """Writes `value` as strict, indented JSON, whole or not at all."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def config_to_dict(config):
    """Returns the settings as JSON types: tuples become lists, unset placeholders None."""
    return json.loads(config.to_json())


def read_config(workdir):
    """Returns the locked ConfigDict that a run was started with."""
    return ml_collections.ConfigDict(to_tuples(files.read_json(pathlib.Path(workdir) / "config.json"))).lock()


def claim_config(workdir, config):
    """Stores the settings in a new workdir; in an old one checks that they are the same.

    Raises:
        InputError: the run was started with other settings; each difference is named.
    """
    path, new = workdir / "config.json", config_to_dict(config)
    if path.exists():
        differences = list_differences(files.read_json(path), new)
        if differences:
            raise InputError(
                f"workdir {workdir} was started with other settings: {'; '.join(differences)} "
                "(give the settings it was started with, or another --workdir=DIR)"
            )
    write_json(path, new)


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
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))


def _flatten(tree, prefix=""):
    if not isinstance(tree, dict):
        return {prefix: tree}
    flat = {}
    for name, value in tree.items():
        flat |= _flatten(value, f"{prefix}.{name}" if prefix else name)
    return flat


def to_tuples(value):
    """Returns JSON types with every list a tuple, as settings have them."""
    if isinstance(value, dict):
        return {name: to_tuples(v) for name, v in value.items()}
    return tuple(map(to_tuples, value)) if isinstance(value, list) else value


def _version(package):
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
