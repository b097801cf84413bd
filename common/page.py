"""A report as a list of blocks, rendered twice: as one HTML file and as Markdown."""

import base64
import html
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self
from urllib.parse import quote

from matplotlib import rc_context
from matplotlib.figure import Figure


@dataclass(frozen=True)
class Heading:
    text: str
    level: int = 2


@dataclass(frozen=True)
class Text:
    text: str
    strong: bool = False


@dataclass(frozen=True)
class Points:
    """Remarks that stand in no order."""

    texts: Sequence[str]


@dataclass(frozen=True)
class Table:
    """Rows of words under columns; the first word of a row is its header."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Picture:
    name: str  # of the file, without its ending
    png: bytes
    svg: bytes
    alt: str

    @classmethod
    def of(cls, name: str, figure: Figure, alt: str) -> Self:
        png = to_bytes(figure, "png")
        figure.set_layout_engine("none")  # laid out already: a second time takes as long again
        return cls(name, png, to_bytes(figure, "svg"), alt)


Block = Heading | Text | Points | Table | Picture

STYLE = """
:root { --ink: #1b1b1b; --paper: #fff; --line: #c9c9c9; --band: #f2f4f6; --link: #0b57a4; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8e8e8; --paper: #16181b; --line: #4a4f55; --band: #22262b; --link: #8ab8f0; }
}
body { color: var(--ink); background: var(--paper); font: 16px/1.55 system-ui, sans-serif;
       max-width: 68rem; margin: 0 auto; padding: 1rem; overflow-wrap: break-word; }
h1, h2, h3 { line-height: 1.25; }
h2 { margin-top: 2.5rem; border-bottom: 1px solid var(--line); }
a { color: var(--link); }
nav ul { padding-left: 1.2rem; columns: 18rem; }
.strong { font-size: 1.15rem; font-weight: 600; }
.scroll { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: 0.85rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; font-weight: 600; padding: 0.3rem 0; }
th, td { padding: 0.3rem 0.5rem; border-bottom: 1px solid var(--line); text-align: left;
         vertical-align: top; }
.short { white-space: nowrap; }
td:not(.short) { min-width: 10rem; }
thead th { background: var(--band); }
tbody th { font-weight: 600; }
figure { margin: 1.2rem 0; overflow-x: auto; }
figure img { max-width: 100%; height: auto; background: #fff; border: 1px solid var(--line); }
figcaption { font-size: 0.9rem; }
@media (max-width: 48rem) { figure img { max-width: none; width: 48rem; } }
:focus-visible { outline: 3px solid var(--link); outline-offset: 2px; }
"""


def to_html(title: str, blocks: Sequence[Block]) -> str:
    """One file, nothing in it comes from elsewhere."""
    body, contents = [], []
    first_section = None  # the contents stand before it
    for number, block in enumerate(blocks):
        match block:
            case Heading(text, level):
                anchor = f"s{number}"
                if level == 2:
                    if first_section is None:
                        first_section = len(body)
                    contents.append(f'<li><a href="#{anchor}">{html.escape(text)}</a></li>')
                body.append(f'<h{level} id="{anchor}">{html.escape(text)}</h{level}>')
            case Text(text, strong):
                body.append(f"<p{' class=strong' if strong else ''}>{_html_words(text)}</p>")
            case Points(texts):
                items = "".join(f"<li>{_html_words(text)}</li>" for text in texts)
                body.append(f"<ul>{items}</ul>")
            case Table(caption, columns, rows):
                body.append(_html_table(caption, columns, rows))
            case Picture(svg=svg, alt=alt):
                source = base64.b64encode(svg).decode()
                body.append(
                    f'<figure><img alt="{html.escape(alt)}" '
                    f'src="data:image/svg+xml;base64,{source}">'
                    f"<figcaption>{html.escape(alt)}</figcaption></figure>"
                )
    body.insert(
        first_section or 0, f'<nav aria-label="Contents"><ul>{"".join(contents)}</ul></nav>'
    )
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="color-scheme" content="light dark">',
            '<link rel="icon" href="data:,">',
            f"<title>{html.escape(title)}</title><style>{STYLE}</style></head>",
            f"<body><header><h1>{html.escape(title)}</h1></header>",
            "<main>",
            *body,
            "</main></body></html>",
            "",
        ]
    )


def _html_words(text: str) -> str:
    return html.escape(text).replace(" %", "&nbsp;%")  # no line begins with %


def _html_table(caption: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def cell(word: str, tag: str, scope: str = "") -> str:
        short = " class=short" if len(word) <= 28 else ""  # a figure is not broken in two
        return f"<{tag}{scope}{short}>{html.escape(word)}</{tag}>"

    head = "".join(f'<th scope="col">{html.escape(word)}</th>' for word in columns)
    lines = []
    for first, *rest in rows:
        cells = [cell(first, "th", " scope=row"), *(cell(word, "td") for word in rest)]
        lines.append(f"<tr>{''.join(cells)}</tr>")
    caption = html.escape(caption)
    # A table wider than a phone scrolls in a box of its own, by keyboard too.
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{caption}"><table>'
        f"<caption>{caption}</caption><thead><tr>{head}</tr></thead>"
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def to_markdown(title: str, blocks: Sequence[Block], pictures: str) -> str:
    """For GitHub; `pictures` is the folder of the PNG files, relative to the Markdown file."""
    lines = [f"# {title}"]
    for block in blocks:
        match block:
            case Heading(text, level):
                lines.append(f"{'#' * level} {text}")
            case Text(text, strong):
                lines.append(f"**{text}**" if strong else text)
            case Points(texts):
                lines.append("\n".join(f"- {text}" for text in texts))
            case Table(caption, columns, rows):
                lines += [f"*{caption}*", markdown_table(columns, rows)]
            case Picture(name=name, alt=alt):
                lines.append(f"![{alt}]({pictures}/{quote(name)}.png)")
    return "\n\n".join(lines) + "\n"


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def line(words: Sequence[str]) -> str:
        return "| " + " | ".join(word.replace("|", "\\|") for word in words) + " |"

    return "\n".join([line(columns), line(["---"] * len(columns)), *map(line, rows)])


def to_bytes(figure: Figure, kind: str) -> bytes:
    """The figure as a png or svg file: the same figure, the same bytes."""
    buffer = io.BytesIO()
    metadata = {"Date": None} if kind == "svg" else {"Software": None}
    with rc_context({"svg.hashsalt": "report", "svg.fonttype": "path"}):
        figure.savefig(buffer, format=kind, metadata=metadata)
    if kind == "svg":  # coordinates to 0.01 point, a tenth less: no eye can tell
        return re.sub(rb"\b([1-9]\d*\.\d\d)\d+", rb"\1", buffer.getvalue())
    return buffer.getvalue()
