"""Names of scans as names of files, of which no two are the same."""

from __future__ import annotations

import collections
import dataclasses
import unicodedata
import zlib

_MAX_NAME = 120


def file_name(text):
    """Returns a text as the name of a file: letters of any alphabet, digits and a few signs are kept.

    Where anything else is in it, a number made of the text follows, so that two texts never become one.
    """
    kept = "".join(one if one.isalnum() or one in " ._-+,=()@" else "_" for one in text).strip(" .")
    if kept == text and len(text) <= _MAX_NAME:
        return text
    return f"{kept[:_MAX_NAME].strip(' .') or 'scan'}-{digest(text)}"


def digest(text):
    """Returns eight hexadecimal digits that follow from a text."""
    return f"{zlib.crc32(text.encode('utf-8', 'surrogateescape')):08x}"


def make_unique(sources, root):
    """Returns the sources with names for files, also where two differ in suffix or case alone."""
    sources = [dataclasses.replace(one, name=file_name(one.name)) for one in sources]
    for distinguish in (
        _suffix,
        lambda one: digest(str(one.path.relative_to(root)) if one.path != root else one.kind),
    ):
        counts = collections.Counter(_folded(one.name) for one in sources)
        sources = [
            dataclasses.replace(one, name=f"{one.name}-{distinguish(one)}")
            if counts[_folded(one.name)] > 1
            else one
            for one in sources
        ]
    return sources


def _folded(name):
    return unicodedata.normalize("NFC", name).casefold()


def _suffix(source):
    endings = (".nii.gz", source.path.suffix)
    ending = next((one for one in endings if source.path.name.lower().endswith(one.lower())), "")
    return file_name(ending.strip(".") or source.kind)
