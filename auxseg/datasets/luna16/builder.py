"""LUNA16 as a data set of TensorFlow Datasets (TFDS), which needs no TensorFlow.

    import auxseg.datasets.luna16
    import tensorflow_datasets as tfds
    source = tfds.data_source("luna16/middle", split="subset0")

The first call prepares the records from the folder that `layout.find_folder` finds. `records` writes by the same
builder, into a cache of its own.
"""

from __future__ import annotations

import dataclasses
import itertools
import pathlib
import shutil
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from auxseg.base.classes import CLASS_NAMES
from auxseg.datasets.luna16 import layout, pieces
from auxseg.datasets.luna16.layout import Settings
from auxseg.datasets.luna16.source import Source

VERSION = "1.0.0"
"""Of the records: raised whenever the same scans and settings would give other ones."""
SHARD_BYTES = 256 << 20
"""Images and masks in one file of records, at most."""
_NO_SUBSET = "scans"
_DESCRIPTION = """\
Axial CT slices of LUNA16 in Hounsfield units, with masks of the two lungs and of the nodules.

Each split is one of LUNA16's ten subsets, as far as the folder has them. Slices are resized to one size, and turned
so that rows run from front to back and columns from the patient's right to the left.
"""
_CITATION = """\
@article{setio2017luna16,
  title   = {Validation, comparison, and combination of algorithms for automatic detection of pulmonary nodules in
             computed tomography images: the {LUNA16} challenge},
  author  = {Setio, Arnaud Arindra Adiyoso and Traverso, Alberto and de Bel, Thomas and others},
  journal = {Medical Image Analysis},
  volume  = {42},
  pages   = {1--13},
  year    = {2017},
  doi     = {10.1016/j.media.2017.06.015}
}
"""
_CONFIGS = {
    "middle": "The middle slice of each scan.",
    "nodule": "Every slice that a nodule crosses, and for each scan as many of its lung slices without one.",
    "lung": "All slices with lung.",
}


@dataclasses.dataclass
class Luna16Config(tfds.core.BuilderConfig):
    """Which slices are read, and what their masks hold.

    Attributes:
        settings: of a layout (`auxseg.datasets.layouts`).
        skip_bad_scans: go on without scans that cannot be used.
    """

    settings: Any = Settings()
    skip_bad_scans: bool = False


class Luna16(tfds.core.GeneratorBasedBuilder):
    """LUNA16 slices with masks, one split for each subset."""

    VERSION = tfds.core.Version(VERSION)
    DESCRIPTION, CITATION, HOMEPAGE = _DESCRIPTION, _CITATION, layout.HOMEPAGE
    RELEASE_NOTES = {str(VERSION): "First version."}
    BUILDER_CONFIGS = [
        Luna16Config(name=name, description=text, settings=Settings(slices=name))
        for name, text in _CONFIGS.items()
    ]
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        f"Download LUNA16 from {layout.HOMEPAGE} and put {layout.CONTENTS} into the folder luna16 of the manual "
        "folder, or name their folder by the environment variable AUXSEG_LUNA16."
    )
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

    def _make_download_manager(self, download_dir, download_config):
        """Refuses before anything is written where there is no LUNA16 folder."""
        manual = download_config.manual_dir
        places = (pathlib.Path(manual, "luna16"), pathlib.Path(manual)) if manual else ()
        self._folder = layout.list_folder(layout.find_folder(*places, root=self.data_dir_root))
        return super()._make_download_manager(download_dir, download_config)

    def _download_and_prepare(self, dl_manager, download_config):
        """Prepares the scans side by side; one that was killed goes on with the pieces that are there."""
        del dl_manager, download_config
        config = self.builder_config
        name = f".pieces-{config.name}-{layout.fingerprint(self._folder, config.settings)}"
        place = pathlib.Path(self.data_dir_root, self.name, name)
        place.mkdir(parents=True, exist_ok=True)
        source = Source(self._folder, config.settings, config.skip_bad_scans, place)
        source.write_pieces(pieces.write_all)
        self.info.update_data_dir(
            self.data_dir
        )  # TFDS has it written elsewhere and moves it when it is whole
        if not self.write(source):
            source.refuse("no scan is left")
        shutil.rmtree(place, ignore_errors=True)

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
            source: `Source` whose pieces are written.
        """
        pathlib.Path(self.data_dir).mkdir(parents=True, exist_ok=True)
        rows, columns = self.builder_config.settings.size_yx
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


class Scans(Luna16):
    """Slices of scans in a folder of any layout, in one split; `records` alone makes it."""

    BUILDER_CONFIGS = []
    DESCRIPTION = "Axial CT slices in Hounsfield units, with masks of the two lungs and of the nodules."
    CITATION, HOMEPAGE = "", ""


def create_builder(settings, place):
    """Returns the builder of records in a folder.

    Args:
        settings: of a layout (`auxseg.datasets.layouts`).
        place: the folder.
    """
    kind = Luna16 if isinstance(settings, Settings) else Scans
    return kind(data_dir=str(place), config=Luna16Config(name=settings.name, settings=settings))


def split_name(subset):
    """Returns the name of the TFDS split of a LUNA16 subset; -1 is that of scans without subsets."""
    return f"subset{subset}" if subset >= 0 else _NO_SUBSET


def case_id(uid, slice_index):
    """Returns the name of a slice of a scan."""
    return f"{uid}_{slice_index:04d}"


def _features(size_yx):
    """Returns the TFDS features; `encoding='bytes'` writes and reads six times as fast as the default."""
    classes = ", ".join(f"{value} {name}" for value, name in enumerate(CLASS_NAMES))

    def tensor(shape, dtype, doc, **arguments):
        return tfds.features.Tensor(shape=shape, dtype=dtype, doc=doc, **arguments)

    def whole(doc):
        return tfds.features.Scalar(dtype=np.int32, doc=doc)

    return {
        "image": tensor(size_yx, np.int16, "Hounsfield units.", encoding="bytes"),
        "mask": tensor(size_yx, np.uint8, f"Class of each pixel: {classes}.", encoding="bytes"),
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
