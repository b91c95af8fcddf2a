"""Figures as parts of a page."""

from __future__ import annotations

from auxseg.report import viewer
from auxseg.report.markup import element


def show_figures(pictures, *names):
    """Returns those of the named pictures that there are, side by side; None without any."""
    shown = [_figure(pictures[name]) for name in names if name in pictures]
    if not shown:
        return None
    return (
        element("div", shown, class_="pair wide" if len(shown) > 2 else "pair")
        if len(shown) > 1
        else shown[0]
    )


def _figure(picture):
    image = element("img", src=viewer.to_uri(picture.png), alt=picture.alt, loading="lazy")
    return element("figure", image, element("figcaption", picture.caption))
