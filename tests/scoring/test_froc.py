"""Free-response scores by LUNA16's rule, with values by hand."""

import numpy as np
import pytest

from auxseg.base.errors import InputError
from auxseg.scoring import froc

NODULE = [[0.0, 0.0, 0.0, 10.0]]  # radius 5


def test_hit_lies_within_the_radius():
    found = froc.match([[4.9, 0, 0, 0.7], [5.0, 0, 0, 0.9]], NODULE)
    assert found.hits.tolist() == [0.7]
    assert found.false.tolist() == [0.9]  # on the sphere is outside, as in LUNA16's script


def test_double_hits_count_once_and_take_the_highest_probability():
    found = froc.match([[1, 0, 0, 0.3], [0, 2, 0, 0.8], [0, 0, 3, 0.5]], NODULE)
    assert found.hits.tolist() == [0.8]
    assert found.false.size == 0


def test_excluded_findings_count_nothing():
    excluded = [[100.0, 0, 0, 4.0], [200.0, 0, 0, -1.0]]  # a negative diameter means 10 mm
    found = froc.match([[101, 0, 0, 0.9], [204, 0, 0, 0.8], [206, 0, 0, 0.6]], NODULE, excluded)
    assert np.isnan(found.hits).all()
    assert found.false.tolist() == [0.6]


def test_one_finding_may_hit_two_nodules():
    found = froc.match([[0, 0, 0, 0.4]], [[1.0, 0, 0, 6.0], [-1.0, 0, 0, 6.0]])
    assert found.hits.tolist() == [0.4, 0.4]


def test_only_the_100_most_probable_are_judged():
    findings = [[50.0 + i, 0, 0, 0.5] for i in range(100)] + [[0, 0, 0, 0.4]]
    found = froc.match(findings, NODULE)
    assert np.isnan(found.hits[0])
    assert len(found.false) == 100


def two_scans():
    # Nodules found at 0.9 and 0.4, one missed; false ones at 0.8, 0.6 and 0.4.
    first = froc.Matches(np.array([0.9, np.nan]), np.array([0.8, 0.4]))
    second = froc.Matches(np.array([0.4]), np.array([0.6]))
    return [first, second]


def test_curve_by_hand():
    false, sensitivity = froc.curve(two_scans())
    np.testing.assert_allclose(false, [0, 0, 0.5, 1.0, 1.5])
    np.testing.assert_allclose(sensitivity, [0, 1 / 3, 1 / 3, 1 / 3, 2 / 3])


def test_sensitivity_is_interpolated_and_ends_flat():
    values = dict(zip(froc.FALSE_PER_SCAN, froc.sensitivities(two_scans()), strict=True))
    assert values[1.0] == pytest.approx(1 / 3)
    assert values[0.125] == pytest.approx(1 / 3)
    assert values[8.0] == pytest.approx(2 / 3)


def test_summary_counts_and_interval():
    found = froc.summarise(two_scans(), num_resamples=50)
    assert (found["num_scans"], found["num_nodules"], found["num_found"], found["num_false"]) == (2, 3, 2, 3)
    assert found["cpm"] == pytest.approx((4 * (1 / 3) + 3 * (2 / 3)) / 7)
    low, high = found["cpm_interval"]
    assert low <= found["cpm"] <= high
    assert froc.summarise(two_scans()[:1])["cpm_interval"] is None


def test_interval_leaves_out_two_and_a_half_percent_at_each_end():
    # Ten scans of a nodule each, 7 missed: all ten drawn are misses in 0.7 ** 10 = 2.8 % of the resamples, which is
    # more than 2.5 % and less than 3.5 %. So the lower end is 0; with 7 found the upper end is 1.
    found, missed = froc.Matches(np.array([0.9]), np.zeros(0)), froc.Matches(np.array([np.nan]), np.zeros(0))
    low, high = froc.summarise([found] * 3 + [missed] * 7, num_resamples=4000)["cpm_interval"]
    assert low == 0.0 and 0.5 <= high <= 0.7
    low, high = froc.summarise([found] * 7 + [missed] * 3, num_resamples=4000)["cpm_interval"]
    assert high == 1.0 and 0.3 <= low <= 0.5


def test_scans_without_a_nodule_have_no_sensitivity():
    found = froc.summarise([froc.match([[0, 0, 0, 0.5]], [])] * 2)
    assert found["cpm"] is None and found["cpm_interval"] is None
    assert found["num_false"] == 2


def test_threshold_for_a_rate_of_false_ones():
    scans = two_scans()
    for rate, expected in ((0.5, 1), (1.0, 2), (0.4, 0), (5.0, 3)):
        threshold = froc.choose_threshold(scans, rate)
        assert sum((scan.false >= threshold).sum() for scan in scans) == expected


def test_no_scan_is_refused():
    with pytest.raises(InputError, match="no scan"):
        froc.curve([])


def test_candidates_come_back_from_their_file(tmp_path):
    findings = {"1.2": np.array([[1.5, -2.25, 3.0, 0.125]]), "1.1": np.array([[0.1, 0.2, 0.3, 0.9]])}
    froc.write_candidates(tmp_path / "found.csv", findings)
    assert (tmp_path / "found.csv").read_text().splitlines()[
        0
    ] == "seriesuid,coordX,coordY,coordZ,probability"
    back = froc.read_candidates(tmp_path / "found.csv")
    assert {uid: rows.tolist() for uid, rows in back.items()} == {k: v.tolist() for k, v in findings.items()}


def test_wrong_files_are_named(tmp_path):
    path = tmp_path / "annotations.csv"
    with pytest.raises(InputError, match="cannot be read"):
        froc.read_annotations(path)
    path.write_text("seriesuid,coordX,coordY,coordZ\n")
    with pytest.raises(InputError, match="diameter_mm"):
        froc.read_annotations(path)
    path.write_text("seriesuid,coordX,coordY,coordZ,diameter_mm\n1,2,3,4,nan\n")
    with pytest.raises(InputError, match="not finite"):
        froc.read_annotations(path)
    path.write_text("seriesuid,coordX,coordY,coordZ,diameter_mm\n1,2,3\n")
    with pytest.raises(InputError, match="line 2: got another number of cells"):
        froc.read_annotations(path)
