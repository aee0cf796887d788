"""Shows `#:` comments in the reference: griffe, which reads the sources for it, knows only strings as docstrings."""

from __future__ import annotations

from typing import Any

from griffe import Attribute, Docstring, Extension

_MARK = "#:"


class AttributeComments(Extension):
    """Makes the `#:` lines right above an attribute its docstring."""

    def on_attribute_instance(self, *, attr: Attribute, **kwargs: Any) -> None:
        if attr.docstring is None and attr.lineno is not None:
            above = _comment_above(attr.lines_collection[attr.filepath], attr.lineno)  # type: ignore[index]  # a list for a namespace package only, which has no attributes
            if above:
                attr.docstring = Docstring(above, lineno=attr.lineno, parent=attr)


def _comment_above(lines: list[str], lineno: int) -> str:
    """The text of the `#:` comment that ends right above line `lineno`, counted from 1."""
    found: list[str] = []
    for line in reversed(lines[: lineno - 1]):
        if not line.strip().startswith(_MARK):
            break
        found.insert(0, line.strip().removeprefix(_MARK).strip())
    return " ".join(found)
