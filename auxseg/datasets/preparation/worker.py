"""Prepares scans as it is told to; `pieces` starts several of these.

    python -m auxseg.datasets.preparation.worker

Standard input has the `pieces.Job` as a line of JSON, and then a series UID a line; standard output
gets one line of JSON for each: {"problem": null or why the scan cannot be used}, or {"fault": why nothing can
be written}. It ends with its input, which is when the process that started it ends, however that does.
"""

import json
import signal
import sys

from auxseg.base.errors import InputError
from auxseg.datasets.preparation import pieces


def main():
    """Prepares the scans that standard input names."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # unwinds, so that no half-written file stays
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends us
    job = pieces.Job.from_json(sys.stdin.readline())
    scans, nodules_of = pieces.open_job(job)
    for line in sys.stdin:
        scan = scans[line.strip()]
        try:
            answer = {"problem": pieces.write_piece(job, scan, nodules_of)}
        except (InputError, OSError) as error:
            answer = {"fault": str(error)}
        try:
            print(json.dumps(answer), flush=True)
        except BrokenPipeError:
            sys.exit(1)  # the parent is gone


if __name__ == "__main__":
    main()
