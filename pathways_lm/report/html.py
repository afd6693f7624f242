"""Pages without script or network, and what they are made of.

Every text that comes from a file passes through `escaped`, for samples are whatever a model says.
"""

import contextlib
import html
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

from pathways_lm.errors import CheckpointError
from pathways_lm.report.style import CSS

Card = tuple[str, str, str]
"""Label, value and a note below it."""


class Chart(Protocol):
    """A finished picture."""

    @property
    def title(self) -> str: ...
    @property
    def unit(self) -> str: ...
    @property
    def svg(self) -> str: ...


_CONTROL = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"} | {127: 0x2421}
"""Control characters as their Unicode pictures: HTML may not hold them, and a reader should see them."""


def write_whole(path: Path, page: str) -> None:
    """Writes a page, whole or not at all. Raises CheckpointError where that cannot be."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        # A lone surrogate is possible in JSON and impossible in UTF-8.
        unfinished.write_bytes(page.encode("utf-8", errors="replace"))
        unfinished.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            unfinished.unlink()
        raise CheckpointError(f"{path} cannot be written: {error.strerror}") from None


def document(title: str, heading: str, subtitle: str, body: str) -> str:
    """A page around `body`, which is HTML already."""
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escaped(title)}</title>
<style>{CSS}</style>
</head>
<body>
<main>
<header>
<h1>{escaped(heading)}</h1>
<p>{escaped(subtitle)}</p>
</header>
{body}
</main>
</body>
</html>
"""


def cards(told: Sequence[Card]) -> str:
    """The numbers to know."""
    items = [
        f'<div class="card"><dt>{escaped(label)}</dt><dd>{escaped(value)}<small>{escaped(note)}</small></dd></div>'
        for label, value, note in told
    ]
    return f'<dl class="grid numbers">{"".join(items)}</dl>' if items else ""


def section(title: str, body: str, note: str = "") -> str:
    """A part of a page; all HTML already."""
    told = f'<p class="note">{note}</p>' if note else ""
    return f"<section><h2>{title}</h2>{told}{body}</section>\n"


def card(body: str) -> str:
    """A frame that its contents fill."""
    return f'<div class="card flush">{body}</div>'


def curves(charts: Iterable[Chart]) -> str:
    """Charts side by side, each in a frame below its title and unit."""
    figures = [
        f'<figure class="card"><figcaption><h3>{escaped(chart.title)}</h3>'
        f"<small>{escaped(chart.unit)}</small></figcaption>{chart.svg}</figure>"
        for chart in charts
    ]
    return f'<div class="grid curves">{"".join(figures)}</div>'


def folded(title: str, body: str) -> str:
    """What opens when asked for."""
    return f'<details class="card"><summary><b>{title}</b></summary>{body}</details>'


def table(
    heads: Iterable[str],
    rows: Iterable[list[Any]],
    numbers: Iterable[int],
    long: Iterable[int] = (),
    total: list[Any] | None = None,
) -> str:
    """A table that scrolls sideways where it must. `numbers` are columns set to the right, `long` ones may wrap."""
    classes = dict.fromkeys(numbers, ' class="number"') | dict.fromkeys(long, ' class="long"')

    def line(cells: Iterable[Any], tag: str) -> str:
        marked = (f"<{tag}{classes.get(i, '')}>{escaped(_cell(cell))}</{tag}>" for i, cell in enumerate(cells))
        return f"<tr>{''.join(marked)}</tr>"

    body = "".join(line(row, "td") for row in rows)
    foot = f"<tfoot>{line(total, 'td')}</tfoot>" if total else ""
    return f'<div class="scroll"><table><thead>{line(heads, "th")}</thead><tbody>{body}</tbody>{foot}</table></div>'


def escaped(value: str) -> str:
    """Text as HTML, safe in an element and in a quoted attribute."""
    return html.escape(value.translate(_CONTROL))


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:,}" if is_number(value) else str(value)


def is_number(value: Any) -> bool:
    """Whether it is a number and no truth value."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)
