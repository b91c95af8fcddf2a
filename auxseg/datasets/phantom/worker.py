"""Writes a share of a phantom folder's scans; `drawing.write_luna16_folder` starts several of these.

    python -m auxseg.datasets.phantom.worker FOLDER SHARE NUM_SHARES

The settings are those in the folder. Standard output gets one JSON line a scan: its number and annotations.
"""

import json
import pathlib
import signal
import sys

from auxseg.base.errors import InputError
from auxseg.datasets.phantom import drawing


def main(folder, share, num_shares):
    """Writes the scans `share`, `share + num_shares`, ...; says so, or what kept it from writing."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # unwinds, so that no half-written file stays
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends us
    folder = pathlib.Path(folder)
    settings, _ = drawing.read_settings(folder)
    try:
        for number in range(share, settings.num_scans, num_shares):
            rows = drawing.write_scan(folder, settings, number)
            print(json.dumps({"scan": number, "rows": rows}), flush=True)
    except BrokenPipeError:
        sys.exit(1)  # the parent is gone
    except (InputError, OSError) as error:
        print(json.dumps({"error": str(error)}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
