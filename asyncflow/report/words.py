"""Numbers and texts as people read them. Pure."""

from __future__ import annotations

import re
from datetime import datetime, timezone

#: Colours, cursor movements and titles that programs write for terminals.
_TERMINAL = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\-_])")
#: What no text shows: C0 but tab and newline, DEL, C1, and what turns the direction of writing.
_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def duration(seconds: float) -> str:
    """`2 h 05 min`, `3 min 12 s`, `4.57 s`, `12.3 ms`, `45 µs`."""
    if seconds >= 59.95:
        minutes, rest = divmod(round(seconds), 60)
        hours, minutes = divmod(minutes, 60)
        days, hours = divmod(hours, 24)
        if days:
            return f"{days} d {hours:02d} h"
        return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"
    if seconds >= 9.995:
        return f"{seconds:.1f} s"
    if seconds >= 0.9995:
        return f"{seconds:.2f} s"
    if seconds >= 0.0009995:
        return f"{seconds * 1e3:.3g} ms"
    return f"{seconds * 1e6:.0f} µs" if seconds > 0 else "0 s"


def percent(part: float, whole: float) -> str:
    """`63 %`; below one with a digit more."""
    if whole <= 0:
        return "-"
    share = 100 * part / whole
    return f"{share:.0f} %" if share >= 0.95 or not part else f"{share:.1f} %"


def size(count: float) -> str:
    """Bytes: `12.3 GB`."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 999.5 or unit == "TB":
            break
        count /= 1000
    return f"{count:.0f} {unit}" if unit == "B" else f"{count:.3g} {unit}"


def number(count: float, one: str = "", several: str = "") -> str:
    """`1,234`, or with a word: `1 task`, `1,234 tasks`."""
    digits = f"{count:,.0f}" if float(count).is_integer() else f"{count:,.1f}"
    word = one if count == 1 else several or f"{one}s"
    return f"{digits} {word}" if one else digits


def moment(seconds: float) -> str:
    """Seconds since the epoch as UTC; what no calendar has as a number."""
    try:
        return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (OverflowError, ValueError, OSError):
        return f"{seconds:.0f} s after 1970"


def readable(text: str) -> str:
    """Without what is meant for terminals; what cannot be seen is shown as the character that stands for such."""
    return _UNSEEN.sub("\N{REPLACEMENT CHARACTER}", _TERMINAL.sub("", text.replace("\r\n", "\n")))


def one_line(text: str, longest: int = 200) -> str:
    """Its first line that says something, cut where it is very long."""
    said = next((line.strip() for line in readable(text).splitlines() if line.strip()), "")
    return said if len(said) <= longest else f"{said[:longest]}…"
