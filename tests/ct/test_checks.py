"""Tests of the border: what is no CT in HU, or no chest, is named in one line; real chests pass."""

import chest
import numpy as np
import pytest

from auxseg.base.errors import InputError
from auxseg.ct import checks
from auxseg.ct.images import read_geometry, read_volume

SPACING = (6.0, 6.0)


def _codes(images, **kwargs):
    findings = checks.check_scan(np.asarray(images), spacing_yx_mm=SPACING, **kwargs)
    assert all("\n" not in finding.text for finding in findings)
    return [finding.code for finding in findings]


def test_a_chest_passes():
    assert _codes(chest.draw()) == []


def test_values_that_are_no_hu():
    volume = chest.draw().astype(np.int32)
    window = np.clip((volume + 160) * 255 // 400, 0, 255)
    assert _codes(window) == ["8-bit"]
    assert _codes(np.digitize(volume, (-900, -500, 0, 200)) % 5 + 3) == ["label-map"]
    assert _codes(volume, native_dtype="uint8") == ["8-bit"]
    assert _codes(np.clip(volume, -160, 240)) == ["windowed"]
    assert _codes(volume + 1024) == ["no-intercept"]
    assert _codes((volume > -500) * 1) == ["normalised"]
    assert _codes(np.full((2, 20, 20), 7)) == ["constant"]
    assert _codes(np.random.default_rng(0).normal(300, 100, (2, 40, 40)).astype(int)) == ["no-air"]


def test_a_window_that_cuts_bone_is_a_warning():
    volume = np.clip(chest.draw(), -1024, 100)
    findings = checks.check_scan(volume, spacing_yx_mm=SPACING)
    assert [(f.code, f.severity) for f in findings][:1] == [("clipped", "warning")]


def test_other_parts_of_the_body():
    volume = chest.draw()
    no_lungs = np.where((volume < -700) & (volume > -920), 30, volume)
    assert _codes(no_lungs) == ["not-a-chest"]
    assert "not-a-chest" in _codes(np.where(volume > -500, -1000, volume))


def test_one_slice_with_lungs_is_enough():
    volume = chest.draw((40, 48, 56))
    assert _codes(volume[[0, 0, 0, 20]]) == []
    assert _codes(volume[[0, 39]]) == ["not-a-chest"]


def test_back_to_front():
    assert _codes(chest.draw()[:, ::-1]) == ["front-back"]


def test_a_wrong_spacing_is_noticed():
    findings = checks.check_scan(chest.draw(), spacing_yx_mm=(2.5, 2.5))
    assert [(finding.code, finding.severity) for finding in findings] == [("body-size", "warning")]


@pytest.mark.parametrize("factor", [1e-3, 1e-1, 1e3])
def test_a_spacing_in_another_unit_is_an_error(factor):
    findings = checks.check_scan(chest.draw(), spacing_yx_mm=(6.0 * factor, 6.0 * factor))
    assert [(finding.code, finding.severity) for finding in findings] == [("spacing", "error")]


def test_anatomy_by_hand():
    image = np.full((60, 100), -1000, np.int16)
    image[5:55, 10:90] = 0
    image[10:40, 15:35] = -800  # the patient's right
    image[10:40, 60:85] = -800
    image[45:50, 45:55] = 800
    view = checks.measure_anatomy(image, (3.0, 3.0))
    assert view.body_mm2 == 50 * 80 * 9
    assert view.lung_mm2 == (30 * 20 + 30 * 25) * 9
    assert view.left_mm2 == 30 * 25 * 9
    assert view.bone_offset_mm == pytest.approx((47 - 29.5) * 3)


def test_the_first_error_is_raised_with_its_place():
    findings = [checks.Finding("warning", "a", "one"), checks.Finding("error", "b", "two")]
    with pytest.raises(InputError, match=r"two \(in there\)"):
        checks.raise_errors(findings, "there")
    checks.raise_errors(findings[:1], "there")


@pytest.mark.parametrize("count", [1, 2, 15, 16, 17, 300])
def test_slices_looked_at_hold_the_middle(count):
    chosen = checks.pick_slices(count, 16)
    assert count // 2 in chosen and len(chosen) <= 17 and chosen.max() < count


def test_every_real_slice_passes(real_data):
    """120 middle slices of LUNA16; the one that lies prone is noticed, none is refused."""
    warned = []
    for path in sorted((real_data / "luna16_middle").glob("*.npz")):
        with np.load(path) as arrays:
            image, mask = arrays["image"], arrays["mask"]
        findings = checks.check_scan(image[None], spacing_yx_mm=None)
        assert not [f for f in findings if f.severity == "error"], (path, findings)
        warned += [path.stem for _ in findings]
        view = checks.measure_anatomy(image, (0.68, 0.68))
        share = (mask == 1).sum() / np.isin(mask, (1, 2)).sum()
        assert abs(view.left_mm2 / view.lung_mm2 - share) < 0.1, path
    assert len(warned) <= 2


def test_real_scans_pass_and_their_masks_do_not(real_data):
    for name, codes in (("ct-64", []), ("crop_ct_2slices", []), ("crop_ct_2slices_lm", ["label-map"])):
        path = real_data / "cip" / f"{name}.nrrd"
        volume, geometry = read_volume(path), read_geometry(path)
        chosen = volume[checks.pick_slices(len(volume), 16)]
        findings = checks.check_scan(chosen, spacing_yx_mm=geometry.spacing_zyx_mm[1:])
        assert [finding.code for finding in findings] == codes
