"""What made a results file: kept in the file itself, under `made_by`."""

import pathlib
import subprocess

ROOT = pathlib.Path(__file__).parent.parent


def made_by(command, *, data, seeds):
    """Returns the origin of a result, JSON types.

    Args:
        command: as somebody else would type it, with FOLDER for a folder of data.
        data: what the data are, and how many of them.
        seeds: ints; empty where nothing is drawn.
    """
    return {"command": command, "commit": _commit(), "data": data, "seeds": list(seeds)}


def _commit():
    """Returns the commit that is checked out, with '+changes' where tracked files differ from it; or 'unknown'."""
    try:
        return _git("rev-parse", "--short", "HEAD") + (
            "+changes" if _git("diff", "HEAD", "--name-only") else ""
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _git(*arguments):
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip()
