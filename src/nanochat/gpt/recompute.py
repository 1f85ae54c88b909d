"""What a block keeps for its backward pass, and what it computes a second time instead (Chen et al.
2016, "Training deep nets with sublinear memory cost", arXiv:1604.06174). Losses and gradients stay
the same bit for bit: the second time runs the same kernels on the same numbers.

- `none`: everything that a gradient needs.
- `attention`: the results of matrix products and of attention itself. Norms, rotary positions and
  relu squared are computed again, which reads memory and multiplies nothing (selective
  checkpointing; Korthikanti et al. 2022, arXiv:2205.05198).
- `block`: only what goes into a block, whose forward pass runs twice: a third more arithmetic.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
    noop_context_fn,
)

KINDS = ("none", "attention", "block")
aten = torch.ops.aten
KEPT = {
    aten.mm.default,
    aten.addmm.default,
    aten._scaled_mm.default,
    aten._scaled_dot_product_flash_attention.default,
    aten._scaled_dot_product_efficient_attention.default,
    aten._scaled_dot_product_cudnn_attention.default,
    aten._scaled_dot_product_flash_attention_for_cpu.default,
    torch.ops.higher_order.flex_attention,
}


def _keep(context: Any, operation: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    kept = operation in KEPT or operation.namespace == "torch_attn"  # FlashAttention's
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE


def recomputed(kind: str) -> Callable[..., Any]:
    """`run(block, *args)`, which is `block(*args)` with what `kind` says kept for its backward
    pass."""
    if kind == "none":
        return _plain
    selective = partial(create_selective_checkpoint_contexts, _keep)
    return partial(
        checkpoint,
        use_reentrant=False,
        preserve_rng_state=False,  # nothing in a block is drawn
        context_fn=selective if kind == "attention" else noop_context_fn,
    )


def _plain(block: Callable[..., Any], *args: Any) -> Any:
    return block(*args)
