"""Reads the documents: their tables with the files that these name, commands, links, sentences."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import pathlib
import re

ROOT = pathlib.Path(__file__).parent.parent
RESULTS = ROOT / "experiments" / "results"
PAGES = ("study_*.md", "removed_scripts.md", "paper.md")
"""In `RESULTS`, written by people; every other file there was written by a command."""
_NUMBER = re.compile(r"(?<![\w.])[+-]?\d+(?:,\d{3})*(?:\.\d+)?(?:e[+-]?\d+)?(?![\w]|\.\d)")
_SHARE = re.compile(r"(\d+) of (\d+)")


def documents():
    """Returns the Markdown files that people wrote, README first."""
    top = [path for path in ROOT.glob("*.md")]
    inner = [ROOT / "configs", ROOT / "auxseg", ROOT / "experiments", ROOT / "tests"]
    found = [path for folder in inner for path in folder.rglob("*.md") if path.parent != RESULTS]
    pages = [path for pattern in PAGES for path in RESULTS.glob(pattern)]
    return sorted(top, key=lambda path: path.name != "README.md") + sorted(found) + sorted(pages)


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of a document.

    Attributes:
        line: number of its first line, from 1.
        sources: text of the comment above it, after 'from:'; None without one.
        rows: cells of each row below the header.
    """

    line: int
    sources: str | None
    rows: tuple[tuple[str, ...], ...]


def tables(text):
    """Returns the tables of Markdown, those in code blocks left out."""
    found, sources, lines = [], None, _blank_code(text).split("\n")
    for number, line in enumerate(lines):
        comment = re.fullmatch(r"<!-- from: (.*) -->", line)
        if comment:
            sources = comment.group(1)
        elif line.startswith("|") and not lines[number - 1].startswith("|"):
            end = next(n for n in range(number, len(lines) + 1) if n == len(lines) or lines[n][:1] != "|")
            rows = tuple(_cells(each) for each in lines[number + 2 : end])
            found.append(Table(number + 1, sources, rows))
            sources = None
        elif line.strip():
            sources = sources if line.startswith("|") else None
    return found


def _cells(line):
    return tuple(cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1])


def _blank_code(text):
    return re.sub(r"^```.*?^```$", lambda m: "\n" * m.group().count("\n"), text, flags=re.S | re.M)


def plain(text):
    """Returns Markdown without code, comments, pictures and the targets of links."""
    text = re.sub(r"<!--.*?-->", "", _blank_code(text), flags=re.S)
    text = re.sub(r"`[^`]*`", "", re.sub(r"!\[[^\]]*\]\([^)]*\)", "", text))
    return re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text)


def unknown_numbers(table, root=ROOT):
    """Returns the numbers of a table, its first column apart, that its sources do not have."""
    sources = parse_sources(table.sources)
    if len(sources) not in (1, len(table.rows)):
        return [f"{len(sources)} sources for {len(table.rows)} rows"]
    wrong = []
    for index, row in enumerate(table.rows):
        known = [known_numbers(root, *part) for part in sources[index if len(sources) > 1 else 0]]
        values = [value for each, _ in known for value in each]
        shares = {share for _, each in known for share in each}
        for cell in row[1:]:
            wrong += [f"row {row[0]!r}: {number}" for number in _unknown(plain(cell), values, shares)]
    return wrong


def _unknown(cell, values, shares):
    for found, total in _SHARE.findall(cell):
        if (int(found), int(total)) in shares:
            cell = cell.replace(f"{found} of {total}", "")
    return [number for number in numbers(cell) if not any(_rounds_to(value, number) for value in values)]


def numbers(text):
    """Returns the numbers of a text, as they are written."""
    return _NUMBER.findall(text)


def _rounds_to(value, written):
    digits = written.replace(",", "").lower()
    mantissa, _, exponent = digits.partition("e")
    decimals = len(mantissa.partition(".")[2]) - int(exponent or 0)
    return abs(value - float(digits)) <= 0.5000001 * 10.0**-decimals


def parse_sources(text):
    """Returns, for each source, (file, path) pairs of 'FILE#path & #path ; FILE#path'; a file stands until the next."""
    file, sources = None, []
    for source in text.split(" ; "):
        parts = []
        for part in source.split(" & "):
            name, _, path = part.strip().partition("#")
            file = name or file
            parts.append((file, path))
        sources.append(parts)
    return sources


def known_numbers(root, file, path):
    """Returns (numbers, shares) of a part of a results file; shares are (found, total) of a sensitivity.

    Args:
        root: of the checkout.
        file: JSON, or a text whose lines are searched.
        path: of JSON, keys with '/' between them, an entry of a list by 'key=value'; of a text, words of the line;
            empty: all.
    """
    text = _read(root / file)
    if not file.endswith(".json"):
        lines = [line for line in text.split("\n") if path in line]
        if not lines:
            raise KeyError(f"{file}: no line has {path!r}")
        return [float(each.replace(",", "")) for line in lines for each in numbers(line)], set()
    node = _read_json(root / file)
    for key in filter(None, path.split("/")):
        node = _step(node, key)
    return list(_values(node)), set(_shares(node))


@functools.cache
def _read(path):
    return path.read_text(encoding="utf-8")


@functools.cache
def _read_json(path):
    return json.loads(_read(path))


def _step(node, key):
    if isinstance(node, dict):
        return node[key]
    if key.isdigit():
        return node[int(key)]
    name, _, value = key.partition("=")
    return next(each for each in node if str(each[name]) == value)


def _values(node):
    if isinstance(node, dict):
        node = list(node.values())
    if isinstance(node, list):
        for each in node:
            yield from _values(each)
    elif isinstance(node, (int, float)) and not isinstance(node, bool) and math.isfinite(node):
        yield node


def _shares(node):
    if isinstance(node, dict):
        if node.get("estimate") is not None and node.get("num_cases"):
            yield round(node["estimate"] * node["num_cases"]), node["num_cases"]
        node = list(node.values())
    if isinstance(node, list):
        for each in node:
            yield from _shares(each)


def commands(text):
    """Returns the commands of auxseg and its experiments in Markdown or a docstring, as lists of words."""
    text = re.sub(r"\\\n\s*", " ", text)
    found = re.findall(r"(?:python3? -m|python) ((?:auxseg|experiments)[.\w/]*[^`\n]*)", text)
    names = "predict|train|evaluate|prepare|export|doctor"
    found += [
        f"auxseg.{line}" for line in re.findall(rf"(?:^|`)auxseg ((?:{names})\b[^`\n]*)", text, flags=re.M)
    ]
    return [re.sub(r"\s#\s.*$|[;&|].*$", "", line).strip().rstrip(".,)").split() for line in found]


def links(text):
    """Returns the targets of the links and pictures of Markdown, code left out."""
    bare = re.sub(r"`[^`]*`", "", _blank_code(text))
    return re.findall(r"\]\(([^)\s]+)\)", bare)


def named_files(text):
    """Returns the paths of this repository that stand in backticks."""
    spans = re.findall(r"`([^`\s]+)`", _blank_code(text))
    start = re.compile(r"(auxseg|configs|experiments|tests)/[\w./-]*\w\.\w+")
    return [span for span in spans if start.fullmatch(span)]


def anchors(text):
    """Returns the anchors of the headings of Markdown, as GitHub makes them."""
    heads = re.findall(r"^#+ (.*)$", _blank_code(text), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def sentences(text):
    """Returns the sentences of Markdown, its tables, headings and lists' marks left out."""
    lines = [line for line in plain(text).split("\n") if line[:1] not in ("|", "#")]
    paragraphs = re.split(r"\n\s*\n|\n(?=[*\-] |\d+\. )", "\n".join(lines))
    joined = [re.sub(r"^[*\-] |^\d+\. ", "", " ".join(each.split())) for each in paragraphs]
    return [
        each for text in joined for each in re.split(r"(?<=[.!?:])\**\s+(?=[\"(\w*])", text) if each.split()
    ]
