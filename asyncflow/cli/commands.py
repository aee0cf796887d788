"""The commands and their options. What they do stands in a module for each, imported when it is called."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence

import click

from asyncflow.cli.failure import INTERRUPTED, CommandLineError, OutOfTimeError
from asyncflow.version import installed_version

#: Seconds that Python gets at least to exit by itself at the end of the time.
_LEAST = 1.0


def _print_version(context: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted and not context.resilient_parsing:
        click.echo(f"asyncflow {installed_version()}")
        context.exit()


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    invoke_without_command=True,
)
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_print_version, help="Its version."
)
@click.pass_context
def asyncflow(context: click.Context) -> None:
    """Task graphs of ordinary functions and command lines, from a laptop to a supercomputer."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


@asyncflow.command()
@click.argument("script")
@click.option("--backend", metavar="NAME", help="What runs the tasks where the script names no backend.")
@click.option(
    "--telemetry",
    metavar="PATH",
    help="Where engines of the script write what they do: a folder, or a file that ends in .jsonl.",
)
@click.option(
    "--grace",
    metavar="SECONDS",
    type=click.FloatRange(min=0.0),
    default=25.0,
    show_default=True,
    help="How long the script has to end after TERM, which many batch systems send before they kill.",
)
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
def run(script: str, backend: str | None, telemetry: str | None, grace: float, args: tuple[str, ...]) -> int:
    """Run a script as python would. Options of its own go after --.

    \b
    asyncflow run simulate.py --backend processes -- --steps 100
    """
    from asyncflow.cli.script import run_script

    return run_script(script, args, backend, telemetry, grace)


@asyncflow.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def doctor(as_json: bool) -> int:
    """Say what asyncflow finds on this machine and what it would use."""
    from asyncflow.cli.doctor import examine

    return examine(as_json)


@asyncflow.command()
@click.argument("instance")
@click.option("--backend", metavar="NAME", default="threads", show_default=True, help="What runs the tasks.")
@click.option("--speed", metavar="X", type=float, default=1.0, show_default=True, help="How much faster than recorded.")
@click.option(
    "--work",
    type=click.Choice(["sleep", "burn"]),
    default="sleep",
    show_default=True,
    help="Whether a task sleeps, or burns CPU, for its recorded time.",
)
@click.option("--workers", metavar="N", type=int, help="Workers of the backend; its own default else.")
def replay(instance: str, backend: str, speed: float, work: str, workers: int | None) -> int:
    """Run a recorded workflow (WfFormat 1.5 or 1.6) again and measure.

    \b
    asyncflow replay montage.json --backend processes --speed 1000
    """
    from asyncflow.cli.replay import replay_file

    return replay_file(instance, backend, speed, work, workers)


@asyncflow.command()
@click.argument("run_file", metavar="RUN")
@click.option("-o", "--output", metavar="FILE", help="Where the page goes: by default beside RUN. - is stdout.")
@click.option("--session", metavar="ID", help="Which session of the file; by default the one that began last.")
@click.option(
    "--open",
    "opens",
    type=click.Choice(["auto", "yes", "no"]),
    default="auto",
    show_default=True,
    help="Show it in a browser; auto does where there is a screen.",
)
def report(run_file: str, output: str | None, session: str | None, opens: str) -> int:
    """Write what happened in a run as one HTML page.

    RUN is a telemetry file, or a folder of them: then the newest.

    \b
    asyncflow report telemetry/
    """
    from asyncflow.cli.report import report as write_report

    return write_report(run_file, output, session, opens)


@asyncflow.command()
@click.argument("run_file", metavar="RUN")
def watch(run_file: str) -> int:
    """Follow a run while it goes on.

    RUN is a telemetry file, or a folder of them: then the newest. It may still be to come.

    \b
    asyncflow watch telemetry/
    """
    from asyncflow.cli.watch import watch as follow

    return follow(run_file, sys.stdout)


@asyncflow.command()
@click.argument("run_file", metavar="RUN")
@click.option(
    "--format",
    "form",
    type=click.Choice(["chrome", "wfformat"]),
    required=True,
    help="chrome: Trace Event Format, for Perfetto. wfformat: WfFormat 1.5, for WfCommons and replay.",
)
@click.option("-o", "--output", metavar="FILE", help="Where it goes: by default beside RUN. - is stdout.")
@click.option("--session", metavar="ID", help="Which session of the file; by default the one that began last.")
def export(run_file: str, form: str, output: str | None, session: str | None) -> int:
    """Write a run in a format of other programs.

    RUN is a telemetry file, or a folder of them: then the newest.

    \b
    asyncflow export --format chrome telemetry/
    """
    from asyncflow.cli.export import export as write_export

    return write_export(run_file, form, output, session)


def invoke(arguments: Sequence[str]) -> int:
    """Run the command line; its exit code. What was asked wrongly is said in one line."""
    try:
        code = asyncflow.main(list(arguments), prog_name="asyncflow", standalone_mode=False)
        sys.stdout.flush()
        return int(code or 0)
    except click.ClickException as error:
        return _complain(_one_line(error), error.exit_code)
    except OutOfTimeError as error:
        return _leave_in_time(error)
    except CommandLineError as error:
        return _complain(str(error), error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        return _complain("interrupted", INTERRUPTED)
    except BrokenPipeError:
        return _pipe_closed()


def _leave_in_time(error: OutOfTimeError) -> int:
    """Complain, and see to it that a thread which does not end keeps Python no longer than to the end of the time."""
    from asyncflow.cli.termination import exit_within

    code = _complain(str(error), error.exit_code)
    sys.stdout.flush()
    exit_within(max(_LEAST, error.ends - time.time()))
    return code


def _one_line(error: click.ClickException) -> str:
    message = error.format_message()
    context = error.ctx if isinstance(error, click.UsageError) else None
    if isinstance(error, click.NoSuchOption) and context is not None and context.command is run:
        return f"No such option '{error.option_name}'; what is meant for the script goes after --"
    return message if context is None else f"{message} See '{context.command_path} --help'"


def _complain(message: str, code: int) -> int:
    click.echo(f"asyncflow: {message}", err=True)
    return code


def _pipe_closed() -> int:
    """Whoever read the output has seen enough (`| head`): that is no error to report, but no success either."""
    # Or the interpreter would try once more to flush what nobody reads, and complain.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1
