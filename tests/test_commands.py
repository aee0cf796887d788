"""What an executable task may return as its command, and what is refused with a word on how to do it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncflow.backends.executable import parse_command
from asyncflow.errors import CommandError


@pytest.mark.parametrize(
    "command,argv",
    [
        ("gzip -k data.txt", ["gzip", "-k", "data.txt"]),
        ("echo 'two words' \"and more\"", ["echo", "two words", "and more"]),
        ("echo 'a|b' \"c;d\" e\\&f", ["echo", "a|b", "c;d", "e&f"]),
        ("echo '$HOME `date`'", ["echo", "$HOME `date`"]),
        (r'echo "\$5"', ["echo", "$5"]),
        (["gzip", "-k", "my file; rm -rf"], ["gzip", "-k", "my file; rm -rf"]),
        (("sleep", 1.5, Path("a b"), 7), ["sleep", "1.5", "a b", "7"]),
    ],
)
def test_a_command_is_a_string_or_a_list_of_words(command: Any, argv: list[str]) -> None:
    assert parse_command("list", command, shell=False) == argv


@pytest.mark.parametrize("character", "|><;&`$")
@pytest.mark.parametrize("command", ["ls {0} more", "ls{0}", "echo '{0}' \"x\" {0}"])
def test_what_only_a_shell_understands_is_refused(character: str, command: str) -> None:
    with pytest.raises(CommandError) as caught:
        parse_command("list", command.format(character), shell=False)
    message = str(caught.value)
    assert f"executable 'list': its command has an unquoted {character!r}" in message
    assert "use shell=True" in message


@pytest.mark.parametrize("character", "$`")
def test_a_shell_acts_on_these_in_double_quotes_too(character: str) -> None:
    with pytest.raises(CommandError, match="unquoted"):
        parse_command("list", f'echo "a{character}b"', shell=False)


@pytest.mark.parametrize(
    "command,problem",
    [
        (None, "it returned a NoneType; return the command as a string or a list of its words"),
        ({"ls": 1}, "it returned a dict"),
        ([], "an empty command"),
        ("", "an empty command"),
        ("   ", "an empty command"),
        (["ls", None], "word 1 of its command is a NoneType"),
        (["ls", ["-l"]], "word 1 of its command is a list"),
        ("echo 'unclosed", "cannot be split into words"),
    ],
)
def test_what_is_no_command_is_named(command: Any, problem: str) -> None:
    with pytest.raises(CommandError, match=f"executable 'list': .*{problem}"):
        parse_command("list", command, shell=False)


def test_with_a_shell_the_string_is_a_script() -> None:
    script = "for x in *; do echo $x | wc -c; done > out"
    assert parse_command("list", script, shell=True) == ["/bin/sh", "-c", script]


def test_with_a_shell_a_list_makes_no_sense() -> None:
    with pytest.raises(CommandError, match="with shell=True it must return a string, not a list"):
        parse_command("list", ["ls", "-l"], shell=True)


@given(st.lists(st.text(min_size=1).filter(lambda word: "\0" not in word), min_size=1))
def test_a_list_of_words_needs_no_quoting(words: list[str]) -> None:
    assert parse_command("list", words, shell=False) == words
