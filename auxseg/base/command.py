"""What every command shares: flags parsed by absl, and one clear line for a user's mistake."""

import contextlib
import ctypes
import gc
import os
import sys
import traceback

from absl import app, flags, logging

from auxseg.base.errors import InputError

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 75
"""The run was told to stop, saved its state, and goes on when it is started again (EX_TEMPFAIL)."""


def run(main, leave=sys.exit, positional=(), complete=list):
    """Runs `main(argv)` as a command line program and exits, by `leave(status)`.

    The exit status is what `main` returns (None: 0); 2 with one line on stderr for whatever a user
    or a scan can cause (`InputError`, a missing or unreadable file, a full disk); 130 on Ctrl-C.
    Faults of the program keep their traceback.

    Args:
        main: argv -> exit status or None.
        leave: ends the process with a status.
        positional: names of the flags that arguments without `--name=` stand for, in their order; a flag that
            is a list takes all that are left.
        complete: from the arguments to those that are parsed; it may raise an `InputError`.
    """
    open_streams()
    keep_freed_memory()
    flags.FLAGS.set_gnu_getopt(True)  # flags may follow such arguments
    app.run(
        lambda argv: _run_and_leave(main, argv, leave),
        flags_parser=lambda argv: take_positional(_parse_flags(argv, complete), positional),
    )


def open_streams():
    """Has what is written to a closed stream go nowhere, and a name that is no text be printed by its bytes.

    Where stderr is closed, Python has none, and the next file that is opened would take its number: what a library
    writes to stderr would end up in a mask.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free: this one
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def take_positional(argv, names):
    """Returns argv without the arguments that stand for the flags `names`, which they set.

    Args:
        argv: the program's name and what is no flag.
        names: of text flags; the last may be a list.
    """
    given = argv[1:]
    for each in given:
        if "=" in each and each.partition("=")[0] in flags.FLAGS:
            sys.exit(fail(f"got {each!r}; a flag begins with two dashes: --{each}"))
    if (
        names
        and len(given) >= len(names)
        and flags.FLAGS[names[-1]].flag_type() == "comma separated list of strings"
    ):
        last = len(names) - 1
        given = [*given[:last], given[last:]]
    for name, value in zip(names, given):
        if flags.FLAGS[name].present:
            sys.exit(fail(f"--{name}: given twice, as {flags.FLAGS[name].value!r} and as {value!r}"))
        setattr(flags.FLAGS, name, value)
    return [argv[0], *given[len(names) :]]


def fail(message):
    """Prints `message` as the command's one line of error; returns the exit status for it."""
    line = " ".join(str(message).split("\n"))
    print(f"{_command_name()}: error: {line}", file=sys.stderr, flush=True)
    return EXIT_USER_ERROR


def _parse_flags(argv, complete):
    try:
        sys.argv[:] = complete(argv)  # ml_collections looks there for the settings that flags change
        return flags.FLAGS(sys.argv)
    except SystemExit:
        sys.exit(0)  # absl ends --help as if it were a fault
    except (flags.Error, ValueError, TypeError, AttributeError, KeyError, OSError) as error:
        sys.exit(fail(f"{_describe(error)} (try --help)"))


def _describe(error):
    """Returns an exception's text; ml_collections wraps a KeyError, whose own `str` quotes it as a name."""
    while error.args and isinstance(error.args[0], Exception):
        error = error.args[0]
    if not isinstance(error, KeyError):
        return str(error)
    name, *hint = str(error.args[0]).split("\n")
    return " ".join([f"the settings have no {name}.", *hint])


def _run_and_leave(main, argv, leave):
    try:
        status = _guarded(main, argv)
    except Exception:
        if leave is sys.exit:
            raise
        traceback.print_exc()  # of several processes the others must hear of it: `leave` comes before the end
        status = 1
    leave(status)


def _guarded(main, argv):
    logging.set_verbosity(logging.WARNING)
    logging.use_absl_handler()
    if len(argv) > 1:
        return fail(f"got the argument {argv[1]!r}, expected only flags such as --name=value")
    try:
        return main(argv)
    except InputError as error:
        return fail(error)
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        return fail(f"{error.strerror or error}{where}")
    except KeyboardInterrupt:
        print(f"{_command_name()}: interrupted", file=sys.stderr)
        return 130


def _command_name():
    module = sys.modules["__main__"].__spec__
    return module.name if module else "auxseg"


@contextlib.contextmanager
def importing():
    """Looks for no garbage while modules are imported, and never again among what they made.

    They make none, and a start looks through them so often that it takes a tenth longer.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -2, -4, -8


def keep_freed_memory():
    """Returns whether glibc's malloc was told to keep freed memory; call it before the first computation."""
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    settings = {_M_ARENA_MAX: 1, _M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: 2**31 - 1, _M_TOP_PAD: 64 << 20}
    return all([mallopt(name, value) == 1 for name, value in settings.items()])
