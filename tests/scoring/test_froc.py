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
    found = froc.match([[101, 0, 0, 0.9], [204, 0, 0, 0.8], [205.2, 0, 0, 0.6]], NODULE, excluded)
    assert np.isnan(found.hits).all()
    assert found.false.tolist() == [0.6]


def test_a_small_diameter_is_no_unknown_one():
    found = froc.match([[2.0, 0, 0, 0.9], [0.3, 0, 0, 0.5]], [[0.0, 0, 0, 0.8]])
    assert found.hits.tolist() == [0.5] and found.false.tolist() == [0.9]


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


def test_the_rates_are_those_of_the_challenge():
    assert froc.FALSE_PER_SCAN == (1 / 8, 1 / 4, 1 / 2, 1, 2, 4, 8)


def test_sensitivity_is_interpolated_and_ends_flat():
    values = dict(zip(froc.FALSE_PER_SCAN, froc.sensitivities(two_scans()), strict=True))
    assert values[1.0] == pytest.approx(1 / 3)
    assert values[0.125] == pytest.approx(1 / 3)
    assert values[8.0] == pytest.approx(2 / 3)


def test_a_handful_is_counted():
    found = froc.summarise(two_scans())
    assert (found["num_scans"], found["num_nodules"], found["num_found"], found["num_false"]) == (2, 3, 2, 3)
    # Of the false ones at 0.8, 0.6, 0.4 one may stay at 0.5 a scan, two at 1 and all at 2 and more.
    counts = {"0.125": 1, "0.25": 1, "0.5": 1, "1": 1, "2": 2, "4": 2, "8": 2}
    assert (
        found["found_at"] == counts and found["cpm"] is found["sensitivity"] is found["cpm_interval"] is None
    )


def test_rates_and_their_intervals():
    """Five times the same two scans: the curve is theirs, and the intervals hold its values."""
    found = froc.summarise(two_scans() * 5, num_resamples=50)
    assert found["cpm"] == pytest.approx((4 * (1 / 3) + 3 * (2 / 3)) / 7)
    assert found["sensitivity"]["8"] == pytest.approx(2 / 3)
    low, high = found["cpm_interval"]
    assert low < found["cpm"] < high
    low, high = found["sensitivity_interval"]["8"]
    assert 0.5 < low < 2 / 3 < high <= 1.0
    assert froc.summarise(two_scans() * 4)["cpm"] is None  # 8 scans


def test_interval_leaves_out_two_and_a_half_percent_at_each_end():
    # Ten scans of a nodule each, 7 missed: all ten drawn are misses in 0.7 ** 10 = 2.8 % of the resamples, which is
    # more than 2.5 % and less than 3.5 %. So the lower end is 0; with 7 found the upper end is 1.
    found, missed = froc.Matches(np.array([0.9]), np.zeros(0)), froc.Matches(np.array([np.nan]), np.zeros(0))
    low, high = froc.summarise([found] * 3 + [missed] * 7, num_resamples=4000)["cpm_interval"]
    assert low == 0.0 and 0.5 <= high <= 0.7
    low, high = froc.summarise([found] * 7 + [missed] * 3, num_resamples=4000)["cpm_interval"]
    assert high == 1.0 and 0.3 <= low <= 0.5


def test_scans_without_a_nodule_have_no_sensitivity():
    found = froc.summarise([froc.match([[0, 0, 0, 0.5]], [])] * 20)
    assert found["cpm"] is None and found["found_at"]["8"] == 0
    assert found["num_false"] == 20


def official(findings, nodules, excluded):
    """LUNA16's rule in its own steps: a list of (is nodule, probability) over all scans, then thresholds one by one.

    A nodule that nothing hits has the probability -1; a finding that hits one is used up, and so is one in an excluded
    finding.
    """
    marks, missed = [], 0
    for found, known, left_out in zip(findings, nodules, excluded):
        rest = dict(enumerate(sorted(found, key=lambda row: -row[3])[:100]))
        used = set()
        for x, y, z, diameter in known:
            near = [k for k, (a, b, c, _) in rest.items()
                    if (a - x) ** 2 + (b - y) ** 2 + (c - z) ** 2 < (diameter / 2) ** 2]  # fmt: skip
            used |= set(near)
            marks.append((True, max((rest[k][3] for k in near), default=-1.0)))
            missed += not near
        for k, (a, b, c, probability) in rest.items():
            near = any((a - x) ** 2 + (b - y) ** 2 + (c - z) ** 2 < ((diameter if diameter >= 0 else 10) / 2) ** 2
                       for x, y, z, diameter in left_out)  # fmt: skip
            if k not in used and not near:
                marks.append((False, probability))
    points = [(0.0, 0.0)]
    for threshold in sorted({probability for _, probability in marks if probability >= 0}, reverse=True):
        above = [is_nodule for is_nodule, probability in marks if probability >= threshold]
        total = sum(is_nodule for is_nodule, _ in marks)
        points.append(((len(above) - sum(above)) / len(findings), sum(above) / total))
    false, sensitivity = np.array(points).T
    return np.interp([0.125, 0.25, 0.5, 1, 2, 4, 8], false, sensitivity)


def test_the_scores_are_those_of_the_official_steps():
    generator = np.random.default_rng(5)
    for _ in range(5):
        parts = []
        for _ in range(12):
            nodules = np.column_stack([generator.uniform(0, 60, (3, 3)), generator.uniform(4, 30, 3)])
            excluded = np.column_stack([generator.uniform(0, 60, (2, 3)), [6.0, -1.0]])
            near = nodules[:, :3] + generator.normal(0, 4, (3, 3))
            places = np.concatenate([near, near + 1, generator.uniform(0, 60, (8, 3))])
            findings = np.column_stack([places, np.round(generator.random(len(places)), 2)])
            parts.append((findings, nodules, excluded))
        scans = [froc.match(*part) for part in parts]
        np.testing.assert_allclose(froc.sensitivities(scans), official(*zip(*parts)))


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


def test_candidates_without_a_probability_are_not_written(tmp_path):
    with pytest.raises(ValueError, match="shorter"):
        froc.write_candidates(tmp_path / "found.csv", {"1.2": np.array([[1.5, -2.25, 3.0]])})


def test_an_annotation_that_is_there_twice_counts_once(tmp_path):
    lines = ["seriesuid,coordX,coordY,coordZ,diameter_mm", "1.2,1,2,3,4", "1.2,1,2,3,5", "1.2,1,2,3,4"]
    (tmp_path / "annotations.csv").write_text("\n".join(lines))
    assert froc.read_annotations(tmp_path / "annotations.csv")["1.2"].tolist() == [[1, 2, 3, 4], [1, 2, 3, 5]]


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
