"""Tests of what a path holds: every file is a scan, or is skipped for a reason."""

import os
import pathlib
import zipfile

import chest
import dicom_files
import numpy as np
import pytest

from auxseg.base.errors import InputError
from auxseg.ct import find, scans

VOLUME = chest.draw((6, 20, 24), (20.0, 14.0, 14.0))


def _names(path):
    return [source.name for source in find.find_scans(path)]


def _patient(name):
    def edit(one, index):
        one.PatientID = name

    return edit


@pytest.mark.filterwarnings("ignore:Invalid value for VR UI")
@pytest.mark.parametrize("study", ["1.2.3", ""])
def test_patients_that_share_a_study_uid(tmp_path, study):
    for name, uid in (("anna", study), ("bert", study), ("carl", "1.2.4")):
        dicom_files.write_series(tmp_path / name, VOLUME, study=uid, edit=_patient(name))
    assert _names(tmp_path) == ["anna", "bert", "carl"]


@pytest.mark.filterwarnings("ignore:Invalid value for VR UI")
def test_patients_without_a_study_uid_or_name_are_told_apart_by_folder(tmp_path):
    for name in ("anna", "bert"):
        dicom_files.write_series(tmp_path / name, VOLUME, study="", series="1.2.9", edit=_patient(""))
    found = find.find_scans(tmp_path)
    assert [one.name for one in found] == ["anna", "bert"]
    assert [len(one.series[0].frames) for one in found] == [6, 6]


def test_two_patients_in_one_folder_with_one_series_uid(tmp_path):
    for name in ("P1", "P2"):
        dicom_files.write_series(tmp_path / "in", VOLUME, series="1.2.9", edit=_patient(name), prefix=name)
    assert _names(tmp_path / "in") == ["in-P1", "in-P2"]


def test_a_linked_folder_is_read_once(tmp_path):
    dicom_files.write_series(tmp_path / "elsewhere" / "anna", VOLUME)
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "anna").symlink_to(tmp_path / "elsewhere" / "anna")
    (folder / "again").symlink_to(tmp_path / "elsewhere" / "anna")
    (tmp_path / "elsewhere" / "anna" / "loop").symlink_to(folder)
    found = find.survey(folder)
    assert [one.name for one in found.sources] == ["again"] and len(found.sources[0].series[0].frames) == 6
    assert {one.name for one in found.skipped} == {"anna", "loop"}


def test_one_file_of_a_series_says_that_there_are_more(tmp_path):
    paths = dicom_files.write_series(tmp_path / "in", VOLUME)
    (tmp_path / "in" / "readme.txt").write_text("no scan")
    (source,) = find.find_scans(paths[2])
    assert source.name == "IM0002"
    scan = scans.open_scan(source, tmp_path)
    (finding,) = [one for one in scan.findings if one.code == "one-file"]
    assert finding.severity == "warning" and "one of 6 files of its series" in finding.text
    np.testing.assert_array_equal(scan.read(0, 1), VOLUME[2:3])


def test_a_zip_without_a_scan_is_skipped_and_a_damaged_one_is_not(tmp_path):
    np.savez(tmp_path / "a.npz", image=VOLUME)
    with zipfile.ZipFile(tmp_path / "VIEWER.ZIP", "w") as archive:
        archive.writestr("viewer.exe", b"MZ" + bytes(200))
    (tmp_path / "broken.zip").write_bytes(b"PK\3\4 and no more")
    paths = dicom_files.write_series(tmp_path / "series", VOLUME[:1])
    with zipfile.ZipFile(tmp_path / "dicom.zip", "w") as archive:
        archive.write(paths[0], "0001")
    paths[0].unlink()
    found = find.survey(tmp_path)
    assert [one.name for one in found.sources] == ["a", "broken", "dicom"]
    assert [(one.name, one.reason) for one in found.skipped] == [("VIEWER.ZIP", "a zip without a scan")]
    with pytest.raises(InputError, match="holds 0 scans|no scan"):
        scans.open_scan(find.find_scans(tmp_path / "VIEWER.ZIP")[0], tmp_path)


@pytest.mark.parametrize("name", [".", "./", "a/../.."])
def test_an_entry_of_a_zip_that_is_no_name(tmp_path, name):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr(zipfile.ZipInfo(name), b"" if name.endswith("/") else b"x")
        archive.writestr("readme.txt", b"x")
    with pytest.raises(InputError):
        scans.open_scan(find.find_scans(tmp_path / "x.zip")[0], tmp_path)


def test_a_zip_bomb_is_refused_before_it_is_unpacked(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("a.nii", "w", force_zip64=True) as file:
            for _ in range(300):
                file.write(bytes(1 << 20))
    with pytest.raises(InputError, match="says that it holds 315 MB.*nothing was unpacked"):
        scans.open_scan(find.find_scans(tmp_path / "x.zip")[0], tmp_path)
    assert not any((tmp_path / "unzipped").iterdir())


def test_what_may_not_be_read_is_not_called_damaged(tmp_path, monkeypatch):
    """For root no file is closed: the system's answer is played."""
    dicom_files.write_series(tmp_path / "in" / "closed", VOLUME)
    np.savez(tmp_path / "in" / "a.npz", image=VOLUME)
    real = open

    def closed(path, *args, **kwargs):
        if "closed" in str(path):
            raise PermissionError(13, "Permission denied")
        return real(path, *args, **kwargs)

    monkeypatch.setattr("builtins.open", closed)
    found = find.find_scans(tmp_path / "in")
    assert [(one.name, one.kind) for one in found] == [("a", "npz"), ("closed", "broken")]
    assert "cannot be read: Permission denied" in found[1].problem and "damaged" not in found[1].problem
    assert "and 5 more files" in found[1].problem


def test_every_file_is_accounted_for(tmp_path):
    """Hidden files, pipes, voxel files of headers, DICOM without images, texts."""
    import SimpleITK as sitk

    paths = dicom_files.write_series(tmp_path / "in", VOLUME)
    image = sitk.GetImageFromArray(VOLUME)
    for name in ("a.mhd", "b.nhdr"):
        sitk.WriteImage(image, str(tmp_path / "in" / name))
    (tmp_path / "in" / ".hidden").write_text("x")
    (tmp_path / "in" / "lonely.raw").write_text("x")
    os.mkfifo(tmp_path / "in" / "pipe")

    def strip(one):
        one.Modality, one.SeriesInstanceUID = "SR", "1.2.77"
        del one.PixelData, one.Rows, one.Columns

    dicom_files.rewrite(paths[0], strip, tmp_path / "in" / "sr.dcm")
    found = find.survey(tmp_path / "in")
    used = {path for one in found.sources for series in one.series for path in series.paths}
    used |= {one.path for one in found.sources if one.kind == "file"} | {
        tmp_path / "in" / "a.raw",
        tmp_path / "in" / "b.raw",
    }
    lost = {path for path in (tmp_path / "in").iterdir()} - used
    named = [one.series.paths[0].name if one.series else one.name for one in found.skipped]
    assert {path.name for path in lost} == {name for one in named for name in one.split(", ")}
    assert sum(one.count for one in found.skipped) == len(lost)


def test_a_name_that_is_no_text(tmp_path):
    """Bytes that are no UTF-8, as old archives hold."""
    name = os.fsdecode(b"M\xfcller.npz")
    try:
        np.savez(tmp_path / name, image=VOLUME)
    except OSError:
        pytest.skip("this file system takes UTF-8 alone")
    (source,) = find.find_scans(tmp_path)
    source.name.encode("utf-8")
    assert source.name.startswith("M_ller-") and pathlib.Path(source.path).exists()


def _damage(path, tag=b"\x28\x00\x10\x00"):
    """Cuts a DICOM file off before an element: its header lacks the size of the image, and all behind it."""
    whole = path.read_bytes()
    path.write_bytes(whole[: whole.index(tag) + 2])


def _open_all(folder, scratch, **settings):
    """Returns {name: codes of the findings that are errors, or the line of a refusal}, and what was skipped."""
    found, outcomes = find.survey(folder), {}
    for source in found.sources:
        (scratch / source.name).mkdir(parents=True)
        try:
            scan = scans.open_scan(source, scratch / source.name, **settings)
            outcomes[source.name] = [one.code for one in scan.findings if one.severity == "error"]
        except InputError as error:
            outcomes[source.name] = str(error)
    return outcomes, found.skipped


def test_a_damaged_file_costs_its_own_series_alone(tmp_path):
    folder = tmp_path / "in"
    for name in ("P1", "P2"):
        paths = dicom_files.write_series(
            folder, VOLUME, series=f"1.2.{name[1]}", study=f"1.3.{name[1]}", edit=_patient(name), prefix=name
        )
    _damage(paths[2])
    outcomes, skipped = _open_all(folder, tmp_path / "s")
    assert outcomes == {"in-P1": [], "in-P2": ["damaged"]} and not skipped


def test_a_damaged_file_that_names_no_series_is_said_to_each_of_its_folder(tmp_path):
    folder = tmp_path / "in"
    for name in ("P1", "P2"):
        paths = dicom_files.write_series(
            folder, VOLUME, series=f"1.2.{name[1]}", study=f"1.3.{name[1]}", edit=_patient(name), prefix=name
        )
    paths[5].write_bytes(paths[5].read_bytes()[:200])
    found = find.find_scans(folder)
    findings = [
        finding
        for one in found
        for finding in scans.open_scan(one, tmp_path).findings
        if finding.code == "perhaps-damaged"
    ]
    assert [one.name for one in found] == ["in-P1", "in-P2"]
    assert len(findings) == 2 and {one.severity for one in findings} == {"warning"}


def _derived(one, index):
    one.ImageType = ["DERIVED", "SECONDARY"]


def test_another_series_takes_the_place_of_a_damaged_one(tmp_path):
    folder = tmp_path / "in"
    paths = dicom_files.write_series(
        folder, VOLUME, series="1.2.1", number=1, description="CHEST LUNG", prefix="A"
    )
    dicom_files.write_series(folder, VOLUME, series="1.2.2", number=2, edit=_derived, prefix="B")
    _damage(paths[2])
    (source,) = find.find_scans(folder)
    scan = scans.open_scan(source, tmp_path)
    assert scan.volume.series.number == 2 and scan.num_slices == 6
    assert [one.code for one in scan.findings if one.severity == "warning"] == ["passed-over"]


def test_a_series_that_is_damaged_whole_is_skipped_beside_its_study_and_fails_beside_another(tmp_path):
    folder = tmp_path / "in"
    dicom_files.write_series(folder, VOLUME, series="1.2.1", study="1.3.1", prefix="A")
    for path in dicom_files.write_series(
        folder, VOLUME[:2], series="1.2.2", study="1.3.1", number=9, prefix="B"
    ):
        _damage(path)
    outcomes, skipped = _open_all(folder, tmp_path / "s")
    assert outcomes == {"in": []} and [one.name for one in skipped] == ["B0000.dcm", "B0001.dcm"]
    for path in dicom_files.write_series(
        folder, VOLUME[:2], series="1.2.3", study="1.3.3", number=9, prefix="C"
    ):
        _damage(path)
    outcomes, _ = _open_all(folder, tmp_path / "t")
    assert outcomes["in"] == [] and set(outcomes) == {"in", "C0000.dcm"}
    assert "C0000.dcm is damaged" in outcomes["C0000.dcm"] and "and 1 more files" in outcomes["C0000.dcm"]


def _latin(folder, name):
    """Returns a path whose name is in Latin-1, as archives of old computers have it."""
    path = folder / os.fsdecode(name.encode("latin-1"))
    try:
        path.touch()
    except OSError:
        pytest.skip("this file system takes UTF-8 alone")
    path.unlink()
    return path


@pytest.mark.parametrize("kind", ["nii", "nii.gz", "nrrd", "mha", "mhd", "npz", "zip", "dicom", "jpeg"])
def test_names_in_latin_1_are_read(tmp_path, kind):
    import SimpleITK as sitk

    path = _latin(tmp_path, f"Müller.{kind}")
    (tmp_path / "s").mkdir()
    image = sitk.GetImageFromArray(VOLUME)
    if kind in ("zip", "npz"):
        np.savez(tmp_path / "s" / "a.npz", image=VOLUME)
        (tmp_path / "s" / "a.npz").rename(path if kind == "npz" else tmp_path / "s" / "b.npz")
        if kind == "zip":
            with zipfile.ZipFile(path, "w") as archive:
                archive.write(tmp_path / "s" / "b.npz", "b.npz")
    elif kind in ("dicom", "jpeg"):
        plain = dicom_files.write_series(tmp_path / "s" / "plain", VOLUME)
        if kind == "jpeg":
            dicom_files.compress(plain, path, "JPEG")
        else:
            plain[0].parent.rename(path)
    else:
        sitk.WriteImage(image, str(tmp_path / "s" / f"a.{kind}"))
        (tmp_path / "s" / f"a.{kind}").rename(path)
        if kind == "mhd":
            (tmp_path / "s" / "a.raw").rename(tmp_path / "a.raw")
    (source,) = find.find_scans(path)
    source.name.encode("utf-8")
    (tmp_path / "scratch").mkdir()
    scan = scans.open_scan(source, tmp_path / "scratch")
    stored = scan.read(0, 6)
    if kind in ("nii", "nii.gz", "nrrd", "mha", "mhd"):  # ITK's own axes
        assert stored.sum() == VOLUME.sum()
    else:
        np.testing.assert_array_equal(stored, VOLUME)
