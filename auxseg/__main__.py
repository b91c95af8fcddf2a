"""The console command: `auxseg predict CT OUT` is `python -m auxseg.predict CT OUT`, and so on.

Importing this imports no command: `auxseg --help` answers at once.
"""

from __future__ import annotations

import runpy
import sys

COMMANDS = {
    "predict": ("predict", "segment a chest CT, or a folder of them"),
    "train": ("main", "train a network and evaluate it"),
    "evaluate": ("evaluate", "score a trained network and write its report"),
    "prepare": ("prepare", "prepare a LUNA16 folder for training"),
    "export": ("export", "write a network as a bundle that runs without auxseg"),
    "doctor": ("doctor", "say what is in a scan or a folder, and what is wrong with it"),
}
"""Name: (module of auxseg, what it does)."""

EXIT_USER_ERROR = 2


def main():
    """Runs the command that the first argument names, as `python -m auxseg.MODULE` with the others."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("--help", "-h", "help"):
        print(usage())
        return 0
    if name not in COMMANDS:
        print(f"auxseg: error: got {name!r}, expected one of {', '.join(COMMANDS)}", file=sys.stderr)
        return EXIT_USER_ERROR
    module = f"auxseg.{COMMANDS[name][0]}"
    del sys.argv[1]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
    return 0


def usage():
    """Returns the text of `auxseg --help`."""
    width = max(map(len, COMMANDS))
    lines = [f"  auxseg {name:{width}}  {what}" for name, (_, what) in COMMANDS.items()]
    return "\n".join(
        ["Lungs and lung nodules on chest CT. Not for clinical use.", "", *lines, "", "auxseg COMMAND --help"]
    )


if __name__ == "__main__":
    sys.exit(main())
