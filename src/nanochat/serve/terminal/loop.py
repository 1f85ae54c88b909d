"""A Talk with the person at the terminal, or with the lines of a pipe.

At a terminal lines are edited and recalled with the keys of readline, and one that ends in a
backslash goes on in the next. In a pipe each line is a turn, written out before its answer.
Commands work in both.
"""

import contextlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from nanochat.runtime.signals import take_ctrl_c
from nanochat.serve.terminal.talk import Talk

with contextlib.suppress(ImportError):  # not on every system
    import readline  # noqa: F401  # input() then edits lines with it

TWO_PRESSES = 0.05  # guess: seconds; a person who presses twice in a row to quit is slower


@contextmanager
def streams() -> Iterator[None]:
    """Inside, bytes that are not text are replaced, and a closed pipe (`| head -1`) ends the
    program silently."""
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if stream is not None:
            stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        # for what Python flushes at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def once(talk: Talk, question: str) -> None:
    """The answer to one question. ValueError for one that cannot be answered."""
    if not question.strip():
        raise ValueError(
            "prompt= is empty; type a question, or leave prompt= out for a conversation"
        )
    with streams(), talk.engine.frozen():
        talk.ask(question.strip())


def converse(talk: Talk) -> None:
    """Until the input ends, /quit, or Ctrl-C twice in a row at the prompt. A line that is refused
    is reported and changes nothing."""
    if sys.stdin is None:
        raise ValueError("there is no input to read; type prompt=… for one answer")
    person = talk.stoppable = sys.stdin.isatty()
    pressed = False  # Ctrl-C, at an empty prompt just now
    with streams(), talk.engine.frozen():
        if person:
            take_ctrl_c(TWO_PRESSES)
            talk.screen.note(
                f"{talk.model}; /help lists the commands, Ctrl-C stops an answer, Ctrl-D quits"
            )
        while True:
            try:
                line = _line()
                pressed = False
                if not line.strip():
                    continue
                if not (person and sys.stdout.isatty()):
                    talk.screen.line(f"you: {line}")
                if not talk.take(line):
                    return
            except EOFError:
                if person:
                    talk.screen.end()
                return
            except BrokenPipeError:
                raise
            except (ValueError, OSError) as error:
                talk.screen.error(error)
            except KeyboardInterrupt:
                if not person:
                    raise
                talk.screen.end()
                if pressed:
                    return
                pressed = True
                talk.screen.note("Ctrl-C once more quits, and so does Ctrl-D")


def _line() -> str:
    """The next line without its end; several for a person who ends them in a backslash. EOFError
    after the last."""
    line = _raw_line("you: ")
    while sys.stdin.isatty() and line.endswith("\\"):
        line = f"{line[:-1]}\n{_raw_line('...: ')}"
    return line


def _raw_line(prompt: str) -> str:
    if sys.stdin.isatty() and sys.stdout.isatty():
        return input(prompt)  # by readline
    if sys.stdin.isatty():
        print(prompt, end="", file=sys.stderr, flush=True)
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line.removesuffix("\n")
