"""How a file from outside is refused, and what a message shows of it."""

from __future__ import annotations

import errno

import pytest

from vcc_fm.ground.errors import UserError, first_line, reading, shown


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ValueError("first\nsecond"), "first"),
        (KeyError(), "KeyError"),
        (OSError(errno.ELOOP, "Too many levels of symbolic links", "a"), "Too many levels of symbolic links"),
        (MemoryError(), "it takes more memory than there is"),
        (RecursionError("maximum recursion depth exceeded"), "it is nested too deeply"),
        (StopIteration(), "StopIteration"),
    ],
)
def test_whatever_a_parser_raises_is_a_fault_of_the_file(error, reason):
    with pytest.raises(UserError) as caught, reading("a.yaml", "YAML", "correct it"):
        raise error
    assert str(caught.value) == f"a.yaml is not readable as YAML: {reason}; correct it"
    assert caught.value.__cause__ is error


def test_own_errors_and_a_stop_pass():
    with pytest.raises(UserError, match=r"^mine$"), reading("a", "YAML"):
        raise UserError("mine")
    with pytest.raises(KeyboardInterrupt), reading("a", "YAML"):
        raise KeyboardInterrupt


def test_a_value_takes_part_of_a_line():
    bomb: list[object] = ["x"]
    for _ in range(40):
        bomb = [bomb] * 9
    assert len(shown(bomb)) <= 160
    assert shown("many") == "'many'"
    assert len(shown("y" * 10**6)) <= 160
    assert len(first_line(ValueError("z" * 10**6))) <= 160


def test_a_message_is_bounded_and_holds_nothing_that_a_terminal_obeys():
    message = str(UserError(f"a.yaml: label \x1b[2J\ud800{'v' * 10**6}; correct it\nsecond line"))
    assert message.startswith(r"a.yaml: label \x1b[2J\ud800vvv")
    assert message.endswith("vvv; correct it\nsecond line")
    assert len(message) < 2100
    assert message.encode()
