"""Tests of exported bundles: they agree with the original, say what they are, and run without auxseg."""

import configparser
import json
import os
import pathlib
import re
import runpy
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

from auxseg import export, models
from auxseg.base.errors import InputError
from auxseg.datasets.resize import resize_image
from auxseg.prediction import segment
from auxseg.runs import bundles, checkpoints, decisions, networks, onnx_graph, run_folder
from auxseg.scoring import operating_point
from configs import base

SIZE = (64, 64)


def _trained(seed=0, slab=1, **settings):
    """Returns a small network with weights as of a trained one: statistics too are not those of a "
    "fresh one."""
    config = base.get_config()
    with config.unlocked():
        config.data.size, config.data.slab = SIZE, slab
        config.model.update({"base_width": 4, "depth": 1, "aux_width": 4, "se_ratio": 2, **settings})
    model = models.create_model(config.model)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, *SIZE, slab), np.float32))
    random = np.random.default_rng(seed)
    return networks.Trained(
        "small (epoch 1)", config, jax.tree.map(lambda one: _draw(random, one.shape), dict(shapes))
    )


def _draw(random, shape):
    if len(shape) == 1:
        return np.float32(random.uniform(0.5, 1.5, shape))
    return np.float32(random.normal(0, 1.5 / np.sqrt(np.prod(shape[:-1])), shape))


def _images(count=3, seed=0):
    return np.random.default_rng(seed).normal(-400, 400, (count, *SIZE)).clip(-1024, 2000).astype(np.int16)


def _export(kind, output, trained):
    slab, images = trained.config.data.slab, _images()
    images = images if slab == 1 else np.stack([np.roll(images, k, 1) for k in range(slab)], -1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(networks, "read_trained", lambda path: trained)
        return bundles.export("run", kind, output, images=images, checked_on="noise")


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Returns {kind: (folder, bundle.json)} of one small network."""
    folder = tmp_path_factory.mktemp("bundles")
    return {kind: (folder / kind, _export(kind, folder / kind, _trained())) for kind in networks.KINDS}


def test_a_bundle_keeps_the_threshold_that_was_chosen(tmp_path):
    (tmp_path / "run").mkdir()
    decisions.write_decision(tmp_path / "run", operating_point.Decision(0.8, 4.0, 3.0), {})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(networks, "read_trained", lambda path: _trained())
        about = bundles.export(
            tmp_path / "run", "saved", tmp_path / "saved", images=_images(1), checked_on="noise"
        )
    assert decisions.read_common_decision([tmp_path / "saved"]) == operating_point.Decision(0.8, 4.0, 3.0)
    assert decisions.FILE in about["files"]


@pytest.mark.parametrize("kind", networks.KINDS)
def test_a_bundle_agrees_with_the_original(exported, kind):
    output, about = exported[kind]
    images = _images(5, seed=1)  # another number of slices
    expected = networks.create_network(_trained(), classes=True).forward(images)
    network = networks.load_network(output)
    for got, want in zip(network.forward(images), expected, strict=True):
        if got is None:
            assert kind == "saved"  # predict needs no class head
            continue
        np.testing.assert_allclose(np.asarray(got), np.asarray(want), atol=bundles.TOLERANCE)
    assert np.ptp(np.asarray(expected[0])) > 0.2  # it says something
    assert network.size_yx == SIZE and network.name == "small (epoch 1)"
    assert about["checked"]["largest_difference_of_mask_probabilities"] <= bundles.TOLERANCE
    assert about["checked"]["slices"] == 3


@pytest.mark.parametrize(
    "settings", [{"se": False}, {"aux": False}, {"separable": False}, {"depth": 3}, {"name": "unet"}]
)
def test_every_variant_becomes_an_onnx_graph(tmp_path, settings):
    about = _export("onnx", tmp_path / "out", _trained(**settings))
    assert about["checked"]["largest_difference_of_mask_probabilities"] <= bundles.TOLERANCE
    assert about["checked"]["largest_difference_of_class_probabilities"] <= bundles.TOLERANCE


def test_another_network_is_exported_as_a_program(tmp_path):
    name = "attention_res_unet"
    about = _export("stablehlo", tmp_path / "out", _trained(name=name, base_width=2))
    assert about["checked"]["largest_difference_of_mask_probabilities"] <= bundles.TOLERANCE
    with pytest.raises(InputError, match=f"--format=onnx: cannot write '{name}'; use stablehlo"):
        _export("onnx", tmp_path / "onnx", _trained(name=name, base_width=2))


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("onnx", {"slab": 3}),
        ("stablehlo", {"slab": 3, "name": "unet3d", "base_width": 2}),
        ("saved", {"slab": 5, "name": "unet3d", "base_width": 2}),
    ],
)
def test_a_network_of_slabs_is_exported(tmp_path, kind, settings):
    about = _export(kind, tmp_path / "out", _trained(**settings))
    assert about["checked"]["largest_difference_of_mask_probabilities"] <= bundles.TOLERANCE
    network, slab = networks.load_network(tmp_path / "out"), settings["slab"]
    assert (about["slab"], network.slab, network.slab_step_mm) == (slab, slab, 2.5)
    assert f"[N, 64, 64, {slab}]" in about["input"]["images"]
    assert network(np.zeros((*SIZE, slab), np.int16)).shape == (1, *SIZE, 4)
    with pytest.raises(InputError, match=rf"expected \[N, 64, 64, {slab}\]"):
        network(_images(1))


def test_a_bundle_of_slabs_runs_without_auxseg(tmp_path):
    _export("onnx", tmp_path / "out", _trained(slab=3))
    slab = np.stack([_images(1, seed=k)[0] for k in range(3)], -1)
    np.save(tmp_path / "slab.npy", slab)
    np.save(tmp_path / "slice.npy", slab[..., 0])
    command = [sys.executable, "-I", tmp_path / "out" / "run.py"]
    subprocess.run([*command, tmp_path / "slab.npy", tmp_path / "mask.npy"], check=True, timeout=300)
    ours = np.asarray(networks.load_network(tmp_path / "out").probabilities(slab[None]))[0].argmax(-1)
    np.testing.assert_array_equal(np.load(tmp_path / "mask.npy"), ours)
    wrong = subprocess.run([*command, tmp_path / "slice.npy", tmp_path / "x.npy"], capture_output=True,
                           text=True, timeout=300)  # fmt: skip
    assert wrong.returncode == 1 and "expected ('rows', 'columns', 3)" in wrong.stderr


@pytest.mark.parametrize("kind", networks.KINDS)
def test_a_network_of_a_fixed_scale_takes_slices_of_any_size(tmp_path, kind):
    trained = _trained()
    trained.config.data.mm_per_pixel = 0.8
    about = _export(kind, tmp_path / "out", trained)
    assert (about["mm_per_pixel"], about["multiple"], about["size_yx"]) == (0.8, 64, list(SIZE))
    assert "[N, H, W], HU" in about["input"]["images"] and "0.8 mm a pixel" in about["input"]["size"]
    network, images = networks.load_network(tmp_path / "out"), np.tile(_images(2), (1, 1, 2))
    assert network.scale == 0.8 and network.doubt == ""
    found, expected = network(images), networks.create_network(trained)(images)
    assert found.shape == (2, 64, 128, 4)
    np.testing.assert_allclose(found, expected, atol=bundles.TOLERANCE)
    with pytest.raises(InputError, match=r"expected \[N, multiple of 64, multiple of 64\]"):
        network(images[:, :60])
    if kind == "saved":
        return
    runner = runpy.run_path(str(tmp_path / "out" / "run.py"))
    mask = runner["segment"](images[0, :40, :100], runner["load"](), (1.6, 0.8))
    shown = np.full((1, 128, 128), -1024, np.float32)
    shown[0, :80, :100] = resize_image(images[0, :40, :100], (80, 100))
    wide = network(shown)[0, :80, :100].argmax(-1)
    assert mask.shape == (40, 100) and np.mean(np.kron(mask, np.ones((2, 1))) == wide) > 0.8
    with pytest.raises(SystemExit, match="ROW_MM COLUMN_MM: not given; this network takes 0.8 mm"):
        runner["segment"](images[0], runner["load"]())


def test_a_network_of_crops_alone_is_exported_for_scans_own_resolution(tmp_path):
    trained = _trained()
    trained.config.data.name = "crops"
    about = _export("saved", tmp_path / "out", trained)
    network = networks.load_network(tmp_path / "out")
    assert about["mm_per_pixel"] == network.scale == "own"
    assert "windows of 64x64 pixels at the scans' own resolution" in network.doubt


def test_a_network_trained_in_bfloat16_is_exported_in_float32(tmp_path):
    about = _export("saved", tmp_path / "out", _trained(dtype="bfloat16"))
    assert about["config"]["model"]["dtype"] == "float32"


def test_a_bundle_describes_itself(exported):
    output, about = exported["onnx"]
    assert json.loads((output / networks.FILE).read_text(encoding="utf-8")) == about
    assert about["classes"] == ["background", "left_lung", "right_lung", "nodule"]
    assert about["window_hu"] == [-1000.0, 400.0] and about["size_yx"] == list(SIZE)
    assert about["opset"] == onnx_graph.OPSET and about["versions"]["jax"] == jax.__version__
    assert about["weights_sha256"] == networks.weights_checksum(_trained().variables)
    assert set(about["files"]) == {"model.onnx", "run.py"}
    import onnx

    proto = onnx.load(output / "model.onnx")
    assert {one.version for one in proto.opset_import} == {onnx_graph.OPSET}
    properties = {one.key: one.value for one in proto.metadata_props}
    assert properties["weights_sha256"] == about["weights_sha256"]


def test_a_bundle_says_what_it_needs_and_imports_no_more(exported):
    """Packages that another one happens to bring along are named too: jax.export reads with flatbuffers."""
    for kind, allowed in (("onnx", {"onnxruntime"}), ("stablehlo", {"jax", "flatbuffers"})):
        output, about = exported[kind]
        assert set(about["needs"]) == allowed | {"numpy"}
        text = (output / "run.py").read_text(encoding="utf-8")
        imported = set(re.findall(r"^ *(?:import|from) (\w+)", text, re.MULTILINE))
        assert imported <= {"json", "pathlib", "sys", "numpy", "onnxruntime", "jax"}
    setup = configparser.ConfigParser()
    setup.read(pathlib.Path(__file__).parents[2] / "setup.cfg", encoding="utf-8")
    assert "flatbuffers" in setup["options"]["install_requires"]


@pytest.mark.parametrize("kind", ["onnx", "stablehlo"])
def test_a_bundle_runs_without_auxseg(exported, tmp_path, kind):
    output, _ = exported[kind]
    image = _images(1, seed=3)[0]
    np.save(tmp_path / "slice.npy", np.kron(image, np.ones((2, 3), np.int16)))
    code = (
        "import sys, runpy; sys.modules['auxseg'] = None; sys.argv = sys.argv[1:]; "
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    command = [
        sys.executable,
        "-I",
        "-c",
        code,
        output / "run.py",
        tmp_path / "slice.npy",
        tmp_path / "mask.npy",
    ]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=300,
        env={**os.environ, "PYTHONPATH": ""},
    )
    assert done.returncode == 0, done.stderr
    mask = np.load(tmp_path / "mask.npy")
    assert mask.shape == (128, 192) and mask.dtype == np.uint8
    ours = np.asarray(networks.load_network(output).probabilities(image[None]))[0].argmax(-1)
    assert np.mean(mask[::2, 1::3] == ours) > 0.8  # the same picture, resized there and back


def test_a_wrong_export_is_not_written(monkeypatch, tmp_path):
    trained = _trained()
    monkeypatch.setattr(networks, "read_trained", lambda path: trained)
    true_unit = onnx_graph._unit
    monkeypatch.setattr(onnx_graph, "_unit", lambda *args: true_unit(*args[:-1], 0.5))  # a wrong epsilon
    with pytest.raises(RuntimeError, match="differs from the original"):
        bundles.export("run", "onnx", tmp_path / "out", images=_images(), checked_on="noise")
    assert list(tmp_path.iterdir()) == []


def test_damage_is_found(exported, tmp_path):
    for kind in networks.KINDS:
        output = tmp_path / "copies" / kind
        shutil.copytree(exported[kind][0], output)
        file = output / networks.KINDS[kind]
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 1
        file.write_bytes(data)
        with pytest.raises(InputError, match="changed since the export"):
            networks.load_network(output)
    (output / networks.FILE).write_text("{")
    with pytest.raises(InputError, match="JSON"):
        networks.load_network(output)
    with pytest.raises(InputError, match="neither a run"):
        networks.load_network(tmp_path)


def test_weights_of_another_network_are_refused(exported, tmp_path):
    output, about = tmp_path / "copy", dict(exported["saved"][1])
    shutil.copytree(exported["saved"][0], output)
    other = networks.flatten(_trained(seed=5).variables)
    np.savez(output / "weights.npz", **other)
    about["files"] = {"weights.npz": networks.file_checksum(output / "weights.npz")}
    (output / networks.FILE).write_text(json.dumps(about))
    with pytest.raises(InputError, match="not those of"):
        networks.load_network(output)


def test_flatten_and_back():
    variables = _trained().variables
    again = networks.unflatten(networks.flatten(variables))
    assert jax.tree.structure(again) == jax.tree.structure(variables)
    assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(variables)))


def test_an_export_replaces_a_bundle_and_nothing_else(tmp_path):
    output = tmp_path / "there"
    first = _export("saved", output, _trained())
    second = _export("saved", output, _trained(seed=2))
    assert first["weights_sha256"] != second["weights_sha256"]
    assert networks.load_network(output).checksum == second["weights_sha256"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("")
    with pytest.raises(InputError, match="is no bundle"):
        _export("saved", tmp_path / "mine", _trained())


@pytest.mark.parametrize("kind", networks.KINDS)
def test_real_slices_through_a_bundle_and_predict(exported, real_data, kind):
    """The mask of a bundle is the mask of the run, on real CT; every pixel of a clear decision."""
    output, _ = exported[kind]
    scan = real_data / "luna16_middle" / "ID_0003.npz"
    options = segment.Options(force=True, probabilities=True)
    ours = segment.segment(scan, [networks.create_network(_trained())], options=options)
    theirs = segment.segment(scan, [networks.load_network(output)], options=options)
    np.testing.assert_allclose(theirs.probabilities, ours.probabilities, atol=bundles.TOLERANCE)
    two = np.sort(ours.probabilities, axis=0)[-2:]
    clear = two[1] - two[0] > 2 * bundles.TOLERANCE
    assert clear.mean() > 0.9
    np.testing.assert_array_equal(theirs.masks[clear], ours.masks[clear])


def test_the_command_exports_and_predict_takes_it(real_data, tmp_path):
    """A run's folder to a bundle, and the bundle to a mask, by the commands alone."""
    trained, scan = _trained(), real_data / "luna16_middle" / "ID_0100.npz"
    (tmp_path / "run").mkdir()
    run_folder.claim_config(tmp_path / "run", trained.config)
    checkpoints.save_best(tmp_path / "run", step=3, variables=trained.variables, progress={"epoch": 2})
    flags = [f"--workdir={tmp_path}/run", "--format=stablehlo", f"--input={scan}"]
    done = _command("auxseg.export", *flags)
    assert done.returncode == 0, done.stderr
    assert "stablehlo of run (epoch 2), within" in done.stdout and "on 1 slices" in done.stdout
    flags = [
        f"--workdir={tmp_path}/run/export/stablehlo",
        f"--input={scan}",
        f"--output={tmp_path}/out",
        "--force",
    ]
    done = _command("auxseg.predict", *flags)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "mask.nii.gz").is_file()
    wrong = _command("auxseg.export", f"--workdir={tmp_path}/run", "--format=tflite")
    assert wrong.returncode == 2 and "expected one of 'stablehlo', 'onnx', 'saved'" in wrong.stderr


def _command(module, *arguments):
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=300,
    )


def test_slices_to_check_on_come_from_a_scan(real_data):
    config = _trained().config
    images, text = export.read_check_slices(config, None, real_data / "cip" / "ct-64.nrrd")
    assert images.shape == (bundles.NUM_SLICES, *SIZE) and "ct-64.nrrd" in text


def test_slices_to_check_on_come_from_many_scans(tmp_path):
    for number in range(20):
        image = np.full((40, 40), number, np.int16)
        np.savez(tmp_path / f"{number:02}.npz", image=image)
    images, text = export.read_check_slices(_trained().config, None, tmp_path)
    assert images.shape == (bundles.NUM_SLICES, *SIZE) and text == f"8 scans of {tmp_path.name}"
    assert images[:, 0, 0].tolist() == np.linspace(0, 19, 8).astype(int).tolist()


def test_a_run_without_its_data_asks_for_a_scan(tmp_path):
    config = _trained().config
    with pytest.raises(InputError, match="--input: give a scan"):
        export.read_check_slices(config, tmp_path, None)


def test_a_run_is_exported_from_its_folder(tmp_path):
    trained = _trained()
    workdir = tmp_path / "run"
    workdir.mkdir()
    run_folder.claim_config(workdir, trained.config)
    checkpoints.save_best(workdir, step=3, variables=trained.variables, progress={"epoch": 1})
    about = bundles.export(workdir, "saved", tmp_path / "out", images=_images(), checked_on="noise")
    assert about["name"] == "run (epoch 1)"
    again = bundles.export(tmp_path / "out", "onnx", tmp_path / "onnx", images=_images(), checked_on="noise")
    assert again["weights_sha256"] == about["weights_sha256"] == networks.load_network(workdir).checksum
    shutil.rmtree(pathlib.Path(workdir) / "checkpoints")
    with pytest.raises(InputError, match="no checkpoint"):
        networks.load_network(workdir)
