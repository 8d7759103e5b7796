"""The page: a list of blocks, written as Markdown beside its figures, as one HTML file, and to the terminal."""

import base64
import dataclasses
import html
import re
import string
from collections.abc import Sequence
from pathlib import Path

from nca_jax.report import tables

TEMPLATE = Path(__file__).with_suffix('.html')


@dataclasses.dataclass(frozen=True)
class Heading:
    text: str
    level: int = 2


@dataclasses.dataclass(frozen=True)
class Text:
    """A paragraph. **bold** and `code` are understood, nothing else."""

    text: str
    # text, note (small print, which the terminal leaves out) or warning.
    kind: str = 'text'


@dataclasses.dataclass(frozen=True)
class Bullets:
    items: Sequence[str]


@dataclasses.dataclass(frozen=True)
class Table:
    rows: tables.Rows
    # The column to be read first.
    emphasis: str = ''


@dataclasses.dataclass(frozen=True)
class Picture:
    """A figure as PNG in both themes; Markdown shows the light one from the file `name`.png."""

    name: str
    caption: str
    light: bytes
    dark: bytes


Block = Heading | Text | Bullets | Table | Picture


def as_markdown(blocks: Sequence[Block]) -> str:
    """The blocks as Markdown, figures by relative path."""
    return '\n\n'.join(map(_markdown, blocks)) + '\n'


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


def as_text(blocks: Sequence[Block]) -> str:
    """The blocks for a terminal, without figures and small print."""
    return '\n\n'.join(filter(None, map(_text, blocks)))


def _text(block: Block) -> str:
    match block:
        case Text(_, 'note') | Picture():
            return ''
        case Table(rows, _):
            return tables.table(rows)
        case Bullets(items):
            return plain('\n'.join(items))
        case Heading(text) | Text(text):
            return plain(text)


def plain(text: str) -> str:
    """The text without its marks."""
    return text.replace('**', '').replace('`', '')


def as_html(title: str, blocks: Sequence[Block]) -> str:
    """The blocks as one HTML file that needs nothing else: no script, no font, no link to anywhere."""
    body = '\n'.join(map(_html, blocks))
    return string.Template(TEMPLATE.read_text('utf-8')).substitute(title=html.escape(title), body=body)


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
    head = ''.join(f'<th>{html.escape(column)}</th>' for column in rows[0])
    marks = {column: ' class="first"' if column == emphasis else '' for column in rows[0]}
    lines = (''.join(f'<td{marks[column]}>{_cell(text)}</td>' for column, text in row.items()) for row in rows)
    body = ''.join(f'<tr>{line}</tr>' for line in lines)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _cell(text: str) -> str:
    """An interval in parentheses goes on a line of its own."""
    return re.sub(r' (\([^()]* to [^()]*\))', r' <small>\1</small>', _inline(text)).replace(' ± ', '&nbsp;±&nbsp;')


def _inline(text: str) -> str:
    text = re.sub(r'\*\*(.+?)\*\*', r'<strong>\1</strong>', html.escape(text))
    return re.sub(r'`(.+?)`', r'<code>\1</code>', text)


def _uri(png: bytes) -> str:
    return 'data:image/png;base64,' + base64.b64encode(png).decode()
