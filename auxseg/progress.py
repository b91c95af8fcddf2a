"""Progress of long work: a bar with speed and time left on a terminal, plain lines elsewhere."""

import sys
import time

import tqdm

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
        yield from tqdm.tqdm(items, total=total, desc=label, unit=unit, leave=False, dynamic_ncols=True)
    else:
        yield from _track_in_lines(items, total, label, unit)


def _track_in_lines(items, total, label, unit):
    start = last = time.monotonic()
    for done, item in enumerate(items, start=1):
        yield item
        now = time.monotonic()
        if now - last >= SECONDS_BETWEEN_LINES and done < total:
            last = now
            left = (now - start) / done * (total - done)
            rate = done / (now - start)
            line = f"{label}: {done}/{total}, {rate:.2f} {unit}/s, {left:.0f} s left"
            print(line, file=sys.stderr, flush=True)
