"""Several sources in one run (`data.sources`), each with its share of every batch.

A patient is in one split only, whatever source a case of theirs comes from: cases are of one group where they share a
series or a named patient. Slices whose series is lost, of which only LUNA16's subsets are known
(`data.from_subsets`), are one group with all cases of these subsets.
"""

from __future__ import annotations

import dataclasses
import pathlib
import re

import numpy as np

from auxseg.base.errors import InputError
from auxseg.datasets import join


def read_settings(data_config):
    """Returns {label: settings} of the sources of `config.data`, each with what it does not set itself from there.

    Raises:
        InputError: a source with a setting that there is not, or without a share of a batch.
    """
    found = {}
    for label in sorted(data_config.sources):
        own = {name: value for name, value in data_config.sources[label].items() if value is not None}
        if "mm_per_pixel" in own:
            raise InputError(
                f"data.sources.{label}.mm_per_pixel: all sources of a run have one scale; set data.mm_per_pixel"
            )
        unknown = sorted(set(own) - set(data_config) - {"share"})
        if unknown or not re.fullmatch("[a-z][a-z0-9_]*", label) or "sources" in own:
            raise InputError(
                f"data.sources.{label}: got {', '.join(unknown) or label!r}, expected 'share' and settings of data, under "
                "a name of small letters, digits and underscores"
            )
        share = own.pop("share", None)
        if not isinstance(share, int) or share < 1:
            raise InputError(
                f"data.sources.{label}.share: got {share}, expected whole cases of each batch, at least 1"
            )
        settings = data_config.copy_and_resolve_references()
        with settings.unlocked():
            settings.sources = {}
            settings.extra_dir = None
            settings.update(own)
        found[label] = settings
    return found


def read_shares(data_config):
    """Returns {label: cases of each batch}, {} where there is one source."""
    sources = data_config.get("sources", {})
    return {label: sources[label]["share"] for label in sorted(sources)}


def mix(datasets, settings):
    """Returns a `Dataset` of several, one after another, whose table names source and group of each case.

    Args:
        datasets: {label: `Dataset`}.
        settings: {label: settings of the source}, from `read_settings`.

    Raises:
        InputError: sizes, classes or slabs differ.
    """
    parts = tuple(datasets.values())
    for what in (() if parts[0].scale else ("size_yx",)) + ("classes", "slab"):
        values = {label: getattr(each, what) for label, each in datasets.items()}
        if len(set(values.values())) > 1:
            raise InputError(f"data.sources: {what} differs: {values}; all of a batch must have the same")
    if parts[0].slab > 1:
        raise InputError("data.sources: slabs cannot be mixed; give data.slab=1")
    tables = {label: _name_cases(label, each.table) for label, each in datasets.items()}
    table = join.join_tables(
        tuple(tables.values()),
        source=np.repeat(list(datasets), [len(each) for each in parts]),
        group=_group(datasets, settings),
    )
    return join.combine(
        parts,
        name="+".join(each.name for each in parts),
        table=table,
        notes=tuple(f"{label}: {note}" for label, each in datasets.items() for note in each.notes),
        fingerprint=" ".join(each.fingerprint for each in parts).strip(),
    )


def _name_cases(label, table):
    """Returns the table with the source's label before names that other sources might have too."""
    names = {"case_id": [f"{label}-{name}" for name in table.case_id.tolist()]}
    for column in ("series_uid", "patient"):
        values = zip(getattr(table, column).tolist(), table.series_uid.tolist(), strict=True)
        names[column] = [
            value if is_uid(value) or value != series else f"{label}-{value}" for value, series in values
        ]
    names["series_uid"] = [uid if is_uid(uid) else f"{label}-{uid}" for uid in table.series_uid.tolist()]
    return dataclasses.replace(table, **{name: np.array(values) for name, values in names.items()})


def is_uid(text):
    """Returns whether a text is the UID of a series, and not the name of a file."""
    return re.fullmatch(r"\d+(\.\d+)+", text) is not None


def _group(datasets, settings):
    """Returns str [N], one name for all cases that hang together, whatever their source."""
    known = {subset for each in settings.values() for subset in each.get("from_subsets", ())}
    tokens = [
        _tokens(
            table, row, str(_place(settings[label])), bool(settings[label].get("from_subsets", ())), known
        )
        for label, table in ((label, each.table) for label, each in datasets.items())
        for row in range(len(table))
    ]
    parents = {}

    def root(token):
        while parents.setdefault(token, token) != token:
            parents[token] = parents[parents[token]]
            token = parents[token]
        return token

    for case in tokens:
        for token in case[1:]:
            first, second = sorted((root(case[0]), root(token)))
            parents[second] = first
    return np.array(["/".join(root(case[0])) for case in tokens])


def _tokens(table, row, place, is_lost, known):
    """Returns what a case has in common with others of its group, tuples of texts; `place` is the source's folder."""
    uid, patient = str(table.series_uid[row]), str(table.patient[row])
    found = [("series", uid) if is_uid(uid) else ("series", place, uid)]
    if patient != uid:
        found.append(("patient", patient))
    if int(table.subset[row]) in known or (is_lost and not is_uid(uid)):
        found.append(("of subsets whose series are lost",))
    return found


def _place(settings):
    return pathlib.Path(settings.dir).expanduser().resolve() if settings.dir else settings.name
