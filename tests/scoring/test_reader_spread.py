"""A network among the readers, with values by hand."""

import numpy as np
import pytest

from auxseg.base.errors import InputError
from auxseg.scoring import readers


def masks(*rows):
    return np.array(rows, bool)


THREE = masks([1, 1, 0, 0], [1, 1, 1, 0], [0, 1, 1, 0])


def test_everyone_against_the_others():
    pairs = readers.compare(THREE, masks([1, 1, 1, 1])[0])
    # Two others: one of the two is half, so their consensus is what either marks.
    np.testing.assert_allclose(pairs.reader, [2 * 2 / (2 + 3), 2 * 3 / (3 + 3), 2 * 2 / (2 + 3)])
    np.testing.assert_allclose(pairs.network, [6 / 7] * 3)
    np.testing.assert_allclose(pairs.network_to_reader, [4 / 6, 6 / 7, 4 / 6])
    assert pairs.between == pytest.approx((4 / 5 + 2 / 4 + 4 / 5) / 3)
    assert pairs.consensus == pytest.approx(6 / 7)  # at least two of three mark the first three pixels
    assert pairs.num_empty == 0


def test_four_readers_need_two_of_the_three_others():
    four = masks([1, 1, 0], [1, 0, 0], [1, 0, 1], [0, 0, 1])
    pairs = readers.compare(four, masks([1, 0, 0])[0])
    # Others of the first: 2, 1 and 0 + 2 votes -> the first and the last pixel.
    assert pairs.reader[0] == pytest.approx(2 * 1 / (2 + 2))
    assert pairs.network[0] == pytest.approx(2 * 1 / (1 + 2))


def test_a_reference_without_a_pixel_is_left_out():
    pairs = readers.compare(masks([1, 0], [0, 0]), masks([1, 1])[0])
    assert len(pairs.reader) == 1 and pairs.reader[0] == 0.0
    assert pairs.network[0] == pytest.approx(2 / 3)
    assert pairs.num_empty == 1
    nothing = readers.compare(masks([0, 0], [0, 0]), masks([1, 1])[0])
    assert nothing.num_empty == 2 and np.isnan(nothing.consensus) and np.isnan(nothing.between)


def test_the_mean_goes_by_patient():
    good, bad = masks([1, 1, 1, 0])[0], masks([0, 0, 0, 1])[0]
    cases = [readers.ReadCase("A", 5.0, THREE, good)] * 3 + [readers.ReadCase("B", 12.0, THREE, bad)]
    found = readers.judge(cases, num_resamples=200)
    reader = np.mean([4 / 5, 1, 4 / 5])
    assert found["all"]["difference"] == pytest.approx(((1 - reader) + (0 - reader)) / 2)
    assert found["all"]["nodules"] == 4 and found["all"]["patients"] == 2
    assert found["all"]["inside"] is False
    assert found["under 6 mm"]["network"] == pytest.approx(1.0)
    assert found["under 6 mm"]["interval"] is None and found["under 6 mm"]["inside"] is None
    assert found["10 mm and more"]["network"] == 0.0
    assert found["6 to 10 mm"]["reader"] is None


def test_inside_the_spread_by_the_margin():
    cases = [readers.ReadCase(f"P{i}", 5.0, THREE, THREE[0]) for i in range(5)]
    difference = np.mean([1.0 * 4 / 5 - 4 / 5, 4 / 5 - 1, 4 / 5 - 4 / 5])
    found = readers.judge(cases, margin=0.1)["all"]
    assert found["difference"] == pytest.approx(difference)
    np.testing.assert_allclose(found["interval"], [difference] * 2)
    assert found["inside"] is True
    assert readers.judge(cases, margin=0.05)["all"]["inside"] is False


def test_one_reader_is_too_few():
    with pytest.raises(InputError, match="at least two"):
        readers.compare(masks([1, 0]), masks([1, 0])[0])
    with pytest.raises(InputError, match="the same pixels"):
        readers.compare(THREE, masks([1, 0])[0])
