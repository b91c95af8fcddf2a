"""One call for every source, by the settings of `config.data`."""

import pathlib
import subprocess
import sys

import fixtures_luna16
import numpy as np
import pytest

from auxseg import datasets
from auxseg.base.errors import InputError
from auxseg.datasets import npz
from configs import base


def data_config(**values):
    config = base.get_config().data
    with config.unlocked():
        for name, value in values.items():
            if name in config.phantom:
                config.phantom[name] = value
            else:
                config[name] = value
    return config


def write_npz(folder):
    folder.mkdir(parents=True, exist_ok=True)
    image, mask = np.full((64, 64), -1000, np.int16), np.zeros((64, 64), np.uint8)
    mask[20:40, 36:50], mask[20:40, 10:24] = 1, 2
    image[mask > 0] = -850
    npz.write_case(folder / "a.npz", image, mask)
    return folder


def test_npz_of_a_config(tmp_path):
    dataset = datasets.load(data_config(name="npz", dir=str(write_npz(tmp_path)), size=(32, 32)))
    assert dataset.read(np.array([0]))[1].shape == (1, 32, 32)


def test_npz_needs_neither_simpleitk_nor_tfds(tmp_path):
    """Also where they are not installed: their import fails here."""
    write_npz(tmp_path / "npz")
    code = (
        "import sys; sys.modules['SimpleITK'] = sys.modules['tensorflow_datasets'] = None\n"
        "from configs import base; from auxseg import datasets\n"
        "config = base.get_config().data\n"
        f"config.name, config.dir = 'npz', {str(tmp_path / 'npz')!r}\n"
        "dataset = datasets.load(config); dataset.read([0]); print(len(dataset))"
    )
    root = pathlib.Path(datasets.__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, encoding="utf-8", timeout=120
    )
    assert done.stdout == "1\n", done.stderr


def test_luna16_of_a_config_is_kept_in_the_cache(tmp_path, monkeypatch):
    folder = fixtures_luna16.write_folder(tmp_path / "luna")
    config = data_config(dir=str(folder), size=(48, 48), slices="lung")
    monkeypatch.setenv("AUXSEG_CACHE", str(tmp_path / "cache"))
    assert len(datasets.load(config)) == 31
    assert [path.name[:4] for path in (tmp_path / "cache" / "luna16").glob("lung*")] == ["lung"]


def test_phantom_is_drawn_and_goes_through_luna16(tmp_path):
    config = data_config(
        name="phantom",
        cache_dir=str(tmp_path),
        size=(64, 64),
        slices="nodule",
        num_scans=2,
        num_slices=12,
        matrix=64,
    )
    dataset = datasets.load(config)
    assert dataset.name == "phantom/nodule-anatomy-annotations-64x64"
    assert set(dataset.table.num_nodules.tolist()) >= {0, 1}
    images, masks = dataset.read(np.arange(len(dataset)))
    assert dataset.table.labels[:, 1:3].all()
    assert images[masks == 1].mean() < -600 and images[(masks == 1) | (masks == 2)].std() < 300


def test_settings_that_cannot_be_used_are_named(tmp_path):
    for values, message in (
        ({"name": "dicom"}, "data.name: got 'dicom', expected one of 'luna16', 'npz', 'phantom'"),
        ({"name": "npz"}, "data.dir: not given; data.name='npz' needs the folder"),
        ({"size": (320, 8)}, r"data.size: got \(320, 8\), expected two whole numbers"),
        ({"dir": str(tmp_path), "slices": "every"}, "data.slices: got 'every'"),
        ({"dir": str(tmp_path), "nodules": "lidc"}, "data.lidc: not given"),
    ):
        with pytest.raises(InputError, match=message):
            datasets.load(data_config(**values))


@pytest.mark.parametrize(("text", "size"), [("", None), ("32,48", (32, 48)), ("32x48", (32, 48))])
def test_a_size_is_two_numbers(text, size):
    assert datasets.parse_size(text) == size


@pytest.mark.parametrize("text", ["32", "a,b", "8,8", "1,2,3"])
def test_a_size_that_is_none_is_refused(text):
    with pytest.raises(InputError, match="size: got"):
        datasets.parse_size(text)
