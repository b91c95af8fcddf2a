"""`auxseg.segment` on what lies in memory, and a network that is called: the masks of the command, and clear words."""

import chest
import fake_network
import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

import auxseg
from auxseg.base import disk_arrays
from auxseg.base.errors import InputError
from auxseg.prediction import outputs, segment
from auxseg.runs import networks

NETWORK = fake_network.create((56, 56))


@pytest.fixture
def coronal():
    image = sitk.GetImageFromArray(chest.draw((24, 48, 56)))
    image.SetSpacing((6.0, 6.0, 6.0))
    image.SetOrigin((-150.0, -120.5, 33.25))
    return sitk.Flip(sitk.PermuteAxes(image, (0, 2, 1)), (False, True, True))


@pytest.fixture
def of_command(coronal, tmp_path):
    """Returns the mask that the command writes for the scan in a file, [z, y, x] as stored."""
    sitk.WriteImage(coronal, str(tmp_path / "scan.nii.gz"))
    outputs.predict(tmp_path / "scan.nii.gz", tmp_path / "out", [NETWORK])
    return sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "out" / "mask.nii.gz")))


def test_images_in_memory_give_the_command_s_mask_to_the_bit(coronal, of_command, tmp_path, monkeypatch):
    monkeypatch.setattr(disk_arrays, "create_array", None)  # nothing is written
    monkeypatch.setattr(segment.tempfile, "TemporaryDirectory", None)
    assert (of_command > 0).any()
    array = sitk.GetArrayFromImage(coronal)
    turn = {"spacing_mm": (6.0, 6.0, 6.0), "direction": coronal.GetDirection()}
    for image, about in (
        (coronal, {}),
        (nibabel.load(tmp_path / "scan.nii.gz"), {}),
        (array, turn),
        (array.astype(np.float64), turn),
    ):
        result = auxseg.segment(image, NETWORK, **about)
        np.testing.assert_array_equal(result.stored_masks, of_command)
        assert [row["structure"] for row in result.measurements][:2] == ["left_lung", "right_lung"]
    assert result.probabilities is None and result.masks.dtype == np.uint8


def test_a_nibabel_image_without_a_nifti_header_lies_by_its_affine(coronal, of_command, tmp_path):
    read = nibabel.load(tmp_path / "scan.nii.gz")
    image = nibabel.MGHImage(np.asarray(read.dataobj), read.affine)
    np.testing.assert_array_equal(auxseg.segment(image, NETWORK).stored_masks, of_command)


def test_an_array_without_spacing_is_segmented_in_voxels():
    result = auxseg.segment(chest.draw(), [NETWORK], options=auxseg.Options(probabilities=True))
    assert "no-spacing" in [one.code for one in result.findings]
    assert result.probabilities.shape == (4, *result.masks.shape) and (result.masks == 3).any()
    one = auxseg.segment(chest.draw()[12], NETWORK)
    np.testing.assert_array_equal(one.masks[0], result.masks[12])


def test_the_scan_says_what_it_is_in_a_line():
    text = repr(auxseg.segment(chest.draw(), NETWORK, spacing_mm=(6, 6, 6)))
    assert text.startswith("<Segmentation of image, 24x48x56: left lung ") and "\n" not in text
    assert "right lung" in text and "nodules 1" in text and len(text) < 400


@pytest.mark.parametrize(
    ("image", "about", "says"),
    [
        (np.zeros((2, 3, 4, 5)), {}, "image: got float64 of shape (2, 3, 4, 5), expected numbers in HU"),
        (np.array(["a"]), {}, "image: got <U1 of shape (1,), expected numbers"),
        (np.linspace(0, 1, 60).reshape(3, 4, 5), {}, "values from 0 to 1, scaled to 1; expected HU"),
        (np.zeros((3, 4, 5), np.int16), {"spacing_mm": (1, 2)}, "spacing_mm: got (1, 2), expected 3 numbers"),
        (np.zeros((3, 4, 5), np.int16), {"spacing_mm": "thin"}, "spacing_mm: got 'thin', expected 3 numbers"),
        (np.zeros((3, 4, 5), np.int16), {"spacing_mm": (1, 2, -3)}, "a spacing above 0 mm"),
        (np.zeros((3, 4, 5), np.int16), {"direction": np.eye(2)}, "expected 9 numbers"),
        (np.zeros((3, 4, 5), np.int16), {"direction": np.zeros((3, 3))}, "axes are not independent"),
        (chest.draw((24, 48, 24)).transpose(0, 2, 1), {}, "the last axis looks like that of the slices"),
        (sitk.Image(4, 4, 4, sitk.sitkInt16), {"spacing_mm": (1, 1, 1)}, "that has its own grid"),
        (sitk.Image(4, 4, sitk.sitkInt16), {}, "image: got int16 of shape (4, 4), expected"),
        ("no_such_scan", {"spacing_mm": (1, 1, 1)}, "spacing_mm, direction: given with no_such_scan"),
    ],
)
def test_what_cannot_be_is_one_line(image, about, says):
    with pytest.raises(InputError) as error:
        auxseg.segment(image, NETWORK, **about)
    assert says in str(error.value) and "\n" not in str(error.value)


def test_a_network_is_a_path_a_network_a_list_or_the_box(tmp_path, monkeypatch):
    monkeypatch.setattr(segment, "load_network", lambda path: fake_network.create((56, 56), name=str(path)))
    names = [[one.name for one in segment._choose_networks(given)[0]] for given in ("a", [NETWORK, "b"])]
    assert names == [["a"], ["threshold", "b"]]
    box = segment.Box("7", "0" * 64, NETWORK, "both looks")
    assert segment._choose_networks(box) == ([NETWORK], "both looks")
    assert repr(box) == "<networks in the box, version 7 (SHA-256 000000000000)>"


def test_a_network_is_called_with_hu_of_its_size():
    images = chest.draw()[10:12, :, :48]
    network = networks.Network("mine", (48, 48), "0" * 64, "anatomy", fake_network.create().forward)
    found = network(images)
    assert found.shape == (2, 48, 48, 4) and found.dtype == np.float32
    np.testing.assert_array_equal(found, network.probabilities(images))
    np.testing.assert_array_equal(network(images[0].astype(np.float64)), found[:1])
    assert repr(network) == (
        "<Network mine: images in HU [N, 48, 48] -> probabilities of background, left_lung, right_lung, nodule>"
    )


@pytest.mark.parametrize(
    ("images", "says"),
    [
        (np.zeros((2, 40, 48), np.int16), "got shape (2, 40, 48), expected [N, 48, 48]"),
        (np.zeros((0, 48, 48), np.int16), "got shape (0, 48, 48)"),
        (np.zeros((1, 48, 48, 1), np.int16), "got shape (1, 48, 48, 1)"),
        (np.full((1, 48, 48), 0.5), "got values from 0.5 to 0.5, scaled to 1; expected HU"),
        (np.zeros((1, 48, 48), np.uint8), "got uint8, expected"),
        (np.full((1, 48, 48), np.nan), "expected finite numbers in HU"),
        (np.full((1, 48, 48), "a"), "expected finite numbers in HU"),
    ],
)
def test_other_images_are_refused_in_a_line(images, says):
    network = networks.Network("mine", (48, 48), "0" * 64, "anatomy", fake_network.create().forward)
    with pytest.raises(InputError) as error:
        network(images)
    assert says in str(error.value) and "\n" not in str(error.value)
