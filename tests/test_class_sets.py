"""Networks for other classes than the four: they train, are judged, predict and are exported."""

import fakes
import numpy as np
import pytest

from auxseg.evaluation import evaluate_run
from auxseg.runs import bundles, networks
from auxseg.training import loop
from tests.training.test_loop import small_config

SETS = {
    ("background", "nodule"): (0, 0, 0, 1),
    ("background", "right_lung", "left_lung", "nodule", "airway"): (0, 2, 1, 3),
}
"""Classes, and the value that each of two_discs' four becomes."""


@pytest.fixture(scope="module", params=SETS, ids=lambda classes: "-".join(classes[1:]))
def run(request, tmp_path_factory):
    """Returns (classes, workdir) of a trained run."""
    classes, folder = request.param, tmp_path_factory.mktemp("classes")
    data = fakes.two_discs(18)
    images, masks = data.read(np.arange(18))
    masks = np.array(SETS[classes], np.uint8)[masks]
    masks[:, 0, 0] = len(classes) - 1 if len(classes) == 5 else 0
    fakes.write_npz(folder / "npz", fakes.dataset(images, masks))
    config = small_config(
        folder / "npz",
        data__classes=classes,
        train__num_epochs=2,
        eval__num_panels=2,
        augment__enabled=True,
    )
    loop.train(config, folder / "run", finish=evaluate_run.finish)
    return classes, folder / "run"


def test_scores_and_page_name_the_classes(run):
    classes, workdir = run
    summary, page = evaluate_run.report_run(workdir)
    assert list(summary["dice"]) == list(classes)
    text = page.read_text(encoding="utf-8")
    assert classes[-1].capitalize() in text
    assert ("Left lung" in text) == ("left_lung" in classes)


def test_a_bundle_names_the_classes_and_agrees(run, tmp_path):
    classes, workdir = run
    network = networks.load_network(workdir)
    images = np.random.default_rng(0).integers(-1000, 400, (2, 16, 16)).astype(np.int16)
    probabilities = np.asarray(network.probabilities(images))
    assert (network.classes, probabilities.shape) == (classes, (2, 16, 16, len(classes)))
    about = bundles.export(workdir, "saved", tmp_path / "saved", images=images, checked_on="noise")
    assert about["classes"] == list(classes)
    copy = networks.load_network(tmp_path / "saved")
    assert copy.classes == classes
    np.testing.assert_allclose(copy.probabilities(images), probabilities, atol=1e-5)
