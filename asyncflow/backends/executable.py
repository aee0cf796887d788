"""Running a command on a worker: started in a session of its own, its output collected, its whole group ended."""

from __future__ import annotations

import contextlib
import math
import os
import selectors
import shlex
import socket
import subprocess
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from asyncflow.backends.contract import ExecutableOptions, WorkItem
from asyncflow.backends.launch import Launch
from asyncflow.backends.origin import note_command
from asyncflow.errors import CommandError, CommandNotFoundError, CommandStartError, ExecutableError

#: How much of stderr is kept for the error's message, in bytes.
TAIL = 64 * 1024
#: To start a process holds the GIL until its program begins: of many threads that do so at once, few may, or an event
#: loop beside them gets no turn for long.
_STARTS = threading.Semaphore(4)
#: Seconds after which a blow that did not reach the command is struck again.
_AGAIN = 0.1


class Cancelled(Exception):
    """The command was ended because its task was cancelled."""


def run_executable(item: WorkItem, returned: Any, launch: Launch) -> str:
    """Run the command that the task's function returned; its stdout, or the path of the file that holds it.

    Raises ExecutableError for a non-zero exit, CommandError for a command that cannot be run as it is, Cancelled,
    OSError where it cannot be started, and WorkDied where what launched it died.
    """
    definition = item.definition
    options = definition.executable or ExecutableOptions()
    argv = parse_command(definition.name, returned, options.shell)
    if item.origin is not None:
        note_command(item.origin, argv)
    process = Process(item, launch)
    stdout, stderr = process.run(launch.line(argv), launch.variables(options.env), options.cwd, item.directory)
    if process.returncode:
        end = launch.end(process.returncode, stderr)
        said = end.stderr.decode(errors="replace")
        raise ExecutableError(definition.name, returned, end.returncode, end.host, stdout, said)
    return stdout


def parse_command(name: str, returned: Any, shell: bool) -> list[str]:
    """The argument list for what an executable task's function returned."""
    if shell:
        if not isinstance(returned, str):
            raise CommandError(name, f"with shell=True it must return a string, not a {type(returned).__name__}")
        return ["/bin/sh", "-c", returned]
    if isinstance(returned, str):
        return _split(name, returned)
    if not isinstance(returned, (list, tuple)):
        raise CommandError(
            name, f"it returned a {type(returned).__name__}; return the command as a string or a list of its words"
        )
    argv = [_word(name, position, word) for position, word in enumerate(returned)]
    if any("\0" in word for word in argv):
        raise CommandError(name, "its command has a null byte in it")
    if not argv:
        raise CommandError(name, "it returned an empty command")
    return argv


def _word(name: str, position: int, word: Any) -> str:
    if isinstance(word, (str, os.PathLike)):
        return os.fspath(word)
    if isinstance(word, (int, float)):
        return str(word)
    raise CommandError(name, f"word {position} of its command is a {type(word).__name__}, not a string, number or path")


def _split(name: str, command: str) -> list[str]:
    if "\0" in command:
        raise CommandError(name, "its command has a null byte in it")
    character, plain = _scan(command.strip("\n"))
    if character:
        raise CommandError(
            name,
            f"its command has an unquoted {character!r}, which only a shell understands: {command!r}; "
            f"put it in single quotes, return a list of words, or use shell=True",
        )
    try:
        argv = list(_words(plain))
    except ValueError as error:
        raise CommandError(name, f"its command cannot be split into words ({error}): {command!r}") from error
    if not argv:
        raise CommandError(name, "it returned an empty command")
    return argv


def _words(command: str) -> shlex.shlex:
    words = shlex.shlex(command, posix=True)
    words.whitespace_split = True
    words.whitespace = " \t"
    words.commenters = ""
    return words


def _scan(command: str) -> tuple[str | None, str]:
    """The first character that a shell would act upon, if any, and the command in a form that shlex reads as a shell.

    The one difference: within double quotes a shell takes the backslash off an escaped `$` or backtick, shlex does not.
    """
    plain: list[str] = []
    quote = ""
    characters = iter(command)
    for character in characters:
        if character == "\\" and quote != "'":
            escaped = next(characters, "")
            if escaped != "\n":  # that pair only breaks a long line
                plain.append(f"\"'{escaped}'\"" if quote and escaped in ("$", "`") else character + escaped)
            continue
        # Double quotes protect all but these two; a `#` begins a comment only where a word would begin.
        if character in ("" if quote == "'" else "$`" if quote else "|><;&`$()\n"):
            return character, command
        if character == "#" and not quote and (not plain or plain[-1] in " \t"):
            return character, command
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"":
            quote = character
        plain.append(character)
    return None, "".join(plain)


class Process:
    """One command from start to end, driven by the worker's thread; only `cancel` is called from others."""

    def __init__(self, item: WorkItem, launch: Launch) -> None:
        self._item = item
        self._launch = launch
        self._wake_end, self._cancel_end = socket.socketpair()
        self._wake_end.setblocking(False)
        self.returncode = 0

    def cancel(self) -> None:
        """End it, from any thread: TERM for all of its processes, KILL after the grace."""
        with contextlib.suppress(OSError):  # it has just ended
            self._cancel_end.send(b".")

    def run(
        self, line: list[str], variables: Mapping[str, str], cwd: str | None, directory: str | None
    ) -> tuple[str, bytes]:
        """Start `line` and wait for its end; stdout (its path where `directory` is given) and stderr's tail."""
        try:
            with contextlib.ExitStack() as files:
                stdout, stderr = _stdio(self._item, directory, files)
                process = self._start(line, variables, cwd, stdout, stderr)
                files.callback(_close_pipes, process)
                output, errors = self._follow(process)
                if stdout is not None and stderr is not None:
                    return stdout.name, _tail_of(stderr)
            return output.decode(errors="replace"), errors
        finally:
            self._item.handle = None
            self._wake_end.close()
            self._cancel_end.close()

    def _start(
        self,
        line: list[str],
        variables: Mapping[str, str],
        cwd: str | None,
        stdout: IO[bytes] | None,
        stderr: IO[bytes] | None,
    ) -> subprocess.Popen[bytes]:
        try:
            with _STARTS:
                return subprocess.Popen(
                    line,
                    stdin=subprocess.DEVNULL,
                    stdout=stdout or subprocess.PIPE,
                    stderr=stderr or subprocess.PIPE,
                    env=dict(variables),
                    cwd=cwd,
                    start_new_session=True,
                )
        except OSError as error:
            kind = CommandNotFoundError if isinstance(error, FileNotFoundError) else CommandStartError
            raise kind(self._item.definition.name, line, error, cwd) from error

    def _follow(self, process: subprocess.Popen[bytes]) -> tuple[bytes, bytes]:
        collector = _Collector(process, self._wake_end)
        self._item.handle = self
        if self._item.cancelled:  # asked for between the start and the line above
            self.cancel()
        try:
            self._until_exit(process, collector)
        finally:
            collector.close()
        self.returncode = process.wait()
        if self._item.cancelled:
            raise Cancelled
        return bytes(collector.output), bytes(collector.errors[-TAIL:])

    def _until_exit(self, process: subprocess.Popen[bytes], collector: _Collector) -> None:
        while not collector.exited:
            if collector.wait(math.inf):
                self._end(process.pid, collector)
        # The leader is not reaped yet, so its group is still its own.
        self._launch.clean(process.pid, self._item.cancelled)
        collector.drain()

    def _end(self, process: int, collector: _Collector) -> None:
        for strike, patience in self._launch.blows(process):
            deadline = time.monotonic() + patience
            reached = False
            while not collector.exited:
                reached = reached or strike()
                left = deadline - time.monotonic()
                if left <= 0:
                    break
                collector.wait(left if reached else min(left, _AGAIN))


def _stdio(
    item: WorkItem, directory: str | None, files: contextlib.ExitStack
) -> tuple[IO[bytes], IO[bytes]] | tuple[None, None]:
    if directory is None:
        return None, None
    output, errors = output_files(item, directory)
    return files.enter_context(open(output, "r+b")), files.enter_context(open(errors, "r+b"))


def output_files(item: WorkItem, directory: str) -> tuple[str, str]:
    """The paths of new files, its owner's alone, for what the command of `item` writes to stdout and stderr."""
    Path(directory).mkdir(parents=True, exist_ok=True, mode=0o700)
    paths = f"{directory}/{item.uid}.{item.attempt}.out", f"{directory}/{item.uid}.{item.attempt}.err"
    for path in paths:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600))
    return paths


def _tail_of(file: IO[bytes]) -> bytes:
    size = os.fstat(file.fileno()).st_size
    return os.pread(file.fileno(), TAIL, max(0, size - TAIL))


def _close_pipes(process: subprocess.Popen[bytes]) -> None:
    for pipe in (process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()


class _Collector:
    """Reads a process's output as it comes and notices its exit and the wake-up byte of a cancellation."""

    def __init__(self, process: subprocess.Popen[bytes], wake: socket.socket) -> None:
        self._process = process
        self._selector = selectors.DefaultSelector()
        self.output = bytearray()
        self.errors = bytearray()
        self.exited = False
        self._wake = wake
        self._selector.register(wake, selectors.EVENT_READ, None)
        for pipe, kept in ((process.stdout, self.output), (process.stderr, self.errors)):
            if pipe is not None:
                os.set_blocking(pipe.fileno(), False)
                self._selector.register(pipe, selectors.EVENT_READ, kept)
        # Not the end of the pipes: a background process that inherited them may hold them open for ever.
        self._pidfd = os.pidfd_open(process.pid) if hasattr(os, "pidfd_open") else None
        if self._pidfd is not None:
            self._selector.register(self._pidfd, selectors.EVENT_READ, None)

    def wait(self, timeout: float) -> bool:
        """Wait for output, exit or a wake-up; whether it was a wake-up."""
        if self._pidfd is None:  # no such system call here: look often
            timeout = min(timeout, 0.05)
        woken = False
        for key, _ in self._selector.select(None if timeout == math.inf else timeout):
            if key.fileobj is self._wake:
                self._selector.unregister(self._wake)
                woken = True
            elif key.fileobj == self._pidfd:
                self.exited = True
            else:
                self._read(key.fileobj, key.data)
        if self._pidfd is None and _has_exited(self._process.pid):
            self.exited = True
        return woken

    def drain(self) -> None:
        """Read what the ended process left in its pipes."""
        for key in list(self._selector.get_map().values()):
            if key.data is not None:
                while self._read(key.fileobj, key.data):
                    pass

    def close(self) -> None:
        self._selector.close()
        if self._pidfd is not None:
            os.close(self._pidfd)

    def _read(self, pipe: Any, kept: bytearray) -> bool:
        try:
            data = os.read(pipe.fileno(), 1 << 16)
        except BlockingIOError:
            return False
        if not data:
            self._selector.unregister(pipe)
            return False
        kept += data
        if kept is self.errors and len(kept) > 4 * TAIL:
            del kept[:-TAIL]
        return True


def _has_exited(pid: int) -> bool:
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
