"""The processes of one run, beside their devices: who is there, who stopped and why, and small messages.

Every process keeps a connection to process 0. One that is killed, or whose machine goes away, closes it or
falls silent, and the others stop with one clear line; `jax.distributed` alone notices after its heartbeats
only, and then aborts. Messages are bytes: nothing here is unpickled. A partner must know a secret that
process 0 hands out over the run's own collectives (see `parallel.join`).
"""

import contextlib
import hmac
import json
import os
import queue
import secrets
import socket
import struct
import sys
import threading
import time

from auxseg.base.errors import InputError

EXIT_LOST = 75
"""The status of a process that stops since another is gone: started again, all go on from what was saved."""
PING_SECONDS = 5.0
SILENCE_SECONDS = 120.0
"""After so long without a sign a partner counts as gone, even where its connection stands."""
GRACE_SECONDS = 5.0
"""What a process may take to end by itself, with its own words, after another has stopped."""
END_SECONDS = 3.0
"""What process 0 waits beyond that for the others to be gone: its end would have jax abort them."""
CONNECT_SECONDS = 300.0
_HELLO, _PING, _DATA, _STOP, _BYE = range(5)
_HEADER = struct.Struct(">BQ")
MOST_BYTES = 1 << 36
"""Of a message."""
_MOST_BYTES_OF_A_STRANGER = 1 << 10


class Group:
    """This process's connections: process 0 has one to each of the others, those have one to process 0.

    Attributes:
        process_id: of this process.
        num_processes: of the run.
    """

    def __init__(self, process_id, num_processes, on_lost=None):
        self.process_id, self.num_processes = process_id, num_processes
        self._links, self._on_lost, self._leaving = {}, on_lost or self._exit, threading.Event()
        self._lost = threading.Lock()

    def exchange(self, content, *, label="", seconds=None):
        """Returns the bytes that each process gave, in the order of the processes; waits for all.

        Args:
            content: bytes, of this process.
            label: what is waited for, in words; printed when that takes long.
            seconds: how long to wait at most, or None.

        Raises:
            InputError: it took longer.
        """
        if self.process_id:
            self._links[0].send(_DATA, content)
            return _split(self._links[0].receive(label, seconds))
        others = [self._links[other].receive(label, seconds) for other in sorted(self._links)]
        parts = [content, *others]
        for link in self._links.values():
            link.send(_DATA, _join(parts))
        return parts

    def share(self, content, *, label="", seconds=None):
        """Returns the bytes `content` of process 0 in all; what the others give is ignored. See
        `exchange`."""
        if self.process_id:
            return self._links[0].receive(label, seconds)
        for link in self._links.values():
            link.send(_DATA, content)
        return content

    def stop(self, text, status):
        """Tells the others that this process stops, and why; they stop as well, with the same status."""
        self._leaving.set()
        self._tell(text, status, GRACE_SECONDS)
        self._await_ends()

    def leave(self):
        """Ends the connections after all is done; the others are not to wonder."""
        self._leaving.set()
        for link in self._links.values():
            with contextlib.suppress(OSError):
                link.send(_BYE, b"")

    def await_loss(self, seconds=10.0):
        """Waits whether a partner turns out to be gone, which ends this process, or returns."""
        time.sleep(seconds)

    def add(self, other, connection):
        """Takes a connection to the process `other` into the group."""
        self._links[other] = _Link(other, connection, self)

    def start(self):
        """Begins to give and to look for signs of life."""
        threading.Thread(target=self._keep_alive, name="auxseg-partners", daemon=True).start()

    def lost(self, text, status, grace):
        """Ends this process, and has the others end, after a partner is gone or has stopped."""
        if self._leaving.is_set() or not self._lost.acquire(blocking=False):
            return
        if self.process_id == 0:
            self._tell(text, status, grace)
        self._on_lost(text, status, grace)

    def _tell(self, text, status, grace):
        message = json.dumps({"text": text, "status": status, "grace": grace}).encode()
        for link in self._links.values():
            with contextlib.suppress(OSError):
                link.send(_STOP, message)

    def _await_ends(self):
        """In process 0 waits for the others to end, a while."""
        end = time.monotonic() + GRACE_SECONDS + END_SECONDS
        for link in self._links.values() if self.process_id == 0 else ():
            link.ended.wait(max(0.0, end - time.monotonic()))

    def _exit(self, text, status, grace):
        """Ends this process, whatever it waits for: a collective never comes back without its partner."""
        time.sleep(grace)
        line = (
            f"auxseg: error: {text}; this process stops too: start the same command again in all to go on\n"
        )
        os.write(2, line.encode())
        self._await_ends()
        os._exit(status)

    def _keep_alive(self):
        while not self._leaving.wait(PING_SECONDS):
            for other, link in self._links.items():
                if not link.left and time.monotonic() - link.heard > SILENCE_SECONDS:
                    self.lost(
                        f"process {other} has given no sign for {SILENCE_SECONDS:.0f} s", EXIT_LOST, grace=0.0
                    )
                link.ping()


class _Link:
    """A connection to one other process; a thread reads from it."""

    def __init__(self, other, connection, group):
        self.other, self.heard, self.left = other, time.monotonic(), False
        self.ended = threading.Event()
        self._connection, self._group = connection, group
        self._inbox, self._sending = queue.SimpleQueue(), threading.Lock()
        threading.Thread(target=self._read, name=f"auxseg-partner-{other}", daemon=True).start()

    def send(self, kind, content):
        with self._sending:
            self._connection.sendall(_HEADER.pack(kind, len(content)))
            self._connection.sendall(content)

    def ping(self):
        if self._sending.acquire(blocking=False):  # else it is sending, which is a sign of life
            try:
                self._connection.sendall(_HEADER.pack(_PING, 0))
            except OSError:
                pass  # the reader sees it, too
            finally:
                self._sending.release()

    def receive(self, label, seconds):
        """Returns the next message; says once a minute what it waits for."""
        start, said = time.monotonic(), 0
        while True:
            try:
                content = self._inbox.get(timeout=1.0)
            except queue.Empty:
                waited = time.monotonic() - start
                if seconds is not None and waited > seconds:
                    raise InputError(
                        f"process {self._group.process_id} waited {waited / 60:.0f} minutes for process "
                        f"{self.other}{': ' + label if label else ''}; raise train.wait_minutes, or see what "
                        "keeps it"
                    ) from None
                if label and waited > 10.0 + 60.0 * said:
                    said += 1
                    print(f"waiting for process {self.other}: {label}", file=sys.stderr, flush=True)
                continue
            if content is None:
                raise RuntimeError(f"process {self.other} has left before the end")
            return content

    def _read(self):
        try:
            self._read_on()
        except (OSError, EOFError, ValueError):
            self.ended.set()
            text = f"process {self.other} is gone: it was killed, or its machine is"
            self._group.lost(text, EXIT_LOST, grace=0.0)

    def _read_on(self):
        """Reads until the connection ends."""
        while True:
            kind, content = _read_frame(self._connection, MOST_BYTES)
            self.heard = time.monotonic()
            if kind == _DATA:
                self._inbox.put(content)
            elif kind == _BYE:
                self.left = True
                self.ended.set()
                self._inbox.put(None)
                return
            elif kind == _STOP:
                self.ended.set()
                message = json.loads(content)
                text, status, grace = str(message["text"]), int(message["status"]), float(message["grace"])
                self._group.lost(text, status, min(grace, GRACE_SECONDS))
                return


class Door:
    """Where process 0 waits for the others.

    Attributes:
        address: JSON types that tell the others where and with which secret to come.
    """

    def __init__(self, hosts):
        loopback = all(host in ("localhost", "127.0.0.1") for host in hosts[:1]) and bool(hosts)
        self._server = socket.create_server(("127.0.0.1" if loopback else "", 0))
        self._secret = secrets.token_hex(16)
        port = self._server.getsockname()[1]
        self.address = {"hosts": [*hosts, socket.gethostname()], "port": port, "secret": self._secret}

    def let_in(self, num_processes, on_lost=None):
        """Returns the Group of process 0 once all the others are there.

        Raises:
            InputError: they did not come in time.
        """
        group, missing = Group(0, num_processes, on_lost), set(range(1, num_processes))
        end = time.monotonic() + CONNECT_SECONDS
        with self._server:
            while missing:
                self._server.settimeout(max(0.1, end - time.monotonic()))
                try:
                    connection, _ = self._server.accept()
                except TimeoutError as error:
                    raise InputError(
                        f"processes {sorted(missing)} did not connect to process 0 in "
                        f"{CONNECT_SECONDS:.0f} s; may they reach any port of its machine?"
                    ) from error
                other = self._who(connection)
                if other in missing:
                    missing.remove(other)
                    group.add(other, connection)
                else:
                    connection.close()  # a stranger
        group.start()
        return group

    def _who(self, connection):
        """Returns the process id of whoever knows the secret, else None."""
        connection.settimeout(10.0)
        try:
            kind, content = _read_frame(connection, _MOST_BYTES_OF_A_STRANGER)
            message = json.loads(content)
            known = hmac.compare_digest(str(message["secret"]).encode(), self._secret.encode())
            other = int(message["process_id"]) if known and kind == _HELLO else None
        except (OSError, EOFError, ValueError, KeyError, TypeError):
            return None
        connection.settimeout(None)
        return other


def knock(address, process_id, num_processes, on_lost=None):
    """Returns the Group of a process other than 0, connected to the Door at `address`.

    Raises:
        InputError: it cannot be reached.
    """
    here = ["127.0.0.1"] if socket.gethostname() in address["hosts"] else []
    tried = []
    for host in [*here, *address["hosts"]]:
        try:
            connection = socket.create_connection((host, address["port"]), timeout=10.0)
        except OSError as error:
            tried.append(f"{host}:{address['port']}: {error.strerror or error}")
            continue
        connection.settimeout(None)
        group = Group(process_id, num_processes, on_lost)
        hello = json.dumps({"secret": address["secret"], "process_id": process_id}).encode()
        connection.sendall(_HEADER.pack(_HELLO, len(hello)) + hello)
        group.add(0, connection)
        group.start()
        return group
    raise InputError(f"process {process_id} cannot reach process 0 at {'; '.join(tried)}")


def _read_frame(connection, most_bytes):
    """Returns (kind, content) of the next message; refuses one of more than `most_bytes`."""
    kind, size = _HEADER.unpack(_read_bytes(connection, _HEADER.size))
    if size > most_bytes:
        raise ValueError(f"got a message of {size} bytes, expected at most {most_bytes}")
    return kind, _read_bytes(connection, size)


def _read_bytes(connection, size):
    content = bytearray()
    while len(content) < size:
        part = connection.recv(min(size - len(content), 1 << 20))
        if not part:
            raise EOFError
        content += part
    return bytes(content)


def _join(parts):
    sizes = struct.pack(f">I{len(parts)}Q", len(parts), *map(len, parts))
    return b"".join([sizes, *parts])


def _split(content):
    (count,) = struct.unpack_from(">I", content)
    sizes = struct.unpack_from(f">{count}Q", content, 4)
    parts, start = [], 4 + 8 * count
    for size in sizes:
        parts.append(content[start : start + size])
        start += size
    return parts
