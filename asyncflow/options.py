"""Checks of option values that several rooms share; each raises InvalidOptionError, which names the option."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from asyncflow.errors import InvalidOptionError


def whole(option: str, value: Any, least: int) -> int:
    """A whole number of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InvalidOptionError(option, value, f"a whole number of at least {least}")
    return value


def seconds(option: str, value: Any, *, positive: bool = False) -> float:
    """A finite number of seconds, of at least 0 or, if `positive`, above it."""
    number = not isinstance(value, bool) and isinstance(value, (int, float)) and math.isfinite(value)
    if not number or value < 0 or (positive and value == 0):
        raise InvalidOptionError(option, value, "seconds above 0" if positive else "seconds of at least 0")
    return float(value)


def name(option: str, value: Any) -> str:
    """A string that is not empty."""
    if not isinstance(value, str) or not value:
        raise InvalidOptionError(option, value, "a string that is not empty")
    return value


def variables(option: str, value: Any) -> dict[str, str]:
    """Environment variables: a mapping whose names and values an environment can hold; values become strings."""
    if not isinstance(value, Mapping):
        raise InvalidOptionError(option, value, "a dict of environment variables")
    checked = {str(key): str(content) for key, content in value.items()}
    for key, content in checked.items():
        if not key or "=" in key or "\0" in key + content:
            raise InvalidOptionError(option, value, f"{key!r} cannot be set: no empty name, no '=' in it, no null byte")
    return checked
