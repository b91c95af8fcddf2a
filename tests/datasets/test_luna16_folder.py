"""Slices of a LUNA16 folder before resizing: which, with which mask, and what is refused."""

import shutil

import fixtures_luna16
import numpy as np
import pytest
from fixtures_luna16 import UIDS

from auxseg.base import classes
from auxseg.base.errors import InputError
from auxseg.ct import images as ct_images
from auxseg.ct.geometry import Geometry
from auxseg.datasets import labels, splits
from auxseg.datasets.luna16 import layout
from auxseg.datasets.luna16.layout import Settings


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return layout.list_folder(fixtures_luna16.write_folder(tmp_path_factory.mktemp("luna16")))


def read(folder, uid, **settings):
    settings = Settings(**settings)
    (scan,) = [scan for scan in folder.scans if scan.uid == uid]
    return layout.read_slices(scan, settings, layout.create_nodule_reader(folder, settings))


def test_folder_says_what_is_there_and_what_is_not(folder):
    assert [(scan.uid, scan.subset) for scan in folder.scans] == [(UIDS[0], 0), (UIDS[1], 0), (UIDS[2], 3)]
    assert folder.problems == ()
    assert folder.notes == ("subsets not there: 1, 2, 4, 5, 6, 7, 8, 9 of 0 to 9",)


def test_middle_is_half_of_the_number_of_slices(folder):
    for uid, index_z in ((UIDS[0], 6), (UIDS[1], 6), (UIDS[2], 6)):
        ((part,), notes) = read(folder, uid)
        assert part.index_z == index_z and notes == ()
        assert part.image[31, 40] in (40 + index_z, -850) and part.image[4, 31] == 40 + index_z
        assert part.spacing_zyx_mm == (2.5, 1.0, 1.0)
        assert set(np.unique(part.mask)) <= {0, 1, 2, 3}


@pytest.mark.parametrize("uid", UIDS[:2])
def test_left_is_the_patients_left_also_in_the_prone_scan(folder, uid):
    for part in read(folder, uid, slices="lung")[0]:
        columns = np.arange(64)
        left = columns @ (part.mask == classes.LEFT).sum(axis=0) / (part.mask == classes.LEFT).sum()
        right = columns @ (part.mask == classes.RIGHT).sum(axis=0) / (part.mask == classes.RIGHT).sum()
        assert left > 40 > 24 > right
        lung = (part.mask == classes.LEFT) | (part.mask == classes.RIGHT)
        assert (part.image[lung] == -850).all()


@pytest.mark.parametrize("uid", UIDS[:2])
def test_nodules_lie_where_the_annotations_say(folder, uid):
    parts = {part.index_z: part for part in read(folder, uid, slices="lung")[0]}
    for (x, y, z), diameter in fixtures_luna16.NODULES[uid]:
        part = parts[round(z / 2.5)]
        rows, columns = np.nonzero(part.mask == classes.NODULE)
        assert (columns.mean() - 31.5, rows.mean() - 31.5) == pytest.approx((x, y), abs=0.5)
        assert len(rows) == pytest.approx(np.pi * diameter**2 / 4, rel=0.2)
        assert part.num_nodules == 1


def test_nodule_slices_come_with_as_many_without(folder):
    parts, _ = read(folder, UIDS[0], slices="nodule")
    with_nodule = [part.index_z for part in parts if part.num_nodules]
    without = [part for part in parts if not part.num_nodules]
    assert with_nodule == [2, 5, 6, 7]
    assert len(without) == 4 and all((part.mask > 0).any() for part in without)
    assert [part.index_z for part in parts] == sorted({part.index_z for part in parts})
    again, _ = read(folder, UIDS[0], slices="nodule")
    assert [part.index_z for part in parts] == [part.index_z for part in again]
    assert read(folder, UIDS[2], slices="nodule") == ([], ())


def test_lung_slices_are_all_slices_with_lung(folder):
    assert [part.index_z for part in read(folder, UIDS[2], slices="lung")[0]] == list(range(1, 11))


def test_airway_as_nodule_is_the_papers_reading(folder):
    ((anatomy,), _), ((paper,), _) = (
        read(folder, UIDS[2], labels=choice) for choice in ("anatomy", "airway_as_nodule")
    )
    assert (paper.mask == 3).sum() == 32 and (anatomy.mask == 3).sum() == 0
    np.testing.assert_array_equal(anatomy.mask[paper.mask != 3], paper.mask[paper.mask != 3])
    ((with_nodule,), _) = read(folder, UIDS[0], labels="airway_as_nodule")
    assert (with_nodule.mask == 3).sum() == 32 and with_nodule.num_nodules == 1


def test_only_the_slices_needed_are_read(folder, monkeypatch):
    taken, volumes = [], []
    read_slice, read_volume = ct_images.read_slice, ct_images.read_volume
    monkeypatch.setattr(ct_images, "read_slice", lambda *a, **k: taken.append(a[1]) or read_slice(*a, **k))
    monkeypatch.setattr(
        ct_images, "read_volume", lambda *a, **k: volumes.append(a[0]) or read_volume(*a, **k)
    )
    read(folder, UIDS[0])
    assert (taken, volumes) == ([6, 6], [])  # of the mask and of the scan
    taken.clear()
    parts, _ = read(folder, UIDS[0], slices="nodule")
    assert taken == [part.index_z for part in parts]
    assert [path.parent.name for path in volumes] == ["seg-lungs-LUNA16"]


def test_lungs_on_the_wrong_sides_are_swapped_and_said(tmp_path):
    root = fixtures_luna16.write_folder(tmp_path)
    path = root / "seg-lungs-LUNA16" / f"{UIDS[0]}.mhd"
    volume, geometry = ct_images.read_volume(path), ct_images.read_geometry(path)
    swapped = np.where(volume == 3, 4, np.where(volume == 4, 3, volume)).astype(np.int16)
    ((expected,), _) = read(layout.list_folder(root), UIDS[0])
    ct_images.write_volume(path, swapped, geometry)
    ((part,), notes) = read(layout.list_folder(root), UIDS[0])
    np.testing.assert_array_equal(part.mask, expected.mask)
    assert notes == (f"{UIDS[0]}: the mask had the lungs on the wrong sides of the patient; swapped",)


def problems_of(root, **settings):
    listed = layout.list_folder(root)
    settings = Settings(**settings)
    reader = layout.create_nodule_reader(listed, settings)
    return layout.check_scans(listed, settings, reader)[1]


def test_each_bad_scan_is_one_line_that_names_it(tmp_path):
    root = fixtures_luna16.write_folder(tmp_path)
    fixtures_luna16.write_scan(root, UIDS[0], 5)  # again, in another subset
    (root / "seg-lungs-LUNA16" / f"{UIDS[1]}.mhd").unlink()
    shifted = fixtures_luna16.geometry(12)
    mask = root / "seg-lungs-LUNA16" / f"{UIDS[2]}.mhd"
    ct_images.write_volume(
        mask, ct_images.read_volume(mask), Geometry(shifted.size_xyz, (1.0, 1.0, 2.0), (0.0, 0.0, 0.0))
    )
    problems = problems_of(root)
    assert len(problems) == 3 and all("\n" not in problem for problem in problems)
    assert f"{UIDS[1]}: has no mask {root / 'seg-lungs-LUNA16' / UIDS[1]}.mhd" in problems[0]
    assert f"{UIDS[0]}: is twice in the folder, as {root / 'subset0'}" in problems[1]
    assert f"{UIDS[2]}: scan and mask differ in geometry: spacing_xyz_mm" in problems[2]


def test_nodule_outside_and_truncated_scan_are_named(tmp_path):
    root = fixtures_luna16.write_folder(tmp_path)
    fixtures_luna16.write_annotations(root, {UIDS[2]: [((500.0, 0.0, 0.0), 5.0)]})
    raw = root / "subset0" / f"{UIDS[0]}.raw"
    raw.write_bytes(raw.read_bytes()[:-2])
    first, second = problems_of(root)
    assert first.startswith(f"{UIDS[0]}: scan file: ") and "is truncated" in first
    assert second == f"{UIDS[2]}: a nodule at (500.0, 0.0, 0.0) mm lies outside the scan"


def test_mask_without_lung_or_with_other_values_is_refused(tmp_path):
    root = fixtures_luna16.write_folder(tmp_path)
    path = root / "seg-lungs-LUNA16" / f"{UIDS[2]}.mhd"
    volume, geometry = ct_images.read_volume(path), ct_images.read_geometry(path)
    ct_images.write_volume(path, np.where(volume == 5, 5, 0).astype(np.int16), geometry)
    with pytest.raises(InputError, match="the mask has no lung"):
        read(layout.list_folder(root), UIDS[2], slices="lung")
    ct_images.write_volume(path, np.where(volume == 5, 7, volume).astype(np.int16), geometry)
    with pytest.raises(InputError, match=f"got 7, expected only 0, 3, 4, 5, in slice 6 of .*{UIDS[2]}"):
        read(layout.list_folder(root), UIDS[2])


def test_layouts_of_the_download_are_found(tmp_path):
    root = fixtures_luna16.write_folder(tmp_path / "a")
    inner = tmp_path / "b"
    (inner / "CSVFILES").mkdir(parents=True)
    (root / "annotations.csv").rename(inner / "CSVFILES" / "annotations.csv")
    for name in ("subset0", "subset3", "seg-lungs-LUNA16"):
        (inner / name).mkdir()
        (root / name).rename(inner / name / name)
    listed = layout.list_folder(inner)
    assert [scan.uid for scan in listed.scans] == list(UIDS)
    assert listed.annotations == inner / "CSVFILES" / "annotations.csv"


def test_missing_annotations_matter_only_where_nodules_do(tmp_path):
    root = fixtures_luna16.write_folder(tmp_path)
    (root / "annotations.csv").unlink()
    listed = layout.list_folder(root)
    with pytest.raises(InputError, match="holds no annotations.csv, from which nodules are painted"):
        read(listed, UIDS[0])
    ((part,), _) = read(listed, UIDS[0], labels="airway_as_nodule")
    assert part.num_nodules == -1


def test_folders_that_are_none_and_wrong_settings(tmp_path):
    with pytest.raises(InputError, match="holds no subset0 to subset9"):
        layout.list_folder(tmp_path)
    with pytest.raises(InputError, match="does not exist"):
        layout.list_folder(tmp_path / "nowhere")
    with pytest.raises(
        InputError, match="data.slices: got 'every', expected one of 'middle', 'nodule', 'lung', 'all'"
    ):
        Settings(slices="every")
    with pytest.raises(InputError, match="data.nodules: got 'boxes'"):
        Settings(nodules="boxes")
    with pytest.raises(InputError, match="data.lidc: not given"):
        Settings(nodules="lidc")


def test_fingerprint_follows_files_and_settings(tmp_path):
    root = fixtures_luna16.write_folder(tmp_path)
    listed = layout.list_folder(root)
    first = layout.fingerprint(listed, Settings())
    assert layout.fingerprint(layout.list_folder(root), Settings()) == first
    assert layout.fingerprint(listed, Settings(slices="lung")) != first
    fixtures_luna16.write_annotations(root, {})
    changed = layout.fingerprint(layout.list_folder(root), Settings())
    assert changed != first
    fixtures_luna16.write_scan(root, "1.2.9", 7)
    assert layout.fingerprint(layout.list_folder(root), Settings()) != changed


@pytest.mark.parametrize("slices", ["middle", "lung"])
def test_real_masks_go_all_the_way(real_data, tmp_path, slices):
    """LUNA16's own masks, untouched, with scans of the same grid: air, and lung at -850 HU."""
    shutil.copytree(real_data / "seg-lungs-LUNA16", tmp_path / "seg-lungs-LUNA16")
    shutil.copy(real_data / "csv" / "annotations.csv", tmp_path)
    (tmp_path / "subset4").mkdir()
    for path in (tmp_path / "seg-lungs-LUNA16").glob("*.mhd"):
        lung = np.isin(ct_images.read_volume(path), (3, 4))
        image = np.where(lung, np.int16(-850), np.int16(40))
        ct_images.write_volume(
            tmp_path / "subset4" / path.name, image, ct_images.read_geometry(path), compress=False
        )
    listed = layout.list_folder(tmp_path)
    assert problems_of(tmp_path, slices=slices) == []
    for scan in listed.scans:
        parts, notes = read(listed, scan.uid, slices=slices)
        assert notes == ()
        masks, images = (np.stack([getattr(part, name) for part in parts]) for name in ("mask", "image"))
        assert labels.side_columns(masks, classes.LEFT, classes.RIGHT) > 100
        assert (images[(masks == classes.LEFT) | (masks == classes.RIGHT)] == -850).all()
        assert len(parts) == 1 if slices == "middle" else 80 < len(parts) < 121
        if slices == "lung" and (masks == classes.NODULE).any():
            assert (images[masks == classes.NODULE] == -850).mean() > 0.5  # nodules lie in the lungs


def test_luna16s_two_series_of_one_patient(tmp_path):
    for subset, uid in zip((2, 6), splits.SAME_PATIENT, strict=True):
        fixtures_luna16.write_scan(tmp_path, uid, subset, num_slices=4)
    patients = {scan.patient for scan in layout.list_folder(tmp_path).scans}
    assert patients == {splits.SAME_PATIENT_ID}


def test_annotations_of_no_scan_are_spoken_of(tmp_path):
    path = fixtures_luna16.write_folder(tmp_path)
    fixtures_luna16.write_annotations(path, {f"{UIDS[0]}_0": [((0, 0, 15), 8)]})
    folder = layout.list_folder(path)
    with pytest.raises(InputError, match=f"none of its 1 series is a scan of .*'{UIDS[0]}_0' where"):
        layout.create_nodule_reader(folder, Settings())
    fixtures_luna16.write_annotations(path, {"9.9.9": [((0, 0, 15), 8)]})
    reader = layout.create_nodule_reader(layout.list_folder(path), Settings())
    _, _, notes = layout.check_scans(layout.list_folder(path), Settings(), reader)
    assert notes[-1] == "none of the 3 scans has a nodule in the annotations"
