"""Whole scans in people's own layouts: who belongs to whom, what labels mean, which slices come out, records."""

import csv
import json

import dicom_files
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk

from auxseg import datasets
from auxseg.base.classes import LEFT, NODULE, RIGHT, UNKNOWN
from auxseg.base.errors import InputError
from auxseg.datasets.folder import label_map, layout, listing
from auxseg.datasets.preparation import npz_form, pieces, records
from configs import base

SHAPE = (9, 40, 48)
SPACING = (1.5, 1.5, 2.0)


def draw(nodule=True):
    """Returns (HU, classes), canonical: two lungs in slices 2 to 6, a nodule in the left one in slices 3 and 4."""
    mask = np.zeros(SHAPE, np.uint8)
    mask[2:7, 10:32, 26:42], mask[2:7, 12:30, 6:20] = LEFT, RIGHT
    if nodule:
        mask[3:5, 16:20, 30:35] = NODULE
    hu = np.array([-1000, -850, -800, 40], np.int16)[mask] + np.arange(9, dtype=np.int16)[:, None, None]
    hu[:, :, :3], hu[:, :, -3:] = 40, 40
    return hu, mask


def write(path, array, orientation="LPS"):
    """Writes a canonical array, stored along other axes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(SPACING)
    sitk.WriteImage(sitk.DICOMOrient(image, orientation), str(path), useCompression=True)
    return path


def write_nnunet(folder, *, cases=3, orientation="LPS", labels=None):
    hu, mask = draw()
    for number in range(cases):
        write(folder / "imagesTr" / f"case_{number}_0000.nii.gz", hu + 10 * number, orientation)
        write(folder / "labelsTr" / f"case_{number}.nii.gz", mask, orientation)
    names = {"background": 0, "lung left": 1, "lung right": 2, "tumour": 3}
    (folder / "dataset.json").write_text(json.dumps({"labels": labels or names, "file_ending": ".nii.gz"}))
    return folder


def read(folder, **settings):
    """Returns (Folder, {scan: (slices, notes)})."""
    found, settings = listing.list_folder(folder), layout.Settings(**settings)
    nodules_of = layout.create_nodule_reader(found, settings)
    return found, {scan.uid: layout.read_slices(scan, settings, nodules_of) for scan in found.scans}


@pytest.mark.parametrize("orientation", ["LPS", "RAS", "SPL", "AIR"])
def test_nnunet_in_any_orientation(tmp_path, orientation):
    hu, mask = draw()
    folder, found = read(write_nnunet(tmp_path, orientation=orientation), slices="lung")
    assert list(found) == ["case_0", "case_1", "case_2"] and not folder.problems
    slices, notes = found["case_1"]
    assert [part.index_z for part in slices] == [2, 3, 4, 5, 6] and notes == ()
    assert [part.num_nodules for part in slices] == [0, 1, 1, 0, 0]
    np.testing.assert_array_equal(np.stack([part.mask for part in slices]), mask[2:7])
    np.testing.assert_array_equal(np.stack([part.image for part in slices]), hu[2:7] + 10)
    np.testing.assert_allclose(slices[0].spacing_zyx_mm, (2.0, 1.5, 1.5))


@pytest.mark.parametrize(
    ("slices", "expected"), [("middle", [4]), ("lung", [2, 3, 4, 5, 6]), ("all", list(range(9)))]
)
def test_slices_are_chosen_as_for_luna16(tmp_path, slices, expected):
    _, found = read(write_nnunet(tmp_path, cases=1), slices=slices)
    assert [part.index_z for part in found["case_0"][0]] == expected


def test_nodule_slices_come_with_as_many_others(tmp_path):
    _, found = read(write_nnunet(tmp_path, cases=1), slices="nodule")
    indices = [part.index_z for part in found["case_0"][0]]
    assert len(indices) == 4 and {3, 4} < set(indices) <= {2, 3, 4, 5, 6}


def test_a_set_of_tumours_alone_knows_nothing_of_the_rest(tmp_path):
    """As the Medical Decathlon's Task06: image and label of one name, 1 = cancer, no lungs."""
    hu, mask = draw()
    write(tmp_path / "imagesTr" / "lung_001.nii.gz", hu)
    write(tmp_path / "labelsTr" / "lung_001.nii.gz", (mask == NODULE).astype(np.uint8))
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": {"0": "background", "1": "cancer"}}))
    for meaning in (None, "msd_task06"):
        _, found = read(tmp_path, slices="nodule", label_map=meaning)
        slices, _ = found["lung_001"]
        assert [part.num_nodules for part in slices if part.index_z in (3, 4)] == [1, 1] and len(slices) == 4
        for part in slices:
            expected = np.where(mask[part.index_z] == NODULE, NODULE, UNKNOWN)
            np.testing.assert_array_equal(part.mask, expected)


def test_lungs_on_the_wrong_sides_are_refused(tmp_path):
    with pytest.raises(InputError, match="left lung on the patient's right.*lungmask"):
        read(write_nnunet(tmp_path, cases=1), label_map="1:right_lung,2:left_lung,3:nodule")


def test_nodules_from_a_table_in_mm(tmp_path):
    """In place of a label (case_1: all else is unknown), and beside one (case_0)."""
    hu, mask = draw(nodule=False)
    write(tmp_path / "case_0.nrrd", hu), write(tmp_path / "case_0_lungs.nrrd", mask)
    write(tmp_path / "case_1.mha", hu), write(tmp_path / "case_2.mha", hu)
    x, y, z = 32 * 1.5, 18 * 1.5, 3 * 2.0
    lines = ["seriesuid,coordX,coordY,coordZ,diameter_mm", *(f"case_{n},{x},{y},{z},4.4" for n in (0, 1))]
    (tmp_path / "annotations.csv").write_text("\n".join(lines) + "\n")
    folder, found = read(tmp_path, slices="all")
    assert list(found) == ["case_0", "case_1"]
    assert ("case_2.mha", "skipped") in [(one.file, one.what) for one in folder.files]
    for name, around in (("case_0", LEFT), ("case_1", UNKNOWN)):
        slices, _ = found[name]
        assert [part.num_nodules for part in slices] == [0, 0, 1, 1, 1, 0, 0, 0, 0]
        assert slices[3].mask[18, 32] == NODULE and slices[3].mask[18, 36] == around
        # Of radius 2.2 mm: pixels of 1.5 mm, the diagonal ones 2.12 mm away.
        assert np.count_nonzero(slices[3].mask == NODULE) == 9


def write_study(folder, number, patient):
    hu, mask = draw()

    def edit(one, index):
        one.PatientID = patient

    dicom_files.write_series(
        folder, hu, study=f"{dicom_files.STUDY}.{number}", series=f"{dicom_files.STUDY}.{number}.1",
        spacing_zyx=(2.0, 1.5, 1.5), edit=edit,
    )  # fmt: skip
    return mask


def write_segmentation(path, folder, mask):
    import highdicom
    from pydicom.sr.coding import Code

    sources = [pydicom.dcmread(file) for file in sorted(folder.glob("*.dcm"))]
    lung = Code("39607008", "SCT", "Lung")
    segments = [
        highdicom.seg.SegmentDescription(
            number,
            name,
            Code("91723000", "SCT", "Anatomical Structure"),
            lung,
            highdicom.seg.SegmentAlgorithmTypeValues.MANUAL,
        )
        for number, name in ((1, "Lung_L"), (2, "Lung_R"), (3, "Nodule 1"))
    ]
    given = np.stack([mask == value for value in (1, 2, 3)], axis=-1).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    highdicom.seg.Segmentation(
        sources, given, "BINARY", segments, highdicom.UID(), 9, highdicom.UID(), 1, "test", "test", "1", "1"
    ).save_as(path)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("place", ["beside", "labels"])
def test_studies_with_dicom_seg(tmp_path, place):
    """The segmentation lies in the study's folder, or in a folder of labels by any name."""
    root = tmp_path if place == "beside" else tmp_path / "images"
    for number, patient in ((1, "P1"), (2, "P2")):
        mask = write_study(root / f"scan{number}", number, patient)
        target = (
            root / f"scan{number}" / "seg.dcm"
            if place == "beside"
            else tmp_path / "labels" / f"any{number}.dcm"
        )
        write_segmentation(target, root / f"scan{number}", mask)
    folder, found = read(tmp_path, slices="lung")
    assert [(scan.uid, scan.patient) for scan in folder.scans] == [("scan1", "P1"), ("scan2", "P2")]
    np.testing.assert_array_equal(np.stack([part.mask for part in found["scan2"][0]]), mask[2:7])
    assert {one.what for one in folder.files} == {"used"}


def test_two_series_of_a_study_with_labels_of_their_own(tmp_path):
    hu, mask = draw()
    for name, number in (("soft", 1), ("sharp", 2)):
        dicom_files.write_series(
            tmp_path / name, hu, series=f"{dicom_files.STUDY}.8.{number}", number=number, spacing_zyx=(2.0, 1.5, 1.5),
            origin=(0.0, 0.0, 0.0),
        )  # fmt: skip
        write(tmp_path / f"{name}_mask.nii.gz", mask)
    folder, found = read(tmp_path, slices="middle")
    assert list(found) == ["sharp", "soft"] and {scan.patient for scan in folder.scans} == {"T1"}


def test_patients_and_every_file_has_an_end(tmp_path):
    hu, mask = draw()
    for name in ("a", "b", "c"):
        write(tmp_path / "images" / f"{name}.nii.gz", hu)
    for name in ("a_seg", "b", "z"):
        write(tmp_path / "labels" / f"{name}.nii.gz", mask)
    (tmp_path / "labels" / "notes.txt").write_text("mine")
    (tmp_path / "thesis.pdf").write_text("mine")
    (tmp_path / "patients.csv").write_text("scan,patient\na,Anna\n")
    folder = listing.list_folder(tmp_path)
    assert [(scan.uid, scan.patient) for scan in folder.scans] == [("a", "Anna"), ("b", "b")]
    assert folder.notes[0].startswith("1 scans state no patient")
    assert {(one.file, one.what, one.why.split(":")[0]) for one in folder.files} == {
        ("images/a.nii.gz", "used", ""),
        ("images/b.nii.gz", "used", ""),
        ("labels/a_seg.nii.gz", "used", ""),
        ("labels/b.nii.gz", "used", ""),
        ("patients.csv", "used", ""),
        ("images/c.nii.gz", "skipped", "a scan without a label of its name"),
        ("labels/z.nii.gz", "skipped", "a label without its scan"),
        ("labels/notes.txt", "skipped", "no label"),
        ("thesis.pdf", "skipped", "beside images and labels"),
    }


def test_totalsegmentator_as_it_is_published(tmp_path):
    hu, mask = draw(nodule=False)
    for name in ("s0001", "s0002"):
        write(tmp_path / name / "ct.nii.gz", hu)
        for structure, part in (("lung_upper_lobe_left", mask == LEFT), ("lung_middle_lobe_right", mask == RIGHT),
                                ("liver", mask == 9)):  # fmt: skip
            write(tmp_path / name / "segmentations" / f"{structure}.nii.gz", part.astype(np.uint8))
    _, found = read(tmp_path, slices="lung", label_map="totalsegmentator")
    assert list(found) == ["s0001", "s0002"]
    np.testing.assert_array_equal(np.stack([part.mask for part in found["s0001"][0]]), mask[2:7])
    assert {part.num_nodules for part in found["s0001"][0]} == {-1}  # it does not know nodules


def test_a_scan_with_two_labels_and_a_folder_without_any(tmp_path):
    hu, mask = draw()
    write(tmp_path / "a.nii.gz", hu)
    with pytest.raises(
        InputError, match="none of the 1 scans in .* has a label of its name; expected imagesTr"
    ):
        listing.list_folder(tmp_path)
    write(tmp_path / "a_mask.nii.gz", mask), write(tmp_path / "a_lungs.nii.gz", mask)
    assert listing.list_folder(tmp_path).problems == (
        "a: has 2 labels (a_lungs.nii.gz, a_mask.nii.gz); leave one in the folder",
    )


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Lung_L", LEFT), ("Right Lung", RIGHT), ("lung_upper_lobe_left", LEFT), ("LungRt", RIGHT), ("RT LUNG", RIGHT),
        ("Nodule 1 - Annotation 16", NODULE), ("cancer", NODULE), ("Lung Nodules", NODULE), ("Trachea", 0), ("Esophagus", 0),
        ("Bronchial tree", 0), ("Bronchus", 0),
        ("clear label", 0), ("lungs", None), ("GTV-1", None), ("left kidney", None), ("liver tumor", None), ("lung vessels", None),
    ],
)  # fmt: skip
def test_names_that_speak_for_themselves(name, expected):
    assert label_map.recognise(name) == expected


@pytest.mark.parametrize(
    ("text", "keys", "expected"),
    [
        (None, (2,), RIGHT),
        (None, (255,), UNKNOWN),
        ("lungmask", (1,), RIGHT),
        ("luna16", (5,), 0),
        ("totalsegmentator", (14,), RIGHT),
        ("totalsegmentator", (51,), 0),
        ("lungmask,7:unknown", (7,), UNKNOWN),
        ("1:left_lung,2:right_lung", (0,), 0),
        ("GTV-1:nodule,*:background", ("gtv-1", 3), NODULE),
        ("GTV-1:nodule,*:background", ("Heart", 4), 0),
        ("1:unknown", ("Lung_L", 1), UNKNOWN),  # what is given goes before what a name says
    ],
)
def test_label_maps(text, keys, expected):
    assert label_map.parse(text).class_of(keys, "x") == expected


@pytest.mark.parametrize(
    ("text", "keys", "message"),
    [
        (
            None,
            (9,),
            "does not say what the value 9 of x is; name all values, such as 1:left_lung,2:right_lung,9:CLASS",
        ),
        ("1:left_lung", (9,), "does not say what the value 9 of x is; add 9:CLASS with one of"),
        (None, ("GTV-1", 7), "what the structure 'GTV-1' of x is; add GTV-1:CLASS"),
        ("lungmask", (3,), "does not say what the value 3 of x is"),
        ("1:left_lung", ("GTV-1", 7), "does not say what the structure 'GTV-1' of x is"),
    ],
)
def test_what_a_label_map_does_not_say_is_refused(text, keys, message):
    with pytest.raises(InputError, match=message):
        label_map.parse(text).class_of(keys, "x")


@pytest.mark.parametrize("text", ["lungmusk", "1:lung", "left_lung", "1=left_lung"])
def test_texts_that_are_no_label_map(text):
    with pytest.raises(InputError, match="data.label_map: got"):
        label_map.parse(text)
    with pytest.raises(InputError, match="--reference_label_map: got"):
        label_map.parse(text, "--reference_label_map")


def load(folder, cache, **changes):
    config = base.get_config().data
    with config.unlocked():
        config.update(
            {
                "name": "folder",
                "dir": str(folder),
                "cache_dir": str(cache),
                "size": (40, 48),
                "slices": "lung",
                **changes,
            }
        )
    return datasets.load(config)


def test_records_hold_the_slices_and_are_written_once(tmp_path, monkeypatch):
    folder = write_nnunet(tmp_path / "set")
    (folder / "imagesTr" / "case_7_0000.nii.gz").write_bytes(b"damaged")
    write(folder / "labelsTr" / "case_7.nii.gz", draw()[1])
    with pytest.raises(InputError, match="1 of 4 scans cannot be used: case_7: "):
        load(folder, tmp_path / "cache")
    dataset = load(folder, tmp_path / "cache", skip_bad_scans=True)
    hu, mask = draw()
    assert len(dataset) == 15 and dataset.name.startswith("folder/lung-own-40x48")
    assert dataset.table.case_id[0] == "case_0_0002" and set(dataset.table.patient) == {
        "case_0",
        "case_1",
        "case_2",
    }
    images, masks = dataset.read(np.array([6]))  # case_1, slice 3
    np.testing.assert_array_equal(images[0], hu[3] + 10)
    np.testing.assert_array_equal(masks[0], mask[3])
    np.testing.assert_array_equal(dataset.read_native_mask(6), mask[3])
    assert dataset.table.num_nodules[5:10].tolist() == [0, 1, 1, 0, 0] and set(dataset.table.subset) == {-1}
    (place,) = (tmp_path / "cache" / "folder").glob("lung-*")
    with open(place / "files.csv", newline="") as file:
        rows = {row["file"]: (row["what"], row["scan"]) for row in csv.DictReader(file)}
    assert rows["imagesTr/case_7_0000.nii.gz"] == ("failed", "case_7")
    assert rows["labelsTr/case_1.nii.gz"] == ("used", "case_1")
    monkeypatch.setattr(layout, "read_slices", None)
    assert len(load(folder, tmp_path / "cache", skip_bad_scans=True)) == 15
    assert len(load(place, tmp_path / "none", skip_bad_scans=True)) == 15


def test_labels_of_lungs_alone(tmp_path):
    hu, mask = draw(nodule=False)
    for number in range(2):
        write(tmp_path / "images" / f"{number}.nii.gz", hu)
        write(
            tmp_path / "labels" / f"{number}.nii.gz", np.array([0, 2, 1], np.uint8)[mask]
        )  # as lungmask writes them
    dataset = load(tmp_path, tmp_path / "cache", label_map="lungmask")
    assert dataset.notes[-1].startswith("the labels mark no nodules: data.classes without 'nodule'")
    np.testing.assert_array_equal(dataset.read(np.array([0]))[1][0], mask[2])
    lungs = load(
        tmp_path, tmp_path / "cache", label_map="lungmask", classes=("background", "left_lung", "right_lung")
    )
    assert lungs.table.labels[0].tolist() == [1, 1, 1] and not any("nodules" in note for note in lungs.notes)


def test_workers_and_npz_files_give_the_same(tmp_path):
    folder = write_nnunet(tmp_path / "set", cases=2)
    settings = layout.Settings(size_yx=(40, 48), slices="all")
    pieces_of = {}
    for workers in (1, 2):
        cache = tmp_path / f"cache{workers}"
        place = records.prepare(folder, cache_dir=cache, settings=settings, name="folder",
                                write_all=lambda *a, n=workers: pieces.write_all(*a, num_workers=n))  # fmt: skip
        pieces_of[workers] = records.read_records(place, settings=settings).read(np.arange(18))
    np.testing.assert_array_equal(pieces_of[1], pieces_of[2])
    rows, problems, _ = npz_form.write(
        folder, tmp_path / "npz", settings=settings, write_all=pieces.write_all
    )
    assert len(rows) == 18 and not problems and rows[0]["patient"] == "case_0"


def test_slices_cut_to_the_body(tmp_path):
    """A body of 48 columns of 1.5 mm in 40 rows: a square of 72 mm with 2 % on each side is 50 pixels wide."""
    hu, mask = draw()
    wide, labels = np.full((9, 80, 96), -1000, np.int16), np.zeros((9, 80, 96), np.uint8)
    wide[:, 20:60, 24:72], labels[:, 20:60, 24:72] = np.where(mask == 0, 40, hu), mask
    write(tmp_path / "a.nii.gz", wide), write(tmp_path / "a_mask.nii.gz", labels)
    _, found = read(tmp_path, slices="middle", field="body")
    (part,) = found["a"][0]
    assert part.image.shape == part.mask.shape == (50, 50)
    assert np.count_nonzero(part.mask) == np.count_nonzero(mask[4])


def test_slabs_of_neighbouring_slices(tmp_path):
    """Slices of 2 mm, each 1 HU above the one below: 7.5 mm are four slices, and the ends are repeated."""
    folder = write_nnunet(tmp_path / "set", cases=2, orientation="SPL")
    dataset = load(folder, tmp_path / "cache", slab=3, slab_step_mm=7.5)
    assert dataset.slab == 3 and dataset.table.slice_index.tolist() == [2, 3, 4, 5, 6] * 2
    heights = dataset.read_slabs(np.arange(10))[:, 0, 4] + 1000
    assert heights[:5].tolist() == [[0, 2, 6], [0, 3, 7], [0, 4, 8], [1, 5, 8], [2, 6, 8]]
    np.testing.assert_array_equal(heights[5:], heights[:5] + 10)
    np.testing.assert_array_equal(dataset.read_slabs([1])[..., 1], dataset.read(np.array([1]))[0])


def test_slabs_follow_the_files_and_are_cut_as_their_slices(tmp_path):
    hu, mask = draw()
    wide, labels = np.full((9, 80, 96), -1000, np.int16), np.zeros((9, 80, 96), np.uint8)
    wide[:, 20:60, 24:72], labels[:, 20:60, 24:72] = np.where(mask == 0, 40, hu), mask
    write(tmp_path / "set" / "a.nii.gz", wide), write(tmp_path / "set" / "a_mask.nii.gz", labels)
    settings = {"field": "body", "size": (50, 50), "slab": 3, "slab_step_mm": 0.0}
    found = load(tmp_path / "set", tmp_path / "cache", **settings)
    assert found.read_slabs([0]).shape == (1, 50, 50, 3)
    np.testing.assert_array_equal(found.read_slabs([0, 4])[..., 1], found.read(np.array([0, 4]))[0])
    assert len(list((tmp_path / "cache" / "slabs").iterdir())) == 1
    write(tmp_path / "set" / "a.nii.gz", wide + 1)
    changed = load(tmp_path / "set", tmp_path / "cache", **settings)
    np.testing.assert_array_equal(changed.read_slabs([2]), found.read_slabs([2]) + 1)
