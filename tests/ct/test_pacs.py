"""A round trip through a real DICOM server: series in, segmentation out, stored back, read again.

Needs Debian's orthanc and dicom3tools; skipped, saying so, where they are not installed.
"""

import json
import shutil
import socket
import subprocess
import time
import urllib.request

import chest
import dicom_files
import fake_network
import numpy as np
import pytest

from auxseg.ct import images, writers
from auxseg.ct.geometry import Geometry, find_orientation, from_canonical, to_canonical
from auxseg.prediction import outputs, segment

pydicom = pytest.importorskip("pydicom", reason="the dicom extra is not installed")
highdicom = pytest.importorskip("highdicom", reason="the dicom extra is not installed")
ORTHANC, DCIODVFY = shutil.which("Orthanc"), shutil.which("dciodvfy")


def _free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@pytest.fixture
def server(tmp_path):
    """Returns the address of an Orthanc that runs for the test, on the loopback alone."""
    if ORTHANC is None:
        pytest.skip("Orthanc is not installed (apt-get install orthanc)")
    ports = _free_port(), _free_port()
    settings = {
        "StorageDirectory": str(tmp_path / "pacs"), "IndexDirectory": str(tmp_path / "pacs"),
        "HttpPort": ports[0], "DicomPort": ports[1], "HttpBindAddresses": ["127.0.0.1"],
        "RemoteAccessAllowed": False, "AuthenticationEnabled": False, "Plugins": [],
    }  # fmt: skip
    (tmp_path / "orthanc.json").write_text(json.dumps(settings))
    process = subprocess.Popen([ORTHANC, tmp_path / "orthanc.json"], stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL)  # fmt: skip
    try:
        yield _wait(f"http://127.0.0.1:{ports[0]}", process)
    finally:
        process.terminate()
        process.wait(30)


def _wait(address, process):
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert process.poll() is None, "Orthanc ended"
        try:
            _ask(f"{address}/system")
            return address
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.2)
    raise AssertionError("Orthanc did not start")


def _ask(url, data=None):
    with urllib.request.urlopen(urllib.request.Request(url, data=data), timeout=30) as answer:
        return answer.read()


def _send(address, path):
    return json.loads(_ask(f"{address}/instances", path.read_bytes()))


def _verify(path):
    """Fails where dciodvfy finds an error."""
    if DCIODVFY is None:
        pytest.skip("dciodvfy is not installed (apt-get install dicom3tools)")
    done = subprocess.run([DCIODVFY, path], capture_output=True, text=True, encoding="utf-8")
    errors = [line for line in done.stderr.splitlines() if line.startswith("Error")]
    assert not errors, errors[:5]


def _check_segmentation(path, volume, expected):
    """Compares a DICOM-SEG with the mask that was predicted, read by pydicom and by highdicom."""
    plain = pydicom.dcmread(path)
    plain.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    plain.save_as(path.with_name("inflated.dcm"))  # dciodvfy cannot inflate
    _verify(path.with_name("inflated.dcm"))
    labels = [one.SegmentLabel for one in plain.SegmentSequence]
    nodules = [f"Nodule {number}" for number in range(1, len(labels) - 1)]
    assert plain.Modality == "SEG" and labels == ["Left lung", "Right lung", *nodules]
    codes = [one.SegmentedPropertyTypeCodeSequence[0] for one in plain.SegmentSequence]
    assert [(one.CodeValue, one.CodingSchemeDesignator) for one in codes] == [
        ("39607008", "SCT"), ("39607008", "SCT"), *[("27925004", "SCT")] * len(nodules)
    ]  # fmt: skip
    sides = [one.SegmentedPropertyTypeModifierCodeSequence[0].CodeValue for one in codes[:2]]
    assert sides == ["7771000", "24028007"]
    regions = [one.AnatomicRegionSequence[0].CodeValue for one in plain.SegmentSequence]
    assert regions == ["44029006", "3341006", *["39607008"] * len(nodules)]
    segmentation = highdicom.seg.segread(path)
    frames = [frame for frame in volume.frames]
    if len({frame.sop_uid for frame in frames}) == len(frames):
        uids = [frame.sop_uid for frame in frames]
        arrays = segmentation.get_pixels_by_source_instance(uids, assert_missing_frames_are_empty=True)
    else:
        numbers = [frame.index + 1 for frame in frames]
        arrays = segmentation.get_pixels_by_source_frame(
            frames[0].sop_uid, numbers, assert_missing_frames_are_empty=True
        )
    orientation = find_orientation(volume.stored)
    arrays = np.concatenate([arrays[..., :2], arrays[..., 2:].any(axis=-1, keepdims=True)], axis=-1)
    for value in (1, 2, 3):
        got = to_canonical(arrays[..., value - 1], orientation)
        np.testing.assert_array_equal(got == 1, expected == value)


def _volume_of(path):
    from auxseg.ct import dicom_volume, find

    return dicom_volume.create_volume(find.find_scans(path)[0].series[0])


def test_round_trip_through_a_server(server, tmp_path):
    volume = chest.draw()
    paths = dicom_files.write_series(tmp_path / "in", volume, spacing_zyx=(6, 6, 6))
    for path in paths:
        _verify(path)
        assert _send(server, path)["Status"] == "Success"
    series = json.loads(_ask(f"{server}/series"))
    assert len(series) == 1
    (tmp_path / "fetched.zip").write_bytes(_ask(f"{server}/series/{series[0]}/archive"))
    rows = outputs.predict(tmp_path / "fetched.zip", tmp_path / "out", [fake_network.create((56, 56))],
                           formats=("dicom-seg", "nrrd"))  # fmt: skip
    assert rows[0]["status"] == "done"
    stored = _send(server, tmp_path / "out" / "mask.dcm")
    assert stored["Status"] == "Success"
    assert stored["ParentStudy"] == json.loads(_ask(f"{server}/series/{series[0]}"))["ParentStudy"]
    back = tmp_path / "back.dcm"
    back.write_bytes(_ask(f"{server}/instances/{stored['ID']}/file"))
    import SimpleITK as sitk

    expected = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "out" / "mask.nrrd")))
    assert all((expected == value).sum() > 20 for value in (1, 2, 3))
    _check_segmentation(back, _volume_of(tmp_path / "in"), expected)


@pytest.mark.parametrize(
    "case", ["axial", "feet first", "coronal", "enhanced", "tilted", "one slice", "coronal slice", "real"]
)
def test_dicom_seg_lies_on_its_source(tmp_path, case, request):
    volume = chest.draw()
    orientations = {
        "feet first": (-1, 0, 0, 0, 1, 0),
        "coronal": (1, 0, 0, 0, 0, -1),
        "coronal slice": (1, 0, 0, 0, 0, -1),
    }
    orientation = orientations.get(case, dicom_files.AXIAL)
    row, column = np.reshape(orientation, (2, 3))
    matrix = np.stack([row, column, np.cross(row, column)], 1).astype(float)
    geometry = Geometry((1, 1, 1), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), tuple(matrix.ravel()))
    spacing = (6, 6, 6)
    if case == "real":
        folder = request.getfixturevalue("real_data")
        volume, spacing = images.read_volume(folder / "cip" / "ct-64.nrrd"), (3.987, 4.172, 4.172)
    array = from_canonical(volume, find_orientation(geometry))
    if case == "enhanced":
        order = np.random.default_rng(2).permutation(len(volume))
        dicom_files.write_enhanced(tmp_path / "in" / "one.dcm", volume, spacing_zyx=spacing, shuffle=order)
    else:
        step = (0, 1.2, 6.0) if case == "tilted" else None
        dicom_files.write_series(
            tmp_path / "in", array, spacing_zyx=spacing, orientation=orientation, step=step
        )
    options = segment.Options(slices="middle" if case.endswith("slice") else "all")
    network = [fake_network.create((56, 56))]
    outputs.predict(tmp_path / "in", tmp_path / "out", network, options=options, formats=("dicom-seg",))
    result = segment.segment(tmp_path / "in", network, options=options)
    expected = np.zeros(result.scan.geometry.shape_zyx, np.uint8)
    expected[result.start : result.stop] = result.masks
    _check_segmentation(tmp_path / "out" / "mask.dcm", result.scan.volume, expected)


def test_a_tilted_stack_keeps_its_places_in_every_format(tmp_path):
    import nibabel
    import SimpleITK as sitk

    dicom_files.write_series(tmp_path / "in", chest.draw(), spacing_zyx=(6, 6, 6), step=(0, 1.2, 6.0))
    network = [fake_network.create((56, 56))]
    outputs.predict(tmp_path / "in", tmp_path / "out", network, formats=("nii.gz", "nrrd", "mha"))
    expected = (-60 + 12, -50 + 18 + 8.4, 10 + 42)
    for form in ("nrrd", "mha"):
        mask = sitk.ReadImage(str(tmp_path / "out" / f"mask.{form}"))
        place = mask.TransformContinuousIndexToPhysicalPoint((2.0, 3.0, 7.0))
        np.testing.assert_allclose(place, expected, atol=1e-6)
    affine = nibabel.load(tmp_path / "out" / "mask.nii.gz").affine
    np.testing.assert_allclose((affine @ (2, 3, 7, 1))[:3] * (-1, -1, 1), expected, atol=1e-4)
    assert not writers.is_orthogonal(_volume_of(tmp_path / "in").stored)


def test_a_dicom_seg_holds_the_slices_that_exist(tmp_path):
    """Two slices are missing, and filled in the volume alone."""
    keep = [k for k in range(24) if k not in (9, 14)]
    dicom_files.write_series(tmp_path / "in", chest.draw(), spacing_zyx=(6, 6, 6), keep=keep)
    network = [fake_network.create((56, 56))]
    outputs.predict(tmp_path / "in", tmp_path / "out", network, formats=("dicom-seg",))
    result = segment.segment(tmp_path / "in", network)
    assert result.masks.shape[0] == 24 and result.masks[9].any()
    _check_segmentation(tmp_path / "out" / "mask.dcm", result.scan.volume, result.masks[keep])
