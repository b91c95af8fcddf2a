"""LUNA16 as a data set of TensorFlow Datasets (TFDS).

    import auxseg.datasets.luna16
    import tensorflow_datasets as tfds
    source = tfds.data_source("luna16/middle", split="subset0")

The first call prepares the records from the folder that `layout.find_folder` finds.
"""

from __future__ import annotations

import pathlib
import shutil

from auxseg.datasets.luna16 import layout
from auxseg.datasets.luna16.layout import Settings
from auxseg.datasets.preparation import builder, pieces
from auxseg.datasets.preparation.source import Source

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


class Luna16(builder.Scans):
    """LUNA16 slices with masks, one split for each subset."""

    DESCRIPTION, CITATION, HOMEPAGE = _DESCRIPTION, _CITATION, layout.HOMEPAGE
    BUILDER_CONFIGS = [
        builder.Config(name=name, description=text, settings=Settings(slices=name))
        for name, text in _CONFIGS.items()
    ]
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        f"Download LUNA16 from {layout.HOMEPAGE} and put {layout.CONTENTS} into the folder luna16 of the manual "
        "folder, or name their folder by the environment variable AUXSEG_LUNA16."
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
