"""Prepares the scans of a folder by Apache Beam: on this machine, or on a cluster that Beam knows.

The folder and the pieces must lie where every worker of the cluster sees them under the same name. What is
written is what `pieces` writes by itself: one piece a scan, whole or not at all, those that are there
left alone.
"""

from __future__ import annotations

import pathlib

from auxseg.base import files
from auxseg.base.errors import InputError
from auxseg.datasets.preparation import pieces


def write_all(job, scans, nodules_of, *, options=()):
    """Yields (scan, problem) as `pieces.write_all`, after the pipeline has ended.

    Args:
        job: pieces.Job.
        scans: of its folder.
        nodules_of: not used: each worker of the pipeline has its own.
        options: flags of Beam's pipeline, such as '--runner=FlinkRunner'; none: the DirectRunner.

    Raises:
        InputError: the extra is not installed, or the pipeline failed.
    """
    try:
        import apache_beam as beam
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError as error:
        raise InputError(
            f"--beam: Apache Beam is not installed ({error}); install it by pip install 'auxseg[beam]'"
        ) from error

    class Prepare(beam.DoFn):
        """Writes the pieces of scans; opens the folder once in each worker."""

        def __init__(self, line):
            self.line = line

        def setup(self):
            self.job = pieces.Job.from_json(self.line)
            self.scans, self.nodules_of = pieces.open_job(self.job)

        def process(self, uid):
            write_one(self.job, self.scans[uid], self.nodules_of)

    left = [scan.uid for scan in scans if not job.path_of(scan.uid).is_file()]
    try:
        with beam.Pipeline(options=PipelineOptions(list(options))) as pipeline:
            uids = pipeline | beam.Create(left) | beam.Reshuffle()
            uids | beam.ParDo(Prepare(job.to_json()))
    except Exception as error:
        reason = " ".join(str(error).split())[-300:]
        raise InputError(f"--beam: the pipeline failed: {reason}; what is done is kept") from error
    for scan in scans:
        yield scan, _read_problem(job, scan.uid)


def write_one(job, scan, nodules_of):
    """Writes the piece of a scan, or why it cannot be used, where the process that asked will look."""
    if job.path_of(scan.uid).is_file():
        return
    problem = pieces.write_piece(job, scan, nodules_of)
    if problem is not None:
        files.write_json(_problem_path(job, scan.uid), problem)


def _read_problem(job, uid):
    path = _problem_path(job, uid)
    if job.path_of(uid).is_file():
        return None
    if not path.is_file():
        raise InputError(f"--beam: the pipeline has left {uid} out; do all its workers see {job.place}?")
    problem = files.read_json(path)
    path.unlink()
    return problem


def _problem_path(job, uid):
    return pathlib.Path(job.place) / f".{uid}.problem"
