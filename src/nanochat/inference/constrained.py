"""Answers that a grammar allows and nothing else: JSON by a schema, calls of functions.

Which tokens may come next is worked out by llguidance, on the bytes of our tokens; special tokens
never may, but for the end of the answer where the grammar ends. JSON has no blanks between its
signs: a small model fills its context with them.

A model that never closes a string would run out of tokens in the middle. So a shortest way to the
end is kept, nearly: signs that close whatever is open. When it is as long as what is left of
`max_tokens`, it is taken.
"""

import functools
import json
import logging
import re
from typing import Any

import llguidance
import numpy as np

from nanochat.tokenizer.tokenizer import Tokenizer

# from: RFC 7493, 2.2; a small model never ends a number
INTEGERS = {"minimum": -(2**53) + 1, "maximum": 2**53 - 1}
# guess: tokens of a way to the end; a schema that needs more is not closed in time
MAX_CLOSING = 512
# which sign to take outside strings: one that closes something, or else the beginning of the
# shortest value
CLOSING = b'}]"0nft1'

log = logging.getLogger(__name__)


class _Wrapped:
    """A tokenizer as llguidance takes it."""

    is_tokenizer_wrapper = True

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.encode = tokenizer.encode
        self.eos_token_id = tokenizer.specials["<|assistant_end|>"]
        self.bos_token_id = tokenizer.bos_id
        self.special_token_ids = list(tokenizer.specials.values())
        # a special token begins with \xff, which is in no text
        self.tokens = [*tokenizer.tokens, *(b"\xff" + name.encode() for name in tokenizer.specials)]

    def __call__(self, text: str | bytes) -> list[int]:
        return self.encode(
            text if isinstance(text, str) else text.decode("utf-8", errors="replace")
        )


@functools.lru_cache(maxsize=8)
def _tokenizer(tokenizer: Tokenizer) -> llguidance.LLTokenizer:
    if tokenizer.kind != "bpe":
        raise ValueError(
            "a response_format or a forced call needs a tokenizer of bytes (tokenizer.kind=bpe), "
            "not one of characters"
        )
    return llguidance.LLTokenizer(_Wrapped(tokenizer))  # type: ignore[arg-type]


@functools.lru_cache(maxsize=64)
def compiled(tokenizer: Tokenizer, grammar: str) -> llguidance.LLMatcher:
    """The grammar at its beginning, to be copied. ValueError with llguidance's reason for one that
    cannot be kept to."""
    matcher = llguidance.LLMatcher(_tokenizer(tokenizer), grammar, log_level=0)
    if matcher.is_error():
        # what follows is the grammar, which no user wrote
        reason = re.split(r"\n\s*\d+ \|", matcher.get_error())[0]
        reason = re.sub(r"^at \S+ failed to compile JSON schema: ", "", " ".join(reason.split()))
        raise ValueError(reason or "it cannot be compiled")
    return matcher


def json_grammar(schema: dict[str, Any], *, lenient: bool = False) -> str:
    """JSON of one line without blanks that `schema` allows. `lenient`: keywords that llguidance
    does not know are left out."""
    return f"start: {_json(schema, lenient)}"


def calls_grammar(functions: dict[str, dict[str, Any]], *, lenient: tuple[str, ...] = ()) -> str:
    """`{"name":NAME,"arguments":{…}}` for one of `functions`: name -> schema of its arguments."""
    lines = [f"start: {' | '.join(f'f{n}' for n in range(len(functions)))}"]
    for n, (name, schema) in enumerate(functions.items()):
        before = json.dumps(f'{{"name":{json.dumps(name)},"arguments":')
        lines += [f'f{n}: {before} a{n} "}}"', f"a{n}: {_json(schema, name in lenient)}"]
    return "\n".join(lines)


def _json(schema: dict[str, Any], lenient: bool) -> str:
    options = {"whitespace_flexible": False, "lenient": lenient}
    return "%json " + json.dumps(_closed(schema) | {"x-guidance": options})


def _closed(schema: Any) -> Any:
    """The schema without properties that it does not name, where it does not say that there may be
    others, which a small model invents, and without integers that JSON's readers do not keep, where
    it has no bounds."""
    if isinstance(schema, list):
        return [_closed(one) for one in schema]
    if not isinstance(schema, dict) or "allOf" in schema:
        return schema
    literal = ("const", "enum", "default", "examples")
    found = {key: value if key in literal else _closed(value) for key, value in schema.items()}
    if (
        schema.get("type") == "integer"
        and not any("imum" in key for key in schema)
        and not schema.keys() & {"enum", "const", "multipleOf"}
    ):
        found |= INTEGERS
    if isinstance(schema.get("properties"), dict):
        # names of properties, not keywords
        found["properties"] = {name: _closed(value) for name, value in schema["properties"].items()}
        if "patternProperties" not in schema:
            found.setdefault("additionalProperties", False)
    return found


class Constraint:
    """How far one answer is in its grammar."""

    def __init__(self, tokenizer: Tokenizer, matcher: llguidance.LLMatcher) -> None:
        self.matcher = matcher
        self.end = tokenizer.specials["<|assistant_end|>"]
        # tokens that end it from here, the end token among them; None: not known
        self.closing: list[int] | None = None

    @classmethod
    def of(cls, tokenizer: Tokenizer, grammar: str) -> "Constraint":
        """At the beginning. ValueError for a grammar that is none."""
        return cls(tokenizer, compiled(tokenizer, grammar).deep_copy())

    @classmethod
    def beginning(cls, tokenizer: Tokenizer, grammar: str, token: int) -> "Constraint | None":
        """For what begins with `token`, which is still to be taken; None if the grammar does not
        allow that."""
        found = cls.of(tokenizer, grammar)
        return found if found.matcher.validate_tokens([token]) == 1 else None

    def allowed(self, vocab: int) -> np.ndarray:
        """Which tokens may come next, bool (V,)."""
        return _bits(self.matcher)[:vocab]

    def take(self, token: int) -> bool:
        """Go on by a token; True if nothing more may come."""
        if not self.matcher.consume_token(token):
            log.warning("a grammar cannot be followed any further: %s", self.matcher.get_error())
        return self.matcher.is_stopped()

    def instead_of(self, token: int, room: int) -> list[int]:
        """Nothing, if `token` may be taken with so many tokens left, itself included. Otherwise
        what closes the text from here."""
        before = self._closing_now()
        after = self.matcher.deep_copy()
        if not after.consume_token(token):
            return before[:-1] if before else []
        if after.is_accepting():
            self.closing = [self.end]
        elif before and token == before[0]:
            self.closing = before[1:]
        elif not before or after.validate_tokens(before) < len(before):
            self.closing = _closing(after, self.end)
        if (
            before
            and len(before) - 1 <= room
            and (self.closing is None or len(self.closing) > room)
        ):
            return before[:-1]
        return []

    def _closing_now(self) -> list[int] | None:
        if self.closing is None:
            self.closing = _closing(self.matcher, self.end)
        return self.closing


def _bits(matcher: llguidance.LLMatcher) -> np.ndarray:
    return np.unpackbits(
        np.frombuffer(matcher.compute_bitmask(), dtype=np.uint8), bitorder="little"
    ).astype(bool)


def _closing(matcher: llguidance.LLMatcher, end: int) -> list[int] | None:
    """Tokens of one byte that bring `matcher` to an end, and the end token; None if none is found
    soon."""
    ahead = matcher.deep_copy()
    found: list[int] = []
    while not ahead.is_accepting():
        if len(found) > MAX_CLOSING or ahead.is_error():
            return None
        forced = ahead.compute_ff_tokens()
        if not forced:
            bits = _bits(ahead)[:256]  # the bytes
            inside_string = bits[ord("a")] and bits[ord("}")]
            wanted = [
                byte for byte in (b'"' if inside_string else CLOSING) if bits[byte]
            ] or np.flatnonzero(bits).tolist()
            if not wanted:
                return None
            forced = wanted[:1]
        if not ahead.consume_tokens(forced):
            return None
        found += forced
    return [*found, end]
