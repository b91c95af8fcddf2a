"""The phantom's folder, its anatomy in the world, and its nodules."""

import csv
import hashlib
import itertools
import os
import pathlib
import shutil
import subprocess
import sys
import time
import types

import numpy as np
import pytest
from scipy import ndimage, stats

from auxseg.base.errors import InputError
from auxseg.datasets.phantom import anatomy, contents, drawing, surfaces
from auxseg.datasets.phantom import render as phantom_render
from auxseg.datasets.phantom.render import create_canvas, nodule_distance, render_slice

sitk = pytest.importorskip("SimpleITK")
_ROOT = pathlib.Path(__file__).parents[2]


def _config(**changes):
    values = {
        "num_scans": 4,
        "num_slices": 24,
        "matrix": 96,
        "noise_hu": 15.0,
        "blur_mm": 0.8,
        "prone_fraction": 0.5,
        "seed": 5,
    }
    return types.SimpleNamespace(**{**values, **changes})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    target = tmp_path_factory.mktemp("data") / "phantom"
    drawing.ensure(target, _config())
    return target


def _headers(folder):
    return sorted(folder.glob("subset*/*.mhd"))


def _annotations(folder):
    with open(folder / "annotations.csv", newline="", encoding="utf-8") as file:
        return [
            (
                row["seriesuid"],
                np.array([float(row[f"coord{axis}"]) for axis in "XYZ"]),
                float(row["diameter_mm"]),
            )
            for row in csv.DictReader(file)
        ]


def _digest(folder):
    names = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return {str(name): hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}


def _read(path):
    image = sitk.ReadImage(str(path))
    mask = sitk.ReadImage(str(path.parents[1] / drawing.MASK_FOLDER / path.name))
    return image, mask


def _world_points(image, voxels_zyx):
    """Returns [P, 3] world mm of [P, 3] voxels."""
    direction = np.array(image.GetDirection()).reshape(3, 3)
    return np.array(image.GetOrigin()) + (voxels_zyx[:, ::-1] * np.array(image.GetSpacing())) @ direction.T


def test_layout_is_luna16s(folder):
    assert len(_headers(folder)) == 4
    assert {path.parent.name for path in _headers(folder)} == {"subset0", "subset1", "subset2", "subset3"}
    assert not list(folder.rglob("*.part"))
    for path in _headers(folder):
        assert path.with_suffix(".raw").stat().st_size == 24 * 96 * 96 * 2
        assert path.stem.startswith("2.25.") and len(path.stem) <= 64
        assert (folder / drawing.MASK_FOLDER / f"{path.stem}.zraw").is_file()
    assert {row[0] for row in _annotations(folder)} <= {path.stem for path in _headers(folder)}


def test_scans_hold_hu_and_luna16s_mask_values(folder):
    for path in _headers(folder):
        image, mask = _read(path)
        hu, values = sitk.GetArrayFromImage(image), sitk.GetArrayFromImage(mask)
        assert hu.dtype == np.int16 and values.shape == hu.shape == (24, 96, 96)
        assert image.GetOrigin() == mask.GetOrigin() and image.GetDirection() == mask.GetDirection()
        assert image.GetSpacing() == mask.GetSpacing()
        assert set(np.unique(values)) == {0, 3, 4, 5}
        lungs = ndimage.binary_erosion((values == 3) | (values == 4), iterations=2)
        assert -960 < np.median(hu[lungs]) < -780
        assert np.median(hu[values == 5]) < -900
        body = hu[(values == 0) & (hu > -50) & (hu < 150)]
        assert 20 < np.median(body) < 80
        assert 300 < np.percentile(hu, 99.9) < 1500


def test_left_is_the_patients_left_in_the_world_prone_scans_too(folder):
    signs = []
    for path in _headers(folder):
        image, mask = _read(path)
        signs.append(image.GetDirection()[0])
        assert image.GetDirection() == (signs[-1], 0, 0, 0, signs[-1], 0, 0, 0, 1)
        values = sitk.GetArrayFromImage(mask)
        centroids = [_world_points(mask, np.argwhere(values == value)).mean(0) for value in (3, 4, 5)]
        left, right, airway = centroids
        assert left[0] > airway[0] + 20 > right[0] + 40
        assert airway[2] > left[2] and airway[2] > right[2]
    assert set(signs) == {1.0, -1.0}


def test_the_table_is_always_under_the_patient_in_the_stored_image(folder):
    for path in _headers(folder):
        hu = sitk.GetArrayFromImage(_read(path)[0])[12].astype(float)
        outside = ndimage.binary_fill_holes(ndimage.binary_opening(hu > -300, iterations=2))
        shell = (hu > -700) & ~ndimage.binary_dilation(outside, iterations=2) & (hu > -1024)
        rows = np.nonzero(shell.sum(1) > 20)[0]
        assert len(rows) and rows.min() > 48


def test_annotations_lie_in_the_lung_and_look_like_nodules(folder):
    headers = {path.stem: path for path in _headers(folder)}
    rows = _annotations(folder)
    assert 8 <= len(rows) <= 24
    for uid, centre, diameter in rows:
        image, mask = _read(headers[uid])
        values, hu = sitk.GetArrayFromImage(mask), sitk.GetArrayFromImage(image)
        voxel = np.array(image.TransformPhysicalPointToContinuousIndex(centre.tolist()))[::-1]
        near = np.round(voxel).astype(int)
        assert np.all(near >= 0) and np.all(near < values.shape)
        offsets = (np.argwhere(values > 2) - voxel) * np.array(image.GetSpacing())[::-1]
        assert np.linalg.norm(offsets, axis=1).min() < image.GetSpacing()[2] + 1.5
        offset = abs(near[0] - voxel[0]) * image.GetSpacing()[2]
        if offset < 0.3 * diameter and diameter > 2 * image.GetSpacing()[0]:
            patch = hu[near[0], near[1] - 1 : near[1] + 2, near[2] - 1 : near[2] + 2]
            assert patch.max() > -650


def _finely_drawn_nodules():
    """Yields nodules drawn on a fine grid: the nodule, and its slice through the centre with x, y in mm."""
    settings = drawing.create_settings(_config(noise_hu=0.0, num_slices=300, matrix=512, blur_mm=0.4))
    for number in range(6):
        scan = drawing.create_scan(settings, number)
        canvas = create_canvas(scan.scene, scan.x_mm, scan.y_mm, **{**scan.canvas, "field_mm": None})
        for nodule in scan.scene.nodules:
            hu, mask = render_slice(scan.scene, canvas, float(nodule.centre_mm[2]), None)
            yield nodule, hu, mask, scan.x_mm[None], scan.y_mm[:, None]


def test_the_annotated_sphere_is_what_is_seen():
    """Dice of the painted disc against the nodule segmented at half its contrast, for isolated ones."""
    scores = []
    for nodule, hu, mask, x, y in itertools.islice(_finely_drawn_nodules(), 20):
        far = np.hypot(x - nodule.centre_mm[0], y - nodule.centre_mm[1])
        sphere = far <= nodule.diameter_mm / 2
        if nodule.site != "isolated" or nodule.kind != "solid" or nodule.diameter_mm < 5:
            continue
        seen = (hu > 0.5 * (nodule.hu - 880.0)) & (far < nodule.diameter_mm)
        seen = ndimage.label(seen)[0]
        seen = seen == seen[np.unravel_index(np.argmin(far), far.shape)]
        assert np.all(mask[sphere] > 2)
        scores.append(2 * (seen & sphere).sum() / (seen.sum() + sphere.sum()))
    assert len(scores) >= 3 and min(scores) > 0.8 and np.mean(scores) > 0.9


def test_nodule_volume_is_that_of_its_diameter():
    rng = np.random.default_rng(0)
    grid = (np.arange(-40, 41) * 0.25).astype(np.float32)
    for _ in range(20):
        nodule = contents._create_nodule(rng, np.zeros(3), 12.0, "isolated")
        inside = nodule_distance(nodule, grid[:, None, None], grid[:, None], grid) < 0
        assert inside.sum() * 0.25**3 == pytest.approx(np.pi / 6 * 12.0**3, rel=0.08)


def test_diameters_follow_luna16s_quantiles():
    drawn = contents.draw_diameters(np.random.default_rng(1), 4000)
    assert drawn.min() >= 3.25 and drawn.max() <= 32.27
    shares = (0.1, 0.25, 0.5, 0.75, 0.9)
    expected = np.array(contents.DIAMETER_QUANTILES_MM)[[4, 10, 20, 30, 36]]
    np.testing.assert_allclose(np.quantile(drawn, shares), expected, rtol=0.04)


@pytest.fixture(scope="module")
def nodules():
    """Returns the nodules of 26 scans."""
    settings = drawing.create_settings(_config(num_slices=60))
    scenes = [drawing.create_scan(settings, number).scene for number in range(26)]
    return [nodule for scene in scenes for nodule in scene.nodules]


def test_diameters_of_placed_nodules_keep_the_distribution(nodules):
    placed = [nodule.diameter_mm for nodule in nodules]
    assert len(placed) > 80
    reference = contents.draw_diameters(np.random.default_rng(2), 20000)
    assert stats.ks_2samp(placed, reference).statistic < 0.15


def test_diameters_against_the_real_annotations(real_data):
    real = np.loadtxt(real_data / "csv" / "annotations.csv", delimiter=",", skiprows=1, usecols=4)
    quantiles = np.quantile(real, np.linspace(0, 1, 41))
    np.testing.assert_allclose(contents.DIAMETER_QUANTILES_MM, quantiles, atol=0.006)


def test_every_kind_and_site_of_nodule_occurs(nodules):
    assert {nodule.kind for nodule in nodules} == {"solid", "part_solid", "ground_glass"}
    assert {nodule.site for nodule in nodules} == {"isolated", "vessel", "pleura"}


def test_lungs_are_as_large_and_dark_as_real_ones(real_data):
    """Share of lung in a middle slice and its HU: the phantom's medians lie within the real 5-95 %."""
    real = []
    for path in sorted((real_data / "luna16_middle").glob("ID_*.npz")):
        with np.load(path, allow_pickle=False) as file:
            image, mask = file["image"], file["mask"]
        real.append([(mask == 1).mean(), (mask == 2).mean(), np.median(image[(mask == 1) | (mask == 2)])])
    settings, made = drawing.create_settings(_config(num_slices=61, matrix=128, prone_fraction=0.0)), []
    for number in range(12):
        scan = drawing.create_scan(settings, number)
        canvas = create_canvas(scan.scene, scan.x_mm, scan.y_mm, **scan.canvas)
        hu, mask = render_slice(scan.scene, canvas, float(scan.z_mm[30]), np.random.default_rng(0))
        made.append([(mask == 3).mean(), (mask == 4).mean(), np.median(hu[(mask == 3) | (mask == 4)])])
    low, high = np.percentile(real, [5, 95], axis=0)
    assert np.all(np.median(made, axis=0) > low) and np.all(np.median(made, axis=0) < high)


def test_same_seed_same_bytes_and_scans_do_not_depend_on_their_number(folder, tmp_path):
    drawing.ensure(tmp_path / "two", _config(num_scans=2))
    two = _digest(tmp_path / "two")
    drawing.ensure(tmp_path / "two", _config())
    assert _digest(tmp_path / "two") == _digest(folder)
    assert all(_digest(folder)[name] == digest for name, digest in two.items() if "2.25" in name)


def test_other_seeds_give_other_scans_with_other_uids():
    first, second = (drawing.create_scan(drawing.create_settings(_config(seed=seed)), 0) for seed in (5, 6))
    assert first.uid != second.uid
    assert first.scene.patient.height_mm != second.scene.patient.height_mm


def test_ensure_leaves_a_whole_folder_alone(folder):
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    drawing.ensure(folder, _config())
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_an_interrupted_generation_is_not_taken_for_whole_and_resumes(folder, tmp_path, monkeypatch):
    target, drawn, render = tmp_path / "phantom", [], render_slice

    def stop_midway(*args):
        drawn.append(1)
        if len(drawn) > 40:
            raise KeyboardInterrupt
        return render(*args)

    monkeypatch.setattr(phantom_render, "render_slice", stop_midway)
    with pytest.raises(KeyboardInterrupt):
        drawing.ensure(target, _config())
    assert len(_headers(target)) < 4 and not (target / "annotations.csv").exists()
    assert not list(target.rglob("*.part"))
    monkeypatch.setattr(phantom_render, "render_slice", render)
    seen = []
    drawing.ensure(target, _config(), progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert _digest(target) == _digest(folder)


def test_a_killed_generation_resumes(folder, tmp_path):
    """kill -9 while slices are on their way to the disk; leftovers go once they are an hour old."""
    target = tmp_path / "phantom"
    program = (
        "import sys, types; from auxseg.datasets.phantom import drawing; "
        f"drawing.ensure(sys.argv[1], types.SimpleNamespace(**{vars(_config())!r}))"
    )
    process = subprocess.Popen([sys.executable, "-c", program, str(target)], cwd=_ROOT)
    deadline = time.monotonic() + 120
    while not list(target.glob("subset*/.*.part")) and time.monotonic() < deadline:
        time.sleep(0.005)
    process.kill()
    process.wait()
    left = list(target.rglob("*.part"))
    assert left and not (target / "annotations.csv").exists()
    for path in left:
        os.utime(path, (0, 0))
    drawing.ensure(target, _config())
    assert _digest(target) == _digest(folder)


@pytest.mark.parametrize(
    "name", ["subset1/*.raw", "subset2/*.mhd", f"{drawing.MASK_FOLDER}/*.zraw", "annotations.csv"]
)
def test_what_was_deleted_is_made_again(name, folder, tmp_path):
    target = tmp_path / "phantom"
    shutil.copytree(folder, target)
    next(target.glob(name)).unlink()
    drawing.ensure(target, _config())
    assert _digest(target) == _digest(folder)


def test_a_truncated_image_is_made_again(folder, tmp_path):
    target = tmp_path / "phantom"
    shutil.copytree(folder, target)
    os.truncate(next(target.glob("subset3/*.raw")), 1000)
    drawing.ensure(target, _config())
    assert _digest(target) == _digest(folder)


def test_a_full_disk_is_one_clear_line(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(InputError, match="cannot be written .No space left on device"):
        drawing.ensure(tmp_path / "phantom", _config())
    assert not [path for path in (tmp_path / "phantom").rglob("*") if path.is_file()]


def test_default_names_differ_with_every_setting():
    changes = [{"num_scans": 5}, {"num_slices": 25}, {"matrix": 97}, {"noise_hu": 16.0}, {"blur_mm": 0.9},
               {"prone_fraction": 0.4}, {"seed": 6}]  # fmt: skip
    names = {drawing.default_name(_config(**change)) for change in [{}, *changes]}
    assert len(names) == len(changes) + 1
    assert drawing.default_name(_config()) == drawing.default_name(_config())


def test_workers_write_the_same_bytes_as_one_process(tmp_path, monkeypatch):
    config, seen = _config(num_scans=8, num_slices=4, matrix=32), []
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    drawing.ensure(tmp_path / "two", config, progress=lambda *done: seen.append(done))
    assert seen == [(done, 8) for done in range(1, 9)]
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    drawing.ensure(tmp_path / "one", config)
    assert _digest(tmp_path / "two") == _digest(tmp_path / "one")


def test_what_keeps_a_worker_from_writing_is_one_clear_line(tmp_path, monkeypatch):
    config = _config(num_scans=8, num_slices=4, matrix=32)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    uid = drawing.series_uid(drawing.create_settings(config), 3)
    (tmp_path / "phantom" / "subset3" / f"{uid}.raw" / "in_the_way").mkdir(parents=True)
    settings = drawing.create_settings(config)
    drawing._write_state(tmp_path / "phantom", settings, whole=False)
    with pytest.raises(InputError, match="raw: cannot be written .Is a directory"):
        drawing.ensure(tmp_path / "phantom", config)
    assert not (tmp_path / "phantom" / "annotations.csv").exists()


def test_a_worker_that_dies_is_one_clear_line_and_costs_its_scans_alone(tmp_path, monkeypatch):
    """The worker with the second share dies before its first scan; the next start draws what is missing."""
    config, popen = _config(num_scans=8, num_slices=4, matrix=32), subprocess.Popen

    def start(command, **settings):
        dies = command[-2:] == ["1", "2"]
        return popen(
            [sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"] if dies else command, **settings
        )

    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    with monkeypatch.context() as patch:
        patch.setattr(subprocess, "Popen", start)
        with pytest.raises(InputError, match="4 scans were not drawn: a process that drew them was killed"):
            drawing.ensure(tmp_path / "phantom", config)
    drawn = {path: path.stat().st_mtime_ns for path in (tmp_path / "phantom").rglob("*.raw")}
    assert len(drawn) == 4
    drawing.ensure(tmp_path / "phantom", config)
    assert len(list((tmp_path / "phantom").rglob("subset*/*.raw"))) == 8
    assert all(path.stat().st_mtime_ns == when for path, when in drawn.items())


def test_ending_early_ends_the_workers(tmp_path, monkeypatch):
    config, started = _config(num_scans=8, num_slices=60, matrix=128), []
    popen = subprocess.Popen

    def start(*args, **kwargs):
        started.append(popen(*args, **kwargs))
        return started[-1]

    def stop(done, total):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.setattr(subprocess, "Popen", start)
    with pytest.raises(KeyboardInterrupt):
        drawing.ensure(tmp_path / "phantom", config, progress=stop)
    assert len(started) == 2 and all(worker.poll() is not None for worker in started)
    assert not list(tmp_path.rglob("*.part")) and not (tmp_path / "phantom" / "annotations.csv").exists()


def test_refuses_a_phantom_of_other_settings(folder):
    with pytest.raises(InputError, match=r"noise_hu 15.0 there, 30.0 wanted"):
        drawing.ensure(folder, _config(noise_hu=30.0))
    with pytest.raises(InputError, match=r"num_scans 4 there, 3 wanted"):
        drawing.ensure(folder, _config(num_scans=3))


def test_a_generation_killed_at_its_very_start_is_not_other_data(tmp_path):
    (tmp_path / ".phantom.json.1.part").write_bytes(b"{")
    drawing.ensure(tmp_path, _config(num_scans=1, num_slices=1, matrix=32))
    assert len(_headers(tmp_path)) == 1


def test_refuses_other_data(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="holds other data"):
        drawing.ensure(tmp_path, _config())
    with pytest.raises(InputError, match="is a file"):
        drawing.ensure(tmp_path / "notes.txt", _config())
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_refuses_a_damaged_state_and_another_version(tmp_path):
    (tmp_path / "phantom.json").write_text("{")
    with pytest.raises(InputError, match="cannot be read"):
        drawing.ensure(tmp_path, _config())
    settings = drawing.create_settings(_config())
    drawing._write_state(tmp_path, settings, whole=True)
    path = tmp_path / "phantom.json"
    path.write_text(path.read_text(encoding="utf-8").replace(f'"version": {drawing.VERSION}', '"version": 0'))
    with pytest.raises(InputError, match="version 0"):
        drawing.ensure(tmp_path, _config())


_OUT_OF_RANGE = [{"num_scans": 0}, {"matrix": 8}, {"prone_fraction": 1.5}, {"noise_hu": -1.0},
                 {"blur_mm": float("nan")}, {"seed": 1.5}, {"num_slices": None}]  # fmt: skip


@pytest.mark.parametrize("change", _OUT_OF_RANGE)
def test_refuses_settings_out_of_range(change, tmp_path):
    with pytest.raises(InputError, match=f"data.phantom.{next(iter(change))}"):
        drawing.ensure(tmp_path / "new", _config(**change))
    assert not (tmp_path / "new").exists()


def test_noise_has_the_given_strength():
    settings = drawing.create_settings(_config(noise_hu=25.0, num_slices=60, matrix=128, prone_fraction=0.0))
    ratios = []
    for number in range(3):
        scan = drawing.create_scan(settings, number)
        canvas = create_canvas(scan.scene, scan.x_mm, scan.y_mm, **scan.canvas)
        z = float(scan.z_mm[30])
        first, second = (
            render_slice(scan.scene, canvas, z, np.random.default_rng(seed))[0] for seed in (1, 2)
        )
        tissue = (first > -500) & (second > -500)
        ratios.append((first - second)[tissue].std() / np.sqrt(2) / scan.canvas["seen_by"].noise_hu)
    np.testing.assert_allclose(ratios, 1.0, rtol=0.05)


def test_surfaces_are_distances_in_mm():
    """The gradient of the lung's distance is about 1 where it matters for partial volume: at the edge."""
    patient = anatomy.create_patient(np.random.default_rng(3), prone_fraction=0.0)
    axis = np.arange(-150.0, 150.5, 0.5)
    places = surfaces.create_places(axis[None], axis[:, None])
    distance = surfaces.surfaces_at(patient, places, 0.5 * patient.height_mm).lung
    edge = np.abs(distance) < 0.5
    steepness = np.hypot(*np.gradient(distance, 0.5))[edge]
    assert 0.85 < np.median(steepness) < 1.15
    assert np.percentile(steepness, 5) > 0.5 and np.percentile(steepness, 95) < 1.4
