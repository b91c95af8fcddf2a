"""The paper's reading of value 5: areas by hand, the same patients in both arms, and what is said of them."""

import csv
import dataclasses

import fixtures_luna16
import numpy as np
import pytest

from auxseg.base import files
from auxseg.base.errors import InputError
from auxseg.ct import geometry, images
from auxseg.runs import run_folder, splits
from auxseg.training import loop
from experiments.studies import paper_labels, runner


def write_masks(folder, areas):
    """Writes one mask of 32 x 32 a row of `areas`, px of value 5 by slice; lungs on all slices but the last."""
    folder.mkdir(parents=True)
    for i, by_slice in enumerate(areas):
        mask = np.zeros((len(by_slice), 32, 32), np.uint8)
        for k, area in enumerate(by_slice):
            mask[k, 0, :area] = 5
            mask[k, 5] = 3 if k < len(by_slice) - 1 else 0
        grid = geometry.Geometry((32, 32, len(by_slice)), (1.0, 1.0, 2.0), (0.0, 0.0, 0.0), geometry.IDENTITY)
        images.write_volume(folder / f"{i}.mhd", mask, grid, compress=True)
    return folder


def test_areas_of_value_5_by_hand(tmp_path):
    rows = paper_labels.measure_masks(write_masks(tmp_path / "masks", [(0, 2, 4, 8), (0, 6, 0)]))
    found = paper_labels.summarise_masks(rows)
    assert found["masks"] == 2 and found["middle_slices_px"] == [400.0, 600.0]  # 32 x 32 is 100 times smaller
    assert (found["slices_with_value_5"], found["lung_slices"], found["lung_slices_with_value_5"]) == (
        4,
        5,
        3,
    )
    assert found["all_px"] == {"min": 200.0, "median": 500.0, "mean": 500.0, "max": 800.0}
    assert found["within_fig_12"] == 0.5


def write_nodules(path, rows):
    path.write_text("uid,area_px\n" + "".join(f"{uid},{area}\n" for uid, area in rows), encoding="utf-8")
    return path


def test_nodules_of_one_slice_are_added_up(tmp_path):
    path = write_nodules(tmp_path / "nodules.csv", [("a", 128), ("b", 256), ("a", 128)])
    areas, owners = paper_labels.read_nodule_areas(path)
    np.testing.assert_allclose(areas, [100.0, 100.0])
    assert owners == ["a", "b"]


@pytest.mark.parametrize(("area", "words"), [(100, "could not give it even if all"), (400, "do not exclude")])
def test_fig_12_is_judged_by_the_interval_and_no_further(tmp_path, area, words):
    path = write_nodules(tmp_path / "nodules.csv", [(f"{i}", area + i) for i in range(20)])
    summary = paper_labels.measure_only(tmp_path / "out", None, path)
    (sentence,) = paper_labels.describe(summary)
    assert words in sentence and (tmp_path / "out" / "areas.json").is_file()


def test_files_that_cannot_be_used(tmp_path):
    (tmp_path / "bad.csv").write_text("uid,area\n1,2\n", encoding="utf-8")
    with pytest.raises(InputError, match="columns uid and area_px"):
        paper_labels.read_nodule_areas(tmp_path / "bad.csv")
    with pytest.raises(InputError, match="holds no .mhd"):
        paper_labels.measure_masks(tmp_path)
    with pytest.raises(InputError, match="--measure_only: needs"):
        paper_labels.measure_only(tmp_path, None, None)


def test_real_masks_have_an_airway_where_the_paper_has_nodules(real_data):
    rows = paper_labels.measure_masks(real_data / "seg-lungs-LUNA16")
    found = paper_labels.summarise_masks(rows)
    areas, _ = paper_labels.read_nodule_areas(real_data / "csv" / "middle_slice_nodules.csv")
    assert found["masks"] == 2 and all(60 < area < 200 for area in found["middle_slices_px"])
    assert found["lung_slices_with_value_5"] > 0.4 * found["lung_slices"]
    assert len(areas) == 51 and np.median(areas) < 40 < found["all_px"]["median"]


def write_luna16(folder):
    """Writes five scans: their airway is on every slice with lung, nodules in two of them."""
    for i in range(5):
        fixtures_luna16.write_scan(folder, f"1.2.{i}", i, num_slices=8)
    fixtures_luna16.write_annotations(
        folder, {"1.2.1": [((15.5, 0.0, 10.0), 8.0)], "1.2.3": [((-15.5, 0.0, 10.0), 8.0)]}
    )
    return folder


def fake_train(config, workdir, *, finish):
    """A training that finds all but a fifth of class 3; what it leaves is what a run leaves."""
    from auxseg.datasets import load

    run_folder.claim_config(workdir, config)
    data = load(config.data)
    members = splits.claim_splits(workdir, data, config.data)
    _, masks = data.read(members["test"])
    names = [f"{c}_{k}" for c in ("left_lung", "right_lung", "nodule") for k in runner.SCORE_COLUMNS]
    with open(workdir / "cases.csv", "w", encoding="utf-8", newline="") as handle:
        writer = csv.DictWriter(handle, ["case_id", "patient", "split", *names])
        writer.writeheader()
        for place, mask in zip(members["test"], masks, strict=True):
            case = {
                "case_id": data.table.case_id[place],
                "patient": data.table.patient[place],
                "split": "test",
            }
            for value, name in enumerate(("left_lung", "right_lung", "nodule"), start=1):
                area = int((mask == value).sum())
                case |= {
                    f"{name}_reference_px": area,
                    f"{name}_predicted_px": 0.8 * area,
                    f"{name}_dice": 0.9 if area else "",
                }
            writer.writerow(case)
    score = {"cases": len(masks), "pooled_dsc": 0.99, "false_positive_cases": {"nodule": 0}}
    files.write_json(workdir / "summary.json", {"scores": {"test": score}})


def test_both_readings_are_scored_on_the_same_cases(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(loop, "train", fake_train)
    monkeypatch.setattr(runner, "estimate_seconds", lambda config, in_child=False: 1.0)
    protocol = runner.Protocol(
        data="luna16", data_dir=str(write_luna16(tmp_path / "luna16")), seeds=(1,), folds=(0, 1, 3), size=64
    )
    config = runner.create_config(protocol)
    with config.unlocked():
        config.data.cache_dir = str(tmp_path / "cache")
    protocol = dataclasses.replace(protocol, config=config)
    masks = tmp_path / "luna16" / "seg-lungs-LUNA16"
    summary = paper_labels.study(protocol, tmp_path / "out", masks=masks)
    members = [
        files.read_json(tmp_path / "out" / "runs" / f"{arm}-f{fold}-s1" / "splits.json")
        for fold in protocol.folds
        for arm in paper_labels.ARMS
    ]
    assert members[0] == members[1] and members[4] == members[5] and members[0] != members[2]
    anatomy, airway = summary["arms"]["anatomy"], summary["arms"]["airway"]
    assert anatomy["cases"] == airway["cases"] == 3
    assert (anatomy["cases_with_class_3"], airway["cases_with_class_3"]) == (2, 3)
    airway_px = summary["measured"]["airway"]["middle_slices_px"][0]
    assert airway["reference_px"]["median"] == pytest.approx(airway_px) and airway_px > 500
    assert airway["bias_px"] == pytest.approx(-0.2 * airway_px)
    text = (tmp_path / "out" / "summary.md").read_text(encoding="utf-8")
    assert "the paper's reading" in text and "-59.21" in text and str(tmp_path) not in text
    for name in ("labels.json", "labels.png", "airway_areas.csv", "cases.csv", "compare/index.html"):
        assert (tmp_path / "out" / name).is_file()
    page = (tmp_path / "out" / "compare" / "index.html").read_text(encoding="utf-8")
    assert "shown beside each other and not tested" in page
