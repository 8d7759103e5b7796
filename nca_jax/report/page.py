"""The page: a list of blocks, written once as Markdown beside its figures and once as one HTML file."""

import base64
import dataclasses
import html
import re
from collections.abc import Sequence

from nca_jax.report import tables


@dataclasses.dataclass(frozen=True)
class Heading:
    text: str
    level: int = 2


@dataclasses.dataclass(frozen=True)
class Text:
    """A paragraph; `kind` is text, note (small print) or warning. **bold** and `code` are understood, nothing else."""

    text: str
    kind: str = 'text'


@dataclasses.dataclass(frozen=True)
class Bullets:
    items: Sequence[str]


@dataclasses.dataclass(frozen=True)
class Table:
    rows: tables.Rows
    emphasis: str = ''  # the column to be read first


@dataclasses.dataclass(frozen=True)
class Picture:
    """A figure as PNG in both themes; Markdown shows the light one from the file `name`.png."""

    name: str
    caption: str
    light: bytes
    dark: bytes


Block = Heading | Text | Bullets | Table | Picture


def markdown(blocks: Sequence[Block]) -> str:
    """The page as Markdown, figures by relative path."""
    return '\n\n'.join(text for text in map(_markdown, blocks) if text) + '\n'


def _markdown(block: Block) -> str:
    match block:
        case Heading(text, level):
            return '#' * level + ' ' + text
        case Text(text, 'warning'):
            return f'> **{plain(text)}**'
        case Text(text, _):
            return text
        case Bullets(items):
            return '\n'.join(f'- {item}' for item in items)
        case Table(rows, _):
            return tables.table(rows)
        case Picture(name, caption, _, _):
            return f'![{name.replace("_", " ")}]({name}.png)\n\n{caption}'


def plain(text: str) -> str:
    """The text without its marks, for the terminal."""
    return text.replace('**', '').replace('`', '')


def page(title: str, blocks: Sequence[Block]) -> str:
    """The page as one HTML file that needs nothing else: no script, no font, no link to anywhere."""
    body = '\n'.join(map(_html, blocks))
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta name="color-scheme" content="light dark">\n<title>{html.escape(title)}</title>\n'
        f'<style>{STYLE}</style>\n</head>\n<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n'
    )


def _html(block: Block) -> str:
    match block:
        case Heading(text, level):
            return f'<h{level}>{_inline(text)}</h{level}>'
        case Text(text, kind):
            return f'<p class="{kind}">{_inline(text)}</p>'
        case Bullets(items):
            return '<ul>' + ''.join(f'<li>{_inline(item)}</li>' for item in items) + '</ul>'
        case Table(rows, emphasis):
            return _html_table(rows, emphasis)
        case Picture(name, caption, light, dark):
            return (
                f'<figure><picture><source media="(prefers-color-scheme: dark)" srcset="{_uri(dark)}">'
                f'<img alt="{html.escape(name.replace("_", " "))}" src="{_uri(light)}"></picture>'
                f'<figcaption>{_inline(caption)}</figcaption></figure>'
            )


def _html_table(rows: tables.Rows, emphasis: str) -> str:
    if not rows:
        return ''
    head = ''.join(f'<th>{html.escape(name)}</th>' for name in rows[0])
    lines = []
    for row in rows:
        marks = {name: ' class="first"' if name == emphasis else '' for name in row}
        lines.append('<tr>' + ''.join(f'<td{marks[name]}>{_cell(row[name])}</td>' for name in row) + '</tr>')
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'


def _cell(text: str) -> str:
    """An interval in parentheses goes on a line of its own."""
    return re.sub(r' (\([^()]* to [^()]*\))', r' <small>\1</small>', _inline(text)).replace(' ± ', '&nbsp;±&nbsp;')


def _inline(text: str) -> str:
    text = re.sub(r'\*\*(.+?)\*\*', r'<strong>\1</strong>', html.escape(text))
    return re.sub(r'`(.+?)`', r'<code>\1</code>', text)


def _uri(png: bytes) -> str:
    return 'data:image/png;base64,' + base64.b64encode(png).decode()


STYLE = """
:root { --ink: #1f2328; --muted: #6b7280; --paper: #ffffff; --rule: #e5e7eb; --soft: #f6f7f9; --warn: #b42318; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e6e6; --muted: #9ca3af; --paper: #16181c; --rule: #30343b; --soft: #1e2126; --warn: #ff8a75; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 17px/1.6 ui-serif, Charter, 'Bitstream Charter', Cambria, Georgia, serif; }
main { max-width: 60rem; margin: 0 auto; padding: 3rem 1.5rem 5rem; }
h1, h2, h3, table, figcaption, .note, .warning {
  font-family: ui-sans-serif, system-ui, 'Segoe UI', Helvetica, sans-serif; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .4rem; letter-spacing: -.015em; }
h2 { font-size: 1.25rem; margin: 3rem 0 .8rem; padding-top: 1rem; border-top: 1px solid var(--rule); }
h3 { font-size: 1rem; margin: 2rem 0 .5rem; }
p, li { max-width: 44rem; }
ul { padding-left: 1.2rem; }
li { margin: .45rem 0; }
code { font: .86em ui-monospace, Menlo, Consolas, monospace; background: var(--soft);
  padding: .1em .3em; border-radius: 4px; }
.note, figcaption { color: var(--muted); font-size: .84rem; line-height: 1.5; max-width: 46rem; }
.warning { color: var(--warn); border: 2px solid currentColor; border-radius: 8px;
  padding: .7rem 1rem; font-weight: 600; }
.scroll { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: .84rem; line-height: 1.35; font-variant-numeric: tabular-nums; }
th { color: var(--muted); font-weight: 500; vertical-align: bottom; border-bottom: 1.5px solid var(--ink); }
th, td { padding: .45rem .7rem; text-align: right; }
th:first-child, td:first-child { text-align: left; padding-left: 0; font-weight: 600; }
td { border-bottom: 1px solid var(--rule); }
td.first { font-weight: 650; }
td small { display: block; white-space: nowrap; color: var(--muted); font-size: .92em; font-weight: 400; }
figure { margin: 1.5rem 0; }
img { max-width: 100%; height: auto; display: block; }
"""
