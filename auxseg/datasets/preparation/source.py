"""The scans of a folder on their way into records, and what is said of them on the way."""

from __future__ import annotations

import contextlib

from auxseg.base import progress
from auxseg.base.errors import InputError
from auxseg.datasets.layouts import layout_of
from auxseg.datasets.preparation.pieces import Job, read_examples


class BadScansError(InputError):
    """Scans that cannot be used; `problems` has one line for each."""

    def __init__(self, problems, num_scans):
        self.problems = tuple(problems)
        listed = "; ".join(self.problems[:3]) + ("; ..." if len(self.problems) > 3 else "")
        super().__init__(
            f"{len(self.problems)} of {num_scans} scans cannot be used: {listed} "
            "(skip_bad_scans goes on without them)"
        )


class Source:
    """The scans that are being written.

    Attributes:
        settings: of a layout (`auxseg.datasets.layouts`).
        layout: that layout.
        folder: what it lists.
        scans: the scans that have a slice to read.
        num_scans: of the folder.
        problems: one line for each scan that cannot be used.
        notes: what else is to be said.
    """

    def __init__(self, folder, settings, skip_bad_scans, pieces):
        """Looks at headers and annotations; `pieces` is the folder where `write_pieces` writes.

        Raises:
            InputError: no scan has a slice, or some cannot be used and `skip_bad_scans` is False.
        """
        self.settings, self.skip_bad_scans = settings, skip_bad_scans
        self.layout, self.folder = layout_of(settings), folder
        self._job = Job("records", str(folder.path), settings, str(pieces))
        self._nodules_of = self.layout.create_nodule_reader(folder, settings)
        self.scans, self.problems, notes = self.layout.check_scans(folder, settings, self._nodules_of)
        self.num_scans = len(folder.scans) + len(folder.problems)
        self.notes, self._failed = list(notes), {}
        self._check_problems()
        if not self.scans:
            self.refuse(f"none of {self.num_scans} scans has a slice to read")

    def refuse(self, matter):
        """Raises an InputError that gives the reasons that are known."""
        reasons = "; ".join([*self.problems[:3], *self.notes])
        raise InputError(f"data.dir: {matter}" + (f": {reasons}" if reasons else ""))

    def write_pieces(self, write_all):
        """Has the scans prepared by `write_all` (of `pieces` or `beam`), each whole or not at all."""
        total, before = len(self.scans), list(self.problems)
        with contextlib.closing(write_all(self._job, self.scans, self._nodules_of)) as results:
            for scan, problem in progress.track(results, total=total, label="Preparing records", unit="scan"):
                if problem is not None:
                    self._failed[scan.uid] = f"{scan.uid}: {problem}"
                    in_order = [self._failed[each.uid] for each in self.scans if each.uid in self._failed]
                    self.problems = [*before, *in_order]
                    self._check_problems()

    def examples_of(self, scan):
        """Returns all examples of a scan; none of one that cannot be used."""
        if scan.uid in self._failed:
            return []
        examples, notes = read_examples(self._job, scan, self._nodules_of)
        self.notes += notes
        return examples

    def _check_problems(self):
        if self.problems and not self.skip_bad_scans:
            raise BadScansError(self.problems, self.num_scans)
