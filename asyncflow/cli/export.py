"""`asyncflow export`: a run for other programs to read."""

from __future__ import annotations

import click

from asyncflow.cli.failure import CommandLineError
from asyncflow.cli.runs import read, write
from asyncflow.errors import NothingToExportError

#: What `--format` may name, and what stands at the end of the file's name by default.
FORMATS = {"chrome": ".trace.json", "wfformat": ".wfformat.json"}


def export(path: str, form: str, output: str | None, session: str | None) -> int:
    """Write the file and say where it is."""
    run, file = read(path, session)
    from asyncflow.report.chrome import chrome_trace
    from asyncflow.report.instance import wfformat

    try:
        content = chrome_trace(run) if form == "chrome" else wfformat(run)
    except NothingToExportError as error:
        raise CommandLineError(str(error)) from error
    written = write(content, output, file.with_suffix(FORMATS[form]))
    if written is not None:
        click.echo(written)
    return 0
