"""The clocks around the stages of a prediction: each function is there, is timed while it is asked for, and put back."""

import numpy as np
import SimpleITK as sitk

from auxseg.ct import find, scans
from experiments.speed import stages


def test_every_stage_has_a_clock_and_its_function_back(tmp_path):
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((3, 8, 8), np.int16)), str(tmp_path / "scan.mha"))
    (source,) = find.survey(tmp_path / "scan.mha").sources
    before = [getattr(owner, name) for _, owner, name in stages.STAGES] + [scans.open_scan]
    with stages.measured() as clocks:
        scan = scans.open_scan(source, tmp_path, force=True)
        scan.read(0, 2)
        scan.read(2, 3)
    assert [getattr(owner, name) for _, owner, name in stages.STAGES] + [scans.open_scan] == before
    calls = {row["stage"]: row["calls"] for row in stages.to_rows(clocks)}
    assert calls[stages.OPENING] == 1 and calls[stages.READING] == 2
    assert set(calls) == {stage for stage, _, _ in stages.STAGES} | {
        stages.OPENING,
        stages.READING,
        stages.ALL_SLICES,
    }
