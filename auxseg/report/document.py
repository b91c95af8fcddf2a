"""A page as one file: its head, styles and script; nothing of it comes from the network."""

from __future__ import annotations

import importlib.resources

from auxseg.base.classes import CLASS_NAMES, COLOURS, DIFFERENCE_COLOUR
from auxseg.report.markup import Markup, element, join

NOT_CLINICAL = "Not for clinical use."

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


def create_document(title, body, *, script=False, classes=CLASS_NAMES):
    """Returns the HTML of a page.

    Args:
        title: of the page.
        body: Markup.
        script: whether the page has a viewer, which needs the script.
        classes: names by mask value.
    """
    head = join(
        Markup('<meta charset="utf-8">'),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", http_equiv="Content-Security-Policy", content=POLICY),
        element("title", title),
        Markup(f"<style>{_colours(classes)}{_asset('page.css')}</style>"),
    )
    last = Markup(f"<script>{_asset('page.js')}</script>") if script else None
    page = element("html", element("head", head), element("body", body, last), lang="en")
    return f"<!doctype html>\n{page}\n"


def _colours(classes):
    """Returns the style rules that hold the colours of the classes."""
    values = {name: COLOURS[name] for name in classes[1:]} | {"difference": DIFFERENCE_COLOUR}
    names = "".join(f"--{name}: {value}; " for name, value in values.items())
    rules = [f".swatch.{name} {{ background: var(--{name}); }}" for name in values]
    rules += [f".tile.{name} {{ border-top-color: var(--{name}); }}" for name in classes[1:]]
    return f":root {{ {names}}}\n" + "\n".join(rules) + "\n"


def _asset(name):
    return importlib.resources.files("auxseg.report").joinpath(name).read_text(encoding="utf-8")
