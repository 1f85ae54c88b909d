"""How a text is sampled, and the draw: a token per row for rows that each have their own settings.

What a row may become is cut in this order: the repetition penalty, what is added to its logits
(penalties of frequency and presence, biases, -inf for what may not come), the temperature, the k
likeliest, of these the likeliest that hold `top_p`, of these the ones at least `min_p` times as
likely as the first. One uniform number is looked up in what is left.

Rows that look their number up in the same order of tokens are drawn together, so a batch is a few
products over rows, however the other settings differ: by vocabulary where nothing has to be sorted,
by likelihood where it has. Which order a row takes is decided by its own settings alone, never by
its neighbours'.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from nanochat.inference.ahead import to_device

LEAST_TOP_P = 1e-6  # guess: less is the likeliest token alone, which fp32 must still tell from none
PENALTIES = (0.01, 100)  # guess: beyond them logits overflow


@dataclass(frozen=True)
class Sampling:
    """The sampling settings of one request; None is off. ValueError for a value out of range."""

    temperature: float = 1.0  # 0 always takes the likeliest token
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    # of tokens in prompt and answer (Keskar et al. 2019, arXiv:1909.05858)
    repetition_penalty: float | None = None
    stop: tuple[str, ...] = ()  # the text ends before the first of these
    max_tokens: int | None = None  # None: until the context is full
    seed: int = 0
    tools: bool = True
    # run what the model calls as Python where the calculator has no result; see
    # sandbox/execution.py
    python: bool = False
    top_logprobs: int = 0  # how many of the likeliest tokens to return with each one
    # as OpenAI's: each time that a token is in the answer already makes its logit smaller by the
    # first, once at all by the second
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()  # (id, what is added to its logit)
    min_tokens: int = 0  # no end token before so many; a stop string still ends it
    grammar: str | None = None  # of llguidance: what the answer must be (inference/constrained.py)
    # of llguidance: what a call that the model opens with "{" must be; the answer ends with it
    calls: str | None = None

    def __post_init__(self) -> None:
        t, p, m, penalty = self.temperature, self.top_p, self.min_p, self.repetition_penalty
        listed = isinstance(self.stop, Sequence) and not isinstance(self.stop, str)
        rules = {
            "temperature": (
                _number(t)
                and (t == 0 or 1e-6 <= t < math.inf),  # logits divided by less would overflow
                "must be 0, which always takes the likeliest token, or at least 1e-6",
            ),
            "top_k": (_count(self.top_k, 1), "must be at least 1, or null to keep every token"),
            "top_p": (
                p is None or (_number(p) and LEAST_TOP_P <= p <= 1),
                f"must be at least {LEAST_TOP_P:g} and at most 1, or null to keep every token",
            ),
            "min_p": (
                m is None or (_number(m) and 0 <= m <= 1),
                "must be between 0 and 1, or be null to keep every token",
            ),
            "repetition_penalty": (
                penalty is None or (_number(penalty) and PENALTIES[0] <= penalty <= PENALTIES[1]),
                (
                    f"must be between {PENALTIES[0]} and {PENALTIES[1]}, or be null for none; 1.2 "
                    "is a usual one"
                ),
            ),
            "stop": (
                listed and all(isinstance(text, str) and text for text in self.stop),
                "must be a list of texts, none of them empty; try ['\\n']",
            ),
            "max_tokens": (
                _count(self.max_tokens, 1),
                "must be at least 1, or null to go on while the context has room",
            ),
            "seed": (_number(self.seed) and isinstance(self.seed, int), "must be a whole number"),
            "tools": (isinstance(self.tools, bool), "must be true or false"),
            "python": (isinstance(self.python, bool), "must be true or false"),
        }
        for name in ("frequency_penalty", "presence_penalty"):
            rules[name] = _added(getattr(self, name)), "must be between -2 and 2, as OpenAI has it"
        for name in ("min_tokens", "top_logprobs"):
            given = getattr(self, name)
            rules[name] = given is not None and _count(given, 0), "must be at least 0"
        for name, (keeps, rule) in rules.items():
            if not keeps:
                raise ValueError(f"{name}={getattr(self, name)!r} {rule}")
        if any(token < 0 or not -100 <= value <= 100 for token, value in self.logit_bias):
            raise ValueError(
                f"logit_bias={dict(self.logit_bias)} must have ids and numbers between -100 and 100"
            )
        object.__setattr__(self, "stop", tuple(self.stop))

    @cached_property
    def penalises(self) -> bool:
        return self.repetition_penalty not in (None, 1)

    @cached_property
    def order(self) -> tuple[str, int | None]:
        """How tokens are sorted before the draw; rows with the same order are drawn together."""
        if self.temperature == 0:
            return "greedy", None
        if self.top_k is not None:
            return "sorted", self.top_k
        return (
            ("sorted", None) if self.top_p is not None and self.top_p < 1 else ("vocabulary", None)
        )


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _added(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and -2 <= value <= 2


def _count(value: object, least: int) -> bool:
    return value is None or (
        isinstance(value, int) and not isinstance(value, bool) and value >= least
    )


class Drawn(NamedTuple):
    """A token, its log-probability in the distribution it was drawn from, and as many of the
    likeliest there as were asked for.

    At temperature 0 nothing is drawn; there it is the distribution of temperature 1. Tokens that
    were cut away have no place in it.
    """

    id: int
    logprob: float
    top: list[tuple[int, float]]  # (id, logprob), the likeliest first


class Drawing:
    """Tokens drawn that may still be on their way from the device: `ids` (B,) are there, `read`
    waits for them."""

    def __init__(self, ids: Tensor, parts: list["Part"]) -> None:
        self.ids, self._parts = ids, parts
        self._there: torch.cuda.Event | None = None
        if ids.is_cuda:
            self._there = torch.cuda.Event()
            self._there.record(torch.cuda.current_stream(ids.device))

    def read(self) -> list[Drawn]:
        if self._there is not None:
            self._there.synchronize()
        drawn = [token for part in self._parts for token in part.read()]
        rows = [row for part in self._parts for row in part.rows]
        return [
            token for _, token in sorted(zip(rows, drawn, strict=True), key=lambda pair: pair[0])
        ]


class Part(NamedTuple):
    """The rows of one order."""

    rows: list[int]
    samplings: Sequence[Sampling]
    # (N, 2): token and log-probability, on the CPU, as the two below; fp32 holds ids up to 2**24
    # exactly
    pairs: Tensor
    names: Tensor | None = None  # (N, n) the likeliest tokens …
    best: Tensor | None = None  # … and their log-probabilities

    def read(self) -> list[Drawn]:
        tops: list[list[tuple[int, float]]] = [[] for _ in self.rows]
        if self.names is not None and self.best is not None:
            for row, (ids, values) in enumerate(
                zip(self.names.tolist(), self.best.tolist(), strict=True)
            ):
                n = self.samplings[row].top_logprobs
                tops[row] = [
                    pair for pair in zip(ids[:n], values[:n], strict=True) if pair[1] > -math.inf
                ]
        pairs = self.pairs.tolist()
        return [
            Drawn(int(token), logprob, top)
            for (token, logprob), top in zip(pairs, tops, strict=True)
        ]


def draw(
    logits: Tensor,
    samplings: Sequence[Sampling],
    uniform: Sequence[float],
    seen: Sequence[np.ndarray | None] = (),
    added: Sequence[np.ndarray | None] = (),
) -> list[Drawn]:
    """`begin_draw`, with its result read."""
    return begin_draw(logits, samplings, uniform, seen, added).read()


def begin_draw(
    logits: Tensor,
    samplings: Sequence[Sampling],
    uniform: Sequence[float],
    seen: Sequence[np.ndarray | None] = (),
    added: Sequence[np.ndarray | None] = (),
) -> Drawing:
    """A token per row of logits (B, V): the one at `uniform[r]` of the cumulative distribution that
    `samplings[r]` leaves.

    Uniform numbers have 24 bits: times any fp32 total they are below it, so that what is looked up
    is always found. `seen[r]` (V,) marks the tokens in the text of row r, for the rows with a
    repetition penalty, and `added[r]` (V,) is added to its logits, for rows that have such. Only
    these wait for a GPU.
    """
    logits = _added_to(_penalised(logits, samplings, seen), added)
    groups: dict[tuple[str, int | None], list[int]] = {}
    for row, sampling in enumerate(samplings):
        groups.setdefault(sampling.order, []).append(row)
    if len(groups) == 1:
        ids, part = _draw(logits, list(range(len(samplings))), samplings, uniform)
        return Drawing(ids, [part])
    ids, parts = torch.empty(len(samplings), dtype=torch.long, device=logits.device), []
    for rows in groups.values():
        at = to_device(rows, logits.device)
        found, part = _draw(
            logits[at], rows, [samplings[row] for row in rows], [uniform[row] for row in rows]
        )
        ids[at] = found
        parts.append(part)
    return Drawing(ids, parts)


def _draw(
    x: Tensor, rows: list[int], samplings: Sequence[Sampling], uniform: Sequence[float]
) -> tuple[Tensor, Part]:
    """`begin_draw` for rows (N, V) of one order, penalised already: the tokens (N,) too."""
    index = logp = None
    most = max(sampling.top_logprobs for sampling in samplings)
    if samplings[0].temperature == 0:
        chosen, total = x.argmax(-1, keepdim=True), x.logsumexp(-1, keepdim=True)
        found = x.gather(-1, chosen) - total  # (N, 1)
        if most:
            logp = x - total
    else:
        p, index = _kept(x, samplings)
        cumulative = p.cumsum(-1)
        aim = _column(uniform, p) * cumulative[:, -1:]
        chosen = torch.searchsorted(cumulative, aim, right=True)  # (N, 1): the first above it
        found = p.gather(-1, chosen).log()
        if most:
            logp = p.log()
    ids = chosen if index is None else index.gather(-1, chosen)
    names = best = None
    if logp is not None:
        best, where = logp.topk(min(most, logp.size(-1)), dim=-1)  # (N, n)
        names = where if index is None else index.gather(-1, where)
    pairs = torch.cat((ids.to(found.dtype), found), 1)
    there = [
        None if x is None else x.to("cpu", non_blocking=x.is_cuda) for x in (pairs, names, best)
    ]
    assert there[0] is not None
    return ids[:, 0], Part(rows, samplings, there[0], there[1], there[2])


def _kept(x: Tensor, samplings: Sequence[Sampling]) -> tuple[Tensor, Tensor | None]:
    """Probabilities (N, n) of what the settings leave, and which tokens they are of, (N, n), or
    None for all in order."""
    index = None
    kind, k = samplings[0].order
    if k is not None:
        x, index = x.topk(min(k, x.size(-1)), dim=-1)
    elif kind == "sorted":
        x, index = x.sort(dim=-1, descending=True, stable=True)
    if any(sampling.temperature != 1 for sampling in samplings):
        x = x / _column([sampling.temperature for sampling in samplings], x)
    # a row without the setting has a bound that rounding cannot reach, so that it does not depend
    # on the other rows
    mass = [math.inf if s.top_p is None or s.top_p == 1 else s.top_p for s in samplings]
    if min(mass) < math.inf:
        p = x.softmax(-1)
        x = x.masked_fill(p.cumsum(-1) - p >= _column(mass, x), -math.inf)
    least = [math.log(s.min_p) if s.min_p else -math.inf for s in samplings]
    if max(least) > -math.inf:
        x = x.masked_fill(x < x.amax(-1, keepdim=True) + _column(least, x), -math.inf)
    return x.softmax(-1), index


def _penalised(
    logits: Tensor, samplings: Sequence[Sampling], seen: Sequence[np.ndarray | None]
) -> Tensor:
    """Logits of tokens seen before made smaller: divided by the penalty where positive, multiplied
    where negative."""
    rows = [row for row, sampling in enumerate(samplings) if sampling.penalises]
    if not rows:
        return logits
    at = to_device(rows, logits.device)
    x = logits[at]
    penalty = _column([samplings[row].repetition_penalty or 1 for row in rows], logits)
    marks = [mark for mark in (seen[row] for row in rows) if mark is not None]
    was = torch.from_numpy(np.stack(marks)).to(logits.device)  # (N, V); waits for a GPU
    return logits.index_copy(
        0, at, torch.where(was, torch.where(x > 0, x / penalty, x * penalty), x)
    )


def _added_to(logits: Tensor, added: Sequence[np.ndarray | None]) -> Tensor:
    rows = [row for row, values in enumerate(added) if values is not None]
    if not rows:
        return logits
    values = torch.from_numpy(np.stack([values for values in added if values is not None])).to(
        logits.device
    )  # (N, V)
    at = to_device(rows, logits.device)
    return logits.index_copy(0, at, logits[at] + values.to(logits.dtype))


def _column(values: Sequence[float], like: Tensor) -> Tensor:
    return to_device(values, like.device, like.dtype)[:, None]
