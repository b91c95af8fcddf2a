"""What the phantom's slices show: partial volume, bowel gas, disease that is lung, a lung that is missing, vessels."""

import dataclasses
import types

import numpy as np
import pytest
from scipy import ndimage

from auxseg.datasets.phantom import anatomy, drawing, grain, paint, scanner, surfaces, surroundings, tubes
from auxseg.datasets.phantom.render import create_canvas, render_slice

_SETTINGS = {
    "num_scans": 4,
    "num_slices": 60,
    "matrix": 128,
    "noise_hu": 0.0,
    "blur_mm": 0.0,
    "prone_fraction": 0.0,
    "seed": 5,
}
_SEEN_BY = scanner.Scanner(0.0, 0.0, 0.0, np.zeros((0, 6)), -2000.0)


def _settings(**changes):
    return drawing.create_settings(types.SimpleNamespace(**{**_SETTINGS, **changes}))


def _canvas(thickness_mm, *, size=9, pixel_mm=1.0):
    """Returns a canvas of air, with the origin in its middle pixel."""
    axis = (np.arange(size) - size // 2) * pixel_mm
    places = surfaces.create_places(axis[None], axis[:, None])
    air = np.full((size, size), -1000.0, np.float32)
    return paint.Canvas(places, pixel_mm, thickness_mm, (air, air), air, None, _SEEN_BY)


def _tube(start, end, radius_mm):
    return tubes.from_rows([(np.array(start, float), np.array(end, float), radius_mm, radius_mm)])


@pytest.fixture(scope="module")
def scan():
    """Returns one scan, its slices seen without noise and blur."""
    found = drawing.create_scan(_settings(), 0)
    healthy = dataclasses.replace(found.scene.patient, fluid_mm=(anatomy.NO_FLUID_MM,) * 2)
    disease = dataclasses.replace(found.scene.disease, patches=np.zeros((0, 8)), collapse=None)
    scene = dataclasses.replace(found.scene, patient=healthy, disease=disease, nodules=())
    return dataclasses.replace(found, scene=scene)


def _slice(scan, height, *, thickness_mm=1.0, scene=None):
    """Returns HU and mask of the slice at a relative height."""
    scene = scan.scene if scene is None else scene
    seen = {"thickness_mm": thickness_mm, "field_mm": None, "seen_by": _SEEN_BY}
    canvas = create_canvas(scene, scan.x_mm, scan.y_mm, **seen)
    return render_slice(scene, canvas, height * scene.patient.height_mm, None)


@pytest.mark.parametrize(("thickness_mm", "share"), [(1.0, 1.0), (2.0, 1.0), (4.0, 0.5), (8.0, 0.25)])
def test_a_tube_in_the_plane_fills_its_share_of_the_thickness(thickness_mm, share):
    """A tube of 2 mm that lies in the plane fills 2 mm of the slice."""
    tissue = np.full((9, 9), -900.0, np.float32)
    tubes.stamp(tissue, _canvas(thickness_mm), _tube((-9, 0, 0), (9, 0, 0), 1.0), 0.0, -900.0, 100.0)
    assert tissue[4, 4] == pytest.approx(-900.0 + 1000.0 * share, abs=1.0)
    assert tissue[0, 4] == -900.0


def test_a_tube_across_the_slice_fills_all_of_it():
    tissue = np.full((9, 9), -900.0, np.float32)
    tubes.stamp(tissue, _canvas(8.0), _tube((0, 0, -20), (0, 0, 20), 1.5), 0.0, -900.0, 100.0)
    assert tissue[4, 4] == pytest.approx(100.0)
    assert tissue[4, 7] == tissue[7, 4] == -900.0


def test_a_slanting_tube_is_smeared_along_its_way():
    """A tube at 45 degrees passes through 4 mm of height over 4 mm of the plane."""
    tissue = np.full((17, 17), -900.0, np.float32)
    tubes.stamp(tissue, _canvas(4.0, size=17), _tube((-20, 0, -20), (20, 0, 20), 1.0), 0.0, -900.0, 100.0)
    seen = np.flatnonzero(tissue[8] > -800.0) - 8
    assert seen.min() == -seen.max() and 2 <= seen.max() <= 3
    assert np.all(tissue[4] == -900.0)


def test_a_tube_beyond_the_slice_is_not_seen():
    tissue = np.full((9, 9), -900.0, np.float32)
    tubes.stamp(tissue, _canvas(2.0), _tube((-9, 0, 2.5), (9, 0, 2.5), 1.0), 0.0, -900.0, 100.0)
    assert np.all(tissue == -900.0)


def test_bodies_shrink_towards_their_ends_and_are_smeared_there():
    """A sphere of 10 mm at 6 mm from its middle is cut at 8 mm; over 2 mm of thickness from 8.66 to 7.14 mm."""
    sphere = np.array([(1.0, 2.0, 10.0, 10.0, 50.0, 10.0, 2.0)])
    ellipses, smear, which = surfaces.ellipses_at(sphere, 56.0, 0.0)
    np.testing.assert_allclose(ellipses, [(1.0, 2.0, 8.0, 8.0)])
    assert smear.tolist() == [0.0] and which.tolist() == [0]
    ellipses, smear, _ = surfaces.ellipses_at(sphere, 56.0, 2.0)
    low, high = np.sqrt(100.0 - 25.0), np.sqrt(100.0 - 49.0)
    np.testing.assert_allclose(ellipses[0, 2:], 0.5 * (low + high))
    np.testing.assert_allclose(smear, low - high)
    assert len(surfaces.ellipses_at(sphere, 61.0, 0.0)[0]) == 0


def test_between_two_faces_lies_the_middle_and_the_smear():
    faces = [surfaces.Surfaces(*(np.full(2, value, np.float32) for _ in range(4))) for value in (-1.0, 2.0)]
    middle, widths = surfaces.between(*faces, 4.0)
    assert middle.lung.tolist() == [0.5, 0.5]
    np.testing.assert_allclose(widths.dome, 5.0)


def test_the_dome_fades_over_the_thickness_of_the_slice(scan):
    """At the top of the right dome a thick slice shows lung and liver mixed, a thin one lung or liver."""
    patient = scan.scene.patient
    height = patient.domes[0, 2] / patient.height_mm
    thin, thick = (_slice(scan, height - 0.01, thickness_mm=mm)[0] for mm in (0.6, 10.0))
    near = (np.abs(scan.x_mm[None] - patient.domes[0, 0]) < 25) & (
        np.abs(scan.y_mm[:, None] - patient.domes[0, 1]) < 25
    )
    mixed = [((image > -650) & (image < -150) & near).mean() / near.mean() for image in (thin, thick)]
    assert mixed[1] > 0.3 and mixed[1] > 2 * mixed[0]


def test_bowel_holds_gas_that_is_no_lung():
    """In the slices of some patients below the lungs gas lies in the body, without a label."""
    gas = 0
    for number in range(6):
        scan = drawing.create_scan(_settings(), number)
        image, mask = _slice(scan, -0.1)
        body = ndimage.binary_fill_holes(ndimage.binary_opening(image > -300, iterations=2))
        gas += ((image < -850) & body & (mask == 0)).sum() > 30
        assert not np.any((mask > 0) & (image < -960) & (scan.y_mm[:, None] < -60))
    assert gas >= 4


def test_disease_within_a_lung_is_lung(scan):
    """Collapsed lung is as dense as muscle; the mask is that of the healthy lung."""
    image, mask = _slice(scan, 0.5)
    disease = dataclasses.replace(scan.scene.disease, collapse=(np.array([0.0, 1.0, 0.0]), 30.0, -1))
    ill_image, ill_mask = _slice(scan, 0.5, scene=dataclasses.replace(scan.scene, disease=disease))
    assert np.array_equal(ill_mask, mask)
    dense = (ill_mask == 4) & (scan.y_mm[:, None] > 45.0)
    inner = ndimage.binary_erosion(dense, iterations=2)
    assert inner.sum() > 20 and np.median(ill_image[inner]) > 0 and np.median(image[inner]) < -700
    assert np.array_equal(ill_image[ill_mask == 3], image[mask == 3])


def test_fluid_is_no_lung_and_a_missing_lung_has_no_label(scan):
    image, mask = _slice(scan, 0.4)
    levels = (surfaces.NO_FLUID_MM, 10.0)
    patient = dataclasses.replace(scan.scene.patient, fluid_mm=levels)
    wet_image, wet_mask = _slice(scan, 0.4, scene=dataclasses.replace(scan.scene, patient=patient))
    lost = ndimage.binary_erosion((mask == 3) & (wet_mask == 0), iterations=2)
    assert lost.sum() > 20 and 0 < np.median(wet_image[lost]) < 30
    assert np.array_equal(wet_mask == 4, mask == 4)
    patient = dataclasses.replace(scan.scene.patient, fluid_mm=(anatomy.NO_LUNG_MM, anatomy.NO_FLUID_MM))
    _, left_alone = _slice(scan, 0.4, scene=dataclasses.replace(scan.scene, patient=patient))
    assert not np.any(left_alone == 4) and np.array_equal(left_alone == 3, mask == 3)


def test_one_patient_in_thirty_lacks_a_lung():
    rng = np.random.default_rng(0)
    levels = np.array([anatomy._create_fluid(rng)[0] for _ in range(3000)])
    missing = (levels == anatomy.NO_LUNG_MM).any(axis=1)
    assert 60 < missing.sum() < 140
    assert not (levels == anatomy.NO_LUNG_MM).all(axis=1).any()
    wet = (levels < anatomy.NO_FLUID_MM) & (levels > anatomy.NO_LUNG_MM)
    assert 0.06 < wet.any(axis=1).mean() < 0.25


def test_cloths_lie_on_the_skin_and_never_in_the_body():
    """One sheet without folds, 5 mm off a round body of 20 mm: a ring at 25.6 mm in front, nothing behind."""
    canvas = _canvas(1.0, size=81)
    around = surroundings.Surroundings("cradle", 1000.0, 200.0, np.array([(5.0, 0.0, 3, 0.0, 1.0, -500.0)]))
    image = np.full((81, 81), -1000.0, np.float32)
    surroundings.draw_cloths(image, canvas, around, np.full(anatomy.NUM_ANGLES, 20.0), 0.0)
    assert image[40 - 26, 40] > -600 and np.all(image[40 - 20 : 40 + 21, 40] == -1000.0)
    assert np.all(image[61:, 40] == -1000.0)


@pytest.mark.parametrize(("sigma", "sharpness"), [(0.0, 0.0), (0.8, 0.0), (1.2, 1.0)])
def test_noise_keeps_its_strength_through_every_kernel(sigma, sharpness):
    white = np.random.default_rng(1).standard_normal((400, 400)) * scanner._noise_gain(sigma, sharpness)
    assert scanner._filter(white, sigma, sharpness).std() == pytest.approx(1.0, rel=0.03)


def test_a_sharp_kernel_lifts_edges():
    step = np.where(np.arange(40)[None] < 20, 0.0, 100.0).repeat(40, 0)
    soft, sharp = (scanner._filter(step, 1.0, sharpness) for sharpness in (0.0, 1.0))
    assert soft.max() <= 100.0 + 1e-9 and 102.0 < sharp.max() < 130.0
    assert sharp[:, :10] == pytest.approx(0.0, abs=0.1)


def test_metal_is_dense_and_streaks_within_its_heights():
    canvas = dataclasses.replace(
        _canvas(1.0, size=101),
        scanner=dataclasses.replace(_SEEN_BY, metal=np.array([(0.0, 0.0, 10.0, 5.0, 2.0, 300.0)])),
    )
    image = np.zeros((101, 101), np.float32)
    scanner.add_metal(image, canvas, 20.0)
    assert not image.any()
    scanner.add_metal(image, canvas, 12.0)
    assert image[50, 50] == pytest.approx(2800.0, abs=1.0)
    assert image.min() < -100 and np.abs(image[0]).max() < np.abs(image[40]).max()


def test_grain_has_mean_0_and_deviation_1_and_changes_slowly_with_the_height():
    sheets = grain.create_grain(np.random.default_rng(0))
    assert sheets.mean() == pytest.approx(0.0, abs=1e-5) and sheets.std() == pytest.approx(1.0, rel=1e-4)
    axis = np.arange(0.0, 96.0)
    first, next_to_it, far = (grain.sample_grain(sheets, axis, axis, z, 1.0) for z in (4.0, 4.5, 40.0))
    assert np.corrcoef(first.ravel(), next_to_it.ravel())[0, 1] > 0.95
    assert abs(np.corrcoef(first.ravel(), far.ravel())[0, 1]) < 0.4


def test_vessels_are_thousands_and_follow_from_their_twigs(scan):
    """Twigs of about 1 mm, trunks near a centimetre: as in lungs."""
    vessels = scan.scene.vessels
    diameters = 2.0 * vessels.start_radius_mm
    assert len(diameters) > 5000
    assert 0.7 < np.percentile(diameters, 10) < 1.3 and 8.0 < diameters.max() <= 16.0
    assert 2.0 * scan.scene.bronchi.start_radius_mm.min() < 1.6


def test_lungs_hold_as_many_bright_structures_as_real_ones(scan):
    """Pieces brighter than -500 HU per 100 cm2 of lung: 7 to 21 in five real scans (experiments/results)."""
    image, mask = _slice(scan, 0.5, thickness_mm=2.0)
    lungs = ndimage.binary_erosion((mask == 3) | (mask == 4), iterations=2)
    area_cm2 = lungs.sum() * (scan.x_mm[1] - scan.x_mm[0]) ** 2 / 100.0
    pieces = ndimage.label(lungs & (image > -500), np.ones((3, 3)))[1]
    assert 7 < pieces * 100.0 / area_cm2 < 40
