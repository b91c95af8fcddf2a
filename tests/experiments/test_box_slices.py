"""Slices that the box learns from: cut to the body, nodules as lung, disease inside the lungs alone."""

import csv
import types

import chest
import numpy as np
import SimpleITK as sitk

from auxseg.ct.geometry import Geometry
from auxseg.datasets import npz
from experiments.box import card, disease, score, slices


def draw_slice():
    """Returns a slice of 512x512 pixels of 0.7 mm with two lungs and a nodule in the left one, and its mask."""
    image = np.full((512, 512), -1000, np.int16)
    image[150:380, 60:450] = 40
    mask = np.zeros(image.shape, np.uint8)
    mask[180:350, 280:420], mask[180:350, 90:230] = 1, 2
    image[mask > 0] = -850
    mask[240:260, 330:350], image[240:260, 330:350] = 3, 30
    return image, mask


def test_middle_slices_are_cut_to_the_body_and_nodules_are_lung(tmp_path):
    (tmp_path / "middle").mkdir()
    image, mask = draw_slice()
    for name in ("ID_0003", "ID_0170"):
        npz.write_case(tmp_path / "middle" / f"{name}.npz", image, mask)
    (tmp_path / "middle" / "index.csv").write_text(
        "id,series_uid,pixel_spacing_mm\n0003,1.2.3,0.7\n0170,1.2.4,0.7\n"
    )
    assert slices.write_middle(tmp_path / "out", tmp_path / "middle") == 1  # the other's patient judges
    with np.load(tmp_path / "out" / "ID_0003.npz") as arrays:
        cut = arrays["mask"]
    assert cut.shape == slices.SIZE_YX and set(np.unique(cut)) == {0, 1, 2}
    assert np.isclose(
        (cut == 1).mean(), 170 * 140 / 406**2, rtol=0.03
    )  # the body's 390 columns and 2 % on each side
    with open(tmp_path / "out" / "index.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["patient"] == "1.2.3" and np.isclose(
        float(row["pixel_spacing_mm"]), 406 * 0.7 / 256, rtol=0.01
    )


def test_scans_are_cut_with_their_label_maps_and_joined(tmp_path):
    hu = chest.draw()
    labels = np.where((hu < -700) & (hu > -920), 1, 0).astype(np.uint8)
    labels[0, 0, 0] = 9
    for name, array in (("a.nii.gz", hu), ("a_lungs.nii.gz", labels)):
        image = sitk.GetImageFromArray(array)
        image.SetSpacing((6.0, 6.0, 6.0))
        sitk.WriteImage(image, str(tmp_path / name))
    count = slices.write_scan(
        tmp_path / "out", tmp_path / "a.nii.gz", tmp_path / "a_lungs.nii.gz", stride=4, skip_mm=[24.0]
    )
    assert count == 5  # of slices 0, 4, 8, ... 20 that at 24 mm is left out
    assert slices.join(tmp_path / "all", [tmp_path / "out", tmp_path / "out"]) == 10
    assert len(list((tmp_path / "all").glob("*.npz"))) == 5


def test_disease_is_painted_into_lungs_alone():
    image, mask = draw_slice()
    image, mask = image[::2, ::2], mask[::2, ::2]
    sick = disease.add_disease(np.random.default_rng(1), image, mask, 1.4)
    changed = sick != image
    assert changed.sum() > 100 and (mask[changed] > 0).all() and (sick[changed] > image[changed]).all()
    np.testing.assert_array_equal(disease.add_disease(np.random.default_rng(1), image, mask, 1.4), sick)
    little = np.zeros_like(mask)
    little[:5, :5] = 1
    assert disease.add_disease(np.random.default_rng(1), image, little, 1.4) is image


def test_a_padded_scan_has_twice_the_field(tmp_path):
    from auxseg.ct import scans

    image = sitk.GetImageFromArray(chest.draw())
    sitk.WriteImage(image, str(tmp_path / "a.mha"))
    scan = scans.open_scan(scans.find_scans(tmp_path / "a.mha")[0], tmp_path)
    wide = score.pad(scan)
    assert wide.read(3, 5).shape == (2, 96, 112) and wide.geometry.size_xyz == (112, 96, 24)
    np.testing.assert_array_equal(wide.read(3, 4)[0, 24:72, 28:84], scan.read(3, 4)[0])


def test_a_map_beside_a_lung_gets_the_edges_of_the_scan():
    """A disc of air, and a map of it that lies a pixel off and knows nothing of one part."""
    rows, columns = np.mgrid[:80, :80]
    disc = np.hypot(rows - 40, columns - 40) < 20.3
    hu = np.where(disc, -850, 40).astype(np.int16)[None]
    labels = np.where(np.roll(disc, (1, 1), (0, 1)), 1, 0).astype(np.uint8)[None]
    labels[:, :25] = 255
    geometry = Geometry((80, 80, 1), (0.7, 0.7, 2.0), (0.0, 0.0, 0.0))
    scan = types.SimpleNamespace(geometry=geometry, read=lambda start, stop: hu[start:stop])
    edges = score.draw_edges(scan, labels)
    assert not edges[:, :25].any() and (labels[:, 25:] != disc[None, 25:]).sum() > 50
    assert (edges[:, 25:] != disc[None, 25:]).sum() < 10


def test_airway_that_a_map_calls_lung_is_counted(monkeypatch):
    tree = np.zeros((1, 20, 20), bool)
    tree[0, 5:9, 5:9] = True
    found = types.SimpleNamespace(read=lambda index: tree[index])
    monkeypatch.setattr(score.airway, "find_airway", lambda *_: found)
    masks, labels = np.zeros((1, 20, 20), np.uint8), np.zeros((1, 20, 20), np.uint8)
    labels[0, 5:7], masks[0, 6] = 2, 2  # four pixels of the tree are missing, four are marked
    scan = types.SimpleNamespace(
        geometry=Geometry((20, 20, 1), (10.0, 10.0, 5.0), (0.0, 0.0, 0.0)),
        num_slices=1,
        read=lambda start, stop: None,
    )
    assert score.measure_taken_airway(scan, masks, labels) == 4 * 0.5


def test_scores_are_put_into_the_card():
    one = {"left_dice": 0.98, "right_dice": 0.9712, "outside_ml": 41.0, "far_outside_ml": 2.25, "airway_ml": 20.0,
           "airway_marked_ml": 1.0, "airway_share": 0.05, "left_pieces": 1, "right_pieces": 2}  # fmt: skip
    result = {
        "far_mm": 3.0,
        "scans": [
            {
                "scan": "a",
                "slices": 64,
                "scores": [one, {**one, "left_dice": 0.9854}],
                "map_with_edges": [one, {**one, "right_dice": 0.99, "outside_ml": 31.4}],
            }
        ],
        "kernels": {"scans": ["a", "b"], "relative_difference": [0.003, 0.0121]},
        "padded": {"scan": "a", "left_dice": 1.0, "right_dice": 0.9999},
    }
    text = card.put_between(f"x\n{card.START}\nold\n{card.END}\ny", "\n".join(card.describe(result)))
    assert (
        "| a | 64 | 0.980, 0.971 | 0.985, 0.971 | 41 | 2.2 | 1.0 of 20.0 mL | 1, 2 | 0.980, 0.990; 31 |"
        in text
    )
    assert "differ by 0.3% (left) and 1.2% (right)" in text and "old" not in text and text.endswith("y")
