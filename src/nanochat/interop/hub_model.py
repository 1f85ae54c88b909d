"""Models that `transformers` runs, behind the interface of a frozen GPT: for evaluation and chat,
not for training. Only attention is ours. `transformers` allows registering an attention function
by name; it gets queries and keys after rotation and normalisation, and uses the cache of the
engine's current step. So a Llama, a Qwen or a SmolLM decodes many texts at once, which join and
leave the batch, and is scored like our own networks. Anything that our attention would not compute
(a bias of the scores, another softcap) is detected at opening, by comparing logits with those of
the model's own attention.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from nanochat.gpt import GPTConfig
from nanochat.gpt.attention import Attend
from nanochat.gpt.config import PlainArch
from nanochat.gpt.gpt2 import TiedHead
from nanochat.inference.frozen_gpt import FrozenGPT
from nanochat.tokenizer.library import LibraryTokenizer

OURS = "nanochat"  # name under which transformers knows our attention
PROBE = 24  # guess: tokens that both attentions are compared on
# largest difference of logits over the largest logit; bf16 keeps 8 bits, through tens of layers
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1}  # guess
CHAT_TOKENS = ("<|bos|>", "<|assistant_end|>")


@dataclasses.dataclass(frozen=True)
class HubConfig(GPTConfig):
    """Sizes of a model whose heads need not divide its width, with the window of each layer."""

    head_size: int = 64
    layer_windows: tuple[int | None, ...] = ()

    def __post_init__(self) -> None:
        """Nothing to check: the model exists already."""

    @property
    def head_dim(self) -> int:
        return self.head_size

    @property
    def windows(self) -> tuple[int | None, ...]:
        return self.layer_windows


class HubModel(FrozenGPT):
    """`model` is a causal language model of `transformers` whose attention is OURS."""

    kinds: ClassVar[dict[type, type]] = {}
    compiles = False

    def __init__(self, config: HubConfig, model: Any, compute_dtype: torch.dtype) -> None:
        super().__init__(config)
        self.model, self.compute_dtype = model.eval().requires_grad_(False), compute_dtype
        self.grow_rope(config.sequence_len)

    def add_layers(self, config: GPTConfig) -> None:
        """None: they are the model's."""

    def join_queries(self, config: GPTConfig) -> None:
        """Likewise."""

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def lm_head(self) -> TiedHead:
        return TiedHead(self.model.get_output_embeddings().weight)

    @property
    def longest(self) -> int | None:
        return self.config.sequence_len

    def grow_rope(self, length: int) -> None:
        """`cos` and `sin` hold the position indices, as in GPT-2. ValueError beyond the
        context of the model."""
        known = self.config.sequence_len
        if length > known:
            raise ValueError(f"{length:,} tokens are more than the model's context of {known:,}")
        if not self.cos.numel():
            self.cos = self.sin = torch.arange(known, device=self.device)[None, :, None, None]

    def embed(self, idx: Tensor) -> tuple[Tensor, None]:
        """Empty, (B, T, 0): the model does the embedding."""
        return torch.empty(*idx.shape, 0, device=idx.device, dtype=self.compute_dtype), None

    def blocks(
        self,
        x: Tensor,
        bigram: Tensor | None,
        idx: Tensor,
        cos: Tensor,
        sin: Tensor,
        attends: Sequence[Attend],
        ends: Tensor | None = None,
    ) -> Tensor:
        """As `GPT.blocks`, from the ids (B, T); cos (1 or B, T, 1, …) holds their positions."""
        hidden = self.model.base_model(
            input_ids=idx,
            position_ids=cos[:, :, 0, 0].expand(idx.shape),
            use_cache=False,
            attends=list(zip(attends, self.config.windows, strict=True)),
        ).last_hidden_state
        return hidden if ends is None else hidden[ends]

    def unpack(self) -> "FrozenGPT":
        raise ValueError("compile=true cannot take effect on a model of transformers; drop it")


def _attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    attends: list[tuple[Attend, int | None]],
    scaling: float | None = None,
    **more: Any,
) -> tuple[Tensor, None]:
    """Attention as transformers calls it: query (B, H, T, D), key and value (B, G, T, D) -> (B, T,
    H, D)."""
    attend, window = attends[module.layer_idx]
    if scaling is not None:  # ours divides by sqrt(D)
        query = query * (scaling * math.sqrt(query.size(-1)))
    return attend(*(x.transpose(1, 2) for x in (query, key, value)), window), None


def sizes_of(settings: Any) -> HubConfig:
    """Sizes from the model's configuration. ValueError for a model unlike Llama."""
    try:
        H, n, C = settings.num_attention_heads, settings.num_hidden_layers, settings.hidden_size
        return HubConfig(
            sequence_len=settings.max_position_embeddings,
            vocab_size=settings.vocab_size,
            n_layer=n,
            n_head=H,
            n_kv_head=getattr(settings, "num_key_value_heads", None) or H,
            n_embd=C,
            arch=PlainArch(name=settings.model_type),
            head_size=getattr(settings, "head_dim", None) or C // H,
            layer_windows=_windows(settings, n),
        )
    except AttributeError as error:
        raise ValueError(f"a {settings.model_type} cannot be run here: {error}") from error


def _windows(settings: Any, n: int) -> tuple[int | None, ...]:
    """Number of earlier tokens that a token attends to in each layer; transformers counts
    the token itself too."""
    size = getattr(settings, "sliding_window", None)
    kinds = getattr(settings, "layer_types", None) or ["sliding_attention" if size else ""] * n
    return tuple(size - 1 if size and kind == "sliding_attention" else None for kind in kinds)


class HubTokenizer(LibraryTokenizer):
    """A byte-level tokenizer with the model's chat template, if it has one."""

    def __init__(self, folder: Path, vocab_size: int, ends: list[int]) -> None:
        from transformers import AutoTokenizer

        self.own = AutoTokenizer.from_pretrained(folder)
        ends = ends or [self.own.eos_token_id]
        bos = self.own.bos_token_id
        ids = (ends[-1] if bos is None else bos, ends[0])
        if not self.own.is_fast or None in ids:
            raise ValueError("it has no tokenizer.json, or no token that ends a text")
        content = self.own.backend_tokenizer.to_str()
        super().__init__(content, dict(zip(CHAT_TOKENS, ids, strict=True)), vocab_size)
        if self.own.chat_template:
            self.template = self._asked

    def _asked(self, messages: list[dict[str, Any]], go_on: bool) -> list[int]:
        """Token ids of a conversation up to the answer, by the model's template; `go_on`: up to
        where a last message of the assistant is continued."""
        said = [{"role": m["role"], "content": _text(m["content"])} for m in messages]
        text = self.own.apply_chat_template(
            said, tokenize=False, add_generation_prompt=not go_on, continue_final_message=go_on
        )
        return self.own(text, add_special_tokens=False)["input_ids"]


def _text(content: Any) -> str:
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


def load(
    folder: Path, *, device: torch.device, compute_dtype: torch.dtype
) -> tuple[HubModel, HubTokenizer]:
    """The model in a folder, on a device. ValueError if transformers is not installed or cannot
    read it, or if the model computes something that our attention does not."""
    register = _transformers()
    from transformers import AutoModelForCausalLM

    register(OURS, _attention)
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(
            folder, dtype=compute_dtype, attn_implementation="eager", local_files_only=True
        )
        model.to(device)
        config = sizes_of(model.config)
        ends = model.generation_config.eos_token_id
        ends = [ends] if isinstance(ends, int) else list(ends or [])
        tokenizer = HubTokenizer(folder, config.vocab_size, ends)
    except Exception as error:  # transformers raises many exception types for unknown files
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{folder} cannot be run with transformers: {reason}") from error
    probe = torch.randint(0, config.vocab_size, (1, PROBE), device=device)
    with torch.inference_mode():
        theirs = model(probe).logits.float()
        model.set_attn_implementation(OURS)
        gpt = HubModel(config, model, compute_dtype)
        off = (gpt(probe) - theirs).abs().max().item() / theirs.abs().max().item()
    if not off < TOLERANCE[compute_dtype]:
        raise ValueError(
            f"{folder}: logits of this {config.arch.name} differ by {off:.1e} of the largest from "
            "those of transformers; it cannot be run here"
        )
    return gpt, tokenizer


def _transformers() -> Callable[[str, Any], None]:
    try:
        from transformers import AttentionInterface
    except ImportError as error:
        raise ValueError(
            "hf: models that are no GPT-2 need the package transformers; pip install "
            "'nanochat[hub]'"
        ) from error
    return AttentionInterface.register
