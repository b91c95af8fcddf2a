"""LUNA16 as a user of TFDS meets it: registered by an import, prepared from the manual folder, without TensorFlow."""

import os
import pathlib
import subprocess
import sys

import fixtures_luna16
import numpy as np
import pytest
import tensorflow_datasets as tfds
from fixtures_luna16 import UIDS

import auxseg.datasets.luna16
from auxseg import datasets
from auxseg.base.classes import CLASS_NAMES
from auxseg.base.errors import InputError
from auxseg.ct import images as ct_images
from auxseg.datasets.luna16 import builder, layout
from auxseg.datasets.preparation.builder import Config
from auxseg.datasets.preparation.source import BadScansError
from configs import base

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def no_place_of_the_user(monkeypatch, tmp_path):
    monkeypatch.delenv("AUXSEG_LUNA16", raising=False)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))


@pytest.fixture
def data_dir(tmp_path):
    """Returns a TFDS folder with the three scans in its manual place."""
    place = tmp_path / "tfds" / "downloads" / "manual" / "luna16"
    place.mkdir(parents=True)
    fixtures_luna16.write_folder(place)
    return tmp_path / "tfds"


def small(slices="middle", **changes):
    settings = layout.Settings(size_yx=(48, 40), slices=slices)
    return Config(name=f"small_{slices}", settings=settings, **changes)


def test_a_new_process_reads_a_slice_in_three_lines(data_dir):
    code = (
        "import sys\n"
        "import auxseg.datasets.luna16; import tensorflow_datasets as tfds\n"
        f"source = tfds.data_source('luna16/middle', split='subset0', data_dir={str(data_dir)!r})\n"
        "print(len(source), source[0]['image'].shape, 'tensorflow' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, encoding="utf-8"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "2 (320, 320) False"


def test_what_it_says_of_itself():
    assert "luna16" in tfds.list_builders(with_community_datasets=False)
    made = tfds.builder("luna16")
    assert sorted(made.builder_configs) == ["lung", "middle", "nodule"]
    assert made.builder_config.name == "middle" and made.builder_config.description
    assert tfds.builder("luna16/lung").builder_config.settings.slices == "lung"
    assert "10.1016/j.media.2017.06.015" in made.info.citation and made.info.homepage == layout.HOMEPAGE
    assert all(feature.doc.desc for feature in made.info.features.values())
    assert all(
        word in made.MANUAL_DOWNLOAD_INSTRUCTIONS for word in ("subset0", "AUXSEG_LUNA16", layout.HOMEPAGE)
    )


def test_splits_are_subsets_and_hold_the_slices(data_dir):
    made = tfds.builder("luna16", config=small(), data_dir=data_dir)
    made.download_and_prepare()
    assert {name: split.num_examples for name, split in made.info.splits.items()} == {
        "subset0": 2,
        "subset3": 1,
    }
    examples = [
        made.as_data_source(split=name)[i] for name, i in (("subset0", 0), ("subset0", 1), ("subset3", 0))
    ]
    assert [each["series_uid"].decode() for each in examples] == list(UIDS)
    assert [int(each["slice_index"]) for each in examples] == [6, 6, 6]
    assert all(each["image"].shape == each["mask"].shape == (48, 40) for each in examples)
    assert set(np.unique(examples[0]["mask"])) <= set(range(len(CLASS_NAMES)))
    again = tfds.builder("luna16", config=small(), data_dir=data_dir)
    assert again.info.splits["subset0"].num_examples == 2  # read from disk
    assert not list((data_dir / "luna16").glob(".pieces*"))


def test_without_data_it_refuses_in_one_line_and_leaves_nothing(tmp_path):
    made = tfds.builder("luna16/middle", data_dir=tmp_path / "tfds")
    with pytest.raises(
        InputError, match="manual/luna16 does not exist; put subset0 ... subset9, .*annotations.csv"
    ):
        made.download_and_prepare()
    assert not (tmp_path / "tfds").exists()
    (tmp_path / "tfds" / "downloads" / "manual" / "luna16").mkdir(parents=True)
    with pytest.raises(InputError, match="holds no subset0 to subset9"):
        made.download_and_prepare()
    with pytest.raises(KeyError, match="has not been generated"):
        made.as_data_source(split="subset0")


def test_the_folder_may_be_named(tmp_path, monkeypatch):
    folder = fixtures_luna16.write_folder(tmp_path / "elsewhere")
    config = tfds.download.DownloadConfig(manual_dir=str(folder))
    made = tfds.builder("luna16", config=small("lung"), data_dir=tmp_path / "a")
    made.download_and_prepare(download_config=config)
    assert sum(split.num_examples for split in made.info.splits.values()) == 31
    monkeypatch.setenv("AUXSEG_LUNA16", str(folder))
    made = tfds.builder("luna16", config=small("nodule"), data_dir=tmp_path / "b")
    made.download_and_prepare()
    assert set(made.info.splits) == {"subset0"}  # the scan of subset 3 has no nodule


def test_a_bad_scan_stops_it_or_is_left_out(data_dir):
    raw = next((data_dir / "downloads" / "manual" / "luna16" / "subset3").glob("*.raw"))
    raw.write_bytes(raw.read_bytes()[:-2])
    with pytest.raises(BadScansError, match="1 of 3 scans cannot be used"):
        tfds.builder("luna16", config=small(), data_dir=data_dir).download_and_prepare()
    made = tfds.builder("luna16", config=small(skip_bad_scans=True), data_dir=data_dir)
    made.download_and_prepare()
    assert set(made.info.splits) == {"subset0"}


def test_records_of_a_mask_that_is_none_are_not_taken_for_whole(data_dir):
    path = data_dir / "downloads" / "manual" / "luna16" / "seg-lungs-LUNA16" / f"{UIDS[2]}.mhd"
    volume, geometry = ct_images.read_volume(path), ct_images.read_geometry(path)
    ct_images.write_volume(path, volume + np.int16(1), geometry)
    made = tfds.builder("luna16", config=small(), data_dir=data_dir)
    with pytest.raises(BadScansError, match=f"{UIDS[2]}: mask values"):
        made.download_and_prepare()
    assert not made.is_prepared()


def test_training_finds_the_folder_by_itself(data_dir, tmp_path, monkeypatch):
    config = base.get_config().data
    with config.unlocked():
        config.cache_dir, config.size = str(tmp_path / "cache"), (48, 40)
    assert len(datasets.load(config)) == 3
    monkeypatch.setenv("AUXSEG_LUNA16", str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match="nowhere does not exist; put subset0"):
        datasets.load(config)


def test_the_third_run_without_data_says_what_to_put_where(tmp_path):
    command = [
        sys.executable,
        "-m",
        "auxseg.main",
        "--config=configs/seed3.py",
        f"--workdir={tmp_path / 'run'}",
    ]
    environment = {**os.environ, "TFDS_DATA_DIR": str(tmp_path / "tfds")}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, encoding="utf-8"
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert f"{tmp_path}/tfds/downloads/manual/luna16 does not exist; put subset0 ... subset9" in done.stderr


def test_importing_it_without_tfds_does_no_harm():
    code = (
        "import sys; sys.modules['tensorflow_datasets'] = None\n"
        "import auxseg.datasets.luna16.layout as layout; print(layout.SLICES)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, encoding="utf-8"
    )
    assert done.stdout == "('middle', 'nodule', 'lung', 'all')\n", done.stderr
    assert auxseg.datasets.luna16.builder is builder
