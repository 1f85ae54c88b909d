"""`python -m nanochat.cli` as a process of its own: at a pseudo-terminal and in pipes."""

import fcntl
import io
import json
import os
import pty
import select
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest
import torch
from tests import processes

from nanochat.checkpoint import folder
from nanochat.checkpoint.opened import open_checkpoint
from nanochat.gpt import GPT, GPTConfig
from nanochat.inference.engine import Engine
from nanochat.serve.terminal.screen import Screen
from nanochat.tokenizer.conversations import render_prompt
from nanochat.tokenizer.tokenizer import BPETokenizer

TALKS = [sys.executable, "-m", "nanochat.cli", "temperature=0", "device=cpu"]


@pytest.fixture(scope="module")
def ckpt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A chat checkpoint with random weights: its answers go on until they are cut, in bytes of all
    kinds."""
    path, tokenizer = tmp_path_factory.mktemp("terminal") / "c", BPETokenizer([])
    gpt = GPT.build(GPTConfig(4096, tokenizer.vocab_size, 2, 2, 2, 32))
    drawn = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in gpt.parameters():
            p.normal_(0, 0.2, generator=drawn)
    folder.save(path, gpt.state_dict(), gpt.config, tokenizer, lineage={"config": {"phase": "sft"}})
    return path


def piped(*words: str, said: bytes = b"") -> "subprocess.CompletedProcess[bytes]":
    return subprocess.run([*TALKS, *words], input=said, capture_output=True, timeout=60)


class Person:
    """Somebody at a terminal with the program in it."""

    def __init__(self, *words: str) -> None:
        self.screen, theirs = pty.openpty()
        self.process = subprocess.Popen(
            [*TALKS, *words],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
            env={**os.environ, "TERM": "xterm"},
        )
        os.close(theirs)

    def sees(self, mark: str, seconds: float = 30) -> str:
        """What is shown up to `mark`."""
        seen, deadline = b"", time.monotonic() + seconds
        while mark.encode() not in seen:
            assert time.monotonic() < deadline, f"{mark!r} is not in {seen!r}"
            if select.select([self.screen], [], [], 0.1)[0]:
                try:
                    seen += os.read(self.screen, 1)
                except OSError as error:  # the program has ended
                    raise AssertionError(f"{mark!r} is not in {seen!r}") from error
        return seen.decode(errors="replace")

    def reads(self, n: int) -> None:
        for _ in range(n):
            assert select.select([self.screen], [], [], 30)[0]
            os.read(self.screen, 1)

    def types(self, keys: str, shown: str | None = None) -> None:
        """Press `keys`, wait until the line editor shows them, or `shown`."""
        os.write(self.screen, keys.encode())
        if shown != "":
            self.sees(shown or keys)

    def presses_ctrl_c(self) -> None:
        """Once the program waits for keys: Python's line editor does not notice one in the
        microseconds before it does."""
        asleep, deadline = 0, time.monotonic() + 30
        while asleep < 5 and time.monotonic() < deadline:
            state = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()[0]
            asleep = asleep + 1 if state == "S" else 0
            time.sleep(0.02)
        os.write(self.screen, b"\x03")

    def leaves(self) -> int:
        """The exit code, with whatever is still written read."""
        deadline = time.monotonic() + 20
        while self.process.poll() is None and time.monotonic() < deadline:
            if select.select([self.screen], [], [], 0.05)[0]:
                try:
                    os.read(self.screen, 65536)
                except OSError:
                    break
        return self.process.wait(10)


@pytest.fixture
def person():
    people: list[Person] = []

    def enters(*words: str) -> Person:
        people.append(Person(*words))
        return people[-1]

    yield enters
    for one in people:
        one.process.kill()
        one.process.wait()
        os.close(one.screen)


@pytest.mark.slow
def test_ctrl_c_stops_the_answer_keys_edit_the_line_and_ctrl_c_twice_quits(
    person, ckpt: Path, tmp_path: Path
) -> None:
    one = person(f"ckpt={ckpt}", "max_tokens=null", "system=be kind")
    assert "Ctrl-C stops an answer" in one.sees("you: ")
    one.types("helo")
    one.types("\x1b[Dl", "lo")  # back by one, and the letter that is missing
    one.types("\r", "\r\n")
    one.reads(20)  # of the answer, which would take seconds
    os.write(one.screen, b"\x03")
    stopped = time.monotonic()
    one.sees("(stopped)", 5)
    one.sees("you: ", 5)
    assert time.monotonic() - stopped < 3, "two tokens, on a busy machine"
    one.types(f"/save {tmp_path}/t.json\r", "messages are in")
    one.sees("you: ")
    one.types("\x1b[A\x1b[A", "hello")  # the question again, from the history
    one.types("\x15/set max_tokens=3\r", "(max_tokens=3)")
    one.sees("you: ")
    one.types("two\\\r", "...: ")
    one.types("lines\r", "(cut at max_tokens=3)")
    one.sees("you: ")
    one.types(f"/save {tmp_path}/t.json\r", "(4 messages are in")
    one.sees("you: ")
    one.types("abc")
    one.presses_ctrl_c()
    one.sees("(Ctrl-C once more quits")
    one.sees("you: ")
    one.types(" \x7f", "\x08")
    one.presses_ctrl_c()
    assert one.leaves() == 0
    system, first, answer, second, last = json.loads((tmp_path / "t.json").read_text())["messages"]
    assert (
        system["content"] == "be kind"
        and first["content"] == "hello"
        and second["content"] == "two\nlines"
    )
    assert answer["content"][0]["text"] and last["content"]


@pytest.mark.slow
def test_piped_lines_are_turns_and_commands_and_bytes_that_are_no_text_do_no_harm(
    ckpt: Path, tmp_path: Path
) -> None:
    lines = [
        "hello",
        "",
        "caf\xe9",
        "/st",
        "/set top_k=0",
        "/set max_tokens=4",
        "/retry",
        f"/save {tmp_path}/t.json",
        "/quit",
        "never",
    ]
    done = piped(f"ckpt={ckpt}", "max_tokens=20", said="\n".join(lines).encode("latin-1"))
    assert done.returncode == 0 and not processes.complaints(done.stderr)
    shown = done.stdout.decode()
    assert [line for line in shown.splitlines() if line.startswith("you: ")] == [
        f"you: {line}".replace("\xe9", "\ufffd") for line in lines[:-1] if line
    ]
    assert (
        "error: /st is not a command; there are /help" in shown
        and "error: top_k=0 must be at least 1" in shown
    )
    assert {c for c in shown if c < " " or "\x7f" <= c < "\xa0"} == {"\n"}
    found = json.loads((tmp_path / "t.json").read_text())
    assert [m["content"] for m in found["messages"][::2]] == ["hello", "caf\ufffd"] and len(
        found["messages"]
    ) == 4
    assert found["model"] == str(ckpt) and found["settings"]["max_tokens"] == 4


@pytest.mark.slow
def test_prompt_prints_the_answer_and_nothing_else(ckpt: Path) -> None:
    """It is what the engine gives, and a slash makes no command of it."""
    opened = open_checkpoint(str(ckpt), device="cpu")
    prompt = render_prompt(
        opened.tokenizer, {"messages": [{"role": "user", "content": "/help me"}]}
    )
    (answer,) = Engine(opened.gpt, opened.tokenizer).generate([prompt], max_tokens=20, tools=False)
    done = piped(
        f"ckpt={ckpt}", "max_tokens=20", "prompt=/help me", "stop=never said", "tools=false"
    )
    assert done.returncode == 0 and processes.complaints(done.stderr) == "(cut at max_tokens=20)\n"
    out = io.StringIO()
    Screen(out).line(answer.text)
    assert done.stdout.decode() == out.getvalue() and len(out.getvalue()) > 5


@pytest.mark.slow
def test_ctrl_d_quits(person, ckpt: Path) -> None:
    one = person(f"ckpt={ckpt}")
    one.sees("you: ")
    one.types("x\x7f", "x")
    os.write(one.screen, b"\x04")
    assert one.leaves() == 0


@pytest.mark.slow
def test_a_reader_that_goes_away_ends_it_without_a_word(ckpt: Path) -> None:
    for given in ("prompt=x", "max_tokens=5"):
        command = [*TALKS, f"ckpt={ckpt}", given]
        program = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert program.stdout is not None
        program.stdout.close()
        _, told = program.communicate(b"hello\n" * 50, timeout=60)
        assert program.returncode == 0 and b"Traceback" not in told and b"error" not in told


@pytest.mark.slow
def test_ctrl_c_ends_a_pipe(ckpt: Path) -> None:
    command = [*TALKS, f"ckpt={ckpt}", "max_tokens=null"]
    program = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert program.stdin is not None and program.stdout is not None
    program.stdin.write(b"hello\nyou\n")
    program.stdin.flush()
    assert program.stdout.readline() == b"you: hello\n"
    time.sleep(0.5)
    program.send_signal(2)
    _, told = program.communicate(timeout=20)
    assert program.returncode == 130 and processes.complaints(told) == "error: interrupted\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["prompt=x", "top_p=3"], "top_p=3 must be a number above 0 and at most 1"),
        (["prompt=x", "seed=x"], "seed=x must be a whole number from 0 up"),
        (["prompt=x", "stop=[1]"], "stop=[1] must be a list of texts"),
        (["prompt= "], "prompt= is empty; type a question"),
        ([f"prompt={'x' * 5000}"], "the last question has 5,00"),
    ],
)
def test_what_cannot_be_answered_is_one_line_and_exit_code_2(
    ckpt: Path, words: list[str], message: str
) -> None:
    done = processes.run(
        ["nanochat.cli", "device=cpu", f"ckpt={ckpt}", *words], env=dict(os.environ)
    )
    assert (
        done.returncode == 2
        and done.stdout == ""
        and processes.complaints(done.stderr).startswith("error: ")
        and message in done.stderr
    )
    assert processes.complaints(done.stderr).count("\n") == 1
