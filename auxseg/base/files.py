"""Files written whole and read strictly: text, JSON, CSV; folders put in their place; locks.

What is written lies beside its place, as `.NAME.PID.part`, until all of it is on the disk; then it is moved there.
What fails leaves nothing behind. What cannot be read or written is an `InputError` of one line.
"""

from __future__ import annotations

import contextlib
import csv
import errno
import fcntl
import io
import json
import math
import os
import pathlib
import shutil

import numpy as np

from auxseg.base.errors import InputError

LOCK = ".lock"
FEW_DIGITS = 6
"""Of floats in tables that people read and nothing reads again."""
FULL_DISK = (errno.ENOSPC, errno.EDQUOT)
"""What the system says where there is no room to write, or none left to this user."""
AGAIN = "restore it, or write it again"
"""What to do about a damaged file, where nothing better is known."""


def default_cache_dir():
    """Returns $AUXSEG_CACHE, else ~/.cache/auxseg."""
    return pathlib.Path(os.environ.get("AUXSEG_CACHE") or "~/.cache/auxseg").expanduser()


@contextlib.contextmanager
def write_whole(path):
    """Yields a binary file that takes its place at `path` when all was written; the folder is made.

    Raises:
        InputError: it cannot be written.
    """
    path = pathlib.Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"{path}: cannot be written ({reason}); check the folder and the disk") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def write_bytes(path, content):
    """Writes a file as `write_whole`."""
    with write_whole(path) as file:
        file.write(content)


def make_private(folder):
    """Makes a folder for code that will be run, or sees that nobody else can have written to it.

    Raises:
        OSError: it is another user's, others may write there, or it cannot be made.
    """
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not is_private(folder.stat()):
        raise OSError(f"{folder}: others may write there, so that what it holds cannot be trusted")


def is_private(about):
    """Returns whether a file or folder, going by its `os.stat_result`, is this user's and nobody else can write it."""
    return about.st_uid == os.getuid() and not about.st_mode & 0o022


def write_text(path, text):
    """Writes a text file in UTF-8 as `write_whole`; what is no text, as a file name can be, by its bytes."""
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


def replace_folder(new, target):
    """Puts a finished folder in its place, all of it on the disk; a former one there is removed.

    Raises:
        InputError: it cannot be moved.
    """
    new, target = pathlib.Path(new), pathlib.Path(target)
    old = new.with_name(f"{new.name}-old")
    try:
        for path in (new, *new.rglob("*")):
            _flush(path)
        if target.exists():
            os.replace(target, old)
        os.replace(new, target)
    except OSError as error:
        raise InputError(f"{target}: cannot be written ({error.strerror}); check the disk") from error
    shutil.rmtree(old, ignore_errors=True)


def _flush(path):
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_csv(path, rows, columns=(), *, digits=None):
    """Writes mappings (their keys may differ) as CSV, empty where there is no value; no column writes nothing.

    Args:
        path: of the file.
        rows: mappings.
        columns: that come first, and are there without rows too.
        digits: of floats, for tables that people read; None: all, so that they come back as they were.
    """
    names = list(dict.fromkeys([*columns, *(key for row in rows for key in row)]))
    if not names:
        return
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: format_cell(value, digits=digits) for key, value in row.items()} for row in rows)
    write_text(path, text.getvalue())


def format_cell(value, *, digits=None):
    """Returns a value as a table has it: '' where it is None or not finite; floats as `write_csv` says."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return ""
    if not isinstance(value, float):
        return value
    if digits is None:
        return repr(float(value))
    return np.format_float_positional(value, precision=digits, fractional=False, trim="-")


def read_cells(path, columns=(), *, hint=AGAIN):
    """Returns the rows of a CSV file as {column: text}.

    Args:
        path: of the file.
        columns: that it must have.
        hint: what to do where it is damaged.

    Raises:
        InputError: no such file, no CSV, no such column, or a line with another number of cells than the header.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as handle:
            reader = csv.DictReader(handle, strict=True)
            rows = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read as CSV ({error}); {hint}") from error
    missing = [name for name in columns if name not in (reader.fieldnames or ())]
    if missing:
        raise InputError(f"{path}: has no column {', '.join(missing)}, expected {', '.join(columns)}; {hint}")
    for number, row in enumerate(rows, start=2):
        if None in row or None in row.values():
            raise InputError(
                f"{path}, line {number}: got another number of cells than the header has; {hint}"
            )
    return rows


def read_csv(path):
    """Returns the rows of a CSV file: numbers as float, empty cells as NaN, all else as str.

    `case_id`, `patient` and `series_uid` stay str, even where they look like numbers.

    Raises:
        InputError: as `read_cells`.
    """
    rows = read_cells(path, hint="evaluate the run again")
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
    """Writes strict, indented JSON as `write_whole`; see `to_json`."""
    write_text(path, json.dumps(to_json(value), indent=2, allow_nan=False) + "\n")


def read_json(path, *, hint=AGAIN):
    """Returns the JSON value of a file.

    Args:
        path: of the file.
        hint: what to do where it is missing or damaged.

    Raises:
        InputError: no such file, or no JSON.
    """
    try:
        return json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file; {hint}") from error
    except (ValueError, OSError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read as JSON ({error}); {hint}") from error


def read_object(path, *, hint=AGAIN):
    """Returns the JSON object of a file, a dict; arguments and errors are those of `read_json`."""
    value = read_json(path, hint=hint)
    if not isinstance(value, dict):
        raise InputError(f"{path}: got a JSON {type(value).__name__}, expected an object; {hint}")
    return value


def append_row(path, row):
    """Appends one JSON line; a half-written last line is dropped by `read_rows`."""
    with open(path, "a", encoding="utf-8") as handle:
        handle.write(json.dumps(row, allow_nan=False) + "\n")
        handle.flush()
        os.fsync(handle.fileno())


def read_rows(path, *, damaged=None, is_sound=lambda row: True):
    """Returns the rows of a JSON-lines file; [] without one.

    Args:
        path: of the file.
        damaged: list that the numbers of lines are appended to that cannot be read and are left out; None: they
            are an error.
        is_sound: dict -> whether it is what a line should be.

    Raises:
        InputError: it cannot be read, or a line is no JSON object.
    """
    try:
        lines = pathlib.Path(path).read_bytes().splitlines(keepends=True)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror}); check its permissions and the disk"
        ) from error
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.endswith(b"\n"):
            continue
        try:
            row = json.loads(line.decode("utf-8"))
            if not isinstance(row, dict):
                raise ValueError(f"got {line.decode().strip()[:40]}, expected an object")
            if not is_sound(row):
                raise ValueError("it is none of auxseg's")
            rows.append(row)
        except (ValueError, RecursionError) as error:
            if damaged is None:
                raise InputError(
                    f"{path}: line {number} cannot be read as JSON ({error}); restore it"
                ) from error
            damaged.append(number)
    return rows


@contextlib.contextmanager
def locked(folder, *, name, hint, wait=False):
    """Holds a folder, made where it is not there, for one process, and yields it as a pathlib.Path.

    The lock is a file in it, removed at the end; it goes with the process, however that ends.

    Args:
        folder: to hold.
        name: of the folder to the user, such as '--output'.
        hint: what to do in place of waiting.
        wait: for the process that holds it, rather than refuse.

    Raises:
        InputError: another process holds it, or it cannot be made or written.
    """
    path = pathlib.Path(folder)
    try:
        path.mkdir(parents=True, exist_ok=True)
        handle = _hold(path / LOCK, wait)
    except BlockingIOError as error:
        raise InputError(
            f"{name} {path}: another process is working in it; wait for it, or {hint}"
        ) from error
    except OSError as error:
        raise InputError(f"{name} {path}: {error.strerror}; {hint}") from error
    with handle:
        try:
            yield path
        finally:
            (path / LOCK).unlink(missing_ok=True)


def _hold(path, wait):
    """Returns the open file at `path`, locked; opens it anew where its last holder has removed it meanwhile."""
    while True:
        handle = open(path, "a+b")
        try:
            fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.exists() and os.path.samestat(os.fstat(handle.fileno()), path.stat()):
                return handle
        except OSError:
            handle.close()
            raise
        handle.close()
