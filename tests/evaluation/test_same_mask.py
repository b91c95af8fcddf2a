"""Evaluation scores, bit for bit, the mask that prediction hands over."""

import dataclasses

import chest
import fakes
import jax
import numpy as np
import pytest

from auxseg import models
from auxseg.datasets import load, npz
from auxseg.datasets.resize import resize_image
from auxseg.evaluation import score_cases
from auxseg.prediction import segment
from auxseg.runs import networks
from auxseg.scoring import components, operating_point
from auxseg.training import batching
from configs import base

SIZE = 48
SPACING_ZYX = (6.0, 0.7, 0.7)


@pytest.fixture(scope="module")
def trained():
    """Returns the `Trained` of weights that nobody trained: masks of all classes with ragged borders."""
    config = base.get_config()
    with config.unlocked():
        config.data.size = (SIZE, SIZE)
        config.model.base_width, config.model.depth, config.model.lowering = 4, 1, "plain"
    images = np.zeros((1, SIZE, SIZE, 1), np.float32)
    variables = jax.device_get(models.create_model(config.model).init(jax.random.key(3), images))
    head = variables["params"]["mask"]
    head["kernel"] = 20.0 * head["kernel"]
    return networks.Trained("drawn", config, variables)


def make_subject(trained, images, decision, *, flip):
    """Returns the Subject of slices int16 [N, H, W] that are shown to the network as prediction does."""
    shown = np.stack([resize_image(image, (SIZE, SIZE)) for image in images])
    blank = np.zeros(images.shape, np.uint8)
    dataset = fakes.dataset(shown, blank[:, :SIZE, :SIZE])
    table = dataclasses.replace(
        dataset.table,
        native_size_yx=np.full((len(images), 2), images.shape[1:], np.int32),
        spacing_zyx_mm=np.full((len(images), 3), SPACING_ZYX, np.float32),
    )
    dataset = dataclasses.replace(dataset, table=table, read_native_mask=lambda index: blank[index])
    every, devices = np.arange(len(images)), tuple(jax.local_devices()[:1])
    feed = batching.create_feed(dataset, every, placement="stream", devices=devices)
    predict_fn = score_cases.create_predict_fn(trained.config, trained.variables, devices, flip=flip)
    return score_cases.Subject(
        trained.config, dataset, {"test": every}, feed, trained.variables, predict_fn, decision, flip
    )


def evaluated(subject):
    """Returns the masks uint8 [N, H, W] that are scored at the scan's size."""
    return np.stack([
        score_cases.decide_native(subject.dataset, index, probabilities, subject.decision)
        for index, probabilities in score_cases.predict(subject, subject.members["test"])
    ])  # fmt: skip


def handed_over(trained, folder, images, decision, *, flip):
    """Returns the masks uint8 [N, H, W] of the same slices, each a scan of its own."""
    import SimpleITK as sitk

    network, masks = networks.create_network(trained), []
    for number, image in enumerate(images):
        volume = sitk.GetImageFromArray(image[None])
        volume.SetSpacing(SPACING_ZYX[::-1])
        sitk.WriteImage(volume, str(folder / f"{number}.mha"))
        options = segment.Options(
            flip=flip,
            force=True,
            clean=components.CleanUp(min_nodule_mm=decision.min_mm),
            nodule_threshold=decision.threshold,
        )
        masks.append(segment.segment(folder / f"{number}.mha", [network], options=options).masks[0])
    return np.stack(masks)


CASES = {
    "the most likely class": (operating_point.Decision(), False),
    "tuned, with the mirrored slice": (operating_point.Decision(0.6, 2.0), True),
}


@pytest.mark.parametrize("name", CASES)
def test_evaluation_scores_the_mask_that_prediction_hands_over(trained, tmp_path, name):
    decision, flip = CASES[name]
    images = chest.draw((3, 80, 80), (40.0, 4.0, 4.0))
    ours = evaluated(make_subject(trained, images, decision, flip=flip))
    np.testing.assert_array_equal(ours, handed_over(trained, tmp_path, images, decision, flip=flip))
    assert len(np.unique(ours)) > 2


def test_at_a_fixed_scale_too(trained, tmp_path):
    """Slices of 80x80 and 40x40 pixels of 4 and 8 mm at 5 mm: each is judged as prediction shows it, whatever else is there."""
    images = [chest.draw((1, 80, 80), (40.0, 4.0, 4.0))[0], chest.draw((1, 30, 40), (40.0, 8.0, 8.0))[0]]
    lines = ["id,pixel_spacing_mm"]
    for name, image, mm in zip("ab", images, (4.0, 8.0), strict=True):
        npz.write_case(tmp_path / f"{name}.npz", image, np.zeros(image.shape, np.uint8))
        lines.append(f"{name},{mm}")
    (tmp_path / "index.csv").write_text("\n".join(lines))
    config = trained.config.copy_and_resolve_references()
    with config.unlocked():
        config.data.update({"name": "npz", "dir": str(tmp_path), "size": (16, 16), "mm_per_pixel": 5.0})
    trained = dataclasses.replace(trained, config=config)
    dataset, every, devices = load(config.data), np.arange(2), tuple(jax.local_devices()[:1])
    assert dataset.size_yx == (64, 64) and dataset.table.filled_yx.tolist() == [[64, 64], [48, 64]]
    feed = batching.create_feed(dataset, every, placement="stream", devices=devices)
    predict_fn = score_cases.create_predict_fn(config, trained.variables, devices)
    subject = score_cases.Subject(config, dataset, {"test": every}, feed, trained.variables, predict_fn)
    ours = {
        index: score_cases.decide_native(dataset, index, probabilities, subject.decision)
        for index, probabilities in score_cases.predict(subject, every)
    }
    network = networks.create_network(trained)
    for index, (image, mm) in enumerate(zip(images, (4.0, 8.0), strict=True)):
        options = segment.Options(force=True)
        result = segment.segment(image[None], [network], spacing_mm=(40.0, mm, mm), options=options)
        np.testing.assert_array_equal(ours[index], result.masks[0])
        assert any("slices are seen at 5 mm a pixel" in one.text for one in result.findings)
    judged = score_cases.judge_split(subject, "test")
    assert [row["case_id"] for row in judged.evaluation.rows] == ["a", "b"] and judged.native is not None


def test_on_real_slices_too(trained, tmp_path, real_data):
    files = sorted((real_data / "luna16_middle").glob("ID_*.npz"))[::60]
    images = np.stack([np.load(file)["image"] for file in files])
    decision, flip = CASES["tuned, with the mirrored slice"]
    ours = evaluated(make_subject(trained, images, decision, flip=flip))
    np.testing.assert_array_equal(ours, handed_over(trained, tmp_path, images, decision, flip=flip))
    assert len(np.unique(ours)) > 2
