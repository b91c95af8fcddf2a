"""Programs that are kept: read back in place of tracing, and never when they are not what was written."""

import hashlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from auxseg.devices import programs

WEIGHTS = {"a": np.float32([[1.0, 2.0]])}
IMAGES = np.int16([[1, 2], [3, 4]])
EXPECTED = [[2.0, 5.0], [4.0, 9.0]]


@pytest.fixture
def folder(tmp_path):
    """Returns the folder of programs, which jax keeps its own in too."""
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    yield tmp_path
    jax.config.update("jax_compilation_cache_dir", before)


def create(made_of=b"first", traced=None, built=None):
    def function(weights, images):
        traced is None or traced.append(images.shape)
        return images * weights["a"] + 1.0

    def build():
        built is None or built.append(1)
        return function

    return programs.Kept(build, WEIGHTS, made_of=lambda: made_of)


def test_a_second_start_does_not_trace(folder):
    np.testing.assert_array_equal(create()(IMAGES), EXPECTED)
    assert len(list(folder.glob("*.program"))) == 1
    traced, built = [], []
    again = create(traced=traced, built=built)
    np.testing.assert_array_equal(again(IMAGES), EXPECTED)
    np.testing.assert_array_equal(again(IMAGES), EXPECTED)
    assert not traced and not built
    np.testing.assert_array_equal(again(IMAGES[:1]), EXPECTED[:1])
    assert traced == [(1, 2)] and built == [1] and len(list(folder.glob("*.program"))) == 2


def test_a_program_is_ready_when_it_is_asked_for(folder):
    traced = []
    run = create(traced=traced)
    run.get_ready((2, 2), np.int16)
    assert traced == [(2, 2)]
    np.testing.assert_array_equal(run(IMAGES), EXPECTED)
    assert traced == [(2, 2)]


def test_what_is_made_of_something_else_is_another_program(folder):
    create()(IMAGES)
    traced = []
    create(made_of=b"second", traced=traced)(IMAGES)
    assert traced and len(list(folder.glob("*.program"))) == 2


@pytest.mark.parametrize("fault", ["byte", "short", "mode", "link"])
def test_a_file_that_cannot_be_trusted_is_written_anew(folder, fault):
    create()(IMAGES)
    (path,) = folder.glob("*.program")
    content = path.read_bytes()
    if fault == "byte":
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif fault == "short":
        path.write_bytes(content[:10])
    elif fault == "mode":
        path.chmod(0o666)
    else:
        path.rename(folder / "elsewhere")
        path.symlink_to(folder / "elsewhere")
    traced = []
    np.testing.assert_array_equal(create(traced=traced)(IMAGES), EXPECTED)
    assert traced and not path.is_symlink() and path.stat().st_mode & 0o777 == 0o600
    assert path.read_bytes()[:32] == hashlib.sha256(path.read_bytes()[32:]).digest()


def test_without_a_folder_nothing_is_kept_and_it_can_be_traced(tmp_path):
    assert not jax.config.jax_compilation_cache_dir
    run = create()
    np.testing.assert_array_equal(run(IMAGES), EXPECTED)
    assert jax.eval_shape(run, jax.ShapeDtypeStruct((3, 2), jnp.int16)).shape == (3, 2)
