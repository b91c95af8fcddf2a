"""Warnings about lungs that no chest has."""

import numpy as np
import pytest

from auxseg.prediction import plausible


def draw():
    """Returns masks and HU: two lungs of 500 mL each with voxels of 1 mL, away from the first and last slice."""
    masks = np.zeros((12, 20, 30), np.uint8)
    masks[1:11, 5:10, 18:28] = 1
    masks[1:11, 5:10, 2:12] = 2
    return masks, np.full(masks.shape, -850, np.int16)


def codes(masks, volume, voxel_ml=1.0):
    return [finding.code for finding in plausible.check_lungs(masks, volume, voxel_ml)]


def test_ordinary_lungs_are_not_warned_of():
    assert codes(*draw()) == []


@pytest.mark.parametrize(("voxel_ml", "times"), [(0.1, 2), (20.0, 2)])
def test_volumes_that_no_lung_has(voxel_ml, times):
    assert codes(*draw(), voxel_ml) == ["volume"] * times


def test_lungs_too_unlike():
    masks, volume = draw()
    masks[1:11, 5:8, 2:12] = 0  # 200 mL left of 500
    found = plausible.check_lungs(masks, volume, 2.0)
    assert [finding.code for finding in found] == []  # 2.5 times is not yet too unlike
    masks[1:11, 5:9, 2:12] = 0
    assert "the left lung is 5.0 times as large as the right lung" in [
        finding.text for finding in plausible.check_lungs(masks, volume, 4.0)
    ]


def test_a_lung_that_reaches_the_last_slice():
    masks, volume = draw()
    masks[11] = masks[10]
    assert codes(masks, volume) == ["cut-off"]


def test_a_lung_in_pieces():
    masks, volume = draw()
    masks[5, 5:10, 18:28] = 0
    assert codes(masks, volume) == ["pieces"]
    masks[6:11, 5:10, 18:28] = 0
    masks[6, 5, 18] = 1  # half a percent counts for nothing
    assert "pieces" not in codes(masks, volume)


@pytest.mark.parametrize(("hu", "found"), [(-400, ["lung-hu"]), (-1024, ["lung-hu", "clipped"])])
def test_values_that_no_lung_has(hu, found):
    masks, volume = draw()
    assert codes(masks, np.full_like(volume, hu)) == found


def test_many_nodules():
    assert plausible.check_nodules(10) == []
    assert plausible.check_nodules(11)[0].text.startswith("11 nodules were marked")


def test_lung_outside_the_body():
    """Of 1,000 mL in the lungs 50 may lie outside; what is said then depends on whether it still does."""
    masks, _ = draw()
    assert plausible.check_outside(masks, 50.0, 1.0, left_out=True) == []
    (found,) = plausible.check_outside(masks, 51.0, 1.0, left_out=True)
    assert found.code == "outside" and found.text.startswith("51 mL") and "left out" in found.text
    (found,) = plausible.check_outside(masks, 51.0, 1.0, left_out=False)
    assert "stays" in found.text


def test_a_scan_that_was_sharpened_is_warned_of():
    assert plausible.check_sharpness(0.0) == []
    (finding,) = plausible.check_sharpness(1.26)
    assert finding.code == "soft-scan" and "its detail added 1.3 times" in finding.text


@pytest.mark.parametrize(("step_mm", "found"), [(1.0, []), (4.0, []), (5.0, ["thick-slices"])])
def test_thick_slices(step_mm, found):
    findings = plausible.check_thickness(step_mm)
    assert [finding.code for finding in findings] == found
    assert all("slices lie 5 mm apart" in finding.text for finding in findings)
