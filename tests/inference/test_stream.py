"""Text that grows by tokens: whole characters, and nothing that belongs to a stop string, however
the tokens are cut."""

import random

import pytest

from nanochat.inference.stream import TextStream

TEXT = "naïve café — 日本語のテキスト, 한국어, 👩‍🚀🇫🇷 e\u0301 done"


def cuts(raw: bytes, seed: int) -> list[bytes]:
    """`raw` in random pieces of 1 to 4 bytes."""
    drawn, pieces = random.Random(seed), []
    while raw:
        n = drawn.randint(1, 4)
        pieces.append(raw[:n])
        raw = raw[n:]
    return pieces


def fed(pieces: list[bytes], *stop: str) -> tuple[list[str], TextStream]:
    """The pieces of text, as far as it goes."""
    stream, given = TextStream(stop), []
    for piece in pieces:
        given.append(stream.feed(piece))
        if stream.stopped:
            break
    return [*given, stream.finish()], stream


@pytest.mark.parametrize("seed", range(5))
def test_pieces_are_whole_characters_as_soon_as_they_are_there(seed):
    pieces = cuts(TEXT.encode(), seed)
    given, _ = fed(pieces)
    assert "".join(given) == TEXT and "\ufffd" not in TEXT
    raw = b""
    for n, piece in enumerate(pieces):
        raw += piece
        whole = raw.decode(errors="ignore")  # of valid text this leaves out only what is unfinished
        assert "".join(given[: n + 1]) == whole


@pytest.mark.parametrize("seed", range(20))
def test_bytes_that_are_no_text_are_those_of_decoding_at_once(seed):
    drawn = random.Random(seed)
    raw = b"".join(
        drawn.choice(
            [b"\xe6\x97\xa5", b"\xf0\x9f", b"\xff", b"a", b"\xc3", b"\x80", b"\xed\xa0\x80"]
        )
        for _ in range(60)
    )
    for stop in [(), ("\x01",)]:
        assert "".join(fed(cuts(raw, seed), *stop)[0]) == raw.decode(errors="replace")


@pytest.mark.parametrize(
    ("stop", "left"),
    [
        (["bc"], "aab"),
        (["\nuser:", "never"], "aabbcc"),
        (["b"], "aa"),
        (["bbcc\n", "\nuser"], "aa"),
        (["ser", "\nuser:"], "aabbcc\nu"),  # the one that is complete first
        (["user:", "\nuser:"], "aabbcc"),  # complete together: the longer
        (["aa"], ""),
        (["日"], "aabbcc\nuser: "),
        (["語本"], "aabbcc\nuser: 日本語"),
        (["!?", "語x"], "aabbcc\nuser: 日本語"),
    ],
    ids=str,
)
def test_the_text_ends_before_the_stop_string_wherever_tokens_are_cut(stop, left):
    raw = "aabbcc\nuser: 日本語".encode()
    for seed in range(30):
        pieces = cuts(raw, seed)
        given, stream = fed(pieces, *stop)
        assert "".join(given) == left
        assert stream.stopped == (left != raw.decode())
        if stream.stopped:
            needed = stream.tokens()
            assert b"".join(pieces[:needed]).startswith(left.encode())
            assert not needed or len(b"".join(pieces[: needed - 1])) < len(left.encode())


def test_what_may_begin_a_stop_string_is_held_back_and_nothing_else_is():
    given, stream = fed([b"x<", b"|e", b"n", b"<|", b"end", b"y", b"<"], "<|end|>")
    assert given == ["x", "", "", "<|en", "", "<|endy", "", "<"]
    assert not stream.stopped


def test_what_comes_after_the_stop_string_is_not_given():
    given, stream = fed([b"ab", b"cde\xf0"], "bc")
    assert given == ["a", "", ""]
    assert stream.tokens() == 1
