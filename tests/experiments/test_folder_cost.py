"""What a command costs: medians of its starts, each with nothing in the cache but the kernels where that is asked for."""

import sys

import pytest

from auxseg.base.errors import InputError
from experiments.speed import folder_cost


@pytest.mark.parametrize(("is_fresh", "left"), [(True, [[], [], []]), (False, [[], ["0"], ["0", "1"]])])
def test_medians_of_starts(monkeypatch, tmp_path, is_fresh, left):
    (tmp_path / "kernels").mkdir()
    monkeypatch.setenv("AUXSEG_CACHE", str(tmp_path))
    found, times = [], [(3.0, 1.0), (1.0, 2.0), (2.0, 9.0)]

    def start(what, arguments, cache):
        assert (what, arguments) == ("help", ["predict", "--help"])
        found.append(sorted(path.name for path in cache.iterdir() if path.name != "kernels"))
        (cache / str(len(found) - 1)).touch()
        return times[len(found) - 1]

    monkeypatch.setattr(folder_cost, "_start", start)
    row = folder_cost.measure("help", ["predict", "--help"], 3, is_fresh, tmp_path / "cache")
    assert (row["step"], row["seconds"], row["cpu_seconds"]) == ("help", 2.0, 2.0) and found == left


def test_a_command_that_fails_says_its_last_line(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", "false")
    with pytest.raises(InputError, match="prepare: failed"):
        folder_cost._start("prepare", ["prepare"], tmp_path)
