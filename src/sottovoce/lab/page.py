"""The parts of a report's page: text, tables, figures, sections. Everything from outside is escaped here.

The page loads nothing and runs nothing. Colours are variables, so that one set of figures serves light, dark and print.
"""

from __future__ import annotations

import base64
import gzip
import html
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

MOST_ROWS = 14  # of a table that is open from the start
NUMBER = re.compile(r"[-+−]?[\d,.]+(e[-+]?\d+)?\*?( \(.*\)\*?| to .*)?")  # with a mark, an interval, or as a range
LONG = 48  # letters of a cell from which on its column breaks lines

STYLE = """
:root { color-scheme: light dark; --ink: #1c1c1c; --dim: #565656; --paper: #ffffff; --line: #d4d4d4; --soft: #f3f3f3;
  --grid: #dcdcdc; --band: #d9d9d9; --link: #00558a; --c1: #0072b2; --c2: #d55e00; --c3: #009e73; --c4: #cc79a7;
  --c5: #b87d00; --c6: #56b4e9; --c7: #1c1c1c; }
@media screen and (prefers-color-scheme: dark) { :root { --ink: #e8e8e8; --dim: #b0b0b0; --paper: #16181b;
  --line: #44484d; --soft: #212429; --grid: #383c42; --band: #3d4248; --link: #7cc4f5; --c1: #56b4e9; --c2: #f58b4c;
  --c3: #2fc79b; --c4: #e2a5c8; --c5: #eab13c; --c6: #a9dcfa; --c7: #e8e8e8; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1.25rem 4rem; max-width: 62rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", "Liberation Sans", Arial, sans-serif; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .5rem; }
h2 { font-size: 1.4rem; margin: 3rem 0 .75rem; padding-top: .75rem; border-top: 2px solid var(--line); }
h3 { font-size: 1.08rem; margin: 1.75rem 0 .4rem; overflow-wrap: anywhere; }
p, li { max-width: 48rem; overflow-wrap: anywhere; }
a { color: var(--link); }
nav ol { columns: 2; padding-left: 1.4rem; }
.wide { overflow-x: auto; margin: .75rem 0 1.25rem; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: var(--dim); padding-bottom: .35rem; }
th, td { padding: .25rem .7rem .25rem 0; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
thead th { border-bottom: 2px solid var(--line); font-weight: 600; vertical-align: bottom; }
tbody th, tbody td { white-space: nowrap; }
td.number, th.number { text-align: right; }
tbody .long { min-width: 16rem; max-width: 34rem; white-space: normal; overflow-wrap: anywhere; }
figure { margin: 1rem 0 1.5rem; }
figure .wide { margin: 0; }
figure svg { display: block; width: 100%; min-width: 30rem; height: auto; }
figure svg * { stroke-linejoin: round; stroke-linecap: butt; }
figure svg text { font-family: inherit !important; }
figcaption { color: var(--dim); font-size: .9rem; max-width: 48rem; margin-top: .25rem; overflow-wrap: anywhere; }
details { margin: .75rem 0; }
summary { cursor: pointer; color: var(--link); }
code { font-family: ui-monospace, "DejaVu Sans Mono", Consolas, monospace; font-size: .88em; background: var(--soft);
  padding: .05rem .25rem; border-radius: 3px; overflow-wrap: anywhere; }
.note { border-left: 4px solid var(--c2); padding: .1rem 0 .1rem .9rem; }
a:focus-visible, summary:focus-visible, .wide:focus-visible { outline: 2px solid var(--link); outline-offset: 2px; }
@media (max-width: 40rem) { nav ol { columns: 1; } }
@media print { body { max-width: none; padding: 0; font-size: 10pt; } h2, h3 { break-after: avoid; }
  figure, tr { break-inside: avoid; } figure svg { min-width: 0; max-width: 17cm; } nav { break-after: page; }
  .wide { overflow: visible; } details::details-content { content-visibility: visible; height: auto; }
  table { font-size: 8pt; } a { color: inherit; text-decoration: none; } }
"""


@dataclass(frozen=True)
class Section:
    """A part of the page under a heading: pieces of HTML, and the values that they show."""

    name: str
    title: str
    parts: list[str]
    data: Any = field(default_factory=dict)


def escape(value: object) -> str:
    """Text that is safe inside an element and inside a quoted attribute; control characters are dropped."""
    shown = "".join(one for one in str(value) if one.isprintable() or one in "\n\t")
    return html.escape(shown, quote=True)


def paragraph(text: str, kind: str = "") -> str:
    """Words as a paragraph."""
    mark = f' class="{escape(kind)}"' if kind else ""
    return f"<p{mark}>{escape(text)}</p>"


def heading(text: str) -> str:
    """A heading inside a section."""
    return f"<h3>{escape(text)}</h3>"


def listing(lines: Sequence[str]) -> str:
    """Words as a list."""
    return "<ul>" + "".join(f"<li>{escape(line)}</li>" for line in lines) + "</ul>"


def table(
    caption: str, heads: Sequence[str], rows: Sequence[Sequence[Any]], code: Sequence[int] = (), most: int = MOST_ROWS
) -> str:
    """A table that scrolls in its own box, numbers to the right.

    code: columns that hold code.   most: rows, from which on the table waits for a click.
    """
    cells = [["" if cell is None else str(cell) for cell in row] for row in rows]
    right = [all(_number(row[index]) for row in cells) for index in range(len(heads))]
    kinds = [
        "number" if right[index] else "long" if any(len(row[index]) > LONG for row in cells) else ""
        for index in range(len(heads))
    ]
    marks = [f' class="{kind}"' if kind else "" for kind in kinds]
    top = "".join(f'<th scope="col"{mark}>{escape(head)}</th>' for head, mark in zip(heads, marks, strict=True))
    body = "".join(f"<tr>{_cells(row, marks, code)}</tr>" for row in cells)
    shown = (
        f'<div class="wide" tabindex="0" role="region" aria-label="{escape(caption)}"><table>'
        f"<caption>{escape(caption)}</caption><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>"
    )
    return shown if len(rows) <= most else folded(f"{caption}: {len(rows)} rows", [shown])


def _cells(row: Sequence[str], marks: Sequence[str], code: Sequence[int]) -> str:
    found = []
    for index, (cell, mark) in enumerate(zip(row, marks, strict=True)):
        shown = f"<code>{escape(cell)}</code>" if index in code and cell else escape(cell)
        found.append(f'<th scope="row"{mark}>{shown}</th>' if index == 0 else f"<td{mark}>{shown}</td>")
    return "".join(found)


def _number(cell: str) -> bool:
    return not cell or NUMBER.fullmatch(cell) is not None


def folded(summary: str, parts: Sequence[str]) -> str:
    """Parts that are shown when their line is opened; no script is needed."""
    return f"<details><summary>{escape(summary)}</summary>{''.join(parts)}</details>"


def figure(svg: str, caption: str) -> str:
    """A drawing of `figures.drawn` and the words below it."""
    return f'<figure><div class="wide">{svg}</div><figcaption>{escape(caption)}</figcaption></figure>'


UNPACK = """
if (window.DecompressionStream) {
  const bytes = Uint8Array.from(atob(document.getElementById("data").textContent), (c) => c.charCodeAt(0));
  const whole = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  new Response(whole, { headers: { "Content-Type": "application/json" } }).blob().then((blob) => {
    const link = document.getElementById("json");
    link.href = URL.createObjectURL(blob);
    link.hidden = false;
  });
}
"""  # of the embedded data, where a browser can: a link to them


def page(title: str, lead: Sequence[str], sections: Sequence[Section], data: Any) -> str:
    """The whole page. lead: paragraphs below the title.   data: what the page shows, embedded as JSON."""
    contents = "".join(f'<li><a href="#{one.name}">{escape(one.title)}</a></li>' for one in sections)
    body = "\n".join(
        f'<section id="{one.name}"><h2>{escape(one.title)}</h2>\n' + "\n".join(one.parts) + "\n</section>"
        for one in sections
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        f"<header><h1>{escape(title)}</h1>\n{''.join(map(paragraph, lead))}</header>\n"
        f'<nav aria-label="Contents"><h2>Contents</h2><ol>{contents}</ol></nav>\n<main>\n{body}\n</main>\n'
        '<p><a id="json" download="report.json" hidden>The data behind this page, as JSON</a></p>\n'
        f'<script type="application/gzip" id="data">{embedded(data)}</script>\n'
        f'<script id="unpack">{UNPACK}</script>\n</body>\n</html>\n'
    )


def embedded(data: Any) -> str:
    """JSON, packed by gzip and written in base64, a fifth of its length; `UNPACK` offers it as it was."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    return base64.b64encode(gzip.compress(text.encode("utf-8"), mtime=0)).decode("ascii")
