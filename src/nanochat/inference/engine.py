"""The engine: many prompts of different lengths decoded at once, a token per text and step, with the calculator at hand.

A request takes rows of the cache when they are free and leaves them after its last token, so the batch is always full of live texts and
requests may come at any time. Each text has its own settings, random numbers and tool state, and which tokens it gets does not
depend on which texts are beside it, but for the last bits of its logits: more rows are multiplied in another order. What is sampled is
one uniform number per text, looked up in the distribution of its next token, so a generator per text costs no more than one for all.

On a GPU the next step is begun with what was drawn before that has arrived here, so the GPU works while texts are looked at
(asynchronous scheduling, as vLLM and SGLang do it). Neither tokens nor their order change by it.

`submit` and `cancel` only write down what is wanted and may be called from any thread; `step` does it, in one thread, between tokens.
"""

import functools
import logging
import math
import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from nanochat.gpt import GPT
from nanochat.gpt.cache import Ahead, KVCache, to_device
from nanochat.inference.calculator import calculate
from nanochat.inference.constrained import Constraint
from nanochat.inference.generate import TooLong, check
from nanochat.inference.pool import Found, PrefixPool
from nanochat.inference.sampling import Drawing, Drawn, Sampling, begin_draw
from nanochat.inference.stream import Fragment, PartStream
from nanochat.runtime import hardware
from nanochat.tokenizer.conversations import PARTS
from nanochat.tokenizer.tokenizer import Tokenizer

log = logging.getLogger(__name__)

MAX_ROWS = 32  # guess: texts side by side; more of them cost memory, 2 * layers * key width * tokens each
PREFILL_TOKENS = 512  # guess: tokens of prompts read between two tokens of the texts that are being written
PROGRAMS = 4  # guess: Python programs at once; more wait
PARK_SECONDS = 0.02  # guess: between two looks at new requests, while all texts wait for their programs
POOL_BYTES = 2**30  # guess: 10,000 tokens of a d20 in bf16
# what a command says that starts an engine with compile=true
COMPILES = (
    "compile=true: the first answer takes about half a minute longer, and so does the first that outgrows its room"
)


@dataclass
class Completion:
    """What follows a prompt, without the token that ended it.

    Before a stop string `text` ends exactly; `ids` are the tokens that it takes to write it, so the last may reach into that string. Log-
    probabilities are of the distribution that was sampled from, to the last bits of the logits, which other company changes: two
    completions are equal without them.
    """

    ids: list[int]
    mask: list[int]  # 1: sampled, 0: forced by a tool
    text: str
    # "stop": the model, a stop string or its grammar ended it | "tool_calls": a call of a client's function did
    # "length": max_tokens or the context | "cancelled" | "error"
    finish_reason: str
    logprobs: list[float | None] = field(default_factory=list, compare=False)  # None: forced by a tool
    top_logprobs: list[list[tuple[int, float]]] = field(
        default_factory=list, compare=False
    )  # (id, logprob), likeliest first
    end_id: int | None = None  # the token that ended it, where the model did
    end_logprob: float | None = field(default=None, compare=False)
    end_top: list[tuple[int, float]] = field(default_factory=list, compare=False)
    parts: list[dict[str, str]] = field(
        default_factory=list
    )  # the text as a message has it: {type, text}, marks left out


@dataclass
class Stats:
    """What an engine has done since it was made."""

    steps: int = 0
    read_tokens: int = 0  # of prompts, each once however many samples it has
    reused_tokens: int = 0  # of prompts, taken from a finished text instead
    sampled_tokens: int = 0
    forced_tokens: int = 0


class Text:
    """One text being written: a prompt, what followed so far, and the state of its tool call."""

    def __init__(
        self, prompt: list[int], sampling: Sampling, tokenizer: Tokenizer, *, seed: str, max_tokens: int, vocab: int = 0
    ) -> None:
        self.prompt, self.sampling, self.tokenizer, self.max_tokens = prompt, sampling, tokenizer, max_tokens
        self.vocab = vocab
        self.random = random.Random(seed)
        self.ids: list[int] = []
        self.mask: list[int] = []
        self.logprobs: list[float | None] = []
        self.top: list[list[tuple[int, float]]] = []
        self.fragments: list[
            Fragment
        ] = []  # its text as far as it is certain; an answer without tools is all of kind "text"
        self.stream = PartStream(sampling.stop)
        self.marks = _marks(tokenizer) if sampling.tools else {}
        self.forced: deque[int] = deque()
        self.program: str | None = None  # Python to be run before it goes on
        self.expression: list[int] | None = None  # what stands between python_start and python_end, while it is open
        self.seen: np.ndarray | None = None  # (V,) which tokens are in it, where they are penalised
        if sampling.penalises:
            self.seen = np.zeros(vocab, dtype=bool)
            self.seen[prompt] = True
        self.constraint = Constraint.of(tokenizer, sampling.grammar) if sampling.grammar else None
        self.adds: np.ndarray | None = None  # (V,) what is added to its logits, where anything is
        self.counts: dict[int, int] = {}  # token -> how often it is in the answer, where that is penalised
        if sampling.logit_bias or sampling.frequency_penalty or sampling.presence_penalty:
            self.adds = np.zeros(vocab, dtype=np.float32)
            for token, value in sampling.logit_bias:
                self.adds[token] = value
        self.finish_reason: str | None = None
        self.end: Drawn | None = None

    def added(self) -> np.ndarray | None:
        """What is added to the logits of its next token, (V,): penalties and biases, and -inf for what may not come."""
        early = len(self.ids) < self.sampling.min_tokens
        if not early and self.constraint is None:
            return self.adds
        if self.forced:
            return None
        added = np.zeros(self.vocab, dtype=np.float32) if self.adds is None else self.adds.copy()
        if self.constraint is not None:
            added[~self.constraint.allowed(self.vocab)] = -np.inf
        if early:
            ends = [self.tokenizer.specials["<|assistant_end|>"], self.tokenizer.bos_id]
            others = added > -np.inf
            others[ends] = False
            if others.any():  # where a grammar leaves the end alone, it is the end
                added[ends] = -np.inf
        return added

    def admit(self, drawn: Drawn) -> None:
        """Let what closes its grammar come instead of `drawn`, if after that it could not be closed any more in the tokens that are left."""
        if self.constraint is not None and not self.forced and drawn.id < len(self.tokenizer.tokens):
            room = self.max_tokens - len(self.ids)
            self.forced.extend(self.constraint.instead_of(drawn.id, room))

    def uniform(self) -> float:
        """A number below 1 for the next token, with the 24 bits that fp32 keeps."""
        return 0.0 if self.forced or self.sampling.temperature == 0 else self.random.getrandbits(24) / 2**24

    def take(self, drawn: Drawn) -> None:
        """Go on by one token, `next`."""
        specials = self.tokenizer.specials
        mask, token = 0 if self.forced else 1, self.next(drawn)
        if self.forced:
            self.forced.popleft()
        if token in (specials["<|assistant_end|>"], self.tokenizer.bos_id):
            self.end = drawn
            self.finish("stop")
            return
        self.ids.append(token)
        self.mask.append(mask)
        self.logprobs.append(drawn.logprob if mask else None)
        self.top.append(drawn.top if mask else [])
        if self.seen is not None:
            self.seen[token] = True
        if self.adds is not None and (self.sampling.frequency_penalty or self.sampling.presence_penalty):
            n = self.counts[token] = self.counts.get(token, 0) + 1
            bias = dict(self.sampling.logit_bias).get(token, 0.0)
            self.adds[token] = bias - self.sampling.presence_penalty - n * self.sampling.frequency_penalty
        if token in self.marks:
            self.fragments += self.stream.enter(self.marks[token], self.tokenizer.piece(token).decode())
        else:
            self.fragments += self.stream.feed(self.tokenizer.piece(token))
        if self.sampling.tools:
            self._watch(token, specials)
        if self.stream.stopped:
            needed = self.stream.tokens()
            for kept in (self.ids, self.mask, self.logprobs, self.top):
                del kept[needed:]
            self.finish("stop")
        elif (self.constraint is not None and self.constraint.take(token)) or len(self.ids) == self.max_tokens:
            whole = self.constraint is not None and self.constraint.matcher.is_accepting()
            self.finish("length" if not whole else "stop" if self.sampling.grammar else "tool_calls")

    def finish(self, reason: str) -> None:
        self.fragments += self.stream.finish()
        self.finish_reason = reason

    def _watch(self, token: int, specials: dict[str, int]) -> None:
        if token == specials["<|python_start|>"]:
            self.expression = []
        elif self.expression is not None and token == specials["<|python_end|>"]:
            expression = self.tokenizer.decode(self.expression)
            result = calculate(expression)
            if result is None and self.sampling.python:
                self.program = expression
            self.tell(result)
            self.expression = None
        elif self.expression is not None:
            if not self.expression and self.sampling.calls and self.tokenizer.piece(token).startswith(b"{"):
                self.constraint = Constraint.beginning(self.tokenizer, self.sampling.calls, token)
            self.expression.append(token)

    def tell(self, result: str | None) -> None:
        """Let the result of a tool come next; None was none."""
        if result is not None:
            try:
                specials, encoded = self.tokenizer.specials, self.tokenizer.encode(result)
            except ValueError:  # characters that this tokenizer does not have
                return
            self.forced.extend([specials["<|output_start|>"], *encoded, specials["<|output_end|>"]])

    def next(self, drawn: Drawn) -> int:
        """The token it goes on by: the next one that a tool forces, or else the one drawn."""
        return self.forced[0] if self.forced else drawn.id

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


def merge_parts(fragments: Iterable[Fragment]) -> list[dict[str, str]]:
    """The parts that fragments make up; a mark begins another one."""
    parts: list[dict[str, str]] = []
    open_part = False
    for kind, text in fragments:
        if kind == "mark":
            open_part = False
        elif open_part:
            parts[-1]["text"] += text
        else:
            parts.append({"type": kind, "text": text})
            open_part = True
    return parts


@functools.lru_cache(maxsize=8)
def _marks(tokenizer: Tokenizer) -> dict[int, str]:
    """Token that opens or closes a part -> kind of the part that follows it."""
    marks = {tokenizer.specials[before]: kind for kind, (before, _, _) in PARTS.items() if before}
    return marks | {tokenizer.specials[after]: "text" for _, after, _ in PARTS.values() if after}


class Request:
    """A prompt with its settings and the samples asked for: `texts`, which are written side by side."""

    def __init__(self, prompt: list[int], sampling: Sampling, texts: list[Text]) -> None:
        self.prompt, self.sampling, self.texts = prompt, sampling, texts
        self.cancelled = False
        self.seated = 0  # texts that have a row or had one
        self.cache: KVCache | None = None  # a prompt that is read by itself: what was read so far …
        self.hidden: Tensor | None = None  # … and the hidden state after its last token, (1, C)

    @property
    def done(self) -> bool:
        return all(text.finish_reason for text in self.texts)

    @property
    def completions(self) -> list[Completion]:
        """One per sample, in order; before `done` as far as they are."""
        return [text.completion() for text in self.texts]


class Piece(NamedTuple):
    """What a step brought to one text."""

    request: Request
    sample: int
    drawn: Drawn | None  # its token; None: it ended without another one, or a tool forced it
    fragments: list[Fragment]  # that have become certain; together they are the text of the completion
    finish_reason: str | None


class Alone(NamedTuple):
    """A request whose prompt is read by itself, the beginning of it that is known already, and how many of its texts join after it."""

    request: Request
    known: Found | None
    texts: int


class Parked(NamedTuple):
    """A text that waits for its program to end, without a row."""

    request: Request
    sample: int
    cache: KVCache
    result: Future[str | None]


class Engine:
    """Decodes with `gpt` as it is; `max_rows` texts at a time.

    `prefill_tokens` bounds how much of prompts is read between two tokens (None: whole prompts), `pool_bytes` what is kept of finished texts.
    `run_python` gives the output of a program, from any thread: for texts whose Sampling asks for it, where the calculator has no result.
    A text ends where the model's `sequence_len` does, with the finish reason "length". `compile` makes steps faster after half a minute of
    compiling, again whenever the texts outgrow their room (gpt/fixed_step.py); `gpt` cannot be trained any more then.
    """

    def __init__(
        self, gpt: GPT, tokenizer: Tokenizer, *, max_rows: int = MAX_ROWS, prefill_tokens: int | None = PREFILL_TOKENS,
        pool_bytes: int = POOL_BYTES, run_python: Callable[[str], str | None] | None = None, compile: bool = False,
    ) -> None:  # fmt: skip
        if compile:
            hardware.check_compiler("compile", gpt.device)
        if max_rows < 1:
            raise ValueError(f"max_rows={max_rows} must be at least 1")
        if prefill_tokens is not None and prefill_tokens < 1:
            raise ValueError(f"prefill_tokens={prefill_tokens} must be at least 1, or null to read prompts at once")
        if pool_bytes < 0:
            raise ValueError(f"pool_bytes={pool_bytes} must not be negative; 0 keeps nothing of finished texts")
        self.gpt, self.tokenizer, self.max_rows = gpt, tokenizer, max_rows
        self.prefill_tokens = prefill_tokens or gpt.config.sequence_len
        self.cache = KVCache(gpt, max_rows, compile=compile)
        self.live: list[tuple[Request, int]] = []  # live[r] is row r of the cache: a request and the number of its text
        self.waiting: deque[Request] = deque()  # the first may have some of its texts among the live
        self.joining: list[Request] = []  # taken from `waiting` in this step
        self.pool = PrefixPool(pool_bytes)
        self.looks_ahead = gpt.device.type == "cuda"  # a CPU does one thing after the other
        self.run_python = run_python
        self.programs = ThreadPoolExecutor(PROGRAMS, thread_name_prefix="program")
        self.parked: list[Parked] = []
        self.stats = Stats()
        self._held = False

    # --- asking ------------------------------------------------------------------------------------------------

    def submit(self, prompt_ids: list[int], sampling: Sampling, num_samples: int = 1) -> Request:
        """Put a request in the queue; `step` brings it on. What is sampled is decided by the seed and the number of the sample.

        ValueError for a prompt that cannot be answered.
        """
        request = self.request(prompt_ids, sampling, num_samples)
        self.waiting.append(request)
        return request

    def request(self, prompt_ids: list[int], sampling: Sampling, num_samples: int = 1) -> Request:
        """`submit` without the queue, for whoever has to know the request before its first token."""
        if num_samples < 1:
            raise ValueError(f"num_samples={num_samples} must be at least 1")
        return self._request("the prompt", prompt_ids, sampling, [f"{sampling.seed}/{n}" for n in range(num_samples)])

    def cancel(self, request: Request) -> None:
        """End it at the next token boundary, where its rows become free; a finished one stays as it is."""
        request.cancelled = True

    @property
    def busy(self) -> bool:
        return bool(self.live or self.waiting or self.parked)

    @property
    def queued(self) -> int:
        """Texts that wait for a row, or for their program."""
        unseated = sum(len(request.texts) - request.seated for request in (*self.waiting, *self.joining))
        return unseated + len(self.parked)

    def stream(self, request: Request, sample: int = 0) -> Iterator[Fragment]:
        """The text of one sample, fragment by fragment; `step` is called where none is left.

        Closing it before its end cancels the request. Streams of several requests may be read in turn: all go on together.
        """
        text, given = request.texts[sample], 0
        try:
            while True:
                while given < len(text.fragments):
                    given += 1
                    yield text.fragments[given - 1]
                if text.finish_reason:
                    return
                self.step()
        finally:
            if not text.finish_reason:
                self.cancel(request)

    def generate(
        self, prompts: list[list[int]], *, max_tokens: int, temperature: float = 0.0, top_k: int | None = None, seed: int = 0,
        num_samples: int = 1, tools: bool = True,
    ) -> list[Completion]:  # fmt: skip
        """`num_samples` completions of each prompt, in order; the samples of a prompt stand side by side.

        A text ends at <|assistant_end|> or bos, after `max_tokens`, or when it is as long as the model's `sequence_len`. With `tools`, the
        result of an expression between <|python_start|> and <|python_end|> follows it, unless it has none. What is sampled is
        decided by the seed, the number of the prompt and that of the sample. ValueError for settings or prompts that make no sense.
        """
        check(max_tokens=max_tokens, temperature=temperature, top_k=top_k, num_samples=num_samples)
        sampling = Sampling(temperature=temperature, top_k=top_k, max_tokens=max_tokens, seed=seed, tools=tools)
        found = self.sample(prompts, sampling, num_samples, [f"{seed}/{i}" for i in range(len(prompts))])
        return [completion for completions in found for completion in completions]

    def sample(
        self, prompts: list[list[int]], sampling: Sampling, num_samples: int, seeds: list[str]
    ) -> list[list[Completion]]:
        """`num_samples` completions of each prompt, however many side by side. What is sampled is decided by the prompt's own of `seeds`
        and the number of the sample. ValueError for prompts that make no sense."""
        requests = [
            self._request(f"prompt {i}", prompt, sampling, [f"{seed}/{n}" for n in range(num_samples)])
            for i, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True))
        ]
        try:
            with nullcontext() if self._held else self.gpt.frozen():
                # longest first, so that texts side by side are about equally long
                self.waiting.extend(sorted(requests, key=lambda request: -len(request.prompt)))
                while not all(request.done for request in requests):
                    self.step()
        finally:  # also where someone loses patience
            for request in requests:
                self.cancel(request)
            with torch.inference_mode():
                self._sweep()
        return [request.completions for request in requests]

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Inside, no weight may change. So what is made of weights alone is made once, and rows of finished texts are kept for others."""
        if self._held:
            yield
            return
        with self.gpt.frozen():
            self._held = True
            try:
                yield
            finally:
                self._held = False
                self.pool.clear()

    def _request(self, name: str, prompt: list[int], sampling: Sampling, seeds: list[str]) -> Request:
        context, vocab = self.gpt.config.sequence_len, self.gpt.config.vocab_size
        if sampling.python and self.run_python is None:
            raise ValueError("python=true, but no Python is run here; start the program itself with python=true")
        if beyond := [token for token, _ in sampling.logit_bias if token >= vocab]:
            raise ValueError(f"logit_bias has the id {beyond[0]}; ids go from 0 to {vocab - 1}")
        if not prompt:
            raise ValueError(f"{name} has no tokens; start with bos")
        if min(prompt) < 0 or max(prompt) >= vocab:
            wrong = next(token for token in prompt if not 0 <= token < vocab)
            raise ValueError(f"{name} has the id {wrong}; ids go from 0 to {vocab - 1}")
        room = context - len(prompt)
        if room < 1:
            raise TooLong(
                f"{name} has {len(prompt):,} tokens and leaves no room for an answer in the model's "
                f"sequence_len={context:,}; give it at most {context - 1:,}"
            )
        prompt = list(prompt)  # the caller's may grow into the next turn
        texts = [
            Text(
                prompt,
                sampling,
                self.tokenizer,
                seed=seed,
                max_tokens=min(sampling.max_tokens or room, room),
                vocab=vocab,
            )
            for seed in seeds
        ]
        return Request(prompt, sampling, texts)

    # --- doing -------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def step(self) -> list[Piece]:
        """A token for every live text, after those that can have joined them; what each got. Nothing while only a prompt is read.

        Whatever raises here ends every request with the finish reason "error": rows half written are of no use.
        """
        try:
            return self._step()
        except BaseException:
            placed = [*self.live, *((text.request, text.sample) for text in self.parked)]
            for request in {*self.waiting, *self.joining, *(request for request, _ in placed)}:
                request.cache = request.hidden = None
                for text in request.texts:
                    text.finish_reason = text.finish_reason or "error"
            self.waiting.clear()
            self.joining.clear()
            self.live.clear()
            self.parked.clear()
            self.cache.clear()
            raise

    def _step(self) -> list[Piece]:
        pieces = self._sweep()
        self._unpark()
        tokens = [text.last_two() for text in self._texts()]
        together, alone = self._join()
        copies = [len(request.texts) for request in together]
        found = []
        if tokens or together:
            prompts = [request.prompt for request in together]
            found.append(self.cache.step(tokens, prompts, copies))  # (rows before and new, V)
            self.stats.read_tokens += sum(map(len, prompts))
        for request, count in zip(together, copies, strict=True):
            self._seat(request, count)
        hidden = [row for one in alone for row in self._join_alone(one)]
        if hidden:
            found.append(self.gpt.logits(torch.cat(hidden)))
        self.joining.clear()
        if not found:
            return pieces
        logits = torch.cat(found) if len(found) > 1 else found[0]  # (B, V)
        texts = self._texts()
        drawing = begin_draw(
            logits, [text.sampling for text in texts], [text.uniform() for text in texts], [text.seen for text in texts],
            [text.added() for text in texts],
        )  # fmt: skip
        ahead = self._look_ahead(texts, drawing.ids) if self.looks_ahead else None
        drawn = self._read(drawing)
        if ahead is not None:
            ahead.tokens = [text.next(token) for text, token in zip(texts, drawn, strict=True)]
        for text, token in zip(texts, drawn, strict=True):
            text.admit(token)
        self.stats.steps += 1
        for (request, sample), text, token in zip(self.live, texts, drawn, strict=True):
            pieces.append(self._take(request, sample, text, token))
        for row in reversed(range(len(texts))):
            if texts[row].finish_reason:
                self._leave(row, keep=self._held)
            elif texts[row].program is not None:
                self._park(row)
        self._rest()
        return pieces

    def _read(self, drawing: Drawing) -> list[Drawn]:
        return drawing.read()

    def _look_ahead(self, texts: list[Text], drawn: Tensor) -> Ahead | None:
        """Begin the next step of all texts with what was drawn (B,), before it is here. A text that turns out to have ended has
        done it in vain."""
        if all(len(text.ids) + 1 == text.max_tokens for text in texts):
            return None
        forced = [text.forced[0] if text.forced else -1 for text in texts]
        if max(forced) >= 0:
            told = to_device(forced, drawn.device)
            drawn = torch.where(told < 0, drawn, told)
        return self.cache.look_ahead([text.last for text in texts], drawn)

    def _park(self, row: int) -> None:
        """Start the program of a text, which gives up its row until it ends."""
        request, sample = self.live[row]
        text = request.texts[sample]
        program, text.program = text.program, None
        result = self.programs.submit(self.run_python, program)  # type: ignore[arg-type]
        self.parked.append(Parked(request, sample, self.cache.copy_of(row, self.cache.lengths[row]), result))
        self._leave(row, keep=False)

    def _unpark(self) -> None:
        """Give texts whose program has ended a row again. With nothing else to do, wait for one a little."""
        if self.parked and not self.live and not self.waiting:
            wait([text.result for text in self.parked], timeout=PARK_SECONDS, return_when=FIRST_COMPLETED)
        for text in [text for text in self.parked if text.result.done()]:
            if len(self.live) == self.max_rows:
                break
            self.parked.remove(text)
            failed = text.result.exception()
            if failed is not None:
                log.warning("a program could not be run: %s", failed)
            text.request.texts[text.sample].tell(None if failed else text.result.result())
            self.cache.adopt(text.cache, 1)
            self.live.append((text.request, text.sample))

    def _texts(self) -> list[Text]:
        return [request.texts[sample] for request, sample in self.live]

    def _take(self, request: Request, sample: int, text: Text, token: Drawn) -> Piece:
        given, forced = len(text.fragments), len(text.forced)
        text.take(token)
        self.stats.forced_tokens += bool(forced)
        self.stats.sampled_tokens += not forced
        return Piece(request, sample, None if text.end or forced else token, text.fragments[given:], text.finish_reason)

    def _leave(self, row: int, *, keep: bool) -> None:
        """Free `row`, which the last one takes; its cache goes into the pool if it is to be kept."""
        request, sample = self.live[row]
        if keep and self.pool.max_bytes:
            ids = [*request.prompt, *request.texts[sample].ids][: self.cache.lengths[row]]
            if self.cache.can_begin(row, len(ids)):  # a stop string may have cut off too much
                self.pool.put(ids, self.cache.copy_of(row, len(ids)))
        self.cache.drop(row)
        self.live[row] = self.live[-1]
        self.live.pop()

    def _sweep(self) -> list[Piece]:
        """End what was cancelled."""
        pieces = []

        def end(request: Request, sample: int) -> None:
            text = request.texts[sample]
            given = len(text.fragments)
            text.finish("cancelled")
            pieces.append(Piece(request, sample, None, text.fragments[given:], "cancelled"))

        for row in reversed(range(len(self.live))):
            if self.live[row][0].cancelled:
                end(*self.live[row])
                self._leave(row, keep=False)
        for text in [text for text in self.parked if text.request.cancelled]:
            text.result.cancel()
            self.parked.remove(text)
            end(text.request, text.sample)
        for request in [request for request in list(self.waiting) if request.cancelled]:
            self.waiting.remove(request)
            request.cache = request.hidden = None
            for sample in range(request.seated, len(request.texts)):
                end(request, sample)
        self._rest()
        return pieces

    def _rest(self) -> None:
        """Without a request, no memory."""
        if not self.busy and self.cache.capacity:
            self.cache.clear()

    def _join(self) -> tuple[list[Request], list[Alone]]:
        """Who joins now that there are rows, first come first served: requests whose prompts are to be read together, and those by themselves.

        Short prompts are read together. One that is long, or begun already, or has more samples than there are rows, is read by itself, a
        chunk per step. Beside live texts it is no more than `prefill_tokens` per step altogether.
        """
        together: list[Request] = []
        alone: list[Alone] = []
        room = self.max_rows - len(self.live)
        limit = self.prefill_tokens if self.live else math.inf
        spent = 0  # tokens of prompts
        while self.waiting and room:
            request = self.waiting[0]
            left = len(request.texts) - request.seated
            known = self.pool.find(request.prompt) if request.cache is None else None
            have = known.tokens if known else request.cache.lengths[0] if request.cache else 0
            rest = len(request.prompt) - have
            cost = min(rest, self.prefill_tokens)
            if spent and rest and spent + cost > limit:
                break
            spent += cost
            count = min(room, left) if rest <= self.prefill_tokens else 0  # 0: the prompt has more
            if have == 0 and count == left:
                together.append(request)
            else:
                alone.append(Alone(request, known, count))
            room -= count
            if count < left:
                break
            self.joining.append(request)
            self.waiting.popleft()
        return together, alone

    def _join_alone(self, alone: Alone) -> list[Tensor]:
        """Read on in a prompt of its own cache; once it is read, let texts of the request join: their hidden states, (count, C)."""
        request, known, count = alone
        if known is not None:
            request.cache = known.copy()
            self.stats.reused_tokens += known.tokens
        if request.hidden is None:
            self._read_on(request)
        if not count:
            return []
        assert request.cache is not None and request.hidden is not None
        beside = sum(live is request for live, _ in self.live)
        self.cache.adopt(request.cache, count, beside + len(request.texts) - request.seated)
        hidden = request.hidden.expand(count, -1)
        self._seat(request, count)
        if request.seated == len(request.texts):
            request.cache = request.hidden = None
        return [hidden]

    def _read_on(self, request: Request) -> None:
        """Read the next chunk of a prompt into its own cache; its last brings the hidden state."""
        cache = request.cache = request.cache or KVCache(self.gpt, 1)
        n = cache.lengths[0] if cache.lengths else 0
        chunk = request.prompt[n : n + self.prefill_tokens]
        hidden = cache.read(chunk, request.prompt[n - 1] if n else None)  # (1, C)
        self.stats.read_tokens += len(chunk)
        if n + len(chunk) == len(request.prompt):
            request.hidden = hidden

    def _seat(self, request: Request, count: int) -> None:
        self.live += [(request, request.seated + n) for n in range(count)]
        request.seated += count
