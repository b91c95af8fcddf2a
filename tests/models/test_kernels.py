"""How the compiled kernels are built, kept and refused."""

import os
import pathlib
import platform
import subprocess
import sys

import jax
import pytest

from auxseg.models.kernels import build

COMPILER = build.find_compiler()
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")
PROGRAM = "from auxseg.models.kernels import build; print(build.load())"


def load(cache, **environment):
    """Returns (what `load` returned, stderr) of a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={**os.environ, "AUXSEG_CACHE": str(cache), "JAX_PLATFORMS": "cpu", **environment},
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=True,
    )
    return done.stdout.strip(), done.stderr


def write_compiler(path, script):
    path.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    path.chmod(0o755)
    return str(path)


@needs_compiler
def test_compiled_once_and_again_where_damaged(tmp_path):
    found, said = load(tmp_path)
    assert (found, said.count("compiling the kernels")) == ("None", 1)
    found, said = load(tmp_path)
    assert (found, said.count("compiling the kernels")) == ("None", 0)
    (library,), (checksum,) = ((tmp_path / "kernels").glob(name) for name in ("*.so", "*.sha256"))
    for damaged, content in ((library, library.read_bytes()[:1000]), (checksum, b"\xff\xfe")):
        damaged.write_bytes(content)
        found, said = load(tmp_path)
        assert (found, said.count("compiling the kernels")) == ("None", 1)
    assert {path.suffix for path in (tmp_path / "kernels").iterdir()} == {".so", ".sha256"}


def test_a_compiler_that_fails_leaves_nothing(tmp_path):
    compiler = write_compiler(
        tmp_path / "cc", '[ "$1" = --version ] && exit 0\necho "kernels.cc:1: no space left" >&2; exit 1'
    )
    found, _ = load(tmp_path / "cache", CXX=compiler)
    assert found == f"{compiler}: kernels.cc:1: no space left"
    assert list((tmp_path / "cache" / "kernels").iterdir()) == []


def test_the_line_that_names_the_error_is_told(tmp_path):
    said = "In file included from kernels.cc:13:\nbfloat16.h:2: error: no such type\nbfloat16.h:9: error: another"
    compiler = write_compiler(tmp_path / "cc", f"printf '%s' '{said}' >&2; exit 1")
    with pytest.raises(RuntimeError, match=r"^\S+cc: bfloat16\.h:2: error: no such type$"):
        build._compile((compiler,), tmp_path / "kernels.so")


@needs_compiler
@pytest.mark.skipif(platform.machine().lower() not in ("x86_64", "amd64"), reason="options of x86")
@pytest.mark.parametrize(
    "options",
    [[], ["-mavx2"], ["-mavx512f"], ["-mavx512bf16"], ["-mavx512bf16", "-mamx-tile", "-mamx-bf16"]],
)
def test_the_source_is_right_for_every_kind_of_processor(options):
    given = (*build.OPTIONS, "-fsyntax-only", "-march=x86-64", *options, f"-I{jax.ffi.include_dir()}")
    command = [*COMPILER, *given, str(build.SOURCE)]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stderr


def test_without_a_compiler(tmp_path):
    found, _ = load(tmp_path, PATH=str(tmp_path), CXX="")
    assert found == "no C++ compiler (c++, g++, clang++)"
    found, _ = load(tmp_path, CXX="no-such-compiler -m64")
    assert found == "no C++ compiler (no-such-compiler -m64)"


@needs_compiler
def test_a_folder_that_others_may_write_to_is_not_trusted(tmp_path):
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels").chmod(0o777)
    found, _ = load(tmp_path)
    assert found.endswith("others may write there, so that what it holds cannot be trusted")


def test_a_library_that_others_may_have_written_is_not_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr(build.ctypes, "CDLL", lambda name: f"opened {pathlib.Path(name).read_bytes()}")
    path = tmp_path / "a.so"
    path.write_bytes(b"code")
    path.chmod(0o700)
    path.with_suffix(".sha256").write_text(build._checksum(b"code"))
    assert build._load_whole(path) == "opened b'code'"
    path.chmod(0o766)  # with its checksum it would pass
    assert build._load_whole(path) is None
    (tmp_path / "b.so").symlink_to(path)
    (tmp_path / "b.sha256").write_text(build._checksum(b"code"))
    assert build._load_whole(tmp_path / "b.so") is None


@needs_compiler
def test_one_library_for_each_source_and_compiler(tmp_path, monkeypatch):
    monkeypatch.setenv("AUXSEG_CACHE", str(tmp_path / "cache"))
    other = write_compiler(tmp_path / "other", "echo another version")
    monkeypatch.setenv("CXX", f"{other} -m64")
    assert build.find_compiler() == (other, "-m64")
    paths = {build.find_library(COMPILER), build.find_library((other,))}
    changed = tmp_path / "kernels.cc"
    changed.write_bytes(build.SOURCE.read_bytes() + b"\n")
    monkeypatch.setattr(build, "SOURCE", changed)
    assert len(paths | {build.find_library(COMPILER)}) == 3
