"""Networks of fewer classes segment a scan with the values that all others have, those of more with their own."""

import dataclasses
import io
import json

import chest
import fake_network
import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image

from auxseg.base import files
from auxseg.base.classes import CLASS_NAMES
from auxseg.base.errors import InputError
from auxseg.prediction import outputs, overlay, segment
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


def test_networks_of_different_classes_are_refused(path):
    with pytest.raises(InputError, match="networks of different classes cannot be averaged"):
        segment.segment(path, [network_of("nodule"), fake_network.create()])


def renamed(**names):
    """Returns the threshold network with classes of other names, and its usual ones last."""
    usual = fake_network.create((56, 56))
    classes = [names.get(name, name) for name in CLASS_NAMES]
    order = [0, *sorted(range(1, 4), key=lambda value: classes[value] in CLASS_NAMES)]

    def forward(images):
        probabilities, present = usual.forward(images)
        return probabilities[..., order], present[..., order]

    return dataclasses.replace(usual, forward=forward, classes=tuple(classes[value] for value in order))


@pytest.mark.parametrize(
    "names",
    [
        {"left_lung": "lobe_a", "right_lung": "lobe_b"},
        {"nodule": "airway"},
        {"left_lung": "lung", "right_lung": "airway"},
    ],
)
def test_classes_beside_the_four_are_segmented_by_their_own_values(path, tmp_path, names):
    network = renamed(**names)
    options = segment.Options(clean_lungs=False, probabilities=True, force=True)
    (row,) = outputs.predict(path, tmp_path / "out", [network], options=options, formats=("nrrd", "npz"))
    usual = segment.segment(path, [fake_network.create((56, 56))], options=options)
    found = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "out/mask.nrrd")))
    for value, name in enumerate(CLASS_NAMES[1:], start=1):
        place = network.classes.index(names.get(name, name))
        np.testing.assert_array_equal(found == place, usual.stored_masks == value)
    about = json.loads((tmp_path / "out/prediction.json").read_text())
    assert about["classes"] == list(network.classes)
    assert set(about["others_ml"]) == set(names.values())
    table = {one["structure"]: one for one in files.read_cells(tmp_path / "out/measurements.csv")}
    for old, new in names.items():
        assert row[f"{new}_ml"] > 0
        assert float(table[new]["volume_ml"]) == pytest.approx(
            (usual.masks == CLASS_NAMES.index(old)).sum() * 0.216, rel=1e-4
        )
        assert (tmp_path / f"out/probability_{new}.nrrd").exists()
        assert table[new]["kind"] == ("lung" if new == "lung" else "structure")
    assert any(one.startswith("nodule") for one in table) == ("nodule" not in names)
    page = (tmp_path / "out/report.html").read_text()
    assert "Structures" in page and all(new.replace("_", " ") in page for new in names.values())
    Image.open(tmp_path / "out/overview.png").load()


def test_classes_without_a_code_are_refused_before_the_work(path, tmp_path):
    with pytest.raises(
        InputError, match="--format=dicom-seg: has codes for .* alone, and the network marks airway"
    ):
        outputs.predict(path, tmp_path / "out", [renamed(nodule="airway")], formats=("dicom-seg",))
    assert not (tmp_path / "out").exists()


def test_sixteen_classes_keep_their_values_in_pictures(tmp_path):
    mask = np.arange(16, dtype=np.uint8).reshape(4, 4)
    png = Image.open(io.BytesIO(overlay.encode_mask(mask)))
    np.testing.assert_array_equal(np.asarray(png.convert("L")), mask)
    names = ("background", *(f"class_{value}" for value in range(1, 16)))
    picture = overlay.encode_picture(np.zeros((4, 4), np.int16))
    few, many = (
        overlay.draw_overview([picture], [mask % 3], ["slice 0"], (1, 1), classes)
        for classes in (names[:3], names)
    )
    assert many.height - few.height == 20 * 4  # five lines of three names in place of one of two
