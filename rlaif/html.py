"""Pages that need nothing else: styles and plots (SVG) are in them, no script, no link. Every text in them is escaped.

matplotlib draws the plots, with texts as texts: the reader's fonts show letters that its own lack.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from html import escape
from io import StringIO
from typing import TYPE_CHECKING

from rlaif.tables import readable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LONGEST_TEXT = 120
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 76rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 13px; margin: 1rem 0 }
.wide { overflow-x: auto }
th, td { padding: .15rem .6rem; text-align: right; white-space: nowrap; border-bottom: 1px solid #e4e4e4 }
th:first-child, td:first-child { text-align: left; white-space: normal; overflow-wrap: anywhere; min-width: 12rem }
tr.back { color: #666 }
.careful { background: #fff3d6; padding: .5rem .8rem }
small { color: #666 }
figure { margin: 1.5rem 0 }
svg { max-width: 100%; height: auto }
dt { font-weight: 600; float: left; clear: left; min-width: 8rem }
dd { margin-left: 8.5rem }
"""
_PLOTS = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
}


def document(title: str, parts: Iterable[str]) -> str:
    """The whole page, with the parts that are not empty below its title."""
    head = [
        "<!DOCTYPE html>",
        '<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{text(title)}</title><style>{_STYLE}</style></head><body>",
        f"<h1>{text(title)}</h1>",
    ]
    return "\n".join([*head, *filter(None, parts), "</body></html>"]) + "\n"


def text(words: str) -> str:
    """What a user or a file says, escaped; cut in its middle where it is very long."""
    return escape(readable(words, _LONGEST_TEXT))


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], back: Collection[int] = ()) -> str:
    """A table of texts; rows whose places are in `back` stand back."""
    lines = ["<div class='wide'><table><thead><tr>", *(f"<th>{text(head)}</th>" for head in heads), "</tr></thead><tbody>"]
    for place, cells in enumerate(rows):
        lines.append(f"<tr{' class=back' * (place in back)}>" + "".join(f"<td>{text(cell)}</td>" for cell in cells) + "</tr>")
    return "\n".join([*lines, "</tbody></table></div>"])


def svg(draw: Callable[[Figure], bool], name: str, label: str) -> str | None:
    """What `draw` draws into an empty figure, as an <svg> element; None where it says that there is nothing.

    Its ids begin with `name`, one of its own on the page; `label` is read to those who do not see it.
    """
    from matplotlib.figure import Figure

    out = StringIO()
    with plotting(name):
        figure = Figure()
        if not draw(figure):
            return None
        figure.savefig(out, format="svg", bbox_inches="tight", metadata={"Date": None, "Creator": None})
    drawn = out.getvalue()
    drawn = re.sub(r"<metadata>.*?</metadata>", "", drawn[drawn.index("<svg") :], flags=re.DOTALL)
    drawn = re.sub(r' xmlns(:\w+)?="[^"]*"', "", drawn)  # inside a page these are known
    for before in ('id="', 'href="#', "url(#"):
        drawn = drawn.replace(before, f"{before}{name}-")
    return drawn.replace("<svg", f'<svg role="img" aria-label="{text(label)}"', 1)


@contextmanager
def plotting(salt: str) -> Iterator[None]:
    """The style of all plots. That matplotlib's own font lacks a letter is no matter."""
    from matplotlib import rc_context

    with rc_context(_PLOTS | {"svg.hashsalt": salt}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield
