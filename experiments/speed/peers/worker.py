"""One implementation in a process of its own: reads commands as JSON lines, answers in JSON lines.

    python -m experiments.speed.peers.worker IMPLEMENTATION TASK

Commands: {"prepare": kind, "batch": N} builds a step and runs it once, {"run": true} runs it again,
{"limits": true} measures the device, {"release": true} drops the step.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import pathlib
import sys
import time

from experiments.speed import machine

_MODULES = {
    "auxseg": "run_jax",
    "auxseg_float32": "run_jax",
    "flax": "run_jax",
    "torch": "run_torch",
    "torch_compile": "run_torch",
    "onnxruntime": "run_torch",
    "openvino": "run_torch",
    "keras_jax": "run_keras",
    "keras_tensorflow": "run_keras",
}


def main(name, task_json):
    """Serves commands from stdin until it closes."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not mix with the answers
    worker = _Worker(name, task_json)
    for line in sys.stdin:
        command = json.loads(line)
        try:
            answer = worker.serve(command)
        except Exception as error:  # noqa: BLE001 - a peer's fault is reported as such, and the others go on
            answer = {"error": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"}
        print(json.dumps(answer), file=answers, flush=True)


class _Worker:
    def __init__(self, name, task_json):
        self.name, self.task_json = name, task_json
        self.parts, self.step = None, None

    def serve(self, command):
        if self.parts is None:
            self.parts = self._create()
        if command.get("limits"):
            return self.parts["limits"]()
        if command.get("release"):
            self.step = None
            gc.collect()
            return {}
        if "prepare" in command:
            if command["prepare"] not in self.parts:
                return {"unsupported": True}
            machine.forget_peak()
            self.step = self.parts[command["prepare"]](command["batch"])
        return self._run()

    def _create(self):
        from experiments.speed.peers.task import Task

        module = importlib.import_module(f"experiments.speed.peers.{_MODULES[self.name]}")
        return module.create(self.name, Task(**json.loads(self.task_json)))

    def _run(self):
        start, cpu = time.perf_counter(), time.process_time()
        loss = self.step()
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
        return {"seconds": seconds, "cpu_seconds": cpu, "loss": loss, "peak_bytes": _peak_bytes()}


def _peak_bytes():
    """Returns the highest resident memory of this process since `machine.forget_peak`, or None off Linux."""
    with contextlib.suppress(OSError):
        for line in pathlib.Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM"):
                return 1024 * int(line.split()[1])
    return None


if __name__ == "__main__":
    main(*sys.argv[1:])
