"""Acts that may crash or hang, in forked processes: what ends one costs its own act alone."""

from __future__ import annotations

import json
import math
import os
import resource
import signal
import sys
import time
import traceback

SECONDS = 600
"""Of an act; one that takes longer hangs."""
MEMORY_BYTES = 12 << 30
"""Of the address space of a process: what asks for more is refused, and the machine goes on."""


def run_all(numbers, act, record, deadline=math.inf):
    """Calls `act(number)` for each number, one after another in a process of its own, which is replaced when it ends.

    Args:
        numbers: ints.
        act: number -> JSON types.
        record: (number, what `act` returned, None where its process ended of it, how) is called as each is done.
        deadline: by `time.monotonic`, after which no other is started.
    """
    left = list(numbers)
    while left and time.monotonic() < deadline:
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reader)
            _work(left, act, os.fdopen(writer, "w"), deadline)
        os.close(writer)
        with os.fdopen(reader) as lines:
            for line in lines:
                record(left.pop(0), json.loads(line), "")
        ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if ended:
            record(left.pop(0), None, "hangs" if ended == -signal.SIGALRM else f"ends with {ended}")


def _work(numbers, act, answers, deadline):
    """Answers one number after another, and ends the process."""
    status = 1
    try:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
        for number in numbers:
            if time.monotonic() > deadline:
                break
            signal.alarm(SECONDS)
            print(json.dumps(act(number)), file=answers, flush=True)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def call(act):
    """Returns (exit status of `act()` in a process of its own, negative for a signal; what it printed)."""
    reader, writer = os.pipe()
    child = start(act, writer)
    os.close(writer)
    with os.fdopen(reader, errors="replace") as lines:
        said = lines.read()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), said


def start(act, output):
    """Returns the number of a new process that calls `act()`: exit status what it returns, else 0; 1 with a traceback.

    Args:
        act: without arguments.
        output: open file's number, which receives what it prints.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        os.dup2(output, 1)
        os.dup2(output, 2)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background ignores
        signal.alarm(SECONDS)
        status = act() or 0
    except SystemExit as leaving:
        status = leaving.code if isinstance(leaving.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
