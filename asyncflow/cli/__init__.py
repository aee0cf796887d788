"""The command line: `asyncflow`, or `python -m asyncflow`. It needs the extra `cli`; nothing else imports it."""

from __future__ import annotations

import importlib.util
import sys

#: What the extra `cli` brings.
_NEEDS = ("click", "rich")


def main() -> int:
    """Run the command line on `sys.argv`; its exit code."""
    if any(importlib.util.find_spec(name) is None for name in _NEEDS):
        sys.stderr.write("asyncflow: the command line is not installed; pip install 'asyncflow-hpc[cli]'\n")
        return 2
    from asyncflow.cli.commands import invoke

    return invoke(sys.argv[1:])
