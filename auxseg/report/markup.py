"""HTML that is escaped unless it was made here: `element` takes plain strings and other elements."""

from __future__ import annotations

import html
import json
import math

VOID = frozenset({"img", "input", "meta", "br", "hr"})


class Markup(str):
    """HTML that needs no escaping any more."""

    __slots__ = ()


def element(name, /, *content, **attributes):
    """Returns one element as Markup; all content that is not Markup is escaped, and so is every attribute.

    Args:
        name: such as 'p'.
        *content: Markup, str, numbers, lists of these; None is left out.
        **attributes: `class_` is class, `data_case` is data-case; True is an attribute without a value,
          None
            and False leave it out.
    """
    inner = join(*content)
    opening = f"<{name}{''.join(_attribute(key, value) for key, value in attributes.items())}>"
    return Markup(opening if name in VOID else f"{opening}{inner}</{name}>")


def join(*content):
    """Returns the content of an element as Markup; see `element`."""
    return Markup("".join(_inner(each) for each in content))


def _inner(content):
    if content is None:
        return ""
    if isinstance(content, Markup):
        return content
    return join(*content) if isinstance(content, (list, tuple)) else html.escape(str(content))


def _attribute(key, value):
    if value is None or value is False:
        return ""
    key = key.rstrip("_").replace("_", "-")
    return f" {key}" if value is True else f' {key}="{html.escape(str(value))}"'


def script_data(identity, value):
    """Returns a script element that holds JSON."""
    return Markup(
        f'<script type="application/json" id="{html.escape(identity)}">{script_json(value)}</script>'
    )


def script_json(value):
    """Returns JSON in which no text can end the script element that holds it."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def table(headings, rows, *, caption=None, class_=None):
    """Returns a table that scrolls sideways on a small screen; the first cell of a row is its heading.

    Args:
        headings: cells of the first line.
        rows: lists of cells.
        caption: above the table.
        class_: of the table.
    """
    head = element("thead", element("tr", [element("th", cell, scope="col") for cell in headings]))
    body = [
        element("tr", element("th", row[0], scope="row"), [element("td", cell) for cell in row[1:]])
        for row in rows
    ]
    title = element("caption", caption) if caption else None
    return element(
        "div",
        element("table", title, head, element("tbody", body), class_=class_),
        class_="scroll",
        tabindex="0",
        role="region",
        aria_label=caption or "table",
    )


def number(value, digits=3):
    """Returns a number as text; 'n/a' where there is none."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "n/a"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.{digits}f}" if abs(value) < 10000 else f"{value:,.0f}"


def interval(low, high, digits=3):
    """Returns ' [low, high]', or '' where there is none."""
    if low is None or high is None or math.isnan(low) or math.isnan(high):
        return ""
    return f" [{number(float(low), digits)}, {number(float(high), digits)}]"
