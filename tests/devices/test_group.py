"""The processes of a run by a service that answers as jax's does: messages, another's end, who stops; by threads here.

`tests/training/test_processes.py` has real processes and jax's own service.
"""

import queue
import threading

import pytest

from auxseg.base.errors import InputError
from auxseg.devices import group, processes

WAIT = 60.0


class Service:
    """A store of keys and a list of who lives."""

    def __init__(self, number):
        self.keys, self.alive, self.changed = {}, set(range(number)), threading.Condition()

    def key_value_set_bytes(self, key, content):
        with self.changed:
            if key in self.keys:
                raise RuntimeError(f"ALREADY_EXISTS: {key}")
            self.keys[key] = content
            self.changed.notify_all()

    def blocking_key_value_get_bytes(self, key, milliseconds):
        with self.changed:
            if not self.changed.wait_for(lambda: key in self.keys, milliseconds / 1000):
                raise RuntimeError(f"DEADLINE_EXCEEDED: {key}")
            return self.keys[key]

    def key_value_delete(self, key):
        with self.changed:
            del self.keys[key]

    def get_live_nodes(self, asked):
        return {process: 1 for process in asked if process in self.alive}


class Run:
    """Groups of `number` processes in threads of this one; `lost[i]` gets what ends process i."""

    def __init__(self, number, monkeypatch):
        monkeypatch.setattr(group, "_LOOK_SECONDS", 0.02)
        monkeypatch.setattr(group, "_WAIT_SECONDS", 0.1)
        monkeypatch.setattr(group, "END_SECONDS", 0.1)
        self.service, self.lost = Service(number), [queue.Queue() for _ in range(number)]
        self.groups = [group.Group(self.service, i, number, self._noting(i)) for i in range(number)]

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

    def leave(self):
        """Ends all; returns the processes in the order in which they shut down."""
        order = []

        def shutdown(i):
            order.append(i)
            self.service.alive.discard(i)

        self.in_all(lambda one: one.leave(lambda: shutdown(one.process_id)))
        return order


@pytest.fixture
def run(monkeypatch):
    made = Run(3, monkeypatch)
    yield made
    for one in made.groups:
        one._leaving.set()


def test_messages_reach_all_in_the_order_of_the_processes(run):
    contents = [b"zero" * 1000, b"", b"two"]
    for _ in range(3):
        assert run.in_all(lambda one: one.exchange(contents[one.process_id])) == [contents] * 3
        assert run.in_all(lambda one: one.share(contents[one.process_id])) == [contents[0]] * 3
    assert all(lost.empty() for lost in run.lost)


def test_what_all_have_read_is_deleted(run):
    for number in range(5):
        run.in_all(lambda one: one.share(b"x"))
        run.in_all(lambda one: one.exchange(b"%d" % one.process_id))
        assert len(run.service.keys) == 3, number  # of the last round alone


def test_one_that_is_gone_ends_the_others(run):
    run.groups[1]._leaving.set()  # it notices nothing any more
    run.service.alive.remove(1)
    for process in (0, 2):
        text, status, grace = run.lost[process].get(timeout=WAIT)
        assert (text, status, grace) == ("process 1 is gone: it was killed, or its machine is", 75, 0.0)


def test_one_that_stops_gives_its_word_and_status(run):
    run.groups[2].stop("process 2 stopped: no such scan", 2)
    for lost in run.lost[:2]:
        assert lost.get(timeout=WAIT) == ("process 2 stopped: no such scan", 2, group.GRACE_SECONDS)
    assert run.lost[2].empty()


def test_process_0_waits_for_the_others_to_end(run, monkeypatch):
    """When it is gone, jax in the others aborts."""
    monkeypatch.setattr(group, "GRACE_SECONDS", 20.0)
    stopping = threading.Thread(target=run.groups[0].stop, args=("process 0 stopped", 2))
    stopping.start()
    assert run.lost[1].get(timeout=WAIT)[:2] == ("process 0 stopped", 2)
    for process in (1, 2):
        assert stopping.is_alive()
        run.groups[process]._await_ends()
    stopping.join(5.0)
    assert not stopping.is_alive()


def test_process_0_leaves_last(run):
    order = run.leave()
    assert sorted(order[:2]) == [1, 2] and order[2] == 0
    assert not any(thread.is_alive() for one in run.groups for thread in one._threads)
    assert all(lost.empty() for lost in run.lost)


def test_waiting_has_an_end_and_says_for_what(run):
    with pytest.raises(InputError, match="process 1 waited .* for process 0: preparing the data"):
        run.groups[1].share(b"", label="preparing the data", seconds=0.3)


def test_what_the_service_cannot_do_is_no_end_of_waiting(run):
    """Only a key that is not there is waited for."""
    run.service.blocking_key_value_get_bytes = lambda key, milliseconds: 1 / 0
    with pytest.raises(ZeroDivisionError):
        run.groups[1].share(b"")


@pytest.mark.parametrize(
    ("coordinator", "expected"),
    [
        ("localhost:1234", "127.0.0.1:1234"),
        ("127.0.0.1:80", "127.0.0.1:80"),
        ("node1:1234", None),
        (None, None),
    ],
)
def test_a_coordinator_of_this_machine_is_not_reached_from_others(coordinator, expected):
    assert processes._bind_address(coordinator) == expected
