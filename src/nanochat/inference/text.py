"""One text being written: what it is so far, the state of its tool call, and when it ends."""

import functools
import random
from collections import deque
from dataclasses import dataclass, field

import numpy as np

from nanochat.inference.calculator import calculate
from nanochat.inference.constrained import Constraint
from nanochat.inference.sampling import Drawn, Sampling
from nanochat.inference.stream import Fragment, PartStream, merge_parts
from nanochat.tokenizer.conversations import PARTS
from nanochat.tokenizer.tokenizer import Tokenizer

ANSWER_ENDS = ("<|assistant_end|>", "<|bos|>")  # special tokens that end an answer


@dataclass
class Completion:
    """What follows a prompt, without the token that ended it.

    Before a stop string `text` ends exactly; `ids` are the tokens that it takes to write it, so the
    last may reach into that string. Log-probabilities are of the distribution that was sampled
    from, up to the last bits of the logits, which depend on the other rows of the batch: they do
    not count when completions are compared.
    """

    ids: list[int]
    mask: list[int]  # 1: sampled, 0: forced by a tool
    text: str
    # "stop": the model, a stop string or its grammar ended it | "tool_calls": a call of a client's
    # function did | "length": max_tokens or the context | "cancelled" | "error"
    finish_reason: str
    logprobs: list[float | None] = field(default_factory=list, compare=False)  # None: forced
    # (id, logprob), likeliest first
    top_logprobs: list[list[tuple[int, float]]] = field(default_factory=list, compare=False)
    end_id: int | None = None  # the token that ended it, where the model did
    end_logprob: float | None = field(default=None, compare=False)
    end_top: list[tuple[int, float]] = field(default_factory=list, compare=False)
    # the text as a message has it: {type, text}, marks left out
    parts: list[dict[str, str]] = field(default_factory=list)


class Text:
    """One text being written: a prompt, what followed so far, and the state of its tool call."""

    def __init__(
        self,
        prompt: list[int],
        sampling: Sampling,
        tokenizer: Tokenizer,
        *,
        seed: str,
        max_tokens: int,
        vocab: int = 0,
        ends: tuple[str, ...] = ANSWER_ENDS,
    ) -> None:
        self.prompt, self.sampling, self.tokenizer = prompt, sampling, tokenizer
        self.max_tokens, self.vocab = max_tokens, vocab
        self.ends = [tokenizer.specials[name] for name in ends if name in tokenizer.specials]
        self.random = random.Random(seed)
        self.ids: list[int] = []
        self.mask: list[int] = []
        self.logprobs: list[float | None] = []
        self.top: list[list[tuple[int, float]]] = []
        # its text as far as it is certain; an answer without tools is all of kind "text"
        self.fragments: list[Fragment] = []
        self.stream = PartStream(sampling.stop)
        self.marks = _marks(tokenizer) if sampling.tools else {}
        self.forced: deque[int] = deque()
        self.program: str | None = None  # Python to be run before it goes on
        # what follows python_start, until python_end comes
        self.expression: list[int] | None = None
        self.seen: np.ndarray | None = None  # (V,) which tokens are in it, where they are penalised
        if sampling.penalises:
            self.seen = np.zeros(vocab, dtype=bool)
            self.seen[prompt] = True
        grammar = sampling.grammar
        self.constraint = Constraint.of(tokenizer, grammar) if grammar else None
        self.adds: np.ndarray | None = None  # (V,) what is added to its logits, where anything is
        self.counts: dict[int, int] = {}  # token -> times in the answer, where that is penalised
        if sampling.logit_bias or sampling.frequency_penalty or sampling.presence_penalty:
            self.adds = np.zeros(vocab, dtype=np.float32)
            for token, value in sampling.logit_bias:
                self.adds[token] = value
        self.finish_reason: str | None = None
        self.end: Drawn | None = None

    # --- before a token is drawn -----------------------------------------------------------------

    def added(self) -> np.ndarray | None:
        """What is added to the logits of its next token, (V,): penalties and biases, and -inf for
        what may not come."""
        early = len(self.ids) < self.sampling.min_tokens
        if not early and self.constraint is None:
            return self.adds
        if self.forced:
            return None
        added = np.zeros(self.vocab, dtype=np.float32) if self.adds is None else self.adds.copy()
        if self.constraint is not None:
            added[~self.constraint.allowed(self.vocab)] = -np.inf
        if early:
            others = added > -np.inf
            others[self.ends] = False
            if others.any():  # where a grammar allows only the end, it is the end
                added[self.ends] = -np.inf
        return added

    def uniform(self) -> float:
        """A number below 1 for the next token, with the 24 bits that fp32 keeps."""
        if self.forced or self.sampling.temperature == 0:
            return 0.0
        return self.random.getrandbits(24) / 2**24

    # --- after it --------------------------------------------------------------------------------

    def admit(self, drawn: Drawn) -> None:
        """Let what closes its grammar come instead of `drawn`, if after that it could not be closed
        any more in the tokens that are left."""
        grammatical = drawn.id < len(self.tokenizer.tokens)
        if self.constraint is not None and not self.forced and grammatical:
            room = self.max_tokens - len(self.ids)
            self.forced.extend(self.constraint.instead_of(drawn.id, room))

    def next(self, drawn: Drawn) -> int:
        """The token it goes on by: the next one that a tool forces, or else the one drawn."""
        return self.forced[0] if self.forced else drawn.id

    def take(self, drawn: Drawn) -> None:
        """Go on by one token, `next`."""
        mask, token = 0 if self.forced else 1, self.next(drawn)
        if self.forced:
            self.forced.popleft()
        if token in self.ends:
            self.end = drawn
            self.finish("stop")
            return
        self.ids.append(token)
        self.mask.append(mask)
        self.logprobs.append(drawn.logprob if mask else None)
        self.top.append(drawn.top if mask else [])
        self._penalise(token)
        piece = self.tokenizer.piece(token)
        if token in self.marks:
            self.fragments += self.stream.enter(self.marks[token], piece.decode())
        else:
            self.fragments += self.stream.feed(piece)
        if self.sampling.tools:
            self._watch(token)
        self._end_with(token)

    def _penalise(self, token: int) -> None:
        if self.seen is not None:
            self.seen[token] = True
        sampling = self.sampling
        if self.adds is not None and (sampling.frequency_penalty or sampling.presence_penalty):
            n = self.counts[token] = self.counts.get(token, 0) + 1
            bias = dict(sampling.logit_bias).get(token, 0.0)
            self.adds[token] = bias - sampling.presence_penalty - n * sampling.frequency_penalty

    def _watch(self, token: int) -> None:
        """Follow a tool call, whose result comes next when it is complete."""
        specials = self.tokenizer.specials
        if token == specials.get("<|python_start|>"):
            self.expression = []
        elif self.expression is not None and token == specials.get("<|python_end|>"):
            expression = self.tokenizer.decode(self.expression)
            result = calculate(expression)
            if result is None and self.sampling.python:
                self.program = expression
            self.force(result)
            self.expression = None
        elif self.expression is not None:
            calls, opens = self.sampling.calls, self.tokenizer.piece(token).startswith(b"{")
            if not self.expression and calls and opens:
                self.constraint = Constraint.beginning(self.tokenizer, calls, token)
            self.expression.append(token)

    def force(self, result: str | None) -> None:
        """Let the result of a tool come next, if there is one."""
        if result is not None:
            try:
                specials, encoded = self.tokenizer.specials, self.tokenizer.encode(result)
            except ValueError:  # characters that this tokenizer does not have
                return
            self.forced.extend([specials["<|output_start|>"], *encoded, specials["<|output_end|>"]])

    def _end_with(self, token: int) -> None:
        """End it where a stop string, its grammar or its length says so."""
        if self.stream.stopped:
            needed = self.stream.tokens()
            for kept in (self.ids, self.mask, self.logprobs, self.top):
                del kept[needed:]
            self.finish("stop")
            return
        closed = self.constraint is not None and self.constraint.take(token)
        if closed or len(self.ids) == self.max_tokens:
            whole = self.constraint is not None and self.constraint.matcher.is_accepting()
            how = "stop" if self.sampling.grammar else "tool_calls"
            self.finish(how if whole else "length")

    def finish(self, reason: str) -> None:
        self.fragments += self.stream.finish()
        self.finish_reason = reason

    # --- what it is so far -----------------------------------------------------------------------

    @property
    def last(self) -> int:
        return self.ids[-1] if self.ids else self.prompt[-1]

    def last_two(self) -> tuple[int, int]:
        return (self.ids[-2] if len(self.ids) > 1 else self.prompt[-1]), self.ids[-1]

    def completion(self) -> Completion:
        """What it is so far, or in the end."""
        return Completion(
            self.ids,
            self.mask,
            text="".join(fragment.text for fragment in self.fragments),
            finish_reason=self.finish_reason or "",
            logprobs=self.logprobs,
            top_logprobs=self.top,
            end_id=self.end.id if self.end else None,
            end_logprob=self.end.logprob if self.end else None,
            end_top=self.end.top if self.end else [],
            parts=merge_parts(self.fragments),
        )


@functools.lru_cache(maxsize=8)
def _marks(tokenizer: Tokenizer) -> dict[int, str]:
    """Token that opens or closes a part -> kind of the part that follows it."""
    ids = tokenizer.specials  # a model of another family has none of these
    marks = {ids[before]: kind for kind, (before, _, _) in PARTS.items() if before in ids}
    return marks | {ids[after]: "text" for _, after, _ in PARTS.values() if after in ids}
