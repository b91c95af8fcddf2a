"""Says all that it finds in a scan, a label map, a folder of them or a LUNA16 folder, without segmenting.

    python -m auxseg.doctor PATH [--scans=10]

For a scan: format, size, spacing, orientation, range of HU, what the thresholds see of a chest and on which
side. For a label map: each value with what it means, its volume and place, and whether left is left. For a
LUNA16 folder: what is missing, and a sample of its scans and masks. Ends with the problems; the exit status
is 1 if there are any.
"""

from __future__ import annotations

from absl import flags

from auxseg.base import command
from auxseg.base.errors import InputError


def format_report(report):
    """Returns a `Examination` as lines of text."""
    width = max((len(name) for name, _ in report.facts), default=0)
    lines = [report.title, *(f"  {name:{width}}  {value}" for name, value in report.facts)]
    lines += [f"  {finding.severity}: {finding.text}" for finding in report.findings]
    return "\n".join(lines)


def _define_flags():
    flags.DEFINE_string("input", None, "what to examine; may be given without --input=")
    flags.DEFINE_integer("scans", 10, "of a LUNA16 folder: scans to open; 0 for all")


def main(argv):
    """Runs the command; returns the exit status: 1 where there are problems."""
    del argv
    if not flags.FLAGS.input:
        raise InputError("got no path, expected a scan or a folder: python -m auxseg.doctor PATH")
    from auxseg.ct.checks import ERROR, WARNING  # here, for --help to be answered at once
    from auxseg.datasets.luna16.examine import examine

    problems = warnings = 0
    for report in examine(flags.FLAGS.input, num_scans=flags.FLAGS.scans):
        print(format_report(report), flush=True)
        severities = [finding.severity for finding in report.findings]
        problems, warnings = problems + severities.count(ERROR), warnings + severities.count(WARNING)
    counted = [f"{n} {what}" + "s" * (n != 1) for n, what in ((problems, "problem"), (warnings, "warning"))]
    print(", ".join(counted))
    return 1 if problems else 0


if __name__ == "__main__":
    _define_flags()
    command.run(main, positional=("input",))
