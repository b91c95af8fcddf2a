"""Files written whole and read strictly: text, JSON, CSV, locks."""

from __future__ import annotations

import contextlib
import csv
import fcntl
import io
import json
import math
import os
import pathlib

import numpy as np

from auxseg.base.errors import InputError


def default_cache_dir():
    """Returns $AUXSEG_CACHE, else ~/.cache/auxseg."""
    return pathlib.Path(os.environ.get("AUXSEG_CACHE") or "~/.cache/auxseg").expanduser()


@contextlib.contextmanager
def write_whole(path):
    """Yields a binary file that takes its place at `path` only when all was written."""
    path = pathlib.Path(path)
    temporary = path.with_name(f".{path.name}.part")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path, text):
    """Writes a text file whole or not at all; `path` is a pathlib.Path, its folder is made.

    Raises:
        InputError: it cannot be written.
    """
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path, content):
    """Writes a file whole or not at all; see `write_text`."""
    path = pathlib.Path(path)
    temporary = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as handle:
            handle.write(content)
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise InputError(
            f"{path}: cannot be written ({error.strerror}); check the folder and the disk"
        ) from error


def write_csv(path, rows):
    """Writes mappings (their keys may differ) as CSV, empty where there is no value; [] writes nothing."""
    if not rows:
        return
    text = io.StringIO()
    names = list(dict.fromkeys(key for row in rows for key in row))
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: _cell(value) for key, value in row.items()} for row in rows)
    write_text(path, text.getvalue())


def _cell(value):
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return ""
    return repr(float(value)) if isinstance(value, float) else value


def read_csv(path):
    """Returns the rows of a CSV file: numbers as float, empty cells as NaN, all else as str.

    `case_id`, `patient` and `series_uid` stay str, even where they look like numbers.

    Raises:
        InputError: no such file, or a line with another number of cells.
    """
    path = pathlib.Path(path)
    try:
        with open(path, newline="", encoding="utf-8") as handle:
            rows = list(csv.DictReader(handle, strict=True))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read as CSV ({error}); evaluate the run again") from error
    for number, row in enumerate(rows, start=2):
        if None in row or None in row.values():
            raise InputError(
                f"{path}, line {number}: got another number of cells than the header has; evaluate again"
            )
    return [{key: _parse(key, cell) for key, cell in row.items()} for row in rows]


def _parse(key, cell):
    if key in ("case_id", "patient", "series_uid"):
        return cell
    try:
        return float(cell) if cell else math.nan
    except ValueError:
        return cell


def to_json(value):
    """Returns JSON types: NaN and infinity become None, NumPy numbers Python's."""
    if isinstance(value, dict):
        return {str(key): to_json(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(each) for each in value]
    if isinstance(value, np.ndarray):
        return to_json(value.tolist())
    if isinstance(value, np.generic):
        return to_json(value.item())
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json(path, value):
    """Writes strict, indented JSON, whole or not at all."""
    write_text(path, json.dumps(to_json(value), indent=2, allow_nan=False) + "\n")


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
