"""Values of scan files as int16 HU, whatever is stored; what had to be changed is said."""

from __future__ import annotations

import numpy as np

from auxseg.base.classes import AIR_HU
from auxseg.base.errors import InputError
from auxseg.ct.checks import ERROR, WARNING, Finding, check_constant

_LOW, _HIGH = -32768, 32767
_FEW = 0.01
"""Share of values beyond int16 that may be metal or a padding value; with more of them they are no HU."""


def check_values(slices, dtype, path):
    """Returns the findings about values that are no finite HU, and about slices of one value.

    All slices are looked at, one at a time.

    Args:
        slices: iterable of arrays, the whole scan from inferior to superior.
        dtype: of the stored values.
        path: for the message.
    """
    small = np.can_cast(dtype, np.int16)
    total = lost = beyond = count = 0
    flat = {}
    for index, one in enumerate(slices):
        low, high = one.min(), one.max()
        count, total = count + 1, total + one.size
        if low == high:
            flat[index] = float(low)
        elif not small and not (low >= _LOW and high <= _HIGH):  # also of NaN
            finite = np.isfinite(one)
            lost += one.size - int(finite.sum())
            beyond += int((finite & ((one < _LOW) | (one > _HIGH))).sum())
    return [*_range_findings(total, lost, beyond, path), *_constant_findings(flat, count, path)]


def _constant_findings(flat, count, path):
    """Returns the finding about slices of one value, {slice: value}."""
    if not flat:
        return []
    what = f"scan: {len(flat)} of {count} slices of {path} (from {min(flat)} to {max(flat)}) are"
    return check_constant(list(flat.values()), len(flat) / count, what)


def _range_findings(total, lost, beyond, path):
    findings = []
    if lost:
        severity = ERROR if lost == total else WARNING
        text = f"scan: {path} has {lost} values that are not finite, expected HU: taken as air ({AIR_HU} HU)"
        findings.append(Finding(severity, "not-finite", text))
    if beyond:
        severity = ERROR if beyond > _FEW * total else WARNING
        text = f"scan: {path} has {beyond} values beyond {_LOW} to {_HIGH}, expected HU: cut off there"
        findings.append(Finding(severity, "range", text))
    return findings


def to_hu(array, path):
    """Returns values as int16 HU, rounded; what is not finite is air.

    Raises:
        InputError: they are no numbers.
    """
    if array.dtype == np.int16:
        return array
    if array.dtype.kind not in "iuf":
        raise InputError(f"scan: {path} has values of type {array.dtype}, expected numbers")
    if array.dtype.kind == "f":
        array = np.rint(np.nan_to_num(array, nan=AIR_HU, posinf=AIR_HU, neginf=AIR_HU))
    return np.clip(array, _LOW, _HIGH).astype(np.int16)
