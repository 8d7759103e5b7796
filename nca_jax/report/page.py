"""The page: a list of blocks, written as Markdown beside its figures, as one HTML file, and to the terminal."""

import base64
import dataclasses
import html
import re
import string
from collections.abc import Sequence
from pathlib import Path

import markdown_it

TEMPLATE = Path(__file__).with_suffix('.html')


@dataclasses.dataclass(frozen=True)
class Note:
    """Small print, in Markdown; the terminal leaves it out."""

    text: str


@dataclasses.dataclass(frozen=True)
class Picture:
    """A figure as PNG in both themes; Markdown shows the light one from the file `name`.png."""

    name: str
    caption: str
    light: bytes
    dark: bytes

    @property
    def title(self) -> str:
        return self.name.replace('_', ' ')


# A str is Markdown: a heading, a paragraph, a list or a table.
Block = str | Note | Picture


def as_markdown(blocks: Sequence[Block]) -> str:
    """The blocks as Markdown, figures by relative path."""
    return '\n\n'.join(map(_markdown, blocks)) + '\n'


def _markdown(block: Block) -> str:
    match block:
        case Picture(name, caption):
            return f'![{block.title}]({name}.png)\n\n{caption}'
        case Note(text):
            return text
    return block


def as_text(blocks: Sequence[Block]) -> str:
    """The blocks for a terminal, without Markdown's marks, figures and small print."""
    return plain('\n\n'.join(block for block in blocks if isinstance(block, str)))


def plain(text: str) -> str:
    return re.sub(r'\*\*|`|^(#+|-|>) ', '', text, flags=re.MULTILINE)


def as_html(title: str, blocks: Sequence[Block]) -> str:
    """The blocks as one HTML file that needs nothing else: no script, no font, no link to anywhere."""
    # HTML in names is escaped, not obeyed.
    parser = markdown_it.MarkdownIt('commonmark', {'html': False}).enable('table')
    body = '\n'.join(_html(block, parser) for block in blocks)
    return string.Template(TEMPLATE.read_text('utf-8')).substitute(title=html.escape(title), body=body)


def _html(block: Block, parser: markdown_it.MarkdownIt) -> str:
    match block:
        case Picture(_, caption, light, dark):
            return (
                f'<figure><picture><source media="(prefers-color-scheme: dark)" srcset="{_uri(dark)}">'
                f'<img alt="{html.escape(block.title)}" src="{_uri(light)}"></picture>'
                f'<figcaption>{parser.renderInline(caption)}</figcaption></figure>'
            )
        case Note(text):
            return f'<div class="note">{parser.render(text)}</div>'
    # An interval in parentheses goes on a line of its own in its cell.
    text = re.sub(r' (\([^()]* to [^()]*\))</td>', r' <small>\1</small></td>', parser.render(block))
    text = text.replace(' ± ', '&nbsp;±&nbsp;')
    return f'<div class="scroll">{text}</div>' if '<table>' in text else text


def _uri(png: bytes) -> str:
    return 'data:image/png;base64,' + base64.b64encode(png).decode()
