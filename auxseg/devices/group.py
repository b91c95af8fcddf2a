"""The processes of one run, by jax's own coordination service: messages, who is gone, who stopped and why.

Process 0 holds the service, which keeps a heartbeat of each process and a store of keys. Two threads of each process
ask it: which processes are alive, and whether one has stopped with a word.

What jax's service does by itself, and what is left for this file, measured by `experiments.checks.lost_process` on two
processes of one machine (experiments/results/lost_process.json; jax 0.10.2, 0.11.2 and 0.12.0.1 alike):

    killed      jax alone, its heartbeat         jax alone, HEARTBEAT_SECONDS       with this file
    process 1   97 s, SIGABRT, 20 to 53 lines    7.2 to 8.1 s, the same             6.1 to 7.6 s, status 75, one line
    process 0   0.4 to 1.4 s, SIGABRT            0.5 to 1.3 s, the same             0.3 to 1.7 s, SIGABRT: jax's own end

So jax notices, but ends every process by an abort with a stack of C++; its option to recover, with this file's question
for the live processes, makes of that a line and a status to start again by. The end of process 0 takes the service with
it, for which jax leaves no choice. Connections of our own beside the service saw either end in 0.2 s, at the price of a
protocol that had to be defended against strangers.

Whoever reaches the service can read and write its keys: the network between the processes must be trusted.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time

from auxseg.base.errors import InputError

EXIT_LOST = 75
"""The status of a process that stops since another is gone: started again, all go on from what was saved."""
HEARTBEAT_SECONDS = 10
"""After so long without a heartbeat a process counts as gone."""
GRACE_SECONDS = 5.0
"""What a process may take to end by itself, with its own words, after another has stopped."""
END_SECONDS = 10.0
"""What process 0 waits beyond that for the others to be gone: its end has jax abort them."""
_LOOK_SECONDS = 0.5
_WAIT_SECONDS = 5.0  # of one question to the store; a longer wait asks again
_STOP, _ENDED = "auxseg/stop", "auxseg/ended"


class Group:
    """This process's part in the run.

    Attributes:
        process_id: of this process.
        num_processes: of the run.
    """

    def __init__(self, client, process_id, num_processes, on_lost=None):
        """Begins to look after the others.

        Args:
            client: jax's client of the coordination service (`coordination_client`), or what answers like it.
            process_id: of this process.
            num_processes: of the run.
            on_lost: (text, status, grace in seconds) -> None, called when another is gone or has stopped; by default
                this process ends.
        """
        self.process_id, self.num_processes = process_id, num_processes
        self._client, self._on_lost = client, on_lost or self._exit
        self._leaving, self._lost = threading.Event(), threading.Lock()
        self._round, self._kept, self._gone = 0, [], set()
        looks = (self._look_for_lost, self._look_for_stop)
        self._threads = [threading.Thread(target=look, name=look.__name__, daemon=True) for look in looks]
        for thread in self._threads:
            thread.start()

    def exchange(self, content, *, label="", seconds=None):
        """Returns the bytes that each process gave, in the order of the processes; waits for all.

        Args:
            content: bytes, of this process.
            label: what is waited for, in words; printed when that takes long.
            seconds: how long to wait at most, or None.

        Raises:
            InputError: it took longer.
        """
        self._put(content)
        others = {other: self._get(other, label, seconds) for other in self._others()}
        self._forget()
        return [others.get(process, content) for process in range(self.num_processes)]

    def share(self, content, *, label="", seconds=None):
        """Returns the bytes `content` of process 0 in all; what the others give is ignored; else as `exchange`."""
        if self.process_id == 0:
            self._put(content)
            return content
        self._round += 1
        return self._get(0, label, seconds)

    def stop(self, text, status):
        """Tells the others that this process stops, and why; they stop as well, with the same status."""
        self._leaving.set()
        self._tell(text, status)
        self._await_ends()

    def leave(self, shutdown):
        """Ends this process's part after all is done, by `shutdown()`, which process 0 calls last."""
        self.exchange(b"")
        self._leaving.set()
        if self.process_id == 0:
            end = time.monotonic() + HEARTBEAT_SECONDS + END_SECONDS
            while len(self._alive()) > 1 and time.monotonic() < end:
                time.sleep(0.05)
        for thread in self._threads:  # one that is inside jax when Python ends would abort the process
            thread.join(HEARTBEAT_SECONDS)
        shutdown()

    def await_loss(self, seconds=HEARTBEAT_SECONDS + 5.0):
        """Waits whether another turns out to be gone, which ends this process, or returns."""
        time.sleep(seconds)

    def _others(self):
        return [process for process in range(self.num_processes) if process != self.process_id]

    def _put(self, content):
        self._round += 1
        key = f"auxseg/{self._round}/{self.process_id}"
        self._client.key_value_set_bytes(key, content)
        self._kept.append(key)

    def _get(self, other, label, seconds):
        """Returns what a process put in this round; says once a minute what it waits for."""
        start, said = time.monotonic(), 0
        while True:
            left = (
                _WAIT_SECONDS if seconds is None else min(_WAIT_SECONDS, seconds + start - time.monotonic())
            )
            found = self._ask(f"auxseg/{self._round}/{other}", max(left, 0.01))
            if found is not None:
                return found
            waited = time.monotonic() - start
            if seconds is not None and waited > seconds:
                raise InputError(
                    f"process {self.process_id} waited {waited / 60:.0f} minutes for process {other}"
                    f"{': ' + label if label else ''}; raise train.wait_minutes, or see what keeps it"
                )
            if label and waited > 10.0 + 60.0 * said:
                said += 1
                print(f"waiting for process {other}: {label}", file=sys.stderr, flush=True)

    def _ask(self, key, seconds):
        """Returns the bytes of a key, None where nobody sets it in time."""
        try:
            return self._client.blocking_key_value_get_bytes(key, int(1000 * seconds))
        except Exception as error:
            if "DEADLINE_EXCEEDED" in str(error):
                return None
            raise

    def _forget(self):
        """Deletes what this process put before the last round: all have come to it, and so have read the others."""
        for key in self._kept[:-1]:
            self._client.key_value_delete(key)
        del self._kept[:-1]

    def _alive(self):
        """Returns the processes that live; each of them must ask, and is waited for."""
        return set(self._client.get_live_nodes(list(range(self.num_processes))))

    def _look_for_lost(self):
        while not self._leaving.wait(_LOOK_SECONDS):
            with contextlib.suppress(
                Exception
            ):  # the service goes away with process 0, for which jax has its word
                self._gone = set(range(self.num_processes)) - self._alive()
                if self._gone:
                    text = f"process {min(self._gone)} is gone: it was killed, or its machine is"
                    return self._end(text, EXIT_LOST, 0.0)

    def _look_for_stop(self):
        while not self._leaving.is_set():
            with contextlib.suppress(Exception):
                content = self._ask(_STOP, 2 * _LOOK_SECONDS)
                if content is not None:
                    message = json.loads(content)
                    return self._end(str(message["text"]), int(message["status"]), GRACE_SECONDS)

    def _end(self, text, status, grace):
        """Ends this process after another is gone or has stopped; the first reason counts."""
        if not self._leaving.is_set() and self._lost.acquire(blocking=False):
            self._on_lost(text, status, grace)

    def _tell(self, text, status):
        with contextlib.suppress(Exception):  # another was first
            self._client.key_value_set_bytes(_STOP, json.dumps({"text": text, "status": status}).encode())

    def _exit(self, text, status, grace):
        """Ends this process, whatever it waits for: a collective never comes back without its partner."""
        time.sleep(grace)
        line = (
            f"auxseg: error: {text}; this process stops too: start the same command again in all to go on\n"
        )
        os.write(2, line.encode())
        self._await_ends()
        os._exit(status)

    def _await_ends(self):
        """Says that this process ends; process 0 waits a while for the others to say so."""
        with contextlib.suppress(Exception):
            self._client.key_value_set_bytes(f"{_ENDED}/{self.process_id}", b"")
        end = time.monotonic() + GRACE_SECONDS + END_SECONDS
        others = set(self._others()) - self._gone if self.process_id == 0 else ()
        for other in others:
            with contextlib.suppress(Exception):
                self._ask(f"{_ENDED}/{other}", max(0.01, end - time.monotonic()))
        if others:
            time.sleep(_LOOK_SECONDS)  # from a process's word to its end, which must come before ours


def coordination_client():
    """Returns jax's client of the coordination service, after `jax.distributed.initialize`."""
    from jax._src import distributed

    return distributed.global_state.client
