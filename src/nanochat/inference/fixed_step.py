"""A step of decoding whose shapes stay the same from token to token, so that it can be compiled
and, on CUDA, recorded.

`KVCache.step` looks no further than what is written and takes only the rows in use, so its shapes
change with every token. Here every row there is room for takes part, over all slots there is room
for; what is not written is masked. That is more arithmetic in far fewer kernels. Recording (a CUDA
graph) then leaves a single launch per token.
"""

import itertools
import logging
import types
import weakref
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nanochat.gpt.attention import Attend
from nanochat.inference.frozen_gpt import FrozenGPT
from nanochat.inference.one_query import one_query_in_loops

log = logging.getLogger(__name__)

RECOMPILATIONS = 64  # guess: more than there are sizes of a cache, 7 of rows times 3 of tokens
NUMBERS = itertools.count(1)
WARM_UPS = 2  # from: PyTorch's notes on CUDA graphs, which ask for a few runs before the capture


def fixed_step(gpt: FrozenGPT, numbers: Tensor, keys: list[Tensor], values: list[Tensor]) -> Tensor:
    """Logits (R, V) after the second token of each row of numbers (R, 3): the token before it, it,
    and how many tokens come before it.

    Its key and value are written into those of every layer, (R, G, slots, D).
    """
    idx, at = numbers[:, :2], numbers[:, 2:]  # (R, 2), (R, 1)
    rows = torch.arange(numbers.size(0), device=numbers.device)
    gqa = gpt.config.n_head != gpt.config.n_kv_head
    visible = {
        slots: torch.arange(slots, device=numbers.device) <= at  # (R, slots)
        for slots in {kept.size(2) for kept in keys}
    }

    def look_up(layer: int) -> Attend:
        slots = keys[layer].size(2)

        def attend(q: Tensor, k: Tensor, v: Tensor, window: int | None) -> Tensor:
            slot, dtype = at[:, 0] % slots, q.dtype
            q, k, v = (x.to(keys[layer].dtype) for x in (q, k, v))
            keys[layer][rows, :, slot], values[layer][rows, :, slot] = k[:, 0], v[:, 0]  # (R, G, D)
            k, v, seen = keys[layer], values[layer], visible[slots]  # (R, G, slots, D), (R, slots)
            if q.is_cpu:
                return one_query_in_loops(q[:, 0], k, v, seen)[:, None].to(dtype)
            y = F.scaled_dot_product_attention(
                q.transpose(1, 2), k, v, attn_mask=seen[:, None, None], enable_gqa=gqa
            )
            return y.transpose(1, 2).to(dtype)

        return attend

    hidden = gpt.hidden_cached(idx, at, [look_up(layer) for layer in range(len(keys))], known=1)
    return gpt.logits(hidden[:, 0])


COMPILED: weakref.WeakKeyDictionary[FrozenGPT, Callable[..., Tensor]] = weakref.WeakKeyDictionary()


def compiled(gpt: FrozenGPT) -> Callable[..., Tensor]:
    """`fixed_step` for this network, compiled for each size of a cache when it is first met.

    torch.compile's guards check before each step whether a module has changed, which took a fifth
    of it (d4). These modules cannot change, so the guards are left out. But numbers of the network
    become constants, and compiled forms are kept by code object: each network gets a code object of
    its own, or it could run with the numbers of another.
    """
    if gpt not in COMPILED:
        torch._dynamo.config.recompile_limit = max(
            torch._dynamo.config.recompile_limit, RECOMPILATIONS
        )
        code = fixed_step.__code__.replace(co_name=f"fixed_step_{next(NUMBERS)}")
        unchanging: dict[str, Any] = {
            "guard_filter_fn": torch.compiler.skip_guard_on_all_nn_modules_unsafe
        }
        step = types.FunctionType(code, fixed_step.__globals__)
        COMPILED[gpt.unpack()] = torch.compile(
            step, dynamic=False, fullgraph=True, options=unchanging
        )
    return COMPILED[gpt]


class CompiledStep:
    """`fixed_step` of one network over one cache, compiled; on CUDA recorded as well."""

    def __init__(self, gpt: FrozenGPT) -> None:
        self.gpt, self._step = gpt, compiled(gpt)
        self.forget()

    def forget(self) -> None:
        """The cache is in other memory from now on: what was recorded of it is void."""
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, numbers: Tensor, keys: list[Tensor], values: list[Tensor]) -> Tensor:
        """As `fixed_step`. On CUDA the logits are overwritten by the next step."""
        if not numbers.is_cuda:
            return self._run(numbers, keys, values)
        if self._graph is None:
            self._record(numbers, keys, values)
        self._numbers.copy_(numbers)
        assert self._graph is not None
        self._graph.replay()
        return self._logits

    def _run(self, numbers: Tensor, keys: list[Tensor], values: list[Tensor]) -> Tensor:
        try:
            return self._step(self.gpt, numbers, keys, values)
        except Exception as error:
            # whatever a compiler raises; an error of the step itself comes again below
            if self._step is fixed_step:
                raise
            what = str(error).strip().splitlines()[0] if str(error).strip() else ""
            log.warning(
                "steps run uncompiled, compiling failed: %s: %s", type(error).__name__, what
            )
            self._step = COMPILED[self.gpt] = fixed_step
            # writes the same into the same place
            return fixed_step(self.gpt, numbers, keys, values)

    def _record(self, numbers: Tensor, keys: list[Tensor], values: list[Tensor]) -> None:
        with torch.cuda.device(numbers.device):  # not that of the thread, which may be another
            self._graph = self._recorded(numbers, keys, values)

    def _recorded(
        self, numbers: Tensor, keys: list[Tensor], values: list[Tensor]
    ) -> torch.cuda.CUDAGraph:
        # with this step's numbers: doing a step again writes the same into the same place
        self._numbers, stream = numbers.clone(), torch.cuda.Stream(numbers.device)
        stream.wait_stream(torch.cuda.current_stream(numbers.device))
        with torch.cuda.stream(stream):
            for _ in range(WARM_UPS):
                self._run(self._numbers, keys, values)
        torch.cuda.current_stream(numbers.device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # a stream of its own: the default one belongs to the GPU that recorded first; other engines
        # go on in their threads
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            self._logits = self._run(self._numbers, keys, values)
        return graph
