"""Sources of cases behind one interface: every one gives a `Dataset`."""

from __future__ import annotations

import dataclasses
import pathlib

from auxseg.base import files, progress
from auxseg.base.classes import classes_of
from auxseg.base.errors import InputError, check_choice

SOURCES = ("luna16", "npz", "phantom", "crops", "patches", "folder")
"""Choices of `data.name`."""
FIELDS = ("scan", "body")
"""Choices of `data.field`."""


def load(data_config):
    """Returns the data set that the settings name, building its records first where they are not there.

    Only 'luna16', 'phantom' and 'folder' import SimpleITK and tensorflow_datasets, and SimpleITK only to build: NPZ
    files can be trained on without either.

    Args:
        data_config: `config.data` of `configs/base.py`.

    Returns:
        `Dataset`, with the cases of `data.extra_dir` after its own where that is given; of `data.sources` all.

    Raises:
        InputError: a setting or the data cannot be used.
    """
    if data_config.get("sources"):
        return _load_mixture(data_config)
    dataset = _load_own(data_config)
    folder = data_config.extra_dir
    if not folder:
        return dataset
    if dataset.slab > 1:
        raise InputError(
            "data.extra_dir: NPZ files hold single slices; give data.slab=1, or no second data set"
        )
    from auxseg.datasets import join, npz

    second = npz.read_npz(
        pathlib.Path(folder).expanduser(),
        size_yx=check_size(data_config.size),
        labels=data_config.labels,
        classes=classes_of(data_config),
        scale=dataset.scale,
    )
    return join.add(dataset, second)


def _load_mixture(data_config):
    from auxseg.datasets import mixture

    if data_config.extra_dir:
        raise InputError("data.extra_dir: has no meaning beside data.sources; make it one of them")
    settings = mixture.read_settings(data_config)
    return mixture.mix({label: _load_own(each) for label, each in settings.items()}, settings)


def _load_own(data_config):
    """Returns the `Dataset` of `data.name`, its values spread over the classes that they may mean."""
    from auxseg.datasets import crops, meanings

    check_choice("data.name", data_config.name, SOURCES)
    _check_field(data_config)
    classes, stated = classes_of(data_config), data_config.get("meanings", ())
    if data_config.name == "crops" and not stated:
        stated = crops.meanings_of(classes)
    values = meanings.parse(stated, classes)
    dataset = _load_values(data_config, meanings.own_classes(values))
    if dataset.scale != data_config.get("mm_per_pixel"):
        raise InputError(
            f"data.mm_per_pixel: got {data_config.mm_per_pixel}, but data.name={data_config.name!r} gives slices of one size; leave it out"
        )
    return meanings.spread(dataset, values, classes)


def _load_values(data_config, classes):
    """Returns the `Dataset` of `data.name` with the classes that its values are: `classes` by value."""
    from auxseg.datasets import scale as scales

    size_yx = check_size(data_config.size)
    slab = check_slab(data_config.slab)
    scale = scales.read_scale(data_config)
    if data_config.name == "npz":
        from auxseg.datasets import npz

        if slab > 1:
            raise InputError(
                f"data.slab: got {slab}, but NPZ files hold single slices: 'luna16', 'folder', 'phantom' and 'crops' have neighbours"
            )
        return npz.read_npz(
            _data_dir(data_config),
            size_yx=size_yx,
            labels=data_config.labels,
            classes=classes,
            scale=scale,
        )
    if data_config.name == "crops":
        from auxseg.datasets import crop_cases

        return crop_cases.load(
            _data_dir(data_config),
            size_yx=size_yx,
            classes=classes,
            slab=slab,
            step_mm=check_slab_step(data_config),
            target=data_config.get("target", "consensus"),
            scale=scale,
        )
    if data_config.name == "patches":
        from auxseg.datasets import patches

        if slab > 1:
            raise InputError(f"data.slab: got {slab}, but windows of NPZ slices are single slices")
        return patches.load(
            _data_dir(data_config),
            size_yx=size_yx,
            classes=classes,
            per_slice=data_config.windows,
            scale=scale,
        )
    if data_config.name == "folder":
        return _load_folder(data_config, size_yx, classes, scale)
    from auxseg.datasets import select
    from auxseg.datasets.luna16 import layout
    from auxseg.datasets.preparation import records

    folder = _phantom_dir(data_config) if data_config.name == "phantom" else _luna16_dir(data_config)
    settings = layout.Settings(
        size_yx=None if scale else size_yx,
        slices=data_config.slices,
        labels=data_config.labels,
        nodules=data_config.nodules,
        lidc=data_config.lidc,
    )
    dataset = records.load(
        folder,
        cache_dir=cache_dir(data_config),
        settings=settings,
        skip_bad_scans=data_config.skip_bad_scans,
        name=data_config.name,
        scale=scale,
        window_yx=size_yx,
    )
    if data_config.name == "phantom":  # has as many subsets as it has scans for, and lacks none
        notes = tuple(note for note in dataset.notes if not note.startswith(layout.MISSING))
        dataset = dataclasses.replace(dataset, notes=notes)
    return _with_slabs(select.select(dataset, classes), folder, settings, data_config)


def _load_folder(data_config, size_yx, classes, scale):
    from auxseg.datasets import select
    from auxseg.datasets.folder import layout
    from auxseg.datasets.preparation import records

    settings = layout.Settings(
        size_yx=None if scale else size_yx,
        slices=data_config.slices,
        label_map=data_config.label_map,
        field=data_config.get("field", "scan"),
    )
    folder = _data_dir(data_config)
    dataset = records.load(
        folder,
        cache_dir=cache_dir(data_config),
        settings=settings,
        skip_bad_scans=data_config.skip_bad_scans,
        name="folder",
        scale=scale,
        window_yx=size_yx,
    )
    dataset = _with_slabs(select.select(dataset, classes), folder, settings, data_config)
    if "nodule" not in classes or (dataset.table.num_nodules != -1).any():
        return dataset
    note = (
        "the labels mark no nodules: data.classes without 'nodule' trains a network of lungs; data.meanings says that what they "
        "call lung may be one"
    )
    return dataclasses.replace(dataset, notes=(*dataset.notes, note))


def _with_slabs(dataset, folder, settings, data_config):
    """Returns the `Dataset` of a folder of scans with the neighbours of its slices, where `data.slab` asks for them."""
    if data_config.slab == 1:
        return dataset
    from auxseg.datasets import slabs
    from auxseg.datasets.preparation import records

    return slabs.attach(
        dataset,
        records.list_scans(folder, settings),
        settings,
        num_slices=data_config.slab,
        step_mm=check_slab_step(data_config),
        cache_dir=cache_dir(data_config),
    )


def _check_field(data_config):
    """Raises an InputError unless `data.field` is known and the source can have it."""
    field = data_config.get("field", "scan")
    check_choice("data.field", field, FIELDS)
    if field == "body" and data_config.name not in ("npz", "folder"):
        raise InputError(
            f"data.field='body': data.name={data_config.name!r} gives whole slices, expected 'folder', or 'npz' with "
            "slices that were cut to the body (auxseg.ct.body); leave the setting out"
        )


def cache_dir(data_config):
    """Returns the folder of prepared records: `data.cache_dir`, else $AUXSEG_CACHE, else ~/.cache/auxseg."""
    return (
        pathlib.Path(data_config.cache_dir).expanduser()
        if data_config.cache_dir
        else files.default_cache_dir()
    )


def _phantom_dir(data_config):
    from auxseg.datasets.phantom import drawing

    folder = data_config.dir or cache_dir(data_config) / drawing.default_name(data_config.phantom)
    shown = progress.reporter("drawing the phantom", "scan")
    return drawing.ensure(pathlib.Path(folder).expanduser(), data_config.phantom, shown)


def _luna16_dir(data_config):
    from auxseg.datasets.luna16 import layout

    return pathlib.Path(data_config.dir).expanduser() if data_config.dir else layout.find_folder()


def _data_dir(data_config):
    if not data_config.dir:
        raise InputError(f"data.dir: not given; data.name={data_config.name!r} needs the folder of the data")
    return pathlib.Path(data_config.dir).expanduser()


def check_size(size):
    """Returns `data.size` as a tuple; raises an InputError unless it is two whole numbers from 16 to 4096."""
    size = tuple(size)
    if len(size) != 2 or not all(isinstance(n, int) and 16 <= n <= 4096 for n in size):
        raise InputError(f"data.size: got {size}, expected two whole numbers (rows, columns) from 16 to 4096")
    return size


def parse_size(text):
    """Returns (rows, columns) of 'ROWS,COLUMNS' or 'ROWSxCOLUMNS'; None for nothing or 'own', the slices' own."""
    if not text or text == "own":
        return None
    try:
        rows, columns = (int(number) for number in text.replace("x", ",").split(","))
    except ValueError as error:
        raise InputError(f"--size: got {text!r}, expected ROWS,COLUMNS such as 320,320") from error
    return check_size((rows, columns))


def check_slab_step(data_config):
    """Returns `slab_step_mm` of settings; what was made before there was one took neighbours, as 0.0 does.

    Raises:
        InputError: it is no distance.
    """
    step_mm = data_config.get("slab_step_mm", 0.0)
    if not (isinstance(step_mm, (int, float)) and 0.0 <= step_mm <= 50.0):
        raise InputError(f"data.slab_step_mm: got {step_mm}, expected 0 to 50 mm")
    return step_mm


def check_slab(num_slices):
    """Returns `data.slab`; raises an InputError unless it is an odd whole number from 1 to 63."""
    if not isinstance(num_slices, int) or num_slices % 2 == 0 or not 1 <= num_slices <= 63:
        raise InputError(f"data.slab: got {num_slices}, expected an odd number of slices from 1 to 63")
    return num_slices
