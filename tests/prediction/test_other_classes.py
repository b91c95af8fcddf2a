"""Networks of fewer classes segment a scan: their masks have the values that all others have."""

import chest
import fake_network
import numpy as np
import pytest
import SimpleITK as sitk

from auxseg.base.classes import CLASS_NAMES
from auxseg.base.errors import InputError
from auxseg.prediction import segment
from auxseg.runs.networks import Network


def network_of(*classes):
    """Returns the threshold network, with these classes in this order."""
    classes = ("background", *classes)
    places = [CLASS_NAMES.index(name) if name in CLASS_NAMES else 0 for name in classes]

    def forward(images):
        found = fake_network.threshold_probabilities(images)[..., places]
        found[..., 0] = 1.0 - found[..., 1:].sum(-1)
        return found, None

    return Network("few", (56, 56), "0" * 64, "anatomy", forward, classes=classes)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    image = sitk.GetImageFromArray(chest.draw())
    image.SetSpacing((6.0, 6.0, 6.0))
    path = tmp_path_factory.mktemp("scan") / "scan.mha"
    sitk.WriteImage(image, str(path))
    return path


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("classes", [("nodule",), ("right_lung", "left_lung")], ids="-".join)
def test_fewer_classes_in_another_order(path, classes, flip):
    options = segment.Options(flip=flip, clean_lungs=False)
    whole = segment.segment(path, [fake_network.create((56, 56))], options=options)
    few = segment.segment(path, [network_of(*classes)], options=options)
    values = [CLASS_NAMES.index(name) for name in classes]
    assert set(np.unique(few.masks)) == {0, *values}
    for value in values:
        assert ((few.masks == value) != (whole.masks == value)).sum() <= 0.02 * (
            whole.masks == value
        ).sum() + 4
    assert ("no-lung" in {finding.code for finding in few.findings}) is False


def test_nodules_alone_are_no_fault_in_a_whole_scan(path):
    result = segment.segment(path, [network_of("nodule")])
    assert set(np.unique(result.masks)) == {0, 3}
    assert all(row["structure"].startswith("nodule") for row in result.measurements)


@pytest.mark.parametrize(
    ("networks", "message"),
    [
        (
            [network_of("lung")],
            "few marks lung, for which masks of left_lung, right_lung, nodule have no value",
        ),
        ([network_of("nodule"), fake_network.create()], "networks of different classes cannot be averaged"),
    ],
)
def test_classes_without_a_value_or_that_differ_are_refused(path, networks, message):
    with pytest.raises(InputError, match=message):
        segment.segment(path, networks)
