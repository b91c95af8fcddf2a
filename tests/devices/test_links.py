"""The connections of the processes of a run: messages, a partner's end, strangers; by threads here."""

import contextlib
import json
import queue
import socket
import threading

import pytest

from auxseg.base.errors import InputError
from auxseg.devices import links

WAIT = 60.0


class Run:
    """A group of `number` in threads of this process; `lost[i]` gets what ends process i."""

    def __init__(self, number):
        self.lost = [queue.Queue() for _ in range(number)]
        door = links.Door(["127.0.0.1"])
        others = [None] * (number - 1)

        def knock(i):
            others[i - 1] = links.knock(door.address, i, number, self._noting(i))

        threads = [threading.Thread(target=knock, args=(i,)) for i in range(1, number)]
        for thread in threads:
            thread.start()
        first = door.let_in(number, self._noting(0))
        for thread in threads:
            thread.join(WAIT)
        self.groups = [first, *others]

    def _noting(self, i):
        return lambda text, status, grace: self.lost[i].put((text, status, grace))

    def in_all(self, function):
        """Returns what `function(group)` returns in each process, all called at once."""
        found = [None] * len(self.groups)

        def call(i):
            found[i] = function(self.groups[i])

        threads = [threading.Thread(target=call, args=(i,)) for i in range(len(found))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(WAIT)
        return found


def hang_up(group):
    for link in group._links.values():
        link._connection.shutdown(socket.SHUT_RDWR)  # as the kernel does for a process that is killed


def test_messages_reach_all_in_the_order_of_the_processes():
    run = Run(3)
    contents = [b"zero" * 100_000, b"", b"two"]
    assert run.in_all(lambda group: group.exchange(contents[group.process_id])) == [contents] * 3
    assert run.in_all(lambda group: group.share(contents[group.process_id])) == [contents[0]] * 3
    run.in_all(lambda group: group.leave())
    assert all(lost.empty() for lost in run.lost)


def test_a_partner_that_is_gone_ends_the_others():
    run = Run(3)
    run.groups[1]._leaving.set()  # it notices nothing any more
    hang_up(run.groups[1])
    text = "process 1 is gone: it was killed, or its machine is"
    assert run.lost[0].get(timeout=WAIT) == (text, 75, 0.0)
    assert run.lost[2].get(timeout=WAIT) == (text, 75, 0.0)  # told by process 0


def test_the_end_of_process_0_ends_all():
    run = Run(3)
    run.groups[0]._leaving.set()
    hang_up(run.groups[0])
    for lost in run.lost[1:]:
        text, status, _ = lost.get(timeout=WAIT)
        assert text.startswith("process 0 is gone") and status == 75


def test_a_partner_that_stops_gives_its_word_and_status():
    run = Run(3)
    run.groups[2].stop("process 2 stopped: no such scan", 2)
    for lost in run.lost[:2]:
        assert lost.get(timeout=WAIT) == ("process 2 stopped: no such scan", 2, links.GRACE_SECONDS)
    assert run.lost[2].empty()


def test_process_0_goes_last():
    """When it is gone, jax in the others aborts."""
    run = Run(2)
    stopping = threading.Thread(target=run.groups[0].stop, args=("process 0 stopped", 2))
    stopping.start()
    assert run.lost[1].get(timeout=WAIT) == ("process 0 stopped", 2, links.GRACE_SECONDS)
    assert stopping.is_alive()
    hang_up(run.groups[1])
    stopping.join(WAIT)
    assert not stopping.is_alive()


def test_silence_is_an_end_too(monkeypatch):
    monkeypatch.setattr(links, "PING_SECONDS", 0.1)
    run = Run(2)
    monkeypatch.setattr(links, "SILENCE_SECONDS", -1.0)
    assert "given no sign" in run.lost[0].get(timeout=WAIT)[0]


def test_waiting_has_an_end_and_says_for_what(capsys):
    run = Run(2)
    with pytest.raises(InputError, match="process 1 waited .* for process 0: preparing the data"):
        run.groups[1].share(b"", label="preparing the data", seconds=0.1)


def test_who_left_is_not_waited_for():
    run = Run(2)
    run.groups[1].leave()
    with pytest.raises(RuntimeError, match="process 1 has left before the end"):
        run.groups[0].exchange(b"")
    assert run.lost[0].empty()


@pytest.mark.parametrize(
    "content",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        links._HEADER.pack(links._HELLO, 1 << 40),
        links._HEADER.pack(links._HELLO, 2) + b"[]",
        links._HEADER.pack(links._HELLO, 34) + json.dumps({"secret": "x", "process_id": 1}).encode(),
    ],
)
def test_strangers_are_turned_away(content):
    door = links.Door(["127.0.0.1"])
    with socket.create_connection(("127.0.0.1", door.address["port"])) as stranger:
        stranger.sendall(content)
        knocking = threading.Thread(target=links.knock, args=(door.address, 1, 2, lambda *_: None))
        stranger.shutdown(socket.SHUT_WR)
        knocking.start()
        group = door.let_in(2, lambda *_: None)
        knocking.join(WAIT)
        assert sorted(group._links) == [1]
        stranger.settimeout(WAIT)
        with contextlib.suppress(ConnectionResetError):  # what it sent was not read
            assert stranger.recv(1) == b""
    group.leave()


def test_nobody_comes(monkeypatch):
    monkeypatch.setattr(links, "CONNECT_SECONDS", 0.2)
    with pytest.raises(InputError, match=r"processes \[1, 2\] did not connect to process 0"):
        links.Door(["127.0.0.1"]).let_in(3)


def test_nobody_is_there():
    door = links.Door(["127.0.0.1"])
    door._server.close()
    address = {**door.address, "hosts": ["127.0.0.1"]}
    with pytest.raises(InputError, match="process 1 cannot reach process 0 at 127.0.0.1:"):
        links.knock(address, 1, 2)
