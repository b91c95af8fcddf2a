"""How soon the others of a run notice a killed process, and with which words: jax's service alone, and auxseg's use.

    python -m experiments.checks.lost_process

Two processes of this machine meet, one is killed by SIGKILL, and the other is watched until it ends: what it was about
(waiting, or in sums over the devices one after another), how long it took, its status, and the lines on its stderr.
`jax alone` is `jax.distributed.initialize` with a heartbeat of its own default and with auxseg's. The file keeps what
was measured with other versions of jax.
"""

import pathlib
import socket
import subprocess
import sys
import time

from absl import flags

from auxseg.base import command, files
from experiments.made_by import ROOT, made_by

RESULT = ROOT / "experiments" / "results" / "lost_process.json"
HOW = {"jax alone, its heartbeat": 100, "jax alone, auxseg's heartbeat": 10, "auxseg": 10}
"""Seconds of the heartbeat."""
WHAT = ("waits", "sums")
LONGEST_SECONDS = 150
CHILD = """
import sys, time
import jax, numpy as np
from jax.experimental import multihost_utils
from auxseg.devices import processes
how, what, port, process = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
if how == "auxseg":
    processes.join(f"127.0.0.1:{port}", 2, process)
else:
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"127.0.0.1:{port}", 2, process, heartbeat_timeout_seconds=int(sys.argv[5]))
multihost_utils.sync_global_devices("here")
print("ready", flush=True)
try:
    while True:
        time.sleep(0.01) if what == "waits" else multihost_utils.process_allgather(np.ones(1000))
except Exception:
    if how == "auxseg":
        processes.await_loss()
    raise
"""


def measure(how, what, killed):
    """Returns how the other process of two ended after one was killed, JSON types.

    Args:
        how: of `HOW`.
        what: of `WHAT`, what both are about.
        killed: 0 or 1; process 0 holds jax's service.
    """
    port = free_port()
    pair = [_start(how, what, port, process) for process in range(2)]
    try:
        for process in pair:
            process.stdout.readline()
        time.sleep(3.0)
        start = time.monotonic()
        pair[killed].kill()
        other = pair[1 - killed]
        _, err = other.communicate(timeout=LONGEST_SECONDS)
        seconds, status = round(time.monotonic() - start, 1), other.returncode
    except subprocess.TimeoutExpired:
        seconds, status, err = None, None, ""
    finally:
        for process in pair:
            process.kill()
    lines = [line for line in err.splitlines() if line.strip()]
    about = {"how": how, "heartbeat_seconds": HOW[how], "killed": killed, "the other": what}
    return about | {"seconds": seconds, "status": status, "lines": len(lines), "words": _words(lines)}


def free_port():
    """Returns a port of this machine that nobody uses."""

    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def _words(lines):
    """Returns the line that says why: auxseg's, else that of jax's abort, cut to 200 characters."""
    ours = [line for line in lines if line.startswith("auxseg: error")]
    jax = [line.partition("] ")[2] for line in lines if "Terminating process" in line]
    return (ours + jax + lines[-1:] + [""])[0][:200]


def _start(how, what, port, process):
    arguments = [how, what, str(port), str(process), str(HOW[how])]
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    )


def main(argv):
    """Measures every case with the jax that is installed; writes the results file and prints the cases."""
    del argv
    import jax

    path, rows = pathlib.Path(flags.FLAGS.out), []
    for how in HOW:
        for killed in (1, 0):
            for what in WHAT:
                rows.append(measure(how, what, killed))
                print(rows[-1], flush=True)
    before = files.read_json(path)["jax"] if path.is_file() else {}
    origin = made_by(
        "python -m experiments.checks.lost_process", data="two processes of one machine, on its CPU", seeds=()
    )
    files.write_json(path, {"made_by": origin, "jax": before | {jax.__version__: rows}})
    return 0


if __name__ == "__main__":
    flags.DEFINE_string("out", str(RESULT), "JSON file to write")
    command.run(main)
