"""A conversation with one checkpoint and its commands: lines go in, text goes to a Screen.

The state is `messages`, in alternating turns. The last may be a question without an answer: /retry
asks it again, the next question replaces it. What is refused raises a ValueError of one line and
changes nothing.
"""

import json
import random
import re
import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nanochat.checkpoint.atomic import write_json
from nanochat.inference.dialogue import fit
from nanochat.inference.engine import Engine
from nanochat.inference.request import Request
from nanochat.inference.sampling import Sampling
from nanochat.inference.stream import Fragment, merge_parts
from nanochat.serve.terminal.screen import Screen
from nanochat.tokenizer.conversations import BadConversation, check

SETTINGS = (
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repetition_penalty",
    "max_tokens",
    "seed",
    "stop",
    "tools",
    "python",
)
COMMANDS = {  # name -> what follows it, what it does
    "help": ("", "this list"),
    "clear": ("", "start a new conversation; the system prompt and the settings stay"),
    "system": ("[TEXT]", 'set the system prompt, or show it; /system "" removes it'),
    "set": ("[NAME=VALUE …]", f"change how answers are sampled, or show it: {', '.join(SETTINGS)}"),
    "save": (
        "FILE",
        "write the conversation as JSON; a file of another conversation is not replaced",
    ),
    "load": ("FILE", "go on with a conversation from JSON, and with the settings in it"),
    "retry": ("", "sample the last answer again"),
    "quit": (
        "",
        "leave; so do Ctrl-D, and Ctrl-C twice at the prompt (in an answer it stops the answer)",
    ),
}


def checked(settings: dict[str, Any]) -> dict[str, Any]:
    """The SETTINGS as they are kept, `stop` as a list. ValueError, Sampling's own, for one that
    makes no sense."""
    stop = settings["stop"]
    settings = {
        **settings,
        "stop": text_list(stop) if isinstance(stop, str) else [] if stop is None else stop,
    }
    sampling_for(settings, 0)
    return settings


def sampling_for(settings: dict[str, Any], answer: int) -> Sampling:
    """For the `answer`-th answer: a number as `seed` makes all of them reproducible, null makes
    each another one."""
    seed = settings["seed"]
    if seed is None:
        seed = random.SystemRandom().getrandbits(31)
    drawn = Sampling(**{**settings, "seed": seed})
    return Sampling(**{**settings, "seed": drawn.seed + answer})


def text_list(typed: str) -> Any:
    r"""Stop strings as they are typed: JSON, or one text as it stands, in which \n is a line break.

    >>> text_list('["a", "b"]'), text_list(r"\nuser:"), text_list("null")
    (['a', 'b'], ['\nuser:'], [])
    """
    try:
        value = (
            json.loads(typed) if typed.startswith(("[", '"', "null")) else json.loads(f'"{typed}"')
        )
    except ValueError:
        value = typed
    return [] if value in (None, "") else [value] if isinstance(value, str) else value


def read_settings(typed: str) -> dict[str, Any]:
    """`temperature=0.7 top_k=50` as a dict; values are JSON. ValueError for a name that is no
    setting."""
    read: dict[str, Any] = {}
    for word in re.split(r"\s+(?=\w+=)", typed):
        name, equals, value = word.partition("=")
        if name not in SETTINGS or not equals:
            raise ValueError(
                f"{word!r} is not a setting; type /set NAME=VALUE with one of {', '.join(SETTINGS)}"
            )
        try:
            read[name] = text_list(value) if name == "stop" else json.loads(value)
        except ValueError:
            read[name] = value
    return read


def typed_settings(settings: dict[str, Any]) -> str:
    """As they can be typed after /set."""
    return " ".join(
        f"{name}={json.dumps(value, ensure_ascii=False)}" for name, value in settings.items()
    )


def shown(fragments: Iterable[Fragment]) -> Iterator[Fragment]:
    """An answer as a person reads it: a call of the tool in brackets, its result after an arrow."""
    last, called = "text", False
    for kind, text in fragments:
        if kind != last and kind != "mark":
            if called and kind != "python_output":
                yield Fragment("python", "]")
                called = False
            if kind != "text" and not called:
                yield Fragment("python", "[")
                called = True
            if kind == "python_output":
                yield Fragment(kind, " → ")
        if kind != "mark":
            yield Fragment(kind, text)
        last = kind
    if called:
        yield Fragment("python", "]")


def read_conversation(path: Path) -> dict[str, Any]:
    """`messages` and perhaps `settings` from a file: what /save writes, or a list of messages,
    which is a line of JSONL too."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not text, so it holds no conversation") from error
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        lines = [line for line in text.splitlines() if line.strip()]
        if len(lines) > 1 and all(
            line.lstrip()[0] in "[{" and line.rstrip()[-1] in "]}" for line in lines
        ):
            raise ValueError(
                f"{path} has {len(lines)} lines; put the conversation you want in a file alone"
            ) from error
        raise ValueError(f"{path} is not JSON: {error}") from error
    found = {"messages": found} if isinstance(found, list) else found
    try:
        check(found, answered=False)
    except BadConversation as error:
        raise ValueError(f"{path} is not a conversation: {error}") from error
    return found


class Talk:
    """`stoppable`: Ctrl-C ends an answer and keeps what is written of it. Without, it is a
    KeyboardInterrupt as everywhere."""

    def __init__(
        self,
        engine: Engine,
        screen: Screen,
        settings: dict[str, Any],
        *,
        system: str | None = None,
        model: str = "",
        stoppable: bool = False,
    ) -> None:
        self.engine, self.screen, self.model, self.stoppable = engine, screen, model, stoppable
        self.settings, self.system = checked(settings), (system or "").strip() or None
        self.messages: list[dict[str, Any]] = []  # without the system prompt
        self.forgotten = 0  # turns at their beginning that no longer fit the context
        self.answers = 0  # sampled since the seed was set
        self.file: Path | None = None  # where this conversation was written to or read from

    def take(self, line: str) -> bool:
        """A question or a command; False if it was the last. ValueError for one that is refused."""
        if not line.startswith("/"):
            self.ask(line.strip())
            return True
        name, rest = [*line[1:].split(maxsplit=1), "", ""][:2]
        if name not in COMMANDS:
            raise ValueError(
                f"/{name} is not a command; there are {' '.join(f'/{known}' for known in COMMANDS)}"
                ". Put a space before a text that begins with /"
            )
        rest, usage = rest.strip(), COMMANDS[name][0]
        if rest and not usage:
            raise ValueError(f"/{name} stands alone, without {rest!r}")
        if name == "quit":
            return False
        getattr(self, f"do_{name}")(*[rest] if usage else [])
        return True

    # --- answers ----------------------------------------------------------------------------------

    def ask(self, question: str) -> None:
        self._answer([*self._answered(), {"role": "user", "content": question}])

    def do_retry(self) -> None:
        if not self.messages:
            raise ValueError("there is no answer yet; ask something first")
        if self.settings["temperature"] == 0:
            self.screen.note("temperature=0 leaves nothing to chance; /set temperature=0.7 does")
        self._answer(
            self.messages[:-1] if self.messages[-1]["role"] == "assistant" else self.messages
        )

    def _answered(self) -> list[dict[str, Any]]:
        """The messages without a question that got no answer."""
        return (
            self.messages[:-1]
            if self.messages and self.messages[-1]["role"] == "user"
            else self.messages
        )

    def _answer(self, asked: list[dict[str, Any]]) -> None:
        """Sample and show what follows `asked`; only then is it part of the conversation."""
        context = self.engine.gpt.config.sequence_len
        how = sampling_for(self.settings, self.answers)
        prompt, more = fit(
            self.engine.tokenizer,
            [*self._first(), *asked[2 * self.forgotten :]],
            context=context,
            room=how.max_tokens or context // 2,
            forget=True,
        )
        if more:
            turns = "turn is" if more == 1 else f"{more} turns are"
            self.screen.note(
                f"the context of {context:,} tokens is full: the oldest {turns} forgotten"
            )
        request = self.engine.submit(prompt, how)
        fragments: list[Fragment] = []

        def heard() -> Iterator[Fragment]:
            for fragment in self.engine.stream(request):
                fragments.append(fragment)
                yield fragment

        with self._stopping(request):
            for kind, text in shown(heard()):
                self.screen.write(text, dim=kind != "text")
            self.screen.end()
            parts = merge_parts(fragments)
            self.forgotten, self.answers = self.forgotten + more, self.answers + 1
            if parts:
                self.messages = [*asked, {"role": "assistant", "content": parts}]
            elif len(asked) >= len(self.messages):  # otherwise the answer that was there stays
                self.messages = asked
        self._say_how_it_ended(request, bool(parts))

    def _say_how_it_ended(self, request: Request, written: bool) -> None:
        (answer,) = request.completions
        ids, context = len(answer.ids), self.engine.gpt.config.sequence_len
        if answer.finish_reason == "cancelled":
            self.screen.note(
                "stopped" if written else "stopped before the answer began; /retry asks again"
            )
        elif not written:
            self.screen.note("the answer is empty; /retry asks again")
        elif answer.finish_reason == "length" and len(request.prompt) + ids >= context:
            self.screen.note(f"cut where the context of {context:,} tokens is full")
        elif answer.finish_reason == "length":
            self.screen.note(f"cut at max_tokens={ids}")

    @contextmanager
    def _stopping(self, request: Request) -> Iterator[None]:
        """Inside, Ctrl-C ends the request at its next token and interrupts nothing else."""
        if not self.stoppable:
            yield
            return
        before = signal.signal(signal.SIGINT, lambda *_: self.engine.cancel(request))
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def _first(self) -> list[dict[str, Any]]:
        return [{"role": "system", "content": self.system}] if self.system else []

    # --- commands ---------------------------------------------------------------------------------

    def do_help(self) -> None:
        for name, (usage, meaning) in COMMANDS.items():
            self.screen.line(f"{f'/{name} {usage}':<22} {meaning}")

    def do_clear(self) -> None:
        self.messages, self.forgotten, self.file = [], 0, None
        self.screen.note(
            "a new conversation" + (", with the system prompt as before" if self.system else "")
        )

    def do_system(self, text: str) -> None:
        if not text:
            self.screen.line(self.system or "(no system prompt; /system TEXT sets one)")
            return
        self.system = None if text in ('""', "''") else text
        self.screen.note("the system prompt is set" if self.system else "no system prompt any more")

    def do_set(self, typed: str) -> None:
        if not typed:
            self.screen.line(typed_settings(self.settings))
            return
        self._change(read := read_settings(typed))
        self.screen.note(typed_settings({name: self.settings[name] for name in read}))

    def _change(self, read: dict[str, Any]) -> None:
        self.settings = checked({**self.settings, **read})
        self.answers = 0 if "seed" in read else self.answers

    def do_save(self, name: str) -> None:
        if not self.messages:
            raise ValueError("there is nothing to save yet; ask something first")
        path = self._path(name)
        if path.exists() and path != self.file:
            raise ValueError(
                f"{path} exists and is not of this conversation; choose another name or remove it"
            )
        whole = {
            "messages": [*self._first(), *self.messages],
            "settings": self.settings,
            "model": self.model,
        }
        try:
            write_json(path, whole)
        except OSError as error:
            raise ValueError(f"{path} cannot be written: {error.strerror}") from error
        self.file = path
        self.screen.note(f"{len(self.messages)} messages are in {path}")

    def do_load(self, name: str) -> None:
        path = self._path(name)
        found = read_conversation(path)
        settings = found.get("settings") or {}
        if not isinstance(settings, dict) or (unknown := sorted(set(settings) - set(SETTINGS))):
            what = (
                f"{unknown[0]!r} among its settings"
                if isinstance(settings, dict)
                else "settings without names"
            )
            raise ValueError(f"{path} has {what}; there are {', '.join(SETTINGS)}")
        try:
            self._change(settings)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        messages = found["messages"]
        system = messages[0]["content"] if messages[0]["role"] == "system" else None
        self.system, self.messages = system, messages[1 if system is not None else 0 :]
        self.forgotten, self.file = 0, path
        of = (
            f", which {found['model']} was talking"
            if found.get("model") not in (None, "", self.model)
            else ""
        )
        self.screen.note(f"{len(self.messages)} messages from {path}{of}")
        if settings:
            self.screen.note(typed_settings(settings))

    def _path(self, name: str) -> Path:
        if not name and self.file is None:
            raise ValueError("name the file, such as /save talk.json or /load talk.json")
        try:
            return Path(name).expanduser().absolute() if name or self.file is None else self.file
        except RuntimeError as error:  # ~nobody
            raise ValueError(f"{name}: {error}") from error
