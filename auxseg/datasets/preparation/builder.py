"""Records of the slices of scans, by the classes of TensorFlow Datasets (TFDS), which need no TensorFlow.

`records` writes by them into a cache of its own; `luna16/builder.py` registers LUNA16 with TFDS.
"""

from __future__ import annotations

import dataclasses
import itertools
import pathlib
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from auxseg.base.classes import CLASS_NAMES

VERSION = "1.0.0"
"""Of the records: raised whenever the same scans and settings would give other ones."""
SHARD_BYTES = 256 << 20
"""Images and masks in one file of records, at most."""
_NO_SUBSET = "scans"
_USUAL_YX = (512, 512)
"""Of slices that stay as they are."""


@dataclasses.dataclass
class Config(tfds.core.BuilderConfig):
    """Which slices are read, and what their masks hold.

    Attributes:
        settings: of a layout (`auxseg.datasets.layouts`).
        skip_bad_scans: go on without scans that cannot be used.
    """

    settings: Any = None
    skip_bad_scans: bool = False


class Scans(tfds.core.GeneratorBasedBuilder):
    """Slices of scans in a folder of any layout, one split for each of LUNA16's subsets; else one split in all."""

    VERSION = tfds.core.Version(VERSION)
    DESCRIPTION = "Axial CT slices in Hounsfield units, with masks of the two lungs and of the nodules."
    CITATION, HOMEPAGE = "", ""
    RELEASE_NOTES = {str(VERSION): "First version."}
    # Where TFDS would look for checksums of downloads; to find it, it imports a package that it does not
    # require (importlib_resources). Nothing is downloaded here.
    code_path = None

    def __init__(self, *, file_format="array_record", **arguments):
        super().__init__(file_format=file_format, **arguments)

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.DESCRIPTION,
            features=tfds.features.FeaturesDict(_features(self.builder_config.settings.size_yx)),
            homepage=self.HOMEPAGE,
            citation=self.CITATION,
        )

    def _split_generators(self, source):
        subsets = sorted({scan.subset for scan in source.scans})
        return {split_name(subset): self._generate_examples(source, subset) for subset in subsets}

    def _generate_examples(self, source, subset):
        for scan in (scan for scan in source.scans if scan.subset == subset):
            for example in source.examples_of(scan):
                yield case_id(scan.uid, example["slice_index"]), example

    def write(self, source):
        """Writes the records as they come, one scan in memory at a time; returns the subsets that have any.

        TFDS itself gathers a split in memory to shuffle it, and from 1 GB on needs TensorFlow. Here the order does
        not matter: training draws its own. A subset without a slice gets no split, since TFDS cannot hold an empty
        one.

        Args:
            source: `source.Source` whose pieces are written.
        """
        pathlib.Path(self.data_dir).mkdir(parents=True, exist_ok=True)
        rows, columns = self.builder_config.settings.size_yx or _USUAL_YX
        info = self._info()  # anew: TFDS has it written elsewhere than where it will lie
        writer = tfds.core.SequentialWriter(
            info, max(1, SHARD_BYTES // (3 * rows * columns)), file_format="array_record"
        )
        try:
            for name, pairs in self._split_generators(source).items():
                first = next(pairs, None)
                if first is not None:
                    writer.initialize_splits([name])
                    writer.add_examples({name: (example for _, example in itertools.chain([first], pairs))})
        finally:
            writer.close_all()
        self.info.set_splits(info.splits)
        return sorted({scan.subset for scan in source.scans if split_name(scan.subset) in info.splits})


def split_name(subset):
    """Returns the name of the TFDS split of a LUNA16 subset; -1 is that of scans without subsets."""
    return f"subset{subset}" if subset >= 0 else _NO_SUBSET


def case_id(uid, slice_index):
    """Returns the name of a slice of a scan."""
    return f"{uid}_{slice_index:04d}"


def _features(size_yx):
    """Returns the TFDS features; `encoding='bytes'` writes and reads six times as fast as the default.

    Slices that stay as they are (`size_yx` None) have any size, and no mask beside the native one.
    """
    classes = ", ".join(f"{value} {name}" for value, name in enumerate(CLASS_NAMES))

    def tensor(shape, dtype, doc, **arguments):
        return tfds.features.Tensor(shape=shape, dtype=dtype, doc=doc, **arguments)

    def whole(doc):
        return tfds.features.Scalar(dtype=np.int32, doc=doc)

    mask = {"mask": tensor(size_yx or (), np.uint8, f"Class of each pixel: {classes}.", encoding="bytes")}
    return {
        "image": tensor(size_yx or (None, None), np.int16, "Hounsfield units.", encoding="bytes"),
        **(mask if size_yx else {}),
        "labels": tensor((len(CLASS_NAMES),), np.uint8, "1 where the class has a pixel.", encoding="bytes"),
        "series_uid": tfds.features.Text(doc="SeriesInstanceUID of the scan."),
        "patient": tfds.features.Text(doc="The series, but for the two series of one patient."),
        "subset": whole("LUNA16's official subset, 0 to 9."),
        "slice_index": whole("Axial index in the scan, 0 at the feet."),
        "spacing_zyx_mm": tensor((3,), np.float32, "Of the scan, before resizing."),
        "num_nodules": whole("Nodules that cross the slice, -1 where not known."),
        "native_size_yx": tensor((2,), np.int32, "Rows and columns before resizing."),
        "native_mask": tfds.features.Text(doc="The mask before resizing, uint8, compressed by zlib."),
    }
