"""The nodule networks of the box: who trains what, the loss, batches and operating points, by hand."""

import dataclasses
import json

import numpy as np
import pytest

from auxseg.base import files
from auxseg.base.errors import InputError
from auxseg.ct.geometry import Geometry
from auxseg.datasets.crops import Crops
from auxseg.prediction import box, sharpness
from auxseg.scoring import froc
from experiments.box import (
    nodule_crops,
    nodule_data,
    nodule_judge,
    nodule_page,
    nodule_study,
    nodule_train,
    soft_scans,
)
from experiments.nodules import windows


def make_crops(num_patients=40, slices=3, size=64):
    """Crops of one nodule a patient; every fifth patient is of subset 1, the last is LIDC-IDRI-0001."""
    num = num_patients * slices
    patients = [f"P{i:02d}" for i in range(num_patients - 1)] + ["LIDC-IDRI-0001"]
    subset = [1 if i % 5 == 0 or i == num_patients - 1 else 4 for i in range(num_patients)]
    readers = np.zeros((num, size, size), np.uint8)
    readers[:, 28:36, 28:36] = 7
    images = np.full((num, size, size), 20, np.uint8)
    images[readers > 0] = 120
    full = np.ones(num, np.float32)
    return Crops(
        images=images,
        readers=readers,
        patient=np.repeat(patients, slices),
        series_uid=np.repeat(patients, slices),
        nodule=np.repeat([f"{p}/0" for p in patients], slices),
        subset=np.repeat(subset, slices).astype(np.int8),
        place=np.tile(np.arange(slices), num_patients).astype(np.int32),
        spacing_mm=0.7 * full,
        gap_mm=2.5 * full,
        num_readers=3 * np.ones(num, np.int32),
        reader_bits=7 * np.ones(num, np.uint8),
        diameter_mm=5.6 * full,
        hu_slope=8.0 * full,
        hu_offset=-1000.0 * full,
    )


def test_a_patient_is_in_one_part_only():
    crops = make_crops()
    test = set(nodule_data.draw_test_patients(crops))
    folds = nodule_data.assign_folds(crops, test)
    for patient in set(crops.patient.tolist()):
        assert len(set(folds[crops.patient == patient].tolist())) == 1
    assert set(folds[np.isin(crops.patient, list(test))].tolist()) == {-2}
    middle = (crops.subset == 1) & (crops.patient != "LIDC-IDRI-0001")
    assert set(folds[middle].tolist()) == {-1}  # the middle slices may be of these patients
    assert set(folds[crops.patient == "LIDC-IDRI-0001"].tolist()) == {0}
    for fold in range(nodule_data.NUM_FOLDS):
        rows = nodule_data.training_rows(folds, fold)
        assert not set(folds[rows].tolist()) & {-2, fold}
        assert -1 in folds[rows]
    assert (folds[nodule_data.training_rows(folds, -1)] != -2).all()


def test_the_committed_test_patients_are_as_drawn():
    test = nodule_data.read_test_patients()
    assert len(test) == 67 and not test & set(nodule_data.FOLD_OF_SCAN)


def test_loss_by_hand():
    logits = np.zeros((2, 2, 2, 2), np.float32)  # probability of a half everywhere
    targets = np.zeros((2, 2, 2), np.float32)
    targets[0, 0, 0] = 1.0
    known = np.ones((2, 2, 2), np.float32)
    known[1, 1] = 0.0
    overlap = [(2 * 0.5 + 1) / (2.0 + 1.0 + 1.0), 1.0 / (1.0 + 1.0)]
    expected = nodule_train.ENTROPY_WEIGHT * np.log(2.0) + 1.0 - np.mean(overlap)
    assert float(nodule_train.loss_of(logits, targets, known)) == pytest.approx(expected, rel=1e-5)


def test_each_cycle_has_a_schedule_of_its_own():
    recipe = dataclasses.replace(nodule_train.RECIPES["look"], steps=600, cycles=2, learning_rate=0.5)
    rate = nodule_train.create_schedule(recipe)
    assert float(rate(0)) == 0.0 and float(rate(5)) == pytest.approx(0.25)  # warm-up of 10 steps
    assert float(rate(10)) == float(rate(310)) == pytest.approx(0.5)
    assert float(rate(155)) == float(rate(455)) == pytest.approx(0.25)  # half way of a cosine
    assert float(rate(299)) < 1e-4 and float(rate(300)) == 0.0


def test_only_nodules_of_a_size_are_enlarged_up_to_a_mass():
    recipe = dataclasses.replace(nodule_train.RECIPES["look"], enlarged=1.0)
    generator = np.random.default_rng(0)
    low, high = nodule_train.ENLARGED_MM
    drawn = [nodule_train._draw_enlargement(12.0, recipe, generator) for _ in range(200)]
    assert min(drawn) >= 1.0 and 4.5 < max(drawn) <= high / 12.0
    for diameter, share in ((low - 0.1, 1.0), (high, 1.0), (12.0, 0.0)):
        chosen = dataclasses.replace(recipe, enlarged=share)
        assert nodule_train._draw_enlargement(diameter, chosen, generator) == 1.0


def test_nodules_of_the_boxs_scans_are_the_sisters_outlines(tmp_path):
    geometry = Geometry((64, 48, 5), (1.0, 1.0, 2.0), (0.0, 0.0, 0.0))
    hu = np.arange(5, dtype=np.int16)[:, None, None] * np.ones((5, 48, 64), np.int16)
    scan = nodule_data.WholeScan(
        "s", geometry, hu, None, np.array([[30.0, 20.0, 4.0, 6.0]]), np.zeros((0, 4))
    )
    marked = np.zeros((5, 48, 64), np.uint8)
    marked[1:4, 19:22, 29:32] = 204
    marked[2, 40, 50] = 255  # far from the nodule: nobody's
    np.savez(tmp_path / "marked.npz", marked=marked)
    outlined = nodule_train.list_outlined(scan, tmp_path / "marked.npz")
    assert [int(image[0, 0]) for image, _ in outlined] == [1, 2, 3]
    assert all(target.sum() == pytest.approx(9 * 0.8) for _, target in outlined)
    material = nodule_train.Material(None, None, None, [], [], outlined)
    recipe = dataclasses.replace(nodule_train.RECIPES["look"], outlined=1.0, window_px=32)
    recipe = dataclasses.replace(recipe, ranges=recipe.ranges._replace(shift_px=4))
    image, target, known = nodule_train._draw_positive(material, recipe, np.random.default_rng(0))
    assert image.shape == target.shape == (32, 32) and known.all() and 2.0 < target.sum() < 15.0


def make_material():
    crops = make_crops(6)
    rows = np.arange(len(crops))
    hu = np.full((4, 90, 90), -850, np.int16)
    known = np.ones(hu.shape, bool)
    known[:, :, :45] = False
    volume = nodule_data.Volume("scan", hu, np.ones(hu.shape, bool), known)
    by_nodule = [rows[i : i + 3] for i in range(0, len(rows), 3)]
    mined = np.array([[2, 45, 60]], np.int32)
    return nodule_train.Material(crops, rows, by_nodule, [volume], [mined])


def test_batches_are_a_function_of_seed_and_step():
    material, recipe = make_material(), nodule_train.Recipe(window_px=32, positives=3, negatives=2)
    places = [nodule_train.region_places(material.volumes[0], np.random.default_rng(0))]
    assert (places[0][:, 2] >= 45).all()
    images, targets, known = nodule_train.draw_batch(material, places, recipe, 7)
    assert images.shape == (5, 32, 32, 1) and images.min() >= 0.0 and images.max() <= 1.0
    assert not targets[3:].any() and targets[:3].any()
    assert known[:3].all() and set(np.unique(known[3:])) <= {0.0, 1.0}
    again = nodule_train.draw_batch(material, places, recipe, 7)
    np.testing.assert_array_equal(images, again[0])
    assert (images != nodule_train.draw_batch(material, places, recipe, 8)[0]).any()


def test_what_is_marked_is_mined_where_it_is_known():
    material, recipe = make_material(), nodule_train.Recipe()
    volume = material.volumes[0]
    volume.hu[1, 20:24, 60:64] = 300
    volume.hu[1, 20:24, 10:14] = 300  # where it is not known
    found = nodule_train._mine_volume(volume, lambda images: images[..., 0], recipe)
    assert found.tolist() == [[1, 22, 62]] or found.tolist() == [[1, 21, 61]]


def test_true_examples_sit_on_the_nodule():
    crops = make_crops(2)
    (first, _) = nodule_judge.true_examples(crops, np.arange(len(crops)))
    assert first.planes.shape == (3, 64, 64)
    np.testing.assert_allclose(first.centre_yx, (31.5, 31.5))


def test_half_of_a_batch_is_true_and_half_seen_through_one_slice():
    stack = np.stack([np.full((140, 140), value, np.int16) for value in (-900, -500, 0)])
    true = [nodule_judge.Example(stack, (70.0, 70.0), 0.7)]
    false = {kind: true for kind in nodule_judge.KINDS}
    recipe = dataclasses.replace(nodule_judge.Recipe(), batch=8)
    views, labels = nodule_judge.draw_batch(true, false, recipe, 0)
    assert labels.tolist() == [0, 1] * 4
    spread = np.ptp(views[:, 0].mean(axis=(2, 3)), axis=1)  # over the planes
    assert [bool(s > 0.05) for s in spread] == [False, False, True, True] * 2
    one_kind = {"crop": [], "scan": [], "middle": true}  # what the look marks may be of one kind alone
    assert nodule_judge.draw_batch(true, one_kind, recipe, 0)[0].shape == views.shape


def matches():
    return {
        "a": froc.Matches(np.array([0.9]), np.array([0.8, 0.3])),
        "b": froc.Matches(np.array([0.5]), np.array([0.6])),
    }


def test_operating_points_by_hand():
    points = nodule_study.operating_points(matches())
    assert [rate for rate, _ in points] == [0.5, 1.0, 2.0, 4.0, 8.0]
    least = dict(points)
    assert 0.6 < least[0.5] <= 0.61 and 0.3 < least[1.0] <= 0.31 and least[2.0] == 0.0


def test_the_default_point_is_chosen_on_the_other_scans():
    found = nodule_study.default_point(matches())
    assert found["a"] == {"least_probability": 0.0, "found": 1, "nodules": 1, "false": 2}
    assert 0.3 < found["b"]["least_probability"] <= 0.31
    assert found["b"]["found"] == 1 and found["b"]["false"] == 1


def test_weights_tell_true_from_false():
    rng = np.random.default_rng(0)
    candidates = [
        {
            "true": i % 2 == 0,
            "judge": float(rng.normal(2.0 if i % 2 == 0 else -2.0)),
            "mean": float(np.clip(rng.normal(0.7 if i % 2 == 0 else 0.6, 0.05), 0.5, 0.99)),
            "sum": 50.0,
            "short_axis": 0.5,
        }
        for i in range(200)
    ]
    assert nodule_study.fit(candidates)[0] > 0.3  # of the mean probability
    assert nodule_study.fit(candidates, with_judge=True)[0] > 0.3


def test_crop_scores_by_hand():
    crops = make_crops(2, slices=2)
    rows = np.arange(4)
    numbers = np.array([[64, 64, 64], [0, 64, 0], [64, 64, 32], [64, 64, 32]])
    found = nodule_crops.score(crops, rows, numbers)["0-99 mm"]
    assert found["nodules"] == 2 and found["patients"] == 2
    assert found["dice_largest"] == pytest.approx((1.0 + 0.5) / 2)
    assert found["found"] == 1.0
    assert found["dice_all_slices"] == pytest.approx((128 / 192 + 0.5) / 2)


def test_a_ball_in_millimetres():
    geometry = Geometry((20, 20, 10), (1.0, 1.0, 2.0), (0.0, 0.0, 0.0))
    inside = nodule_data.ball(geometry, (10.0, 10.0, 10.0), 2.0)
    assert inside[5].sum() == 13 and inside[4].sum() == 1 and inside[3].sum() == 0


def test_windows_of_a_nodule_are_its_largest_slice_and_one_more():
    crops = make_crops(num_patients=2)
    crops.readers[1, 20:44, 20:44] = 7  # the first patient's second slice is the largest
    rows = np.arange(len(crops))
    chosen = windows.choose_slices(crops, rows, np.random.default_rng(0)).tolist()
    assert len(chosen) == len(set(chosen)) == 4
    assert chosen[0] == 1 and chosen[1] in (0, 2) and chosen[2] == 3 and chosen[3] in (4, 5)


def test_windows_hold_the_consensus_and_free_ones_nothing_unknown(tmp_path):
    crops = make_crops(num_patients=2, size=128)
    crops.readers[2], crops.images[2] = 0, 20
    crops.readers[2, 60:68, 60:68], crops.images[2, 60:68, 60:68] = 7, 120
    (line,) = windows.write_nodules(tmp_path, crops, np.array([2]))
    with np.load(tmp_path / f"{line[0]}.npz") as arrays:
        image, mask = arrays["image"], arrays["mask"]
    assert image.shape == mask.shape == (64, 64) and mask.sum() == 64  # 8 x 8 pixels, moved and whole
    assert set(image[mask == 1].tolist()) == {120 * 8 - 1000} and set(image[mask == 0].tolist()) == {-840}
    known = np.ones((2, 100, 100), bool)
    known[0] = False  # whatever would show a pixel of it is left out
    volume = nodule_data.Volume("scan", np.full(known.shape, -800, np.int16), known, known)
    lines = windows.write_free(tmp_path, volume, 5, np.random.default_rng(0), 0.7)
    assert len(lines) == 5 and {row[1] for row in lines} == {"scan"}
    with np.load(tmp_path / f"{lines[0][0]}.npz") as arrays:
        assert arrays["image"].shape == (64, 64) and not arrays["mask"].any()


def test_a_saved_recipe_is_read_back(tmp_path):
    recipe = nodule_train.RECIPES["outlines"]
    values = json.loads(json.dumps(dataclasses.asdict(recipe)))
    assert nodule_train._recipe_of(values) == recipe
    del values["ranges"]  # a run of before has none
    assert nodule_train._recipe_of(values).ranges == nodule_train.RECIPES["look"].ranges


def test_a_training_starts_from_a_run_that_never_saw_its_patients(tmp_path):
    recipe = dataclasses.asdict(nodule_train.RECIPES["outlines"])
    (tmp_path / "recipe.json").write_text(json.dumps({"fold": 1, "recipe": recipe}))
    assert nodule_train._check_start(tmp_path, 1)["fold"] == 1
    assert nodule_train._check_start(tmp_path, nodule_data.BOX)["fold"] == 1  # the box may see everybody
    with pytest.raises(InputError, match="holds out fold 1, expected 0"):
        nodule_train._check_start(tmp_path, 0)


def test_a_threshold_is_chosen_on_the_other_fold():
    crops = make_crops(num_patients=2, slices=1)
    reference = crops_lib_consensus(crops)
    low, high = np.where(reference, 90, 0), np.where(reference, 170, 140)  # best from 0.2 on; above 140 / 255
    parts = {0: (np.array([0]), low[:1], reference[:1]), 1: (np.array([1]), high[1:], reference[1:])}
    assert nodule_crops.choose_thresholds(crops, parts) == {0: 0.6, 1: 0.2}
    assert nodule_crops.choose_thresholds(crops, {-1: parts[0]}) == {-1: nodule_crops.THRESHOLD}


def crops_lib_consensus(crops):
    return crops.readers == 7


def test_who_is_told_of_one_nodule_keeps_one():
    probability = np.zeros((6, 8), np.uint8)
    probability[1, 1:3] = 200  # sum 400
    probability[4, 2:7] = 140  # sum 700
    assert np.argwhere(nodule_crops.keep_one(probability, 0.5)).tolist() == [[4, c] for c in range(2, 7)]
    assert np.argwhere(nodule_crops.keep_one(probability, 0.7)).tolist() == [[1, 1], [1, 2]]
    faint = probability // 4  # 50 and 35 of 255: nothing reaches a half, 25 is half of the largest
    assert np.argwhere(nodule_crops.keep_one(faint, 0.5)).tolist() == [[4, c] for c in range(2, 7)]
    assert not nodule_crops.keep_one(np.zeros((4, 4), np.uint8), 0.5).any()


def test_a_network_that_marks_nothing_cannot_be_fitted():
    with pytest.raises(InputError, match="0 candidates of held-out crops"):
        nodule_study.fit([])
    with pytest.raises(InputError, match="1 candidates"):
        nodule_study.fit([{"true": True, "mean": 0.9, "sum": 5.0, "short_axis": 0.5}])


def test_augmented_crops_are_seen_in_eight_turns_and_three_sizes_and_put_back():
    ramp = np.linspace(0.2, 0.8, 128, dtype=np.float32)
    images, seen = np.stack([ramp[:, None] * ramp, ramp[:, None] * ramp[::-1]]), []

    def forward(given):
        seen.append(given[0, ..., 0])
        return given[..., 0]

    found = nodule_crops.augmented(images, forward)
    np.testing.assert_allclose(found, images, atol=2e-3)
    assert [len(one) for one in seen] == [96] * 8 + [112] * 8 + [128] * 8
    corners = {tuple(np.round(one[[0, 0, -1, -1], [0, -1, 0, -1]], 3)) for one in seen[16:]}
    assert len(corners) == 4  # the image is its own transpose: eight turns of it are four


def test_augmented_probabilities_are_of_the_mean_logit():
    images, answers = np.full((1, 128, 128), 0.5, np.float32), iter([0.9] * 8 + [0.5] * 8 + [0.1] * 8)
    found = nodule_crops.augmented(images, lambda given: np.full(given.shape[:3], next(answers), np.float32))
    np.testing.assert_allclose(found, 0.5, atol=1e-6)


def test_the_sharpness_of_crops_is_known_by_their_nodules():
    crops = make_crops(6, size=64)
    noise = np.random.default_rng(2).normal(0.0, 1.0, crops.images.shape)
    steps = np.repeat([1.0, 2.0, 3.0, 1.0, 2.0, 9.0], 3)[:, None, None]  # a step is 8 HU
    images = np.clip(np.round(18 + steps * noise), 1, 60).astype(np.uint8)
    crops = dataclasses.replace(crops, images=images)
    found = [nodule_data.measure_sharpness(crops, np.arange(3 * k, 3 * k + 3)) for k in range(5)]
    assert found[0] < found[1] < found[2] and found[1] == pytest.approx(2 * found[0], rel=0.2)
    known = nodule_data.find_sharpness(crops, np.arange(15))
    assert known.usual_hu == pytest.approx(np.median(found), abs=0.01)
    assert known.soft_hu == pytest.approx(np.percentile(found, 20.0), abs=0.01)


def test_a_scan_is_made_thick_and_soft_where_it_lies():
    geometry = Geometry((20, 16, 11), (0.5, 0.5, 2.5), (1.0, 2.0, -30.0))
    hu = np.arange(11, dtype=np.int16)[:, None, None] * np.full((11, 16, 20), 10, np.int16)
    hu[:, 8, 10] += 400
    scan = nodule_data.WholeScan("s", geometry, hu, None, np.zeros((0, 4)), np.zeros((0, 4)))
    lungs = np.zeros(hu.shape, bool)
    lungs[5] = True
    same, _ = soft_scans.reshape(scan, lungs, "as it is")
    assert same is scan
    thick, inside = soft_scans.reshape(scan, lungs, "thick")
    assert thick.hu[:, 0, 0].tolist() == [5, 25, 45, 65, 85] and inside[:, 0, 0].tolist() == [0, 0, 1, 0, 0]
    assert thick.geometry.spacing_xyz_mm == (0.5, 0.5, 5.0)
    assert thick.geometry.origin_xyz_mm == (1.0, 2.0, -28.75)
    both, _ = soft_scans.reshape(scan, lungs, "soft and thick")
    assert both.hu[0, 8, 10] < 40 and both.hu[0, 0, 0] == 5


def judge_bright(known):
    """Who marks what is bright, and keeps all of it."""
    return soft_scans.Judged(
        "bright", lambda images: images[..., 0], known, [0.0, 0.0, 0.0, 5.0], [[1.0, 0.5]]
    )


def test_soft_crops_are_counted_with_and_without_sharpening(monkeypatch):
    """The look marks what is bright: a soft nodule of middling brightness is marked where it is sharpened."""
    crops = make_crops(4, size=64)
    images = np.random.default_rng(1).integers(17, 20, crops.images.shape).astype(np.uint8)
    images[crops.readers > 0] = 82  # -344 HU, brightness 0.47
    images[9:] = np.random.default_rng(1).integers(5, 32, images[9:].shape)  # the last is not soft
    monkeypatch.setattr(nodule_judge, "answer", lambda params, views: np.zeros(len(views)))
    crops = dataclasses.replace(crops, images=images)
    judged = judge_bright(sharpness.Known(20.0, 30.0))
    found = soft_scans.score_soft_crops(crops, np.arange(12), judged, None)
    assert found["nodules"] == 3
    assert [found[name]["1"]["found"] for name in ("plain", "sharpened")] == [0, 3]
    crops = dataclasses.replace(crops, readers=np.roll(crops.readers, -9, 1))  # marks elsewhere: all is false
    found = soft_scans.score_soft_crops(crops, np.arange(12), judged, None)
    assert [found[name]["1"] for name in ("plain", "sharpened")] == [
        {"found": 0, "false": 0},
        {"found": 0, "false": 3},
    ]
    assert soft_scans.add([found, found])["sharpened"] == {"1": {"found": 0, "false": 6}}


def test_a_soft_scan_is_scored_by_what_hits_its_nodule():
    geometry = Geometry((64, 64, 6), (1.0, 1.0, 2.0), (0.0, 0.0, 0.0))
    hu = np.random.default_rng(4).normal(-850.0, 5.0, (6, 64, 64)).astype(np.int16)
    for at in (20, 40):
        hu[2:5, at : at + 6, at : at + 6] = -380  # brightness 0.44: too little where it is not sharpened
    scan = nodule_data.WholeScan(
        "s", geometry, hu, None, np.array([[22.5, 22.5, 6.0, 8.0]]), np.zeros((0, 4))
    )
    judged = judge_bright(sharpness.Known(8.0, 20.0))
    scores = soft_scans.score_form(scan, np.ones(hu.shape, bool), judged)
    assert scores["gain"] > 1.0 and scores["plain"]["1"] == {"found": 0, "nodules": 1, "false": 0}
    assert scores["sharpened"]["1"] == {"found": 1, "nodules": 1, "false": 1}


def test_the_page_of_the_nodule_looks_is_of_the_committed_figures():
    """A page that was not written again after its figures says something else than they do."""
    names = ("box_nodules", "box_nodule_crops", "box_nodule_test")
    found = [files.read_json(nodule_page.RESULTS / f"{name}.json") for name in names]
    page = (nodule_page.RESULTS / "box_nodules.md").read_text(encoding="utf-8")
    assert page == nodule_page.page(*found)


def test_the_box_knows_how_sharp_its_crops_were(real_data):
    crops = nodule_data.read_crops(real_data)
    folds = nodule_data.assign_folds(crops, nodule_data.read_test_patients())
    known = nodule_data.find_sharpness(crops, nodule_data.training_rows(folds, nodule_data.BOX))
    assert files.read_json(box.FOLDER / "nodules" / "about.json")["sharpness"] == known._asdict()
