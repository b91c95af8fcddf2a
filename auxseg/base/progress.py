"""Progress of long work: a bar with speed and time left on a terminal, plain lines elsewhere."""

import sys
import time

SECONDS_BETWEEN_LINES = 15.0


def track(items, *, total, label, unit="it"):
    """Yields `items`, showing how far it is.

    Args:
        items: an iterable.
        total: how many there are.
        label: what is being done.
        unit: what one item is, such as 'scan'.
    """
    if sys.stderr.isatty():
        yield from _bar(items, total=total, desc=label, unit=unit)
    else:
        yield from _track_in_lines(items, total, label, unit)


def reporter(label, unit="it"):
    """Returns a function of (done, total) that shows the same, for work that calls back as it goes on."""
    bar, lines = None, None

    def report(done, total):
        nonlocal bar, lines
        if not sys.stderr.isatty():
            lines = lines or _Lines(total, label, unit)
            lines.show(done)
            return
        bar = bar or _bar(total=total, desc=label, unit=unit)
        bar.update(done - bar.n)
        if done == total:
            bar.close()

    return report


def _bar(*items, **settings):
    import tqdm  # only where there is a terminal: the network and its step do without it

    return tqdm.tqdm(*items, leave=False, dynamic_ncols=True, **settings)


def _track_in_lines(items, total, label, unit):
    lines = _Lines(total, label, unit)
    for done, item in enumerate(items, start=1):
        yield item
        lines.show(done)


class _Lines:
    """A plain line now and then; none for work that is over before the first is due."""

    def __init__(self, total, label, unit):
        self.total, self.label, self.unit = total, label, unit
        self.start = self.last = time.monotonic()

    def show(self, done):
        now = time.monotonic()
        if now - self.last < SECONDS_BETWEEN_LINES or done >= self.total:
            return
        self.last = now
        rate = done / (now - self.start)
        left = (self.total - done) / rate
        line = f"{self.label}: {done}/{self.total}, {rate:.2f} {self.unit}/s, {left:.0f} s left"
        print(line, file=sys.stderr, flush=True)
