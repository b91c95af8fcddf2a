"""What values of masks may mean: read, spread over the classes, and what is then known of each case."""

import dataclasses

import fakes
import numpy as np
import pytest

from auxseg.base.classes import CLASS_NAMES, UNKNOWN, knows
from auxseg.base.errors import InputError
from auxseg.datasets import crops, meanings

LUNGS_ONLY = ("background", "left_lung+nodule", "right_lung+nodule")
BOTH = ("background", "left_lung+right_lung+nodule")


def test_values_are_read_and_named():
    assert meanings.parse((), CLASS_NAMES) == tuple((name,) for name in CLASS_NAMES)
    values = meanings.parse(LUNGS_ONLY, CLASS_NAMES)
    assert values == (("background",), ("left_lung", "nodule"), ("right_lung", "nodule"))
    assert meanings.own_classes(values) == ("background", "left_lung", "right_lung")
    assert meanings.own_classes(meanings.parse(BOTH, CLASS_NAMES)) == ("background", "lung")
    of_crops = meanings.parse(crops.meanings_of(CLASS_NAMES), CLASS_NAMES)
    assert meanings.own_classes(of_crops) == crops.CLASSES
    assert crops.meanings_of(crops.CLASSES) == crops.CLASSES


@pytest.mark.parametrize(
    "texts",
    [
        ("background", "lung"),
        ("nodule", "background"),
        ("background", "nodule", "nodule+left_lung", "nodule"),
    ],
)
def test_what_cannot_be_meant_is_refused(texts):
    with pytest.raises(InputError, match="data.meanings: got .* value 0 starting with 'background'"):
        meanings.parse(texts, CLASS_NAMES)
    with pytest.raises(InputError, match="data.classes: .* crops tell nodule from the rest"):
        crops.meanings_of(("background", "lung"))


def test_which_classes_are_told_apart():
    told = [
        knows(meanings.meanings_of(meanings.parse(texts, CLASS_NAMES), CLASS_NAMES)).tolist()
        for texts in ((), LUNGS_ONLY, BOTH, crops.meanings_of(CLASS_NAMES), CLASS_NAMES[:3])
    ]
    assert told == [
        [True] * 4,
        [True, False, False, False],
        [True, False, False, False],
        [False, False, False, True],
        [True] * 4,  # a set that says it has no nodule knows them
    ]


def test_a_source_of_crops_is_spread_over_four_classes():
    masks = np.zeros((2, 2, 2), np.uint8)
    masks[0, 0, 0], masks[1, 1, 1] = 1, UNKNOWN
    source = fakes.dataset(np.zeros((2, 2, 2), np.int16), masks)
    table = dataclasses.replace(
        source.table, classes=crops.CLASSES, labels=np.array([[1, 1], [1, UNKNOWN]], np.uint8)
    )
    source = dataclasses.replace(source, table=table)
    values = meanings.parse(crops.meanings_of(CLASS_NAMES), CLASS_NAMES)
    found = meanings.spread(source, values, CLASS_NAMES)
    assert found.classes == CLASS_NAMES
    assert found.read(np.array([0, 1]))[1].tolist() == [[[3, 0], [0, 0]], [[0, 0], [0, UNKNOWN]]]
    assert found.read_native_mask(0)[0, 0] == 3
    # Background, left and right may each be there; the nodule is, and where a pixel is unknown it may be.
    assert found.table.labels.tolist() == [[255, 255, 255, 1], [255, 255, 255, 255]]
    assert found.table.has_nodule.tolist() == [True, False]
    assert found.table.knows.tolist() == [[False, False, False, True]] * 2
    assert found.table.digest() != source.table.digest()
    assert meanings.spread(source, tuple((n,) for n in crops.CLASSES), crops.CLASSES) is source
