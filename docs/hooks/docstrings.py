"""Two words of our docstrings that mkdocstrings spells differently: `.. math::` and `Example:`."""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, Object

FORMULA = re.compile(r"^\.\. math:: (.+?)\n\n", re.MULTILINE | re.DOTALL)


class Docstrings(Extension):
    """Rewrite docstrings before they are parsed."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Formulas between double dollars; examples as the section that shows doctests."""
        if obj.docstring is not None:
            text = FORMULA.sub(lambda match: f"$$\n{match[1]}\n$$\n\n", obj.docstring.value + "\n\n")
            obj.docstring.value = re.sub(r"^Example:$", "Examples:", text, flags=re.MULTILINE).rstrip()
