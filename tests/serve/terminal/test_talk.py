"""The conversation behind the terminal: what is in it after every answer, command and refusal."""

import io
import json
import os
import signal
from dataclasses import fields

import pytest
from tiny_networks import SPECIAL, TOKENIZER, T, chain, random_gpt, scripted

from nanochat.inference.engine import Engine, Fragment
from nanochat.inference.sampling import Sampling
from nanochat.serve.terminal.screen import Screen
from nanochat.serve.terminal.talk import SETTINGS, Talk, shown
from nanochat.tokenizer.conversations import render

PLAIN = dict.fromkeys(SETTINGS) | {
    "temperature": 0.0,
    "max_tokens": 8,
    "seed": 1,
    "tools": True,
    "python": False,
}
CALCULATES = chain("<|assistant_start|>", "<|python_start|>", "1+2", "<|python_end|>") | {
    SPECIAL["<|output_end|>"]: ord("Y"),
    ord("Y"): SPECIAL["<|assistant_end|>"],
}


def talk(gpt, out=None, **given) -> Talk:
    settings = PLAIN | {name: given.pop(name) for name in SETTINGS if name in given}
    return Talk(Engine(gpt, TOKENIZER, max_rows=1), Screen(out or io.StringIO()), settings, **given)


def said(it: Talk) -> str:
    """What was shown since the last time."""
    text = it.screen.out.getvalue()
    it.screen.out.seek(0)
    it.screen.out.truncate()
    return text


def state(it: Talk) -> tuple:
    return it.messages, it.settings, it.system, it.forgotten, it.answers, it.file


@pytest.fixture(scope="module")
def gpt():
    return random_gpt(std=0.15)


def test_an_answer_is_shown_and_kept_in_parts() -> None:
    it = talk(scripted(CALCULATES), max_tokens=None)
    assert it.take("1+2") and said(it) == "[1+2 → 3]Y\n"
    parts = [
        {"type": "python", "text": "1+2"},
        {"type": "python_output", "text": "3"},
        {"type": "text", "text": "Y"},
    ]
    assert it.messages == [
        {"role": "user", "content": "1+2"},
        {"role": "assistant", "content": parts},
    ]


def test_wherever_an_answer_is_cut_the_conversation_goes_on() -> None:
    """After every number of tokens: the parts render to what was written, closed, and a next
    question is answered."""
    whole = [
        SPECIAL["<|python_start|>"],
        *b"1+2",
        SPECIAL["<|python_end|>"],
        SPECIAL["<|output_start|>"],
        *b"3",
        SPECIAL["<|output_end|>"],
        *b"Y",
    ]
    for n in range(1, len(whole) + 1):
        it = talk(scripted(CALCULATES), max_tokens=n)
        it.take("x")
        if n == 1:  # a call of nothing is nothing
            assert it.messages == [
                {"role": "user", "content": "x"}
            ] and "(the answer is empty; /retry" in said(it)
        else:
            ids = render(TOKENIZER, {"messages": it.messages})[0]
            assert (
                ids[ids.index(SPECIAL["<|assistant_start|>"]) + 1 :][: n - (n == 6)]
                == whole[: n - (n == 6)]
            )
        it.take("/set max_tokens=null")
        it.take("y")
        assert it.messages[-1]["content"][-1] == {"type": "text", "text": "Y"}
        render(TOKENIZER, {"messages": it.messages})


def test_what_is_shown_of_tools() -> None:
    def of(*fragments: tuple[str, str]) -> str:
        return "".join(text for _, text in shown(Fragment(*f) for f in fragments))

    mark = ("mark", "<|…|>")
    called = (mark, ("python", "1"), ("python", "+1"), mark)
    assert (
        of(("text", "a "), *called, mark, ("python_output", "2"), mark, ("text", "b"))
        == "a [1+1 → 2]b"
    )
    assert of(mark, ("python", "1+"), mark, ("text", "b"), mark, ("python", "2")) == "[1+]b[2]"
    assert of(mark, ("python", "1"), mark, mark, ("python", "2")) == "[1][2]"
    assert of(mark, ("python_output", "7"), mark) == "[ → 7]"
    assert of(mark, mark) == ""


class PressesKeys(io.StringIO):
    """Ctrl-C is pressed when the third ? has been written."""

    def write(self, text: str) -> int:
        wrote = super().write(text)
        if text == "?" and self.getvalue().count("?") % 8 == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return wrote


def test_ctrl_c_stops_within_two_tokens_and_keeps_what_was_written() -> None:
    before = signal.getsignal(signal.SIGINT)
    it = talk(scripted({}), PressesKeys(), max_tokens=None, stoppable=True)
    it.take("x")
    shown = it.screen.out.getvalue().splitlines()
    assert shown[1:] == ["(stopped)"] and 3 <= len(shown[0]) <= 5
    assert it.messages[-1] == {"role": "assistant", "content": [{"type": "text", "text": shown[0]}]}
    assert signal.getsignal(signal.SIGINT) is before
    it.take("/set max_tokens=2")
    it.take("y")
    assert len(it.messages) == 4 and not it.engine.busy


def test_without_stoppable_ctrl_c_interrupts_and_the_conversation_is_as_before() -> None:
    it = talk(scripted({}), PressesKeys(), max_tokens=None)
    with pytest.raises(KeyboardInterrupt):
        it.take("x")
    assert it.messages == []


def test_a_stop_string_ends_the_answer_and_is_not_kept() -> None:
    it = talk(scripted(chain("<|assistant_start|>", "abcdef")), max_tokens=None)
    it.take("/set stop=cd max_tokens=6")
    it.take("x")
    assert it.messages[-1]["content"] == [{"type": "text", "text": "ab"}] and said(it).endswith(
        "\nab\n"
    )


@pytest.mark.parametrize(
    ("typed", "values"),
    [
        ("temperature=0.7 top_k=50", {"temperature": 0.7, "top_k": 50}),
        ("top_k=null top_p=0.9", {"top_k": None, "top_p": 0.9}),
        (
            "min_p=0.1 repetition_penalty=1.2 max_tokens=3",
            {"min_p": 0.1, "repetition_penalty": 1.2, "max_tokens": 3},
        ),
        ("max_tokens=null tools=false seed=7", {"max_tokens": None, "tools": False, "seed": 7}),
        ("seed=null", {"seed": None}),
        (r'stop=["\n", "user:"] seed=3', {"stop": ["\n", "user:"], "seed": 3}),
        (r"stop=\nyou: there temperature=1", {"stop": ["\nyou: there"], "temperature": 1}),
        ("stop=5", {"stop": ["5"]}),
        ("stop=null", {"stop": []}),
    ],
)
def test_set_takes_every_setting_of_sampling(gpt, typed: str, values: dict) -> None:
    it = talk(gpt)
    before = dict(it.settings)
    it.take(f"/set {typed}")
    assert it.settings == before | values
    shown = said(it)
    it.settings = before
    it.take(f"/set {shown.strip()[1:-1]}")  # what it says can be typed
    assert it.settings == before | values
    it.take("/set")
    assert f"temperature={json.dumps(it.settings['temperature'])}" in said(it)


def test_there_is_no_setting_of_sampling_that_set_does_not_have() -> None:
    of_programs = {
        "top_logprobs",
        "frequency_penalty",
        "presence_penalty",
        "logit_bias",
        "min_tokens",
        "grammar",
        "calls",
    }
    assert {field.name for field in fields(Sampling)} - of_programs == set(SETTINGS)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/set temperature=-1", "temperature=-1 must be 0, which"),
        ("/set top_k=5 top_p=2", "top_p=2 must be at least"),
        ("/set top_k=x", "top_k='x' must be at least 1"),
        ("/set stop=[1]", r"stop=\[1\] must be a list of texts"),
        ("/set tools=1", "tools=1 must be true or false"),
        ("/set seed=x", "seed='x' must be a whole number"),
        ("/set max_tokens=0", "max_tokens=0 must be at least 1"),
        ("/set min_p=NaN", "min_p=nan must be"),
        (
            "/set top_p 0.9",
            "'top_p 0.9' is not a setting; type /set NAME=VALUE with one of temperature",
        ),
        ("/set warmth=1", "'warmth=1' is not a setting"),
        (
            "/st",
            "/st is not a command; there are /help /clear /system /set /save /load /retry /quit",
        ),
        ("/", "/ is not a command; there are /help"),
        ("/clear all", "/clear stands alone, without 'all'"),
        ("/save", "name the file"),
        ("/load", "name the file"),
    ],
)
def test_what_is_refused_changes_nothing(gpt, line: str, message: str) -> None:
    it = talk(gpt, system="be kind")
    it.take("hello")
    before = state(it)
    with pytest.raises(ValueError, match=message):
        it.take(line)
    assert state(it) == before


def test_a_space_makes_a_text_of_a_slash(gpt) -> None:
    it = talk(gpt)
    it.take(" /clear")
    assert it.messages[0] == {"role": "user", "content": "/clear"}


def test_the_same_seed_talks_the_same_and_retry_samples_another_answer(gpt) -> None:
    def spoken(*lines: str) -> list:
        it = talk(gpt, temperature=1.0, top_k=None, seed=5)
        for line in lines:
            it.take(line)
        return it.messages

    once = spoken("hi", "you?")
    assert spoken("hi", "you?") == once
    again = spoken("hi", "you?", "/retry")
    assert again[:3] == once[:3] and len(again) == 4 and again[3] != once[3]
    assert spoken("hi", "/set seed=5", "/retry") == once[:2]
    it = talk(gpt, temperature=1.0, seed=None)
    answers = set()
    for n in range(6):  # one in a hundred has no token and leaves the one before
        it.take("/retry" if n else "hi")
        answers.add(str(it.messages[-1]["content"]))
    assert len(answers) > 2


def test_retry_at_temperature_0_says_that_it_leaves_nothing_to_chance(gpt) -> None:
    it = talk(gpt)
    with pytest.raises(ValueError, match="there is no answer yet"):
        it.take("/retry")
    it.take("hi")
    before = it.messages
    said(it)
    it.take("/retry")
    assert it.messages == before and said(it).startswith("(temperature=0 leaves nothing to chance")


def test_a_question_without_an_answer_is_asked_again_or_replaced() -> None:
    silent = {SPECIAL["<|assistant_start|>"]: SPECIAL["<|assistant_end|>"]}
    it = talk(scripted(silent))
    it.take("a")
    assert it.messages == [
        {"role": "user", "content": "a"}
    ] and "(the answer is empty; /retry asks again)" in said(it)
    it.take("b")
    assert it.messages == [{"role": "user", "content": "b"}]
    it.engine.gpt.script = {}
    it.take("/retry")
    assert len(it.messages) == 2 and it.messages[0]["content"] == "b"
    before = it.messages
    it.engine.gpt.script = silent
    it.take("/retry")
    assert it.messages == before  # the answer that was there stays


def test_the_system_prompt_is_set_shown_removed_and_survives_clear(gpt) -> None:
    it = talk(gpt, system="  be kind ")
    it.take("hi")
    with_it = it.messages
    it.take("/clear")
    assert it.messages == [] and said(it).endswith(
        "(a new conversation, with the system prompt as before)\n"
    )
    it.take("/system")
    assert said(it) == "be kind\n"
    it.take('/system ""')
    it.take("hi")
    assert it.system is None and it.messages != with_it
    it.take("/clear")
    it.take("be kind\n\nhi")  # what a system prompt is to this format
    assert it.messages[1] == with_it[1]
    it.take("/system you are a bird")
    assert it.system == "you are a bird"


def test_the_oldest_turns_are_forgotten_and_told_once_and_are_saved_all_the_same(gpt) -> None:
    it = talk(gpt, max_tokens=4)
    for _ in range(6):
        it.take("123456")
    notes = [line for line in said(it).splitlines() if line.startswith("(the context")]
    assert set(notes) == {f"(the context of {T} tokens is full: the oldest turn is forgotten)"}
    assert len(notes) == it.forgotten >= 3 and len(it.messages) == 12
    before = state(it)
    with pytest.raises(ValueError, match=r"the last question has .* say it in fewer words"):
        it.take("x" * T)
    assert state(it) == before
    it.take("1")
    assert len(it.messages) == 14


def test_a_later_turn_reads_only_what_is_new() -> None:
    it = talk(scripted(chain("<|assistant_start|>", "xy", "<|assistant_end|>")))
    with it.engine.frozen():
        it.take("01234567890123456789")
        it.take("ab")
    # bos, three marks and the question; the answer
    assert it.engine.stats.reused_tokens == 24 + len("xy")


def test_a_conversation_that_was_saved_goes_on_as_if_it_had_not_ended(
    gpt, tmp_path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    it = talk(gpt, temperature=1.0, system="be kind", model="here")
    it.take("hi")
    it.take("/save talk.json")
    found = json.loads((tmp_path / "talk.json").read_text())
    assert found["messages"] == [{"role": "system", "content": "be kind"}, *it.messages]
    assert found["settings"] == it.settings and found["model"] == "here"
    assert os.listdir(tmp_path) == ["talk.json"]
    other = talk(gpt, temperature=0.0)
    other.take("/load talk.json")
    assert (other.messages, other.settings, other.system) == (it.messages, it.settings, "be kind")
    assert "(2 messages from " in said(other)
    other.take("/set seed=9")
    it.take("/set seed=9")
    other.take("and?")
    it.take("and?")
    assert other.messages == it.messages
    other.take("/save")  # its own file again
    assert json.loads((tmp_path / "talk.json").read_text())["messages"][1:] == it.messages


def test_a_file_of_another_conversation_is_not_replaced(gpt, tmp_path) -> None:
    it, file = talk(gpt), tmp_path / "talk.json"
    with pytest.raises(ValueError, match="there is nothing to save yet"):
        it.take(f"/save {file}")
    it.take("hi")
    it.take(f"/save {file}")
    it.take(f"/save {file}")
    it.take("/clear")
    it.take("ho")
    before = file.read_bytes()
    with pytest.raises(
        ValueError, match=r"talk\.json exists and is not of this conversation; choose another name"
    ):
        it.take(f"/save {file}")
    with pytest.raises(ValueError, match=r"none/talk\.json cannot be written: No such file"):
        it.take(f"/save {tmp_path}/none/talk.json")
    assert file.read_bytes() == before and os.listdir(tmp_path) == ["talk.json"]


def test_a_list_of_messages_or_a_line_of_jsonl_is_read(gpt, tmp_path) -> None:
    turn = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": [{"type": "python", "text": "1+1"}]},
    ]
    question = {"role": "user", "content": "b"}
    for messages in (turn, [*turn, question], [{"role": "system", "content": "s"}, *turn]):
        for text in (
            json.dumps(messages),
            json.dumps(messages, indent=1),
            json.dumps({"messages": messages}) + "\n",
        ):
            (tmp_path / "f").write_text(text)
            it = talk(gpt)
            it.take(f"/load {tmp_path}/f")
            assert [*it._first(), *it.messages] == messages
            it.take("/retry")
            assert it.messages[-1]["role"] == "assistant"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"hello", "f is not JSON: "),
        (b"\xff\xfe", "f is not text"),
        (b"[" * 100_000, "f is not JSON: "),
        (b'[{"a":1}]\n[{"a":1}]\n', "f has 2 lines; put the conversation you want in a file alone"),
        (b"{}", "f is not a conversation: it has no list of messages"),
        (b"[]", "f is not a conversation: it is empty"),
        (b"3", "f is not a conversation: it has no list of messages"),
        (b'[{"role": "assistant", "content": "x"}]', "is of assistant where user comes"),
        (b'[{"role": "user", "content": 3}]', r"message 0 \(user\): its content is not text"),
        (
            b'{"messages": [{"role": "user", "content": "a"}], "settings": {"top_k": 0}}',
            "f: top_k=0 must be at least",
        ),
        (
            b'{"messages": [{"role": "user", "content": "a"}], "settings": {"stop": 5}}',
            "f: stop=5 must be a list",
        ),
        (
            b'{"messages": [{"role": "user", "content": "a"}], "settings": {"x": 0}}',
            "f has 'x' among its settings",
        ),
        (
            b'{"messages": [{"role": "user", "content": "a"}], "settings": [1]}',
            "f has settings without names",
        ),
    ],
)
def test_a_bad_file_is_refused_and_changes_nothing(
    gpt, tmp_path, content: bytes, message: str
) -> None:
    (tmp_path / "f").write_bytes(content)
    it = talk(gpt)
    it.take("hi")
    before = state(it)
    for name, why in (
        ("f", message),
        ("no", "no cannot be read: No such file"),
        ("", "cannot be read: Is a dir"),
    ):
        with pytest.raises(ValueError, match=why):
            it.take(f"/load {tmp_path}/{name}")
        assert state(it) == before


def test_no_control_character_but_newline_and_tab_is_written() -> None:
    """A model that writes ESC ]0;…BEL, CSI in one byte of Latin-1, CR, NUL, DEL: none of it reaches
    the terminal."""
    out = io.StringIO()
    screen = Screen(out)
    every = "".join(map(chr, [*range(0x20), *range(0x7F, 0xA0)]))
    for write in (screen.write, screen.line, screen.note):
        write(f"a{every}é")
    screen.error(ValueError(f"b{every}"))
    assert {c for c in out.getvalue() if c in every} == {"\n", "\t"}
    assert out.getvalue().startswith("a" + "\ufffd" * 9 + "\t\n" + "\ufffd" * 2)
