"""The decision of a run: stored, read again, common to several runs."""

import json

import pytest

from auxseg.base.errors import InputError
from auxseg.runs import decisions
from auxseg.scoring import operating_point


def test_stored_and_read_again(tmp_path):
    choice = operating_point.Decision(0.7, 4.0, 3.0)
    decisions.write_decision(tmp_path, choice, {"split": "val"})
    assert decisions.read_decision(tmp_path) == choice
    with pytest.raises(InputError, match="chosen without --flip; leave it out here too, .* --tune --flip"):
        decisions.read_decision(tmp_path, flip=True)
    decisions.write_decision(tmp_path, choice, {"split": "val"}, flip=True)
    assert decisions.read_decision(tmp_path, flip=True) == choice
    with pytest.raises(InputError, match="was chosen with --flip; give it here too, or choose again"):
        decisions.read_decision(tmp_path)
    (tmp_path / decisions.FILE).write_text(json.dumps({"decision": {"threshold": "high"}}), encoding="utf-8")
    with pytest.raises(InputError, match="nodules.json: cannot be read .* choose the threshold again"):
        decisions.read_decision(tmp_path)


def test_tuned_reads_what_the_runs_agree_on(tmp_path):
    for name, threshold in (("a", 0.7), ("b", 0.7), ("c", 0.9)):
        (tmp_path / name).mkdir()
        decisions.write_decision(tmp_path / name, operating_point.Decision(threshold, 4.0, 3.0), {})
    assert decisions.read_common_decision([tmp_path / "a", tmp_path / "b"]) == operating_point.Decision(
        0.7, 4.0, 3.0
    )
    with pytest.raises(InputError, match="--tuned: the runs have other nodule thresholds .*0.7 in .*0.9 in"):
        decisions.read_common_decision([tmp_path / "a", tmp_path / "c"])
    with pytest.raises(InputError, match="no such file; choose a threshold on the validation split first"):
        decisions.read_common_decision([tmp_path])
