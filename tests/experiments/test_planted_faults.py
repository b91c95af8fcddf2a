"""The three planted faults, from a network's probabilities to the page."""

import fakes
import numpy as np
import pytest
import test_score_cases

from auxseg.base.errors import InputError
from experiments.checks import planted_faults


def test_faults_keep_probabilities():
    probabilities = np.random.default_rng(0).dirichlet(np.ones(4), (1, 2, 8, 8)).astype(np.float32)
    for fault, _ in planted_faults.FAULTS.values():
        np.testing.assert_allclose(fault(probabilities).sum(-1), 1, rtol=1e-6)
    np.testing.assert_array_equal(planted_faults.swap(planted_faults.swap(probabilities)), probabilities)
    assert planted_faults.shift(probabilities)[0, 0, 5, 4, 1] == probabilities[0, 0, 2, 1, 1]
    assert planted_faults.lose(probabilities)[..., planted_faults.RIGHT].max() == 0


@pytest.mark.parametrize("name", planted_faults.FAULTS)
def test_each_fault_is_seen(tmp_path, capsys, name):
    (tmp_path / "config.json").write_text('{"eval": {"num_panels": 0}}')
    (tmp_path / "splits.json").write_text('{"test": ["case001"]}')
    subject = test_score_cases.make_subject(fakes.two_discs(7, size=48))
    assert planted_faults.plant(subject, "test", tmp_path, tmp_path / name, *planted_faults.FAULTS[name])
    assert planted_faults.FAULTS[name][1] in capsys.readouterr().out
    assert (tmp_path / name / "index.html").is_file() and not (tmp_path / "report").exists()


def test_a_run_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match="config.json: no such file"):
        fakes.call(planted_faults.main, run=str(tmp_path), split=None, out=str(tmp_path))
