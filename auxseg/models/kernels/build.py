"""The compiled kernels of the CPU: `kernels.cc` and what it includes, built once by the machine's own C++ compiler.

XLA calls them through its foreign function interface, inside one program with everything else. The library
lies in `files.default_cache_dir()`, one for each source, compiler, processor and version of jaxlib; the first
command on a machine compiles it in some seconds. Where that cannot be done - no compiler, no place to write - `load` says
why, and the network is computed by XLA's own operators ('blocked'), which takes longer.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import pathlib
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import time

import jax
import jaxlib

from auxseg.base import files, machine
from auxseg.base.errors import InputError

SOURCE = pathlib.Path(__file__).with_name("kernels.cc")
"""What is compiled; it includes the headers beside it."""
COMPILERS = ("c++", "g++", "clang++")
"""Tried in this order, unless $CXX names one."""
OPTIONS = ("-O3", "-std=c++17", "-fPIC", "-shared", "-w")
TARGET = "-march=native" if platform.machine().lower() in ("x86_64", "amd64") else "-mcpu=native"
"""Code for this processor, as compilers for x86 and for others name it."""
UNITS = ("none", "vdpbf16ps", "amx")
"""What can multiply bfloat16, by the number that the kernels have for it; each is faster than those before it."""
HANDLERS = tuple(
    f"{name}_{way}" for name in ("separable", "product", "mean", "pool") for way in ("forward", "backward")
)
COMPILE_SECONDS = 300


def load():
    """Returns why the kernels cannot be used here, or None: they are then known to XLA by `target`."""
    return _load()[0]


def choose_unit(most=UNITS[-1]):
    """Returns what multiplies bfloat16 from now on, of `UNITS`: `most`, or the best before it that is here."""
    library = _load()[1]
    return UNITS[library.auxseg_choose_unit(UNITS.index(most)) if library else 0]


@functools.cache
def find_unit():
    """Returns what multiplies bfloat16 here, of `UNITS`: 'none' where there are no kernels of it."""
    return choose_unit()


@functools.cache
def _load():
    """Returns why there are no kernels, or None, and the library."""
    if sys.platform not in ("linux", "darwin"):
        return f"there are none for {sys.platform}", None
    compiler = find_compiler()
    if compiler is None:
        return f"no C++ compiler ({os.environ.get('CXX') or ', '.join(COMPILERS)})", None
    try:
        library = _open(compiler, find_library(compiler))
    except (InputError, OSError, RuntimeError, subprocess.SubprocessError) as error:
        return " ".join(str(error).split())[:300], None
    for name in HANDLERS:
        capsule = jax.ffi.pycapsule(getattr(library, target(name)))
        jax.ffi.register_ffi_target(target(name), capsule, platform="cpu")
    return None, library


@functools.cache
def explain_missing(reason):
    """Says once, on stderr, that the network is computed without the kernels."""
    print(
        f"without compiled kernels the network takes about twice as long on a CPU: {reason}",
        file=sys.stderr,
        flush=True,
    )


def target(name):
    """Returns the name by which XLA knows a handler."""
    return f"auxseg_{name}"


TARGETS = tuple(map(target, HANDLERS))


def find_compiler():
    """Returns the command of a C++ compiler, a tuple of words: $CXX may be 'ccache g++'; None without one."""
    given = tuple(shlex.split(os.environ.get("CXX", "")))
    commands = [given] if given else [(name,) for name in COMPILERS]
    return next(((path, *words) for name, *words in commands if (path := shutil.which(name))), None)


def find_library(compiler):
    """Returns where the library of this source, compiler and processor lies, in a folder that is the user's own.

    Raises:
        OSError: others may write to the folder, or it cannot be made.
    """
    folder = files.default_cache_dir() / "kernels"
    files.make_private(folder)
    version = subprocess.run([*compiler, "--version"], capture_output=True, check=True, timeout=60).stdout
    parts = (
        SOURCE.read_bytes(),
        *(path.read_bytes() for path in sorted(SOURCE.parent.glob("*.h"))),
        version,
        machine.describe_processor(),
        jaxlib.__version__.encode(),
        repr(OPTIONS).encode(),
    )
    return folder / f"{hashlib.sha256(b'|'.join(parts)).hexdigest()[:24]}.so"


def _open(compiler, path):
    """Returns the library, compiled where it is not there whole: opening half of one would end the process."""
    library = _load_whole(path)
    if library is None:
        print("compiling the kernels of the CPU, once: some seconds", file=sys.stderr, flush=True)
        start = time.monotonic()
        _compile(compiler, path)
        print(
            f"compiled them in {time.monotonic() - start:.0f} s, into {path.parent}",
            file=sys.stderr,
            flush=True,
        )
        library = _load_whole(path)
    if library is None:
        raise OSError(f"{path}: was exchanged while it was compiled")
    return library


def _load_whole(path):
    """Returns the library of a file that is this user's alone and has the checksum beside it; else None.

    What is looked at is what is loaded: the open file, not its name.
    """
    try:
        expected = path.with_suffix(".sha256").read_text(encoding="ascii")
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except (OSError, ValueError):
        return None
    with os.fdopen(handle, "rb") as file:
        if not files.is_private(os.fstat(handle)) or _checksum(file.read()) != expected:
            return None
        return ctypes.CDLL(f"/proc/self/fd/{handle}" if sys.platform == "linux" else str(path))


def _checksum(content):
    return hashlib.sha256(content).hexdigest()


def _compile(compiler, path):
    """Builds the library, and writes it and its checksum whole.

    Raises:
        RuntimeError: the compiler's first complaint.
        InputError: it cannot be written.
    """
    with tempfile.TemporaryDirectory(prefix="auxseg-") as folder:
        built = pathlib.Path(folder) / path.name
        include = f"-I{jax.ffi.include_dir()}"
        command = [*compiler, *OPTIONS, TARGET, include, "-o", str(built), str(SOURCE)]
        done = subprocess.run(command, capture_output=True, timeout=COMPILE_SECONDS, check=False)
        if done.returncode:
            raise RuntimeError(f"{compiler[0]}: {_find_complaint(done.stderr.decode('utf-8', 'replace'))}")
        content = built.read_bytes()
        files.write_bytes(path, content)
        path.chmod(0o700)  # whatever the user's mask lets others do
        files.write_text(path.with_suffix(".sha256"), _checksum(content))


def _find_complaint(said):
    """Returns the first line of a compiler that names an error, or its first line."""
    lines = said.strip().splitlines() or ["no message"]
    return next((line for line in lines if "error" in line), lines[0])
