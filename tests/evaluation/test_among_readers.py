"""A run judged by several readers: who is compared with whom, the scores by hand, and the page."""

import numpy as np
import pytest

from auxseg.datasets.dataset import Outline
from auxseg.evaluation import among_readers
from auxseg.report import outlines

SIZE = 40


def square(row, column, side):
    mask = np.zeros((SIZE, SIZE), bool)
    mask[row : row + side, column : column + side] = True
    return mask


def make_slice(nodule, place, readers, marked, *, diameter_mm=5.0, ratings=None, patient="A"):
    outline = Outline(nodule, place, diameter_mm, np.stack(readers), ratings or {})
    return among_readers.Seen(patient, outline, marked, np.full((SIZE, SIZE), -800, np.int16))


NOTHING = square(0, 0, 0)
SMALL, LARGE = square(10, 10, 2), square(10, 10, 4)


def test_the_largest_slice_and_all_slices_by_hand():
    seen = [
        make_slice("A/0", 1, [LARGE] * 3, LARGE),
        make_slice("A/0", 0, [SMALL] * 3, NOTHING),
    ]
    scores = among_readers.judge(seen)
    assert scores["largest slice"]["all"]["consensus"] == 1.0
    assert scores["all slices"]["all"]["consensus"] == pytest.approx(2 * 16 / (16 + 20))
    assert scores["all slices"]["all"]["found"] == 1.0
    assert [each.outline.place for each in among_readers.by_nodule(seen)["A/0"]] == [0, 1]


def test_found_means_a_tenth_of_the_union():
    just, less = square(10, 10, 1), NOTHING.copy()
    just[20:22, 20:24] = just[11, 10] = True  # 2 of 16 common, 10 marked: 2 / 24
    less[10, 10:13] = True  # 3 of 16
    for marked, found in ((just, 0.0), (less, 1.0)):
        scores = among_readers.judge([make_slice("A/0", 0, [LARGE] * 2, marked)])
        assert scores["largest slice"]["all"]["found"] == found


def test_ratings_are_strata_of_their_own():
    glass, solid = {"texture": 1.0, "malignancy": np.nan}, {"texture": 5.0, "malignancy": 4.0}
    scores = among_readers.judge(
        [
            make_slice("A/0", 0, [LARGE] * 2, LARGE, ratings=glass),
            make_slice("B/0", 0, [LARGE] * 2, NOTHING, ratings=solid, patient="B"),
        ]
    )["largest slice"]
    assert scores["texture: ground glass"]["consensus"] == 1.0
    assert scores["texture: solid"]["consensus"] == 0.0
    assert scores["malignancy: suspicious"]["nodules"] == 1
    assert not any(name.startswith("subtlety") or "part solid" in name for name in scores)


def test_the_page_shows_every_nodule_the_worst_first():
    seen = [
        make_slice("A/0", 0, [LARGE, SMALL], LARGE),
        make_slice("B/0", 0, [LARGE, LARGE], SMALL, patient="B"),
    ]
    scores = among_readers.judge(seen)
    tiles = [among_readers.to_tile([each]) for each in seen]
    page = outlines.create_page(tiles, scores["largest slice"], split="test", window_hu=(-1000.0, 400.0))
    assert page.index("B/0; 5.0 mm; network 0.400") < page.index("A/0; 5.0 mm; network 1.000")
    assert page.count("<svg") == 2 and page.count("<path") == 6  # two readers and the network each
    assert "2 of 2" in page and "reader 2" in page and "reader 3" not in page


def test_the_window_holds_all_marks_within_the_slice():
    tile = among_readers.to_tile([make_slice("A/0", 0, [square(0, 36, 3)] * 2, square(2, 38, 2))])
    rows, columns = outlines.find_window(tile)
    assert rows.start == 0 and columns.stop == SIZE
    assert rows.stop - rows.start == columns.stop - columns.start == 4 + 2 * outlines.MARGIN_PX


def test_words_on_the_place_among_readers():
    seen = [make_slice(f"{i}/0", 0, [LARGE, LARGE], LARGE, patient=str(i)) for i in range(3)]
    assert "+0.000 [0.000, 0.000], which is inside their spread" in among_readers.describe(
        among_readers.judge(seen)
    )
    assert "too few patients" in among_readers.describe(among_readers.judge(seen[:1]))
    assert among_readers.describe(among_readers.judge([])) == "no nodule in this split"
