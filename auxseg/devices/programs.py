"""Traced programs that are kept from one process to the next, so that a second start does without tracing.

jax's own cache spares the compilation alone: Python still goes through the network, operator by operator, which takes longer
than its first mask. Here the program is read back as jax's own export wrote it, by what it is made of.
"""

from __future__ import annotations

import functools
import hashlib
import os
import pathlib
import threading

import jax
import jax.numpy as jnp
import jaxlib

from auxseg.base import files

_CHECKSUM_BYTES = 32


class Kept:
    """A function of images, create()(weights, images), traced once for each shape and kept where jax keeps its programs.

    That is `parallel.keep_compiled_programs`' folder; without it, or on another device than a CPU, nothing is kept.

    Args:
        create: () -> function of (weights, images) that gives an array; pure. Called where a program is to be traced, and else
            never: what it needs is not even imported then.
        weights: tree of arrays.
        made_of: () -> bytes that say all that the program depends on but versions and shapes; asked for only where programs
            are kept.
        calls: names of the foreign functions that it may call.
    """

    def __init__(self, create, weights, *, made_of, calls=()):
        self._weights, self._made_of, self._calls = jax.device_put(weights), made_of, calls
        self._plain = functools.cache(lambda: jax.jit(create()))
        self._programs, self._lock = {}, threading.Lock()

    def __call__(self, images):
        """Returns what the function gives for an array, which may be one that jax is tracing."""
        images = jnp.asarray(images)
        if isinstance(images, jax.core.Tracer):
            return self._plain()(self._weights, images)
        return self.get_ready(images.shape, images.dtype)(self._weights, images)

    def get_ready(self, shape, dtype):
        """Returns the compiled program for images; a thread that calls this first has it ready for others."""
        with self._lock:
            key = tuple(shape), jnp.dtype(dtype)
            if key not in self._programs:
                self._programs[key] = self._compile(jax.ShapeDtypeStruct(*key))
            return self._programs[key]

    def _compile(self, images):
        shapes = jax.tree.map(lambda one: jax.ShapeDtypeStruct(one.shape, one.dtype), self._weights)
        given, folder = (shapes, images), jax.config.jax_compilation_cache_dir
        if not folder or jax.default_backend() != "cpu":
            return self._plain().lower(*given).compile()
        path = pathlib.Path(folder) / _name(self._made_of(), given)
        return jax.jit(_read_or_write(path, self._plain, given, self._calls)).lower(*given).compile()


def _name(made_of, given):
    shapes = [
        (str(path), one.shape, str(one.dtype)) for path, one in jax.tree_util.tree_leaves_with_path(given)
    ]
    settings = (jax.config.jax_enable_x64, jax.config.jax_default_matmul_precision)
    said = repr((jax.__version__, jaxlib.__version__, settings, shapes))
    return f"{hashlib.sha256(said.encode() + made_of).hexdigest()[:32]}.program"


def _read_or_write(path, plain, given, calls):
    """Returns the program of a file, as a function; else as `plain()` is traced and written there."""
    from jax import export

    try:
        return export.deserialize(bytearray(_read(path))).call
    except Exception:  # missing, another's or damaged: whatever flatbuffers raise
        checks = [export.DisabledSafetyCheck.custom_call(name) for name in calls]
        program = export.export(plain(), disabled_checks=checks)(*given)
    content = program.serialize()
    try:
        files.write_bytes(path, hashlib.sha256(content).digest() + content)
        path.chmod(0o600)
    except OSError:
        pass  # the disk is full, or is for reading alone
    return program.call


def _read(path):
    """Returns what a file holds that is this user's alone and has the checksum at its head.

    Raises:
        OSError: it is not there, or others may write it.
        ValueError: damaged.
    """
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb") as file:
        if not files.is_private(os.fstat(file.fileno())):
            raise PermissionError(f"{path}: others may write it")
        checksum, content = file.read(_CHECKSUM_BYTES), file.read()
    if hashlib.sha256(content).digest() != checksum:
        raise ValueError(f"{path}: damaged")
    return content
