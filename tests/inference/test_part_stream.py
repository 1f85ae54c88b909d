"""Stop strings count in the text of an answer, from which calls of tools are left out: content
never holds one."""

import random

import pytest

from nanochat.inference.stream import Fragment, PartStream

MARKS = {"python": "<(>", "text": "<)>"}


def answer(seed: int) -> list[tuple[str, str]]:
    """Tokens of an answer with calls: (kind of its part or "mark", text)."""
    drawn = random.Random(seed)
    tokens: list[tuple[str, str]] = []
    for n in range(drawn.randint(1, 5)):
        kind = "python" if n % 2 else "text"
        if n:
            tokens.append(("mark", kind))
        tokens += [
            (kind, drawn.choice(["a", "b", "ab", "ba", "é"])) for _ in range(drawn.randint(0, 4))
        ]
    return tokens


def written(
    tokens: list[tuple[str, str]], stop: tuple[str, ...]
) -> tuple[list[Fragment], PartStream]:
    stream, found = PartStream(stop), []
    for kind, text in tokens:
        found += stream.enter(text, MARKS[text]) if kind == "mark" else stream.feed(text.encode())
        if stream.stopped:
            break
    return found + stream.finish(), stream


def joined(fragments: list[Fragment]) -> list[tuple[str, str]]:
    """One entry a part."""
    found: list[tuple[str, str]] = []
    for kind, text in fragments:
        if found and kind == found[-1][0] != "mark":
            found[-1] = (kind, found[-1][1] + text)
        else:
            found.append((kind, text))
    return found


@pytest.mark.parametrize("stop", [(), ("ab",), ("bb", "aba"), ("aab",), ("éa", "b")])
@pytest.mark.parametrize("seed", range(60))
def test_text_ends_before_the_first_stop_string_wherever_calls_stand(seed, stop):
    tokens = answer(seed)
    fragments, stream = written(tokens, stop)
    content = "".join(text for kind, text in fragments if kind == "text")
    whole = "".join(text for kind, text in tokens if kind == "text")
    # the plain rule: the stop string that is complete first, token by token
    seen, expected = "", whole
    for text in (text for kind, text in tokens if kind == "text"):
        seen += text
        ends = [(seen.index(one) + len(one), seen.index(one)) for one in stop if one in seen]
        if ends:
            expected = seen[: min(ends)[1]]
            break
    assert content == expected and not any(one in content for one in stop)
    assert stream.stopped == (expected != whole or any(one in whole for one in stop))
    # all of it, in order, as far as the text goes
    everything = joined([Fragment(k, MARKS[t] if k == "mark" else t) for k, t in tokens])
    got = joined(fragments)
    assert got[:-1] == everything[: len(got) - 1] if got else not content
    if got:
        assert everything[len(got) - 1][0] == got[-1][0] and everything[len(got) - 1][1].startswith(
            got[-1][1]
        )
    if not stream.stopped:
        assert got == everything
    else:  # the tokens that it takes to write that, and no call after it
        kept = tokens[: stream.tokens()]
        assert "".join(t for k, t in kept if k == "text").startswith(content)
        assert [t for k, t in kept if k == "python"] == [t for k, t in fragments if k == "python"]


def test_a_call_waits_only_where_text_before_it_may_begin_a_stop_string():
    stream = PartStream(("=3",))
    assert stream.feed(b"7") == [("text", "7")]
    assert stream.enter("python", "<(>") == [("mark", "<(>")]
    assert stream.feed(b"1") == [("python", "1")]
    assert stream.enter("text", "<)>") == [("mark", "<)>")]
    assert (
        stream.feed(b"=")
        == []
        == stream.enter("python", "<(>")
        == stream.feed(b"2")
        == stream.enter("text", "<)>")
    )
    assert stream.feed(b"4") == [
        ("text", "="),
        ("mark", "<(>"),
        ("python", "2"),
        ("mark", "<)>"),
        ("text", "4"),
    ]
