"""Formulas become MathML, which browsers draw without a script or a font; pictures get their twin for dark pages."""

from __future__ import annotations

import html
import re
from typing import Any

from latex2mathml.converter import convert

FORMULA = re.compile(r'<(span|div) class="arithmatex">(.*?)</\1>', re.DOTALL)
PICTURE = re.compile(r"!\[([^\]]*)\]\((assets/[\w-]+)\.svg\)")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Show a picture in the reader's theme; elsewhere, as on a code host, the page has the light one."""
    return PICTURE.sub(r"![\1](\2.svg#only-light)![\1](\2-dark.svg#only-dark)", markdown)


def on_page_content(content: str, **_: Any) -> str:
    """Translate what arithmatex marked."""
    return FORMULA.sub(_mathml, content)


def _mathml(match: re.Match[str]) -> str:
    formula = html.unescape(match[2]).strip()[2:-2]  # less \( \) or \[ \]
    return convert(formula, display="block" if match[1] == "div" else "inline")
