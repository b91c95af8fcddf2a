"""Nodules of a whole scan in two looks, with networks made by hand."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from auxseg.base.errors import InputError
from auxseg.models.aux_unet import AuxUNet
from auxseg.prediction import nodule_look, nodules, sharpness

SPACING = (2.0, 1.0, 1.0)
POINTS = np.array([[0.5, 0.7], [1.0, 0.6], [2.0, 0.4]])


def networks(above=0.4):
    """The look marks what is bright; the probability is that of a candidate's mean brightness."""
    return nodules.Networks(
        lambda images: images[..., 0], above, (1.0, 0.0, 0.0, 0.0), POINTS, sharpness.NEVER, {}
    )


def scan():
    volume = np.full((10, 90, 80), -1000, np.int16)
    lungs = np.zeros(volume.shape, np.uint8)
    lungs[1:9, 20:70, 10:60] = 1
    volume[3:6, 30:36, 20:26] = 0  # brightness and probability 0.71
    volume[6:8, 50:56, 40:46] = -260  # 0.53
    volume[:, 80:85] = 200  # bright, and outside the lungs
    return volume, lungs


def test_candidates_come_in_order_and_by_the_operating_point():
    volume, lungs = scan()
    found = nodules.find_nodules(volume, lungs, SPACING, networks(), false_per_scan=1.0)
    assert found.least_probability == pytest.approx(0.6)
    assert [c["kept"] for c in found.candidates] == [True, False]
    expected = [1000 / 1400, 740 / 1400]
    np.testing.assert_allclose([c["probability"] for c in found.candidates], expected, atol=2e-3)
    assert found.candidates[0]["centre_zyx"] == pytest.approx((4.0, 32.5, 22.5))
    assert found.candidates[0]["volume_mm3"] == 3 * 6 * 6 * 2.0
    mask = np.zeros(volume.shape, np.uint8)
    mask[3:6, 30:36, 20:26] = 1
    np.testing.assert_array_equal(found.mask, mask)


def test_more_false_ones_allowed_keep_more():
    volume, lungs = scan()
    found = nodules.find_nodules(volume, lungs, SPACING, networks(), false_per_scan=2.0)
    assert np.unique(found.mask).tolist() == [0, 1, 2]
    assert (found.mask[6:8, 50:56, 40:46] == 2).all()
    strict = nodules.find_nodules(volume, lungs, SPACING, networks(), false_per_scan=0.5)
    assert strict.mask.max() == 1


def test_rates_between_operating_points():
    between = nodules.least_probability(networks(), np.sqrt(2.0))
    assert between == pytest.approx(0.5)
    assert nodules.least_probability(networks(), 0.01) == 0.7
    assert nodules.least_probability(networks(), 100.0) == 0.4
    for wrong in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(InputError, match="false_per_scan"):
            nodules.least_probability(networks(), wrong)


def test_without_lungs_nothing_is_found():
    volume, lungs = scan()
    found = nodules.find_nodules(volume, np.zeros_like(lungs), SPACING, networks())
    assert found.candidates == [] and not found.mask.any()


def test_other_shapes_are_refused():
    volume, lungs = scan()
    with pytest.raises(InputError, match="expected one shape"):
        nodules.find_nodules(volume, lungs[1:], SPACING, networks())


def test_a_soft_scan_is_sharpened_for_the_look_alone():
    """The look sees the contrast of a small thing in a soft scan raised; what is measured of it is the scan's own."""
    volume, lungs = scan()
    volume[:] = volume + np.random.default_rng(0).normal(0.0, 3.0, volume.shape).astype(np.int16)
    plain = nodules.find_nodules(volume, lungs, SPACING, networks(), false_per_scan=2.0)
    wanted = dataclasses.replace(networks(), known=sharpness.Known(3.0, 4.0))
    sharp = nodules.find_nodules(volume, lungs, SPACING, wanted, false_per_scan=2.0)
    assert plain.sharpened == 0.0 and 0.9 < sharp.sharpened < 1.2
    assert sharp.candidates[1]["highest"] > plain.candidates[1]["highest"] + 0.1
    assert sharp.candidates[0]["mean_hu"] == pytest.approx(plain.candidates[0]["mean_hu"], abs=1.0)


def test_probability_by_hand():
    measures = [{"mean": 0.75, "sum": np.e, "short_axis": np.exp(-2.0)}]
    found = nodules.probability(measures, (2.0, 0.5, 0.25, -1.0))
    assert found[0] == pytest.approx(1 / (1 + np.exp(-(2.0 * np.log(3.0) + 0.5 - 0.5 - 1.0))))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("nodules")
    look = {"base_width": 2, "depth": 1}
    settings = nodule_look.network_settings("plain", **look)
    nodules.write_weights(
        path / "look.npz", AuxUNet(settings).init(jax.random.key(0), np.zeros((1, 16, 16, 1)))
    )
    about = {
        "look": look,
        "above": 0.5,
        "weights": [1.0, 0.0, 0.0, 0.0],
        "operating_points": POINTS.tolist(),
        "sharpness": {"soft_hu": 14.0, "usual_hu": 25.0},
    }
    (path / "about.json").write_text(json.dumps(about))
    return path


def test_networks_come_from_their_folder(folder):
    loaded = nodules.load_networks(folder)
    assert loaded.forward(np.zeros((2, 32, 32, 1), np.float32)).shape == (2, 32, 32)
    volume, lungs = scan()
    assert nodules.find_nodules(volume, lungs, SPACING, loaded).mask.shape == volume.shape


def test_damaged_folders_are_named(folder, tmp_path):
    with pytest.raises(InputError, match="no such file"):
        nodules.load_networks(tmp_path)
    (tmp_path / "about.json").write_text('{"look": {}}')
    with pytest.raises(InputError, match="lacks above, weights, operating_points, sharpness"):
        nodules.load_networks(tmp_path)
    about = json.loads((folder / "about.json").read_text())
    (tmp_path / "about.json").write_text(json.dumps(about | {"sharpness": {"soft_hu": 1.0}}))
    with pytest.raises(InputError, match="lacks sharpness with soft_hu and usual_hu"):
        nodules.load_networks(tmp_path)
    (tmp_path / "about.json").write_text(json.dumps(about))
    (tmp_path / "look.npz").write_bytes(b"no archive")
    with pytest.raises(InputError, match="cannot be read"):
        nodules.load_networks(tmp_path)
