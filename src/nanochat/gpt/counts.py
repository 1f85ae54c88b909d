"""Parameters, FLOPs and bytes of a GPT as pure functions of its config (facts sheet 1.9); nothing
is built for them."""

from nanochat.gpt.config import GPTConfig, PlainArch

BIGRAM_ROWS = 5  # from: facts sheet 0 (E3), rows of the bigram table per vocabulary entry


def parameters(config: GPTConfig) -> dict[str, int]:
    """Number of parameters by group; `total` is their sum, `scaling` (matrices + head) is what the
    data ratio multiplies."""
    d = config.n_embd
    kv = config.n_kv_head * config.head_dim
    Vp = config.padded_vocab_size
    n = config.n_layer
    arch = config.arch
    if isinstance(arch, PlainArch):
        # one table for embedding and head, which counts as both in `scaling`
        tables = {"embedding": (Vp + config.sequence_len) * d, "value_embeddings": 0, "head": 0}
        groups = {**tables, "matrices": n * 12 * d * d, "scalars": (13 * n + 2) * d}
        return {**groups, "total": sum(groups.values()), "scaling": groups["matrices"] + Vp * d}
    n_value = len(config.value_layers)
    block = 2 * d * d + 2 * d * kv + 8 * d * d  # q and output, k and v, the MLP's two
    groups = {
        "embedding": Vp * d,
        "value_embeddings": n_value * Vp * kv,
        "head": Vp * d,
        "matrices": n * block + n_value * arch.value_gate_channels * config.n_kv_head,
        "scalars": arch.lambdas * 2 * n + arch.smear * (arch.smear_channels + 1) + arch.backout * 1,
    }
    if arch.bigram:
        groups["embedding"] += BIGRAM_ROWS * config.vocab_size * d
        groups["scalars"] += n
    return {**groups, "total": sum(groups.values()), "scaling": groups["matrices"] + groups["head"]}


def matmul_parameters(config: GPTConfig) -> int:
    """Weights that every token is multiplied with: all linear layers, no embeddings and no
    scalars."""
    smear = config.arch.smear_channels if config.arch.smear else 0
    return parameters(config)["scaling"] + smear


def _window(window: int | None, length: int) -> int:
    return length if window is None else min(window, length)


def flops_per_token(config: GPTConfig) -> int:
    """Training FLOPs per token, forward and backward: 6 per weight, and 12 * width * window per
    layer for attention."""
    attention = sum(12 * config.n_embd * _window(w, config.sequence_len) for w in config.windows)
    return 6 * matmul_parameters(config) + attention


def decode_flops(config: GPTConfig, context: int) -> int:
    """FLOPs to decode one token after `context` tokens."""
    return 2 * matmul_parameters(config) + sum(
        4 * config.n_embd * _window(w, context) for w in config.windows
    )


def prefill_flops(config: GPTConfig, tokens: int) -> int:
    """FLOPs to read a prompt of `tokens` tokens."""
    attention = 0
    for window in config.windows:
        w = _window(window, tokens)
        attention += 4 * config.n_embd * (w * (w + 1) // 2 + (tokens - w) * w)
    return 2 * matmul_parameters(config) * tokens + attention


def kv_bytes_per_token(config: GPTConfig, bytes_per_value: int = 2) -> int:
    """Bytes that one token of context takes in the KV cache."""
    return config.n_layer * 2 * config.n_kv_head * config.head_dim * bytes_per_value


def kv_bytes_read(config: GPTConfig, context: int, bytes_per_value: int = 2) -> int:
    """Bytes of cached keys and values that one decode step reads after `context` tokens."""
    return sum(
        2 * config.n_kv_head * config.head_dim * bytes_per_value * _window(w, context)
        for w in config.windows
    )
