"""A folder of scans as records, written by the TFDS classes of `builder`, and the data set that reads them.

Records are written once to `cache_dir/<name>/<settings>-<fingerprint>/`, one TFDS split for each subset, and
read from there ever after; the settings and the files of the folder are in the name, so that records of other
settings or of other files are never read. The folder appears under its name when it is complete: beside the
TFDS records it then holds `cases.npz` (the table) and `records.json` (settings, notes, what was left out), and for a folder of the user's own
`files.csv` (what became of each file).
Scans are prepared one by one, by several processes or by Apache Beam, into `.pieces-...` (see
`pieces`), from which the records are then written: a preparation that was killed goes on with the
pieces that are there, and removes the `.partial-...` folder of unfinished records. That takes twice the space
of the records for a while. A lock lets one process prepare at a time. A machine with a copy of such a folder
needs no scans: give it as `data.dir`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import pathlib
import shutil
import zlib

import numpy as np
import tensorflow_datasets as tfds
from absl import logging

from auxseg.base import files, npz
from auxseg.base.errors import InputError
from auxseg.datasets import scale as scales
from auxseg.datasets.dataset import CaseTable, Dataset
from auxseg.datasets.folder import listing
from auxseg.datasets.layouts import layout_of, name_of
from auxseg.datasets.luna16 import layout as luna16
from auxseg.datasets.luna16.builder import Luna16
from auxseg.datasets.preparation import pieces as pieces_lib
from auxseg.datasets.preparation.builder import VERSION, Config, Scans, case_id, split_name
from auxseg.datasets.preparation.source import BadScansError, Source

RECORDS_FILE, CASES_FILE, FILES_FILE = "records.json", "cases.npz", "files.csv"
_MOST_CASES_BYTES = 1 << 32
"""Of the table: some kilobytes a case."""
_READ_TOGETHER = 64  # records; a whole data set at once would be in memory twice


def load(path, *, cache_dir, settings, skip_bad_scans=False, name="luna16", num_workers=None, scale=None, window_yx=None):  # fmt: skip
    """Returns the `Dataset` of a folder of scans (prepares its records if need be) or of a folder of records.

    Args:
        path: the folder of the scans, or a folder that `prepare` made.
        cache_dir: where records are kept.
        settings: of a layout (`auxseg.datasets.layouts`).
        skip_bad_scans: go on without scans that cannot be used.
        name: first part of the data set's name.
        num_workers: as `prepare`.
        scale, window_yx: as `read_records`.

    Raises:
        InputError: as `prepare`; records of other settings or of another version.
    """
    path = pathlib.Path(path)
    read = functools.partial(
        read_records, settings=settings, skip_bad_scans=skip_bad_scans, name=name, scale=scale, window_yx=window_yx
    )  # fmt: skip
    if (path / RECORDS_FILE).is_file():
        return read(path)
    records = prepare(
        path,
        cache_dir=cache_dir,
        settings=settings,
        skip_bad_scans=skip_bad_scans,
        name=name,
        write_all=functools.partial(pieces_lib.write_all, num_workers=num_workers),
    )
    return read(records)


def list_scans(path, settings):
    """Returns {name: scan} of a folder of scans, from which slabs are read; no scan is opened.

    Raises:
        InputError: a folder of records, which hold single slices.
    """
    if (pathlib.Path(path) / RECORDS_FILE).is_file():
        raise InputError(
            f"data.slab: {path} holds records of single slices; give the folder of the scans they were prepared from"
        )
    return {scan.uid: scan for scan in layout_of(settings).list_folder(path).scans}


def prepare(
    path,
    *,
    cache_dir,
    settings,
    skip_bad_scans=False,
    name="luna16",
    overwrite=False,
    write_all=pieces_lib.write_all,
):
    """Returns the folder of complete records of a folder of scans; writes them where they are not there.

    Args:
        path: the folder of the scans.
        cache_dir: where records are kept; made if needed.
        settings: of a layout (`auxseg.datasets.layouts`).
        skip_bad_scans: go on without scans that cannot be used, and list them in the notes.
        name: folder below `cache_dir`.
        overwrite: prepare anew even if complete records are there.
        write_all: who prepares the scans, and by how many processes: of `pieces` or `beam`.

    Raises:
        BadScansError: scans cannot be used; nothing is left behind.
        InputError: the folder or its annotations cannot be used, or no slice is left.
    """
    layout = layout_of(settings)
    folder = layout.list_folder(path)
    place = pathlib.Path(cache_dir).expanduser() / name
    target = place / f"{settings.name}-{layout.fingerprint(folder, settings)}"
    if (target / RECORDS_FILE).is_file() and not overwrite:
        return target  # without the lock: the cache may be another's, for reading alone
    with files.locked(place, name="data.cache_dir", hint="give another folder", wait=True):
        if overwrite or not (target / RECORDS_FILE).is_file():
            _prepare(folder, target, settings, skip_bad_scans, write_all, overwrite)
    return target


def read_records(path, *, settings, skip_bad_scans=False, name="luna16", scale=None, window_yx=None):
    """Returns the `Dataset` of a folder that `prepare` made; opens no scan.

    Args:
        path, settings, skip_bad_scans, name: as `prepare`.
        scale: of `scale.read_scale`, for settings whose slices stay as they are.
        window_yx: `data.size`, of windows of such slices.

    Raises:
        InputError: the records are of other settings or another version, are damaged, or lack scans that
            were skipped when `skip_bad_scans` is False.
    """
    path = pathlib.Path(path)
    manifest = _read_manifest(path, settings)
    if manifest["problems"] and not skip_bad_scans:
        raise BadScansError(manifest["problems"], manifest["num_scans"])
    table, splits, positions = _read_cases(path / CASES_FILE)
    sources = _open_sources(path, settings, sorted(set(splits.tolist())))

    def records(indices):
        return _read_in_order(sources, splits[indices], positions[indices], table.case_id[indices], path)

    def read(indices):
        indices = np.asarray(indices, np.int64).reshape(-1)
        images, masks = (np.empty((len(indices), *settings.size_yx), kind) for kind in (np.int16, np.uint8))
        for start in range(0, len(indices), _READ_TOGETHER):
            for row, example in enumerate(records(indices[start : start + _READ_TOGETHER]), start):
                images[row], masks[row] = example["image"], example["mask"]
        return images, masks

    def read_native_mask(index):
        return _native_mask(records(np.array([index]))[0])

    def read_slices(indices):
        for start in range(0, len(indices), _READ_TOGETHER):
            for example in records(indices[start : start + _READ_TOGETHER]):
                yield example["image"], _native_mask(example)

    notes = (*manifest["notes"], *(f"left out: {problem}" for problem in manifest["problems"]))
    if scale is not None:
        return scales.create_dataset(
            f"{name}/{settings.name.removesuffix('-own')}",
            table,
            read_slices,
            read_native_mask,
            scale=scale,
            window_yx=window_yx,
            hint="take scans that state it",
            notes=notes,
        )
    return Dataset(f"{name}/{settings.name}", table, settings.size_yx, read, read_native_mask, notes)


def _native_mask(example):
    return _unpack_mask(example["native_mask"], tuple(example["native_size_yx"]))


def _unpack_mask(packed, shape):
    """Returns uint8 of `shape`; never inflates more than that takes."""
    inflater = zlib.decompressobj()
    data = inflater.decompress(packed, int(np.prod(shape)))
    if not inflater.eof and inflater.decompress(inflater.unconsumed_tail, 1):
        raise InputError(
            f"records: a native mask holds more than the {shape} pixels it should; prepare them again"
        )
    return np.frombuffer(data, np.uint8).reshape(shape).copy()


def _prepare(folder, target, settings, skip_bad_scans, write_all, overwrite):
    for leftover in target.parent.glob(".partial-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    pieces = target.with_name(f".pieces-{target.name}")
    for leftover in target.parent.glob(f".pieces-{settings.name}-*"):
        if leftover != pieces or overwrite:  # of other files of the same folder
            shutil.rmtree(leftover, ignore_errors=True)
    partial = target.with_name(f".partial-{target.name}")
    pieces.mkdir(exist_ok=True)
    partial.mkdir()
    try:
        source = Source(folder, settings, skip_bad_scans, pieces)
        source.write_pieces(write_all)
        subsets = _write_records(partial, source)
        _write_cases(partial, settings, subsets)
        if isinstance(folder, listing.Folder):
            files.write_csv(partial / FILES_FILE, listing.list_files(folder, source.problems))
        files.write_json(partial / RECORDS_FILE, _manifest(source, subsets))
        files.replace_folder(partial, target)
    except BadScansError:
        shutil.rmtree(pieces, ignore_errors=True)
        raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    shutil.rmtree(pieces, ignore_errors=True)


def _write_records(partial, source):
    """Writes the records; returns the subsets that have any."""
    with _quiet():
        subsets = _create_builder(source.settings, partial).write(source)
    if not subsets:
        source.refuse("no scan is left")
    return subsets


def _write_cases(partial, settings, subsets):
    """Writes the table: one row for each record, read back from the records, by subset, series and slice."""
    rows = []
    for subset, source in _open_sources(partial, settings, subsets).items():
        for position in range(len(source)):
            example = source[position]
            facts = {
                name: value for name, value in example.items() if name not in ("image", "mask", "native_mask")
            }
            rows.append(facts | {"split": subset, "position": position})
    rows.sort(key=lambda row: (int(row["subset"]), row["series_uid"], int(row["slice_index"])))
    columns = {name: np.array([_text(row[name]) for row in rows]) for name in rows[0]}
    np.savez_compressed(partial / CASES_FILE, **columns)


def _text(value):
    return value.decode() if isinstance(value, bytes) else value


def _read_cases(path):
    """Returns (the `CaseTable`, TFDS split of each case, position in that split)."""
    try:
        columns = npz.read_npz(path, most_bytes=_MOST_CASES_BYTES)
    except npz.UNREADABLE as error:
        raise InputError(f"records: {path} cannot be read: {error}; prepare them again") from error
    uids, slices = columns["series_uid"], columns["slice_index"]
    table = CaseTable(
        case_id=np.array([case_id(*pair) for pair in zip(uids.tolist(), slices.tolist(), strict=True)]),
        series_uid=uids,
        patient=columns["patient"],
        subset=columns["subset"].astype(np.int8),
        slice_index=slices.astype(np.int32),
        spacing_zyx_mm=columns["spacing_zyx_mm"].astype(np.float32),
        native_size_yx=columns["native_size_yx"].astype(np.int32),
        num_nodules=columns["num_nodules"].astype(np.int32),
        labels=columns["labels"].astype(np.uint8),
    )
    return table, columns["split"], columns["position"]


def _create_builder(settings, place):
    """Returns the builder of the records in a folder."""
    kind = Luna16 if name_of(settings) == "luna16" else Scans
    return kind(data_dir=str(place), config=Config(name=settings.name, settings=settings))


def _open_sources(path, settings, subsets):
    """Returns {subset: TFDS data source}."""
    try:
        with _quiet():
            builder = _create_builder(settings, path)
            return {subset: builder.as_data_source(split=split_name(subset)) for subset in subsets}
    except Exception as error:
        raise InputError(f"records: {path} cannot be read: {_line(error)}; prepare them again") from error


def _read_in_order(sources, splits, positions, case_ids, path):
    """Returns examples in the order asked for; reads those of one split together."""
    examples = [None] * len(splits)
    for subset in np.unique(splits).tolist():
        places = np.flatnonzero(splits == subset)
        try:
            found = sources[subset].__getitems__(positions[places].tolist())
        except Exception as error:
            raise InputError(f"records: {path} is damaged: {_line(error)}; prepare them again") from error
        for place, example in zip(places.tolist(), found, strict=True):
            name = case_id(_text(example["series_uid"]), int(example["slice_index"]))
            if name != case_ids[place]:
                raise InputError(
                    f"records: {path} has {name} in place of {case_ids[place]}; prepare it again"
                )
            examples[place] = example
    return examples


def _identity(settings):
    """Returns what records must have been written with to be read with these settings."""
    fields = dataclasses.asdict(settings)
    if fields.get("lidc"):
        fields["lidc"] = pathlib.Path(fields["lidc"]).name
    return {"version": VERSION, "settings": fields}


def _manifest(source, subsets):
    """Returns what is said of the records beside them, JSON types."""
    return _identity(source.settings) | {
        "num_scans": source.num_scans,
        "subsets": subsets,
        "problems": source.problems,
        "notes": source.notes,
    }


def _read_manifest(path, settings):
    manifest = files.read_object(path / RECORDS_FILE, hint="prepare the records again")
    try:
        found = {"version": manifest["version"], "settings": dict(manifest["settings"])}
        manifest = {name: manifest[name] for name in ("problems", "num_scans", "notes")}
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"records: {path / RECORDS_FILE} cannot be read: {error}; prepare them again"
        ) from error
    expected = json.loads(json.dumps(_identity(settings)))
    if isinstance(settings, luna16.Settings) and _any_lidc(settings, found["settings"].get("lidc")):
        expected["settings"]["lidc"] = found["settings"].get("lidc")
    if found != expected:
        raise InputError(f"records: {path} was written with {found}, expected {expected}; prepare them again")
    return manifest


def _any_lidc(settings, found):
    """Returns whether records may have been written with another `lidc`, or without one."""
    return settings.nodules != "lidc" or found is None or settings.lidc is None


def _line(error):
    return " ".join(str(error).split())[:300] or type(error).__name__


@contextlib.contextmanager
def _quiet():
    """Keeps TFDS from printing its own progress, and from warning of the configuration that it was given."""
    tfds.disable_progress_bar()
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            yield
    finally:
        logging.set_verbosity(verbosity)
