"""From an attempt to a task of RADICAL-Pilot's: pure."""

from __future__ import annotations

import errno
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from asyncflow.backends.contract import ExecutableOptions, WorkItem
from asyncflow.backends.launch import asked_variables
from asyncflow.backends.origin import variables as trace_variables
from asyncflow.backends.orphans import ATTEMPT, SESSION
from asyncflow.backends.radical.messages import PilotNode
from asyncflow.description import TaskDescription
from asyncflow.errors import CommandError, CommandStartError

#: Goes to the working directory and becomes the command; what keeps it from that is told by a line with the mark. (A
#: shell's own search finds its builtins first.)
_BECOME = f"""
cd -- "$0" || {{ echo "${ATTEMPT} no folder" >&2; exit 127; }}
p=
case $1 in
*/*) p=$1 ;;
*)
    IFS=:
    for d in $PATH; do if test -f "${{d:-.}}/$1" -a -x "${{d:-.}}/$1"; then p=${{d:-.}}/$1; break; fi; done
    unset IFS
    ;;
esac
test -e "$p" || {{ echo "${ATTEMPT} not found" >&2; exit 127; }}
test -f "$p" -a -x "$p" || {{ echo "${ATTEMPT} not executable" >&2; exit 126; }}
exec "$@"
"""
#: What these lines say, without the mark.
OBSTACLES = ("no folder", "not executable", "not found")

_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
#: Bytes that Linux takes for one word of a command, at most.
_LONGEST_WORD = 128 * 1024
_NAME = re.compile(r"[\w.<> -]+")
#: What has a meaning for a shell within double quotes.
_SPECIAL = re.compile(r'(["$`\\])')


def describe_attempt(
    uid: str, session: str, item: WorkItem, argv: Sequence[str], cwd: str, slots: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """What `rp.TaskDescription` is made of, for the command `argv` on these slots, one for each rank."""
    definition = item.definition
    asked = definition.description or TaskDescription()
    options = definition.executable or ExecutableOptions()
    own = {**options.env, **asked_variables(item)}
    variables = {**trace_variables(item.origin, own), **own, SESSION: session, ATTEMPT: mark_of(uid)}
    # Of these shells make nothing: the command gets them from `env`.
    odd = [f"{name}={value}" for name, value in variables.items() if not _IDENTIFIER.fullmatch(name)]
    described = {
        "uid": uid,
        # As one word: within arguments RADICAL-Pilot lets the shell replace `$`.
        "executable": shlex.join([*_become(cwd), *(["env", *odd] if odd else []), *argv]),
        "ranks": asked.ranks,
        "use_mpi": asked.ranks > 1,
        "cores_per_rank": asked.cores_per_rank,
        "gpus_per_rank": asked.gpus_per_rank,
        "gpu_type": "CUDA" if asked.gpus_per_rank else "",
        # Handed to SLURM as the memory of a node.
        "mem_per_rank": asked.mem_per_rank * _most_on_one_node(slots),
        "environment": exported(variables),
        "slots": list(slots),
    }
    if asked.pre_exec:  # where the command will run, as everywhere else
        described["pre_exec"] = [f"cd -- {shlex.quote(cwd)}", *asked.pre_exec, 'cd -- "$RP_TASK_SANDBOX"']
    if _NAME.fullmatch(definition.name):  # it stands in a script, unquoted
        described["name"] = definition.name
    return described


def _become(cwd: str) -> list[str]:
    return ["/bin/sh", "-c", _BECOME, cwd]


def check_words(name: str, argv: Sequence[str], cwd: str) -> None:
    """Raise CommandError or CommandStartError for words that could not arrive as they are."""
    for word in (*argv, cwd):
        try:
            size = len(word.encode())
        except UnicodeEncodeError:
            raise CommandError(name, f"{word!r} is not UTF-8, and nothing else gets through RADICAL-Pilot") from None
        if size >= _LONGEST_WORD:
            raise CommandStartError(name, argv[:1], OSError(errno.E2BIG, os.strerror(errno.E2BIG)), cwd)


def without_wrapping(said: str, uid: str) -> str:
    """What a command wrote to stderr, where its shell tells of its end by the script that it was started from."""
    told = re.sub(rf"^\S*{re.escape(uid)}\.exec\.sh: line \d+: +", "", said, flags=re.MULTILINE)
    return re.sub(r"/bin/sh -c '\n.*?\n'", "", told, flags=re.DOTALL)


def mark_of(uid: str) -> str:
    """What marks the processes of the task with this uid in their environment."""
    return f"asyncflow:{uid}"


def slot(node: PilotNode, cores: Sequence[int], gpus: Sequence[int]) -> dict[str, Any]:
    """The place of one rank."""
    return {
        "node_index": node.number,
        "node_name": node.name,
        "cores": [{"index": index, "occupation": 1.0} for index in cores],
        "gpus": [{"index": index, "occupation": 1.0} for index in gpus],
        "lfs": 0,
        "mem": 0,
    }


def exported(variables: Mapping[str, str]) -> dict[str, str]:
    """Environment variables in a form that the shell, into whose double quotes they are put, reads as they are."""
    shown = {name: value for name, value in variables.items() if _IDENTIFIER.fullmatch(name)}
    return {name: _SPECIAL.sub(r"\\\1", value) for name, value in shown.items()}


def _most_on_one_node(slots: Sequence[dict[str, Any]]) -> int:
    nodes = [each["node_index"] for each in slots]
    return max(nodes.count(node) for node in {*nodes})
