"""`asyncflow watch`: a run followed in the terminal while it goes on."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from asyncflow.cli.failure import CommandLineError
from asyncflow.cli.runs import need_telemetry
from asyncflow.display.progress import View, view_for
from asyncflow.display.terminal import BarView
from asyncflow.errors import NotTelemetryError

if TYPE_CHECKING:
    from asyncflow.report.live import Live

#: Seconds between two looks at the file, at most.
_INTERVAL = 0.5
#: Seconds without a line that are worth a word; an engine writes figures of its hosts every few seconds.
_SILENCE = 15.0
#: Failures that are told at once.
_FAILURES = 5
#: Names of workflows in one line.
_WORKFLOWS = 3


def watch(path: str, out: TextIO) -> int:
    """Follow it to the session's end."""
    need_telemetry()
    if not Path(path).exists() and not Path(path).absolute().parent.is_dir():
        raise CommandLineError(f"cannot watch {path}: there is no such file, and no folder where it could come to be")
    watcher = Watcher(Path(path), out)
    try:
        while not watcher.look():
            time.sleep(min(_INTERVAL, watcher.interval))
    except NotTelemetryError as error:
        raise CommandLineError(str(error)) from error
    finally:
        watcher.close()
    return 0


class Watcher:
    """Reads what has come, and shows it."""

    def __init__(self, path: Path, out: TextIO) -> None:
        from asyncflow.report.live import Followed
        from asyncflow.report.tail import Tail

        self._path = path
        self._out = out
        self._tail = Tail(path)
        self._followed = Followed()
        self._view: View | None = None
        #: When the last line came, by a clock that is never set.
        self._heard = time.monotonic()
        #: After how many seconds of silence a log says so next.
        self._next_word = _SILENCE
        self._waiting = False

    @property
    def interval(self) -> float:
        """Seconds until the next look."""
        return _INTERVAL if self._view is None else self._view.interval

    @property
    def live(self) -> Live | None:
        return self._followed.live

    def look(self) -> bool:
        """Show what is new; whether the session is over."""
        told = self._read()
        while self._tail.behind:
            told += self._read()
        live = self.live
        if live is None:
            self._wait()
            return False
        if self._view is None:
            self._view = self._open()
        if len(told) > _FAILURES:
            self._say(f"{len(told) - _FAILURES} tasks failed before these")
        for line in told[-_FAILURES:]:
            self._say(line)
        self._view.show(live.counts())
        self._mention_silence()
        return live.over

    def _read(self) -> list[str]:
        """Take what has come; a line for each task that failed."""
        events, anew = self._tail.poll()
        if anew:
            self._start_again()
        if events:
            self._heard, self._next_word = time.monotonic(), _SILENCE
        return [line for event in events if (line := self._followed.take(event)) is not None]

    def close(self) -> None:
        """Show the last state, and leave the terminal as it was."""
        live = self.live
        if self._view is not None:
            self._view.close([] if live is None else live.counts())
            self._view = None
        if live is not None and live.over:
            self._say(f"session {self._name(live)} has ended after {self._clock(live)}")

    def _start_again(self) -> None:
        """The file was cut or replaced: what was counted is of no run any more."""
        from asyncflow.report.live import Followed

        self._followed = Followed()
        self._waiting = True
        self._say(f"{self._tail.file} began anew")

    def _wait(self) -> None:
        if not self._waiting:
            self._waiting = True
            what = f"a run in {self._path}" if self._path.is_dir() else str(self._path)
            self._say(f"waiting for {what}")

    def _open(self) -> View:
        view = view_for(self._out)
        if isinstance(view, BarView):
            view.footer = self._footer
        return view

    def _say(self, line: str) -> None:
        """A line that stays."""
        self._out.write(f"{time.strftime('%H:%M:%S')}  {line}\n")
        self._out.flush()

    def _mention_silence(self) -> None:
        """In a log, now and then; below bars it stands all the time."""
        silent = time.monotonic() - self._heard
        if silent >= self._next_word and not isinstance(self._view, BarView):
            self._next_word = silent * 2
            self._say(self._silence(silent))

    def _silence(self, seconds: float) -> str:
        live = self.live
        said = f"nothing has come for {seconds:.0f} s"
        return f"{said}: {gone}" if live is not None and (gone := _gone(live)) else said

    @staticmethod
    def _name(live: Live) -> str:
        from asyncflow.report.words import readable

        return readable(live.session_id)

    def _clock(self, live: Live) -> str:
        from asyncflow.report.words import duration

        silent = 0.0 if live.over else time.monotonic() - self._heard
        return duration(max(0.0, live.last - live.began) + silent)

    def _footer(self) -> str:
        """Session, time, rate, workflows, silence."""
        live = self.live
        if live is None:
            return ""
        silent = time.monotonic() - self._heard
        said = [self._name(live), self._clock(live)]
        if not live.over:
            said.append(f"{live.rate(live.last + silent):.3g} tasks/s")
        workflows = live.running_workflows()
        if workflows:
            said.append(_running(workflows))
        if silent >= _SILENCE and not live.over:
            said.append(self._silence(silent))
        return "  ".join(said)


def _running(workflows: list[str]) -> str:
    from asyncflow.report.words import readable

    shown = ", ".join(readable(each) for each in workflows[:_WORKFLOWS])
    others = len(workflows) - _WORKFLOWS
    return f"{len(workflows)} workflow{'s' * (len(workflows) != 1)}: {shown}{f' and {others} others' * (others > 0)}"


def _gone(live: Live) -> str:
    """A word on the engine's process, where it should be on this host and is not."""
    if live.pid is None or live.pid <= 0 or live.host != socket.gethostname():
        return ""
    try:
        os.kill(live.pid, 0)
    except ProcessLookupError:
        return f"its process {live.pid} is gone"
    except OSError:
        pass
    return ""
