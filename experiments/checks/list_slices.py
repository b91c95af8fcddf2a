"""Which slices a folder of NPZ files holds: names, series, classes and checksums, so that a result can be repeated.

python -m experiments.checks.list_slices --data_dir=FOLDER
"""

import hashlib
import pathlib

import numpy as np
from absl import flags

from auxseg.base import command, files
from auxseg.base.classes import CLASS_NAMES
from auxseg.datasets import npz
from experiments.made_by import made_by

RESULT = pathlib.Path(__file__).parents[1] / "results" / "slices_120.json"


def list_slices(folder):
    """Returns one dict a slice of a folder of `.npz` files: case, series, pixels by class, SHA-256 of the arrays.

    The checksum is of the bytes of `image` (int16) and `mask` (uint8), so that packing does not matter.
    """
    dataset = npz.read_npz(folder, size_yx=(512, 512))
    return [_describe(dataset, index) for index in range(len(dataset))]


def _describe(dataset, index):
    images, masks = dataset.read(np.array([index]))
    counts = np.bincount(masks[0].ravel(), minlength=len(CLASS_NAMES))
    digest = hashlib.sha256(images[0].astype("<i2").tobytes() + masks[0].astype("u1").tobytes())
    series = str(dataset.table.series_uid[index])
    case = str(dataset.table.case_id[index])
    return {
        "case_id": case,
        "series_uid": None if series == case else series,
        "pixels": dict(zip(CLASS_NAMES, counts.tolist(), strict=True)),
        "sha256": digest.hexdigest(),
    }


def main(argv):
    """Writes the list and says what is in it."""
    del argv
    slices = list_slices(pathlib.Path(flags.FLAGS.data_dir))
    with_nodule = sum(each["pixels"]["nodule"] > 0 for each in slices)
    without_series = sum(each["series_uid"] is None for each in slices)
    counts = {"slices": len(slices), "with a nodule": with_nodule, "without a series": without_series}
    origin = made_by(
        "python -m experiments.checks.list_slices --data_dir=FOLDER",
        data=f"{len(slices)} middle slices of LUNA16 at 512x512",
        seeds=(),
    )
    files.write_json(pathlib.Path(flags.FLAGS.out), {"made_by": origin, **counts, "list": slices})
    print(", ".join(f"{count} {what}" for what, count in counts.items()))


if __name__ == "__main__":
    flags.DEFINE_string("data_dir", None, "folder of .npz files", required=True)
    flags.DEFINE_string("out", str(RESULT), "JSON file to write")
    command.run(main)
