"""The page: a list of blocks, written as Markdown beside its figures, as one HTML file, and to the terminal."""

import base64
import html
import re
import string
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import markdown_it


class Note(str):
    """Small print, in Markdown; the terminal leaves it out."""

    __slots__ = ()


class Picture(NamedTuple):
    """A figure as PNG, in Markdown the file `name`.png."""

    name: str
    caption: str
    png: bytes


# A str is Markdown: a heading, a paragraph, a list or a table.
Block = str | Picture


def suffix(name: str, alone: bool) -> str:
    """The end of a picture's file name: nothing for the only one of its kind, else '_' and the name's letters."""
    return '' if alone else '_' + re.sub(r'\W+', '_', name)


def as_markdown(blocks: Sequence[Block]) -> str:
    texts = []
    for block in blocks:
        # Figures lie beside the Markdown.
        texts += [f'![{block.name}]({block.name}.png)', block.caption] if isinstance(block, Picture) else [block]
    return '\n\n'.join(texts) + '\n'


def as_text(blocks: Sequence[Block]) -> str:
    """The blocks for a terminal, without Markdown's marks, figures and small print."""
    text = '\n\n'.join(block for block in blocks if type(block) is str)
    return re.sub(r'\*\*|`|^(#+|-|>) ', '', text, flags=re.MULTILINE)


def as_html(title: str, blocks: Sequence[Block]) -> str:
    """The blocks as one HTML file that needs nothing else: no script, no font, no link to anywhere."""
    # HTML in names is escaped, not obeyed.
    parser = markdown_it.MarkdownIt('commonmark', {'html': False}).enable('table')
    parts = []
    for block in blocks:
        match block:
            case Picture(name, caption, png):
                # Within the page, so that it can be sent as one file.
                source = 'data:image/png;base64,' + base64.b64encode(png).decode()
                image = f'<img alt="{html.escape(name)}" src="{source}">'
                parts.append(f'<figure>{image}<figcaption>{parser.renderInline(caption)}</figcaption></figure>')
            case Note():
                parts.append(f'<div class="note">{parser.render(block)}</div>')
            case _:
                text = parser.render(block)
                # A wide table scrolls by itself, so that the page doesn't.
                parts.append(f'<div class="scroll">{text}</div>' if '<table>' in text else text)
    template = string.Template(Path(__file__).with_suffix('.html').read_text('utf-8'))
    return template.substitute(title=html.escape(title), body='\n'.join(parts))
