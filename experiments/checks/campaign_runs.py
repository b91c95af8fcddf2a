"""Mutated files of runs, bundles and predictions: exchanged values, lost keys, changed bytes, cut files.

What reads them again must give what it gave before, what the changed file says, or one line. Weights are never other
ones: they have checksums.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import pathlib
import shutil

import jax
import numpy as np

from auxseg.base import files
from auxseg.base.classes import CLASS_NAMES
from auxseg.base.errors import InputError
from auxseg.ct import find
from auxseg.datasets import load
from auxseg.datasets.npz import write_case
from auxseg.evaluation import evaluate_run
from auxseg.prediction import done, outputs, rows, segment
from auxseg.runs import bundles, checkpoints, decisions, networks, run_folder, splits
from auxseg.scoring.operating_point import Decision
from auxseg.training import loop, setup, steps
from configs import base
from experiments.checks import campaign_scans

COUNT = 320
_VALUES = (
    None, True, False, -1, 0, 1, 3, 1e308, -1e-308, 60000, [60000, 60000], "", "x", "x" * 5000, "../..", [], {}, [None], [[[]]],
    {"a": 1}, "nan", 1 << 70, [1, "2"], "\ud800", ["background"], "train",
)  # fmt: skip


def write_data(folder, num_cases=18):
    """Writes slices of two 'lungs', some with a 'nodule', as NPZ files of 16x16; returns the folder."""
    folder.mkdir(parents=True)
    random, (rows_, columns) = np.random.default_rng(0), np.mgrid[:16, :16]
    for case in range(num_cases):
        image = np.full((16, 16), 40, np.int16) + random.integers(-20, 20, (16, 16)).astype(np.int16)
        mask = np.zeros((16, 16), np.uint8)
        for value, centre in ((2, 4), (1, 11)):
            mask[np.hypot(rows_ - 7 - case % 3, columns - centre) < 3.2] = value
        image[mask > 0] -= 850
        if case % 3 == 0:
            image[7:9, 4:6], mask[7:9, 4:6] = 30, 3
        write_case(folder / f"case{case:02d}.npz", image, mask)
    return folder


def settings(data_dir, num_epochs=3):
    """Returns the settings of a run of seconds."""
    config = base.get_config()
    with config.unlocked():
        config.data.name, config.data.dir, config.data.size = "npz", str(data_dir), (16, 16)
        config.data.cache_dir = str(data_dir.parent / "cache")
        config.data.split = "train_val_test"
        config.model.base_width, config.model.depth, config.model.lowering = 4, 1, "plain"
        config.train.num_epochs, config.train.batch_size, config.train.num_devices = num_epochs, 4, 1
        config.train.bn_refresh_batches, config.eval.num_panels = 2, 0
    return config


def prepare(folder):
    """Makes the run, the bundle and the prediction that are mutated, in `folder`."""
    config = settings(write_data(folder / "data"))
    loop.train(config, folder / "run", finish=evaluate_run.finish)
    decisions.write_decision(folder / "run", Decision(0.6), {})
    images = np.zeros((1, 16, 16), np.int16)
    bundles.export(folder / "run", "saved", folder / "bundle", images=images, checked_on="nothing")
    (folder / "scan").mkdir()
    np.savez(
        folder / "scan" / "a.npz", image=campaign_scans.TRUTH, spacing_zyx_mm=np.array([20.0, 14.0, 14.0])
    )
    outputs.predict(
        folder / "scan", folder / "prediction", [threshold_network()], options=segment.Options(force=True)
    )
    about = files.read_object(folder / "prediction/prediction.json")
    files.write_json(folder / "settings.json", about["settings"])


def threshold_network(size_yx=(24, 24)):
    """Returns a network that takes air for lung, the left half of the picture for the right one."""

    def forward(images):
        images = np.asarray(images)
        lung, left = (images > -950) & (images < -500), np.arange(images.shape[2]) >= images.shape[2] // 2
        values = np.where(lung, np.where(left, 1, 2), 0)
        return np.eye(len(CLASS_NAMES), dtype=np.float32)[values], None

    return networks.Network("threshold", size_yx, "0" * 64, "anatomy", forward)


def _read_settings(folder):
    config = run_folder.read_config(folder / "run")
    found = networks.load_network(folder / "run")
    shape = jax.ShapeDtypeStruct((1, *config.data.size), np.int16)
    if np.prod(config.data.size) < 1e6:  # those that a network was read with, not a stranger's
        jax.eval_shape(lambda images: found.forward(images)[0], shape)
    run_folder.claim_config(folder / "run", settings(folder / "data"))
    return run_folder.config_to_dict(config)


def _read_weights(folder):
    variables, progress = checkpoints.restore_best(folder / "run")
    return {"weights": networks.weights_checksum(variables), "progress": {"epoch": progress["epoch"]}}


def _read_latest(folder):
    state, sums = _expected(str((folder / "data").resolve()))
    restored, _, progress = checkpoints.restore_latest(folder / "run", state=state, sums=sums)
    loop.Position.from_json(progress)
    leaves = b"".join(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(restored))
    return {"state": hashlib.sha256(leaves).hexdigest(), "progress": progress}


@functools.cache
def _expected(data_dir):
    state = setup.create_initial_state(settings(pathlib.Path(data_dir)))
    return jax.device_get(state), jax.device_get(steps.empty_sums(len(CLASS_NAMES)))


def _read_records(folder):
    run_folder.keep_rows(folder / "run" / "metrics.jsonl", 3)
    found = run_folder.read_records(folder / "run")
    return {"epochs": found.epochs, "versions": found.versions, "summary": found.summary}


@functools.cache
def _dataset(data_dir):
    return load(settings(pathlib.Path(data_dir)).data)


def _read_splits(folder):
    config, dataset = settings(folder / "data"), _dataset(str((folder / "data").resolve()))
    return {
        name: part.tolist()
        for name, part in splits.claim_splits(folder / "run", dataset, config.data).items()
    }


def _read_bundle(folder):
    found = networks.load_network(folder / "bundle")
    return {"weights": found.checksum, "size": found.size_yx, "classes": found.classes}


def _read_decision(folder):
    return str(decisions.read_decision(folder / "run"))


def _read_prediction(folder):
    (source,) = find.find_scans(folder / "scan")
    about = done.read_done(folder / "prediction", source, json.loads((folder / "settings.json").read_text()))
    row = rows.create_row(source, "done before", 0.0, about)
    with contextlib.redirect_stdout(None):
        rows.print_rows([row, *map(rows.create_skipped_row, about.get("skipped", ()))], "x")
    return row


_READERS = {
    "run/config.json": _read_settings,
    "run/splits.json": _read_splits,
    "run/data.json": _read_splits,
    "run/metrics.jsonl": _read_records,
    "run/versions.json": _read_records,
    "run/summary.json": _read_records,
    "run/nodules.json": _read_decision,
    "run/checkpoints/best-*.json": _read_weights,
    "run/checkpoints/best/*/**/*": _read_weights,
    "run/checkpoints/latest-*.json": _read_latest,
    "run/checkpoints/latest/*/**/*": _read_latest,
    "bundle/bundle.json": _read_bundle,
    "bundle/weights.npz": _read_bundle,
    "prediction/prediction.json": _read_prediction,
}  # fmt: skip
"""What reads a file, by its place."""
_SEALED = (_read_weights, _read_latest)
"""Of which no other result may come."""


def mutate(path, random):
    """Changes a file in place; returns what was done, in words."""
    data = path.read_bytes()
    ways = ["value"] * 5 + ["key"] * 2 if path.suffix in (".json", ".jsonl") else []
    way = str(random.choice([*ways, "bytes", "bytes", "cut", "empty", "longer", "nested"]))
    if way in ("value", "key"):
        what, data = _change_json(path, data, way, random)
    elif way == "bytes" and data:
        places = random.integers(0, len(data), random.integers(1, 4))
        changed = bytearray(data)
        for place in places:
            changed[place] = int(
                random.choice([random.integers(48, 58), changed[place] ^ (1 << random.integers(8))])
            )
        what, data = f"bytes {', '.join(map(str, sorted(places.tolist())))}", bytes(changed)
    elif way == "cut":
        size = int(random.integers(0, len(data) + 1))
        what, data = f"cut at {size} of {len(data)}", data[:size]
    elif way == "nested":
        what, data = "100,000 brackets", b"[" * 100_000
    else:
        what, data = ("empty", b"") if way == "empty" else ("a line more", data + b"\n{}x\n")
    path.write_bytes(data)
    return what


def _change_json(path, data, way, random):
    """Returns JSON, or a line of JSON lines, with one value exchanged or one key left out."""
    lines = data.splitlines() if path.suffix == ".jsonl" else [data]
    number = int(random.integers(len(lines)))
    tree = json.loads(lines[number])
    places = list(_list_places(tree))
    holder, key = places[int(random.integers(len(places)))]
    value = _VALUES[int(random.integers(len(_VALUES)))]
    if way == "key":
        del holder[key]
    else:
        holder[key] = value
    lines[number] = json.dumps(tree).encode()
    what = f"{key} left out" if way == "key" else f"{key} is {value!r:.40}"
    return what, b"\n".join(lines) + (b"\n" if path.suffix == ".jsonl" else b"")


def _list_places(tree):
    """Yields (dict or list, key) of everything in a tree."""
    for key in tree if isinstance(tree, dict) else range(len(tree)):
        yield tree, key
        if isinstance(tree[key], (dict, list)):
            yield from _list_places(tree[key])


def act(number, seed, scratch, original):
    """Returns (what was done, how it ended, more) of a mutated file.

    Args:
        number: of the mutation; the kind of file follows.
        seed: of all of them.
        scratch: empty folder.
        original: that `prepare` filled.
    """
    random, place = np.random.default_rng((seed, number)), list(_READERS)[number % len(_READERS)]
    folder = original  # names of data are those of the original; what is changed is a copy
    for name in ("run", "bundle", "prediction"):
        shutil.copytree(original / name, scratch / name)
    for name in ("data", "scan"):
        (scratch / name).symlink_to(folder / name)
    shutil.copy(original / "settings.json", scratch)
    read = _READERS[place]
    before = _read_original(read, original)
    paths = sorted(path for path in scratch.glob(place) if path.is_file())
    path = paths[int(random.integers(len(paths)))]
    what = f"{path.relative_to(scratch)}: {mutate(path, random)}"
    try:
        after = _plain(read(scratch))
    except InputError as error:
        message = str(error)
        return what, "refused" if message and "\n" not in message else "fault: no one line", message[:300]
    if after == before:
        return what, "right", ""
    if read in _SEALED and after["progress"]["epoch"] < before["progress"]["epoch"]:
        return what, "right, with a warning", "the checkpoint before it"
    return what, "fault: wrong" if read in _SEALED else "as the file says", ""


@functools.cache
def _read_original(read, original):
    return _plain(read(original))


def _plain(value):
    return json.loads(json.dumps(files.to_json(value), default=str))
