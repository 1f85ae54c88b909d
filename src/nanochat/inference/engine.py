"""The engine: many prompts of different lengths decoded at once, a token per text and step.

A request takes rows of the cache when they are free and leaves them after its last token, so the
batch is always full of live texts and requests may come at any time. Each text has its own
settings, random numbers and tool state, and which tokens it gets does not depend on the other texts
of the batch, but for the last bits of its logits: more rows are multiplied in another order. What
is sampled is one uniform number per text, looked up in the distribution of its next token, so a
generator per text costs no more than one for all.

On a GPU the next step is begun with what was drawn before that has arrived here, so the GPU works
while texts are looked at (asynchronous scheduling, as vLLM and SGLang do it). Neither tokens nor
their order change by it.

`submit` and `cancel` only write down what is wanted and may be called from any thread; `step` does
it, in one thread, between tokens.
"""

import logging
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from nanochat.gpt import GPT
from nanochat.inference.ahead import Ahead, to_device
from nanochat.inference.cache import KVCache
from nanochat.inference.frozen_gpt import FrozenGPT
from nanochat.inference.joining import Alone, Joining, who_joins
from nanochat.inference.pool import PrefixPool
from nanochat.inference.request import Piece, Request, checked_request
from nanochat.inference.sampling import Drawn, Sampling, begin_draw
from nanochat.inference.stream import Fragment
from nanochat.inference.text import ANSWER_ENDS, Completion, Text
from nanochat.runtime import hardware
from nanochat.tokenizer.tokenizer import Tokenizer

log = logging.getLogger(__name__)

# guess: texts at once; more of them cost memory, 2 * layers * key width * tokens each
MAX_ROWS = 32
PREFILL_TOKENS = 512  # guess: tokens of prompts read between two tokens of the live texts
PROGRAMS = 4  # guess: Python programs at once; more wait
PARK_SECONDS = 0.02  # guess: between two looks at new requests, while all texts wait for programs
POOL_BYTES = 2**30  # guess: 10,000 tokens of a d20 in bf16
# what a command says that starts an engine with compile=true
COMPILES = (
    "compile=true: the first answer takes about half a minute longer, and so does the first that "
    "outgrows its room"
)


@dataclass
class Stats:
    """Counters of an engine since it was created."""

    steps: int = 0
    read_tokens: int = 0  # of prompts, each once however many samples it has
    reused_tokens: int = 0  # of prompts, taken from a finished text instead
    sampled_tokens: int = 0
    forced_tokens: int = 0


class Parked(NamedTuple):
    """A text without a row, waiting for its program to end."""

    request: Request
    sample: int
    cache: KVCache
    result: Future[str | None]


class Engine:
    """Decodes with the weights that `gpt` has when a text begins; `max_rows` texts at a time.

    `prefill_tokens` bounds how much of prompts is read between two tokens (None: whole prompts),
    `pool_bytes` what is kept of finished texts. `run_python` gives the output of a program, from
    any thread: for texts whose Sampling asks for it, where the calculator has no result. A text
    ends before one of the special tokens `ends`, or where the model's `sequence_len` does, with the
    finish reason "length". `compile` makes steps faster after half a minute of compiling, again
    whenever the texts outgrow their room (fixed_step.py); later changes of `gpt` are not seen then.
    """

    def __init__(
        self,
        gpt: GPT,
        tokenizer: Tokenizer,
        *,
        max_rows: int = MAX_ROWS,
        prefill_tokens: int | None = PREFILL_TOKENS,
        pool_bytes: int = POOL_BYTES,
        run_python: Callable[[str], str | None] | None = None,
        ends: tuple[str, ...] = ANSWER_ENDS,
        compile: bool = False,
    ) -> None:
        if compile:
            hardware.check_compiler("compile", gpt.device)
        if max_rows < 1:
            raise ValueError(f"max_rows={max_rows} must be at least 1")
        if prefill_tokens is not None and prefill_tokens < 1:
            raise ValueError(
                f"prefill_tokens={prefill_tokens} must be at least 1, or null to read prompts at "
                "once"
            )
        if pool_bytes < 0:
            raise ValueError(
                f"pool_bytes={pool_bytes} must not be negative; 0 keeps nothing of finished texts"
            )
        self.gpt: GPT = FrozenGPT.of(gpt) if compile else gpt
        if compile and isinstance(self.gpt, FrozenGPT) and not self.gpt.compiles:
            raise ValueError("compile=true cannot take effect on a model of transformers; drop it")
        self.tokenizer, self.max_rows, self.ends, self.compile = tokenizer, max_rows, ends, compile
        self.prefill_tokens = prefill_tokens or gpt.config.sequence_len
        self._cache: KVCache | None = None
        # live[r] is row r of the cache: a request and the number of its text
        self.live: list[tuple[Request, int]] = []
        # the first may have some of its texts among the live
        self.waiting: deque[Request] = deque()
        self.joining: list[Request] = []  # taken from `waiting` in this step
        self.pool = PrefixPool(pool_bytes)
        self.looks_ahead = gpt.device.type == "cuda"  # a CPU does one thing after the other
        self.run_python = run_python
        self.programs = ThreadPoolExecutor(PROGRAMS, thread_name_prefix="program")
        self.parked: list[Parked] = []
        self.stats = Stats()
        self._held = False

    @property
    def cache(self) -> KVCache:
        """Made with frozen weights when they are first needed, and dropped with them: keys of other
        weights are of no use."""
        if self._cache is None:
            self._cache = KVCache(FrozenGPT.of(self.gpt), self.max_rows, compile=self.compile)
        return self._cache

    # --- asking ----------------------------------------------------------------------------------

    def submit(self, prompt_ids: list[int], sampling: Sampling, num_samples: int = 1) -> Request:
        """Queue a request; `step` advances it. The seed and the number of the sample decide what is
        sampled.

        ValueError for a prompt that cannot be answered.
        """
        request = self.request(prompt_ids, sampling, num_samples)
        self.waiting.append(request)
        return request

    def request(self, prompt_ids: list[int], sampling: Sampling, num_samples: int = 1) -> Request:
        """`submit` without the queue, for callers that need the request before its first token."""
        seeds = _seeds(str(sampling.seed), num_samples)
        return self._request("the prompt", prompt_ids, sampling, seeds)

    def cancel(self, request: Request) -> None:
        """End the request at the next token, where its rows become free; a finished request stays
        as it is."""
        request.cancelled = True

    @property
    def busy(self) -> bool:
        return bool(self.live or self.waiting or self.parked)

    @property
    def queued(self) -> int:
        """How many texts wait for a row or for their program."""
        asked = (*self.waiting, *self.joining)
        unseated = sum(len(request.texts) - request.seated for request in asked)
        return unseated + len(self.parked)

    def stream(self, request: Request, sample: int = 0) -> Iterator[Fragment]:
        """The text of one sample, fragment by fragment; `step` is called where none is left.

        Closing it before its end cancels the request. Streams of several requests may be read in
        turn: all go on together.
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
        self,
        prompts: list[list[int]],
        *,
        max_tokens: int,
        temperature: float = 0.0,
        top_k: int | None = None,
        seed: int = 0,
        num_samples: int = 1,
        tools: bool = True,
    ) -> list[Completion]:
        """`num_samples` completions of each prompt, in order; the samples of a prompt follow each
        other.

        With `tools`, the result of an expression between <|python_start|> and <|python_end|>
        follows it, unless it has none. What is sampled is decided by the seed, the number of the
        prompt and that of the sample. ValueError for settings or prompts that make no sense.
        """
        sampling = Sampling(
            temperature=temperature, top_k=top_k, max_tokens=max_tokens, seed=seed, tools=tools
        )
        found = self.sample(
            prompts, sampling, num_samples, [f"{seed}/{i}" for i in range(len(prompts))]
        )
        return [completion for completions in found for completion in completions]

    def sample(
        self, prompts: list[list[int]], sampling: Sampling, num_samples: int, seeds: list[str]
    ) -> list[list[Completion]]:
        """`num_samples` completions of each prompt, however many rows there are. What is sampled is
        decided by the prompt's entry in `seeds` and the number of the sample. ValueError for
        prompts that make no sense."""
        requests = [
            self._request(f"prompt {i}", prompt, sampling, _seeds(seed, num_samples))
            for i, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True))
        ]
        try:
            # longest first, so that texts that are written together are about equally long
            self.waiting.extend(sorted(requests, key=lambda request: -len(request.prompt)))
            while not all(request.done for request in requests):
                self.step()
        finally:  # also where it is interrupted
            for request in requests:
                self.cancel(request)
            with torch.inference_mode():
                self._sweep()
        return [request.completions for request in requests]

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Inside, no weight may change: what is made of weights alone is made once, and rows of
        finished texts are kept for others. Outside, weights may change while no text is written."""
        if self._held:
            yield
            return
        self._held = True
        try:
            yield
        finally:
            self._held = False
            self.pool.clear()
            self._rest()

    def _request(
        self, name: str, prompt: list[int], sampling: Sampling, seeds: list[str]
    ) -> Request:
        if sampling.python and self.run_python is None:
            raise ValueError(
                "python=true, but no Python is run here; start the program itself with python=true"
            )
        return checked_request(
            name, prompt, sampling, seeds, self.gpt.config, self.tokenizer, self.ends
        )

    # --- a step ----------------------------------------------------------------------------------

    @torch.inference_mode()
    def step(self) -> list[Piece]:
        """A token for every live text, after those that can have joined them; what each got.
        Nothing while only a prompt is read.

        Whatever raises here ends every request with the finish reason "error": rows half written
        are of no use.
        """
        try:
            return self._step()
        except BaseException:
            self._give_up()
            raise

    def _step(self) -> list[Piece]:
        pieces = self._sweep()
        self._unpark()
        logits = self._logits()
        if logits is None:
            return pieces
        texts = self._texts()
        drawing = begin_draw(
            logits,
            [text.sampling for text in texts],
            [text.uniform() for text in texts],
            [text.seen for text in texts],
            [text.added() for text in texts],
        )
        ahead = self._look_ahead(texts, drawing.ids) if self.looks_ahead else None
        drawn = drawing.read()
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

    def _logits(self) -> Tensor | None:
        """Logits (B, V) of the next token of all texts, with those that join now."""
        tokens = [text.last_two() for text in self._texts()]
        joining = self._join()
        copies = [len(request.texts) for request in joining.together]
        found = []
        if tokens or joining.together:
            prompts = [request.prompt for request in joining.together]
            found.append(self.cache.step(tokens, prompts, copies))  # (rows before and new, V)
            self.stats.read_tokens += sum(map(len, prompts))
        for request, count in zip(joining.together, copies, strict=True):
            self._seat(request, count)
        hidden = [row for one in joining.alone for row in self._join_alone(one)]
        if hidden:
            found.append(self.cache.gpt.logits(torch.cat(hidden)))
        self.joining.clear()
        if not found:
            return None
        return torch.cat(found) if len(found) > 1 else found[0]

    def _look_ahead(self, texts: list[Text], drawn: Tensor) -> Ahead | None:
        """Begin the next step of all texts with what was drawn (B,), before it is here. For a text
        that turns out to have ended, that was in vain."""
        if all(len(text.ids) + 1 == text.max_tokens for text in texts):
            return None
        forced = [text.forced[0] if text.forced else -1 for text in texts]
        if max(forced) >= 0:
            instead = to_device(forced, drawn.device)
            drawn = torch.where(instead < 0, drawn, instead)
        return self.cache.look_ahead([text.last for text in texts], drawn)

    def _texts(self) -> list[Text]:
        return [request.texts[sample] for request, sample in self.live]

    def _take(self, request: Request, sample: int, text: Text, token: Drawn) -> Piece:
        given, forced = len(text.fragments), len(text.forced)
        text.take(token)
        self.stats.forced_tokens += bool(forced)
        self.stats.sampled_tokens += not forced
        own = None if text.end or forced else token
        return Piece(request, sample, own, text.fragments[given:], text.finish_reason)

    # --- rows that are taken and left ------------------------------------------------------------

    def _join(self) -> Joining:
        joining = who_joins(
            self.waiting,
            self.pool,
            room=self.max_rows - len(self.live),
            prefill_tokens=self.prefill_tokens,
            live=bool(self.live),
        )
        self.joining += joining.complete
        for _ in joining.complete:
            self.waiting.popleft()
        return joining

    def _join_alone(self, alone: Alone) -> list[Tensor]:
        """Read on in a prompt of its own cache; once it is read, let texts of the request join:
        their hidden states, (count, C)."""
        request, known, count = alone
        if known is not None:
            request.cache = known.copy()
            self.stats.reused_tokens += known.tokens
        if request.hidden is None:
            self._read_on(request)
        if not count:
            return []
        assert request.cache is not None and request.hidden is not None
        with_it = sum(live is request for live, _ in self.live)
        self.cache.adopt(request.cache, count, with_it + len(request.texts) - request.seated)
        hidden = request.hidden.expand(count, -1)
        self._seat(request, count)
        if request.seated == len(request.texts):
            request.cache = request.hidden = None
        return [hidden]

    def _read_on(self, request: Request) -> None:
        """Read the next chunk of a prompt into its own cache; its last brings the hidden state."""
        cache = request.cache = request.cache or KVCache(self.cache.gpt, 1)
        n = cache.lengths[0] if cache.lengths else 0
        chunk = request.prompt[n : n + self.prefill_tokens]
        hidden = cache.read(chunk, request.prompt[n - 1] if n else None)  # (1, C)
        self.stats.read_tokens += len(chunk)
        if n + len(chunk) == len(request.prompt):
            request.hidden = hidden

    def _seat(self, request: Request, count: int) -> None:
        self.live += [(request, request.seated + n) for n in range(count)]
        request.seated += count

    def _leave(self, row: int, *, keep: bool) -> None:
        """Free `row`, which the last one takes; its cache goes into the pool if it is to be
        kept."""
        request, sample = self.live[row]
        if keep and self.pool.max_bytes:
            ids = [*request.prompt, *request.texts[sample].ids][: self.cache.lengths[row]]
            if self.cache.can_begin(row, len(ids)):  # a stop string may have cut off too much
                self.pool.put(ids, self.cache.copy_of(row, len(ids)))
        self.cache.drop(row)
        self.live[row] = self.live[-1]
        self.live.pop()

    def _park(self, row: int) -> None:
        """Start the program of a text; the text gives up its row until the program ends."""
        request, sample = self.live[row]
        text = request.texts[sample]
        program, text.program = text.program, None
        result = self.programs.submit(self.run_python, program)  # type: ignore[arg-type]
        kept = self.cache.copy_of(row, self.cache.lengths[row])
        self.parked.append(Parked(request, sample, kept, result))
        self._leave(row, keep=False)

    def _unpark(self) -> None:
        """Give a row back to texts whose program has ended. If there is nothing else to do, wait
        for one."""
        if self.parked and not self.live and not self.waiting:
            results = [text.result for text in self.parked]
            wait(results, timeout=PARK_SECONDS, return_when=FIRST_COMPLETED)
        for text in [text for text in self.parked if text.result.done()]:
            if len(self.live) == self.max_rows:
                break
            self.parked.remove(text)
            failed = text.result.exception()
            if failed is not None:
                log.warning("a program could not be run: %s", failed)
            text.request.texts[text.sample].force(None if failed else text.result.result())
            self.cache.adopt(text.cache, 1)
            self.live.append((text.request, text.sample))

    # --- ends ------------------------------------------------------------------------------------

    def _sweep(self) -> list[Piece]:
        """End cancelled requests."""
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
        """Without a request, no memory, and no weights that may be out of date by the next one."""
        if self._cache is None or self.busy:
            return
        if self._held or isinstance(self.gpt, FrozenGPT):
            if self._cache.capacity:
                self._cache.clear()
        else:
            self._cache = None

    def _give_up(self) -> None:
        """End every request with an error."""
        placed = [*self.live, *((text.request, text.sample) for text in self.parked)]
        for request in {*self.waiting, *self.joining, *(request for request, _ in placed)}:
            request.cache = request.hidden = None
            for text in request.texts:
                text.finish_reason = text.finish_reason or "error"
        self.waiting.clear()
        self.joining.clear()
        self.live.clear()
        self.parked.clear()
        if self._cache is not None:
            self._cache.clear()
            self._rest()


def _seeds(seed: str, num_samples: int) -> list[str]:
    """One seed for each sample of a prompt."""
    if num_samples < 1:
        raise ValueError(f"num_samples={num_samples} must be at least 1")
    return [f"{seed}/{n}" for n in range(num_samples)]
