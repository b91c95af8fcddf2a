"""Shared by all tests: eight CPU devices, strict ranks, and the real data where it is."""

import os
import pathlib

import jax
import pytest

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("KERAS_BACKEND", "jax")
os.environ.setdefault("MPLBACKEND", "agg")

# Tests compile much and run little: compile quickly. Subprocesses inherit it.
os.environ.setdefault(
    "XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
)
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture
def real_data():
    """Returns the folder of real CT that AUXSEG_REAL_DATA names; skips without it."""
    folder = os.environ.get("AUXSEG_REAL_DATA")
    if not folder:
        pytest.skip("AUXSEG_REAL_DATA is not set: the real CT that this test reads is not here")
    return pathlib.Path(folder)
