"""Compiled programs that outlive the process: the second command of a kind does not wait for XLA."""

from __future__ import annotations

import hashlib

import jax

from auxseg.base import files, machine


def keep(cache_dir=None):
    """Has jax keep the programs that it compiles, and find those of before; returns their folder, or None.

    A program is machine code that will be run, so that the folder must be the user's own, as that of the kernels;
    where it cannot be, nothing is kept. Homes are shared between machines: each processor has a folder.

    Args:
        cache_dir: pathlib.Path; None: `files.default_cache_dir`.
    """
    processor = hashlib.sha256(machine.describe_processor()).hexdigest()[:24]
    folder = (cache_dir or files.default_cache_dir()) / "programs" / processor
    try:
        files.make_private(folder.parent)
        files.make_private(folder)
    except OSError:
        return None
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    return folder
