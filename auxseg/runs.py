"""A run's folder: who writes to it, what it was started with, one row an epoch.

    config.json    every setting             splits.json    case ids by split
    versions.json  packages and hardware     metrics.jsonl  one row an epoch
    checkpoints/   see auxseg.checkpoints    summary.json, cases.csv, figures/  at the end

Every file is written beside its place and moved there whole, so that none is ever half there.
"""

import contextlib
import fcntl
import importlib.metadata
import json
import os
import pathlib
import platform

import ml_collections

from auxseg.errors import InputError

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


@contextlib.contextmanager
def locked(workdir):
    """Holds `workdir` for one writing process; the lock goes with the process, however it ends.

    Raises:
        InputError: another process holds it, it cannot be written, or its name is not text.
    """
    path = pathlib.Path(workdir)
    try:
        str(path).encode("utf-8")  # as Orbax will
    except UnicodeEncodeError as error:
        raise InputError(
            f"workdir {os.fsencode(path)}: its name is no text in this locale; set PYTHONUTF8=1, or choose "
            "another with --workdir=DIR"
        ) from error
    try:
        path.mkdir(parents=True, exist_ok=True)
        handle = open(path / ".lock", "a+")
    except OSError as error:
        raise InputError(f"workdir {path}: {error.strerror}; choose another with --workdir=DIR") from error
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(
                f"workdir {path}: another process is working in it; wait for it, or give --workdir=DIR"
            ) from error
        yield path


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


def read_json(path):
    """Returns the JSON value of a file.

    Raises:
        InputError: the file is missing or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file; is {path.parent} the workdir of a run?") from error
    except (ValueError, OSError, RecursionError) as error:
        raise InputError(
            f"{path}: cannot be read as JSON ({error}); restore it, or start a new run"
        ) from error


def config_to_dict(config):
    """Returns the settings as JSON types: tuples become lists, unset placeholders None."""
    return json.loads(config.to_json())


def read_config(workdir):
    """Returns the locked ConfigDict that a run was started with."""
    return ml_collections.ConfigDict(to_tuples(read_json(pathlib.Path(workdir) / "config.json"))).lock()


def claim_config(workdir, config):
    """Stores the settings in a new workdir; in an old one checks that they are the same.

    Raises:
        InputError: the run was started with other settings; each difference is named.
    """
    path, new = workdir / "config.json", config_to_dict(config)
    if path.exists():
        differences = list_differences(read_json(path), new)
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


def append_row(path, row):
    """Appends one JSON line; a half-written last line is dropped by `read_rows`."""
    with open(path, "a", encoding="utf-8") as handle:
        handle.write(json.dumps(row, allow_nan=False) + "\n")
        handle.flush()
        os.fsync(handle.fileno())


def read_rows(path):
    """Returns the rows of a JSON-lines file; [] without one."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


def keep_rows(path, last_epoch):
    """Drops the rows after `last_epoch`: epochs that a killed run recorded and will repeat."""
    rows = [row for row in read_rows(path) if row["epoch"] <= last_epoch]
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
