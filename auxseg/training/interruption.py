"""A signal to stop becomes a saved state and exit status 75."""

import contextlib
import signal

from absl import logging


class Interrupted(BaseException):
    """The run was told to stop by a signal; its state is saved. No Exception, so that nothing mends it."""


class Interruption:
    """Ends the run on SIGTERM: at once, or while `awaited` after the step at hand.

    Only the main thread can listen; in any other nothing is waited for.
    """

    def __init__(self):
        self.signal = None
        self._old = None
        self._awaited = False

    def __enter__(self):
        try:
            self._old = signal.signal(signal.SIGTERM, self._receive)
        except ValueError:
            logging.info("not in the main thread: SIGTERM will not be waited for")
        return self

    def __exit__(self, *_):
        if self._old is not None:
            signal.signal(signal.SIGTERM, self._old)

    @contextlib.contextmanager
    def awaited(self):
        """Only remembers a signal within; one that nobody acted on ends the run on leaving."""
        self._awaited = True
        yield
        self._awaited = False
        if self.signal is not None:
            self._stop()

    def _receive(self, number, _):
        self.signal = signal.Signals(number)
        if not self._awaited:
            self._stop()

    def _stop(self):
        raise Interrupted(
            f"stopped by {self.signal.name} outside of training; nothing is lost: start the same command again "
            "to go on"
        )
