"""Labels of other software on the grid of their scan: images, DICOM-SEG by highdicom, RTSTRUCT by rt-utils, contours."""

import pathlib
import warnings

import dicom_files
import highdicom
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from matplotlib.path import Path
from pydicom.sr.coding import Code

from auxseg.base.classes import LEFT, NODULE, RIGHT, UNKNOWN
from auxseg.base.errors import InputError
from auxseg.ct import find, label_files, read_rtstruct, scans

RING = pathlib.Path(__file__).parent / "rt_utils_ring.dcm"
"""Written by rt-utils 1.2.7 from masks that `draw_ring` draws, on a series of `dicom_files`."""
CORONAL = (1.0, 0.0, 0.0, 0.0, 0.0, -1.0)


def draw(*rows):
    return np.array([[character == "#" for character in row] for row in rows])


@pytest.mark.parametrize(
    ("polygons", "expected"),
    [
        # Corners on centres: these pixels are inside.
        ([[(1, 1), (4, 1), (4, 3), (1, 3)]], draw("......", ".####.", ".####.", ".####.", "......")),
        # Corners between centres.
        ([[(0.5, 0.5), (3.5, 0.5), (3.5, 2.5), (0.5, 2.5)]], draw("......", ".###..", ".###..", "......", "......")),
        # A hole through centres, which stay inside.
        ([[(0, 0), (4, 0), (4, 4), (0, 4)], [(1, 1), (3, 1), (3, 3), (1, 3)]],
         draw("#####.", "#####.", "##.##.", "#####.", "#####.")),
        # Two pieces.
        ([[(0, 0), (1, 0), (1, 1), (0, 1)], [(3, 2), (5, 2), (5, 3), (3, 3)]],
         draw("##....", "##....", "...###", "...###", "......")),
        # A keyhole: in along x = 2.5, around the hole, and out again.
        ([[(0, 0), (2.5, 0), (2.5, 1.5), (1.5, 1.5), (1.5, 2.5), (3.5, 2.5), (3.5, 1.5), (2.5, 1.5), (2.5, 0), (5, 0), (5, 4),
           (0, 4)]], draw("######", "######", "##..##", "######", "######")),
        # A line and a point through centres.
        ([[(1, 1), (3, 1)], [(5, 3)]], draw("......", ".###..", "......", ".....#", "......")),
        # Beyond the image.
        ([[(-2, -2), (1, -2), (1, 9), (-2, 9)]], draw("##....", "##....", "##....", "##....", "##....")),
    ],
)  # fmt: skip
def test_contours_fill_the_centres_inside_them(polygons, expected):
    np.testing.assert_array_equal(
        read_rtstruct.fill([np.array(one, float) for one in polygons], (5, 6)), expected
    )


def test_polygons_between_centres_agree_with_matplotlib():
    rng = np.random.default_rng(0)
    centres = np.stack(np.meshgrid(np.arange(30), np.arange(24)), axis=-1).reshape(-1, 2)
    for _ in range(20):
        angles = np.sort(rng.uniform(0, 2 * np.pi, 9))
        corners = np.array([14.3, 11.7]) + rng.uniform(3, 13, (9, 1)) * np.stack(
            [np.cos(angles), np.sin(angles)], axis=1
        )
        path = Path(np.concatenate([corners, corners[:1]]))
        shifts = [(x, y) for x in (-0.02, 0.02) for y in (-0.02, 0.02)]
        seen = np.stack([path.contains_points(centres + shift).reshape(24, 30) for shift in shifts])
        clear = seen.all(axis=0) | ~seen.any(axis=0)  # not so near to a contour that it counts as on it
        found = read_rtstruct.fill([corners], (24, 30))
        assert clear.mean() > 0.95
        np.testing.assert_array_equal(found[clear], seen[0][clear])


def open_series(folder, volume, scratch, **how):
    dicom_files.write_series(folder, volume, **how)
    return scans.open_scan(find.find_scans(folder)[0], scratch)


def draw_ring():
    """Returns bool [5, 32, 32]: a ring with a second piece in slices 1 and 2, a disc without it in slice 3."""
    y, x = np.mgrid[:32, :32]
    distance = np.hypot(y - 12, x - 10)
    ring = np.zeros((5, 32, 32), bool)
    ring[1:4] = (distance < 8) & (distance >= 3.5)
    ring[1:4, 24:28, 3:9] = True
    ring[3] = distance < 8
    return ring


def test_rtstruct_of_rt_utils_gives_the_masks_that_it_was_made_from(tmp_path):
    scan = open_series(tmp_path / "ct", np.full((5, 32, 32), -800), tmp_path, spacing_zyx=(2.0, 1.5, 1.5),
                       origin=(-10.0, 5.0, 30.0))  # fmt: skip
    assert label_files.read_modality(RING) == "RTSTRUCT"
    assert label_files.read_referenced(RING) == dicom_files.STUDY + ".7"
    meaning = {"Lung Left": LEFT, "Lung Right": RIGHT}
    found = label_files.read_labels(RING, scan.geometry, tmp_path, lambda keys, path: meaning[keys[0]])
    np.testing.assert_array_equal(found == LEFT, draw_ring())
    expected = np.zeros((5, 32, 32), bool)
    expected[1:3, 5:25, 20:30] = True
    np.testing.assert_array_equal(found == RIGHT, expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda z: z + 50.0, "outside its scan of 5 slices"),
        (lambda z: z + 3.0 * (np.arange(len(z)) % 2), "runs through several slices"),
    ],
)
def test_contours_off_the_scan_are_refused(tmp_path, change, message):
    scan = open_series(tmp_path / "ct", np.full((5, 32, 32), -800), tmp_path, spacing_zyx=(2.0, 1.5, 1.5),
                       origin=(-10.0, 5.0, 30.0))  # fmt: skip
    dataset = pydicom.dcmread(RING)
    contour = dataset.ROIContourSequence[0].ContourSequence[0]
    points = np.array(contour.ContourData, float).reshape(-1, 3)
    points[:, 2] = change(points[:, 2])
    contour.ContourData = [f"{value:.6g}" for value in points.ravel()]
    dataset.save_as(tmp_path / "rt.dcm")
    with pytest.raises(InputError, match=message):
        label_files.read_labels(tmp_path / "rt.dcm", scan.geometry, tmp_path, lambda keys, path: LEFT)


def write_seg(path, folder, masks, kind="BINARY"):
    """Writes a DICOM-SEG by highdicom: uint8 [frames in the order of the files, rows, columns, segments]."""
    sources = [pydicom.dcmread(file) for file in sorted(folder.glob("*.dcm"))]
    names = ("Left lung", "Right lung", "Nodule 1")
    kinds = [("39607008", "Lung"), ("39607008", "Lung"), ("27925004", "Nodule")]
    segments = [
        highdicom.seg.SegmentDescription(
            number + 1, names[number], Code("91723000", "SCT", "Anatomical Structure"), Code(kinds[number][0], "SCT", kinds[number][1]),
            highdicom.seg.SegmentAlgorithmTypeValues.MANUAL,
        )
        for number in range(3)
    ]  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        highdicom.seg.Segmentation(
            sources, masks, kind, segments, highdicom.UID(), 9, highdicom.UID(), 1, "test", "test", "1", "1",
            **({"max_fractional_value": 200} if kind == "FRACTIONAL" else {}),
        ).save_as(path)  # fmt: skip


MEANING = {"Left lung": LEFT, "Right lung": RIGHT, "Nodule 1": NODULE}


def draw_segments(shape=(5, 20, 27)):
    """Returns bool [frames, rows, columns, 3]; the nodule lies over the left lung, and 540 pixels are no whole bytes."""
    masks = np.zeros((*shape, 3), bool)
    masks[1:4, 3:15, 15:25, 0] = masks[1:3, 4:16, 2:9, 1] = masks[2, 6:9, 17:20, 2] = True
    return masks


@pytest.mark.parametrize("kind", ["BINARY", "FRACTIONAL", "LABELMAP"])
@pytest.mark.parametrize(
    ("orientation", "step"), [(dicom_files.AXIAL, None), (CORONAL, None), (dicom_files.AXIAL, (0, 0, -2.0))]
)
def test_dicom_seg_of_highdicom_lies_where_it_was_drawn(tmp_path, kind, orientation, step):
    masks = draw_segments()
    scan = open_series(
        tmp_path / "ct", np.full(masks.shape[:3], -800), tmp_path, orientation=orientation, step=step
    )
    given = masks.astype(np.uint8)
    if kind == "LABELMAP":  # one value a pixel
        given[..., 0] &= ~given[..., 2] & 1
    write_seg(
        tmp_path / "seg.dcm", tmp_path / "ct", given.astype(float) if kind == "FRACTIONAL" else given, kind
    )
    assert label_files.read_referenced(tmp_path / "seg.dcm") == scan.volume.series.uid
    found = label_files.read_labels(
        tmp_path / "seg.dcm", scan.geometry, tmp_path, lambda keys, path: MEANING[keys[0]]
    )
    stored = np.where(masks[..., 2], NODULE, np.where(masks[..., 0], LEFT, np.where(masks[..., 1], RIGHT, 0)))
    from auxseg.ct import geometry

    order = np.argsort(
        [
            np.dot(one.position_xyz_mm, np.cross(orientation[:3], orientation[3:]))
            for one in scan.volume.frames
        ]
    )
    expected = stored[::-1] if step else stored
    assert order.tolist() == list(range(5))
    np.testing.assert_array_equal(found, geometry.to_canonical(expected, scan.orientation))


def test_segments_are_known_by_their_code_and_number_too(tmp_path):
    open_series(tmp_path / "ct", np.full((5, 20, 27), -800), tmp_path)
    write_seg(tmp_path / "seg.dcm", tmp_path / "ct", draw_segments().astype(np.uint8))
    scan = scans.open_scan(find.find_scans(tmp_path / "ct")[0], tmp_path)
    seen = []
    label_files.read_labels(
        tmp_path / "seg.dcm", scan.geometry, tmp_path, lambda keys, path: seen.append(keys)
    )
    assert seen == [("Left lung", "Lung", 1), ("Right lung", "Lung", 2), ("Nodule 1", "Nodule", 3)]


def test_a_dicom_seg_of_another_scan_is_refused(tmp_path):
    open_series(tmp_path / "ct", np.full((5, 20, 27), -800), tmp_path)
    write_seg(tmp_path / "seg.dcm", tmp_path / "ct", draw_segments().astype(np.uint8))
    other = open_series(tmp_path / "other", np.full((5, 20, 27), -800), tmp_path, origin=(-60.5, -50.0, 10.0))
    with pytest.raises(InputError, match="frame 1 of .*seg.dcm lies on another grid than its scan"):
        label_files.read_labels(tmp_path / "seg.dcm", other.geometry, tmp_path, lambda keys, path: LEFT)


def write_image(path, array, spacing=(1.0, 1.0, 2.0)):
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(spacing)
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(path))
    return path


def test_structures_of_a_folder_lie_over_each_other_by_class(tmp_path):
    """As TotalSegmentator writes them, one file each; those that mean nothing are not even opened."""
    lung, nodule, both = (np.zeros((3, 6, 7), np.uint8) for _ in range(3))
    lung[1, 1:5, 1:4], nodule[1, 2:4, 2:4], both[1, 2, :] = 1, 1, 1
    scan = scans.open_scan(
        find.Source("ct", write_image(tmp_path / "ct.nii.gz", lung.astype(np.int16)), "file"), tmp_path
    )
    for name, array in (("lung_left", lung), ("nodule", nodule), ("mass", both)):
        write_image(tmp_path / "labels" / f"{name}.nii.gz", array)
    (tmp_path / "labels" / "liver.nii.gz").write_bytes(b"damaged")
    meaning = {"lung_left": LEFT, "nodule": NODULE, "mass": UNKNOWN, "liver": 0}
    found = label_files.read_labels(
        tmp_path / "labels", scan.geometry, tmp_path, lambda keys, path: meaning[keys[0]]
    )
    expected = np.zeros((3, 6, 7), np.uint8)
    expected[1, 1:5, 1:4] = LEFT
    expected[1, 2, :] = UNKNOWN
    expected[1, 2:4, 2:4] = NODULE
    np.testing.assert_array_equal(found, expected)


def test_an_image_on_another_grid_is_refused(tmp_path):
    zeros = np.zeros((3, 6, 7), np.int16)
    scan = scans.open_scan(find.Source("ct", write_image(tmp_path / "ct.nii.gz", zeros), "file"), tmp_path)
    label = write_image(tmp_path / "label.nrrd", zeros, (1.0, 1.0, 3.0))
    with pytest.raises(InputError, match="label.nrrd lies on another grid than its scan: spacing"):
        label_files.read_labels(label, scan.geometry, tmp_path, lambda keys, path: keys[0])
