"""Growing and shrinking by boxes is what SciPy's binary operators give, at the borders too."""

import numpy as np
import pytest
from scipy import ndimage

from auxseg.prediction import morphology


@pytest.mark.parametrize("reach", [(1, 1, 1), (0, 1, 1), (2, 2, 2), (0, 0, 0), (0, 3, 1)])
def test_as_scipy_by_a_box(reach):
    cells = np.random.default_rng(0).random((7, 12, 9)) > 0.3
    box = np.ones([2 * r + 1 for r in reach], bool)
    np.testing.assert_array_equal(morphology.grow(~cells, reach), ndimage.binary_dilation(~cells, box))
    np.testing.assert_array_equal(morphology.shrink(cells, reach), ndimage.binary_erosion(cells, box))
    assert morphology.grow(cells, reach).dtype == bool


def test_by_hand():
    line = np.array([0, 0, 1, 0, 0, 0, 1, 1, 1], bool)
    np.testing.assert_array_equal(morphology.grow(line, (1,)), np.array([0, 1, 1, 1, 0, 1, 1, 1, 1], bool))
    np.testing.assert_array_equal(morphology.shrink(line, (1,)), np.array([0, 0, 0, 0, 0, 0, 0, 1, 0], bool))
