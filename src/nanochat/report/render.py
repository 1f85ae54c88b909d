"""From a view (a plain dict) to the text of a page. Escaping happens here and nowhere else."""

import re
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

TEMPLATES = Path(__file__).parent / "templates"
# Text of a model must not reorder its surroundings, move a cursor or hide: control characters
# except line breaks and tabs, and bidirectional marks.
HIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def render(template: str, view: dict[str, Any]) -> str:
    """Render the page `template` with `view`. All text is escaped for HTML, or by
    the Markdown filters."""
    text = templates().get_template(template).render(view, css=style())
    return re.sub(r"\n{3,}", "\n\n", text) if template.endswith(".md") else text


def style() -> Markup:
    return Markup((TEMPLATES / "page.css").read_text(encoding="utf-8"))


@cache
def templates() -> Environment:
    found = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=lambda name: bool(name and name.endswith(".html")),
        undefined=StrictUndefined,
        trim_blocks=True,
        finalize=lambda value: visible(value) if type(value) is str else value,
    )
    found.filters.update(cell=cell, code=code, fenced=fenced)
    return found


def visible(text: str) -> str:
    """Text with every invisible or reordering character replaced by U+FFFD.

    >>> visible("a\\x1b[2J\\u202eb\\n")
    'a�[2J�b\\n'
    """
    return HIDDEN.sub("\N{REPLACEMENT CHARACTER}", text)


def cell(text: Any) -> str:
    """Literal text in a line or a table cell of Markdown.

    >>> cell("a|b <i>\\n![x](y)")
    'a\\\\|b &lt;i> !\\\\[x\\\\](y)'
    """
    plain = re.sub(r"\s+", " ", str(text)).replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"([\\`*|\[\]~])", r"\\\1", plain)


def code(text: Any) -> str:
    """Code in a table cell of Markdown. A bar would end the cell, so it is
    replaced by a similar character.

    >>> code("a|`b"), code("")
    ('`` a¦`b ``', '')
    """
    plain = re.sub(r"\s+", " ", str(text)).replace("|", "¦")
    if not plain:
        return ""
    fence = "`" * (max(map(len, re.findall("`+", plain)), default=0) + 1)
    return f"{fence} {plain} {fence}" if "`" in plain else f"{fence}{plain}{fence}"


def fenced(text: Any) -> str:
    """A code block in Markdown, fenced by more backticks than the text has in a row.

    >>> print(fenced("a\\n```"))
    ````text
    a
    ```
    ````
    """
    plain = visible(str(text))
    fence = "`" * max(3, max(map(len, re.findall("`+", plain)), default=0) + 1)
    return f"{fence}text\n{plain}\n{fence}"
