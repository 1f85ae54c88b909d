"""The comparison that an export's certificate records, of our GPT with the program that the export
is for. Both read one text, and the logits of every position are compared, in fp32, bf16 and fp16.
Both decode 64 tokens greedily after three prompts: a short one, one longer than the shortest
window, and one longer than 2,048 tokens. The certificate is green if in fp32 no logit differs by
more than `BOUND` and no token differs. In bf16 and fp16 programs round at different places, so
their difference is reported together with our own difference from fp32.
"""

import contextlib
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nanochat.gpt import GPT, GPTConfig
from nanochat.tokenizer.conversations import render_prompt
from nanochat.tokenizer.tokenizer import Tokenizer

# largest allowed difference of a logit in fp32, over texts longer than 2,048 tokens; measured 3e-6
# to 2.7e-5 (experiments/export)
BOUND = 1e-4
TOKENS = 64  # written greedily
DTYPES = ("float32", "bfloat16", "float16")
FAR = 2048  # tokens; from: the training length of every published nanochat
CONVERSATIONS: list[list[dict[str, Any]]] = [
    [{"role": "user", "content": "Why is the sky blue?"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is 2+2?"}],
    [
        {"role": "user", "content": "a <|bos|> that is text, and (<|user_end|>)"},
        {
            "role": "assistant",
            "content": [
                {"type": "text", "text": "It is "},
                {"type": "python", "text": "12*12"},
                {"type": "python_output", "text": "144"},
                {"type": "text", "text": "144"},
                {"type": "text", "text": "th"},
            ],
        },
        {"role": "user", "content": "  sure?\n\n It's 2024 "},
    ],
]


def text_ids(tokenizer: Tokenizer, length: int) -> list[int]:
    """`length` ids to compare on: the source of the GPT, or arbitrary ids if the
    tokenizer cannot encode it."""
    source = (Path(__file__).parents[1] / "gpt" / "model.py").read_text(encoding="utf-8")
    ids: list[int] = []
    with contextlib.suppress(ValueError):
        ids = tokenizer.encode(source)
    if not ids:
        draw = torch.Generator().manual_seed(0)
        ids = torch.randint(len(tokenizer.tokens), (length,), generator=draw).tolist()
    ids = [tokenizer.bos_id, *ids]
    return (ids * (length // len(ids) + 1))[:length]


def places(config: GPTConfig, length: int) -> dict[str, slice]:
    """Name -> slice of a text of `length` tokens whose positions test
    something, such as a window."""
    found = {"the first 512 tokens": slice(0, min(512, length))}
    windows = sorted({w for w in config.windows if w is not None and w < length})
    for window in windows:
        found[f"past the window of {window} tokens"] = slice(window + 1, length)
    if config.sequence_len < length and config.sequence_len not in windows:
        found[f"past the {config.sequence_len} tokens of training"] = slice(
            config.sequence_len, length
        )
    if length > FAR:
        found["past 2,048 tokens"] = slice(FAR, length)
    return found


class OurSide:
    """Our side of the comparison. `weights` are those of the export, under our names."""

    def __init__(self, config: GPTConfig, weights: dict[str, Tensor]) -> None:
        self.config, self.weights = config, weights

    def gpt(self, dtype: str, **arch: Any) -> GPT:
        config = replace(self.config, arch=replace(self.config.arch, **arch))
        gpt = GPT.build(config, seed=None, compute_dtype=getattr(torch, dtype))
        gpt.load_state_dict(self.weights, strict=True)
        return gpt


@torch.no_grad()
def logits_of(gpt: GPT, ids: Sequence[int]) -> np.ndarray:
    return gpt(torch.tensor([list(ids)]))[0].numpy()  # (T, V)


def agreement(gpt: GPT, start: list[int], written: list[int]) -> int:
    """How many of the tokens `written` after `start` our GPT would write too, up to the first other
    one. Of logits within `BOUND` either counts."""
    logits = logits_of(gpt, [*start, *written])[len(start) - 1 : -1]  # (64, V)
    chosen = logits[np.arange(len(written)), written]
    other = np.flatnonzero(logits.max(-1) - chosen > BOUND)
    return int(other[0]) if len(other) else len(written)


def largest(a: np.ndarray, b: np.ndarray) -> float | None:
    """The largest difference; None where a number is not finite."""
    difference = float(np.abs(a - b).max()) if a.size else 0.0
    return difference if np.isfinite(difference) else None


def compare_with(
    config: GPTConfig,
    tokenizer: Tokenizer,
    weights: dict[str, Tensor],
    run: Any,
    *,
    arch: dict[str, Any],
    longest: int | None = None,
) -> dict[str, Any]:
    """The comparisons, `verdict` and `why` of a certificate, on a text of up to `longest` tokens.

    `run(request, place)` is the other program (`runtimes.probe`): it gets texts, prompts and
    conversations, returns its results, and writes an array of logits for each precision into
    `place`. `arch` has switches that differ there, for example the precision of RoPE's tables.
    """
    length = max(FAR, config.sequence_len) + 2 * TOKENS
    length = min(length, longest or length)
    text = text_ids(tokenizer, length)
    windows = [w for w in config.windows if w is not None]
    cuts = sorted({16, min([*windows, 512]) + 16, FAR + 16})
    cuts = [cut for cut in cuts if cut + TOKENS <= length]
    starts = [text[:cut] for cut in cuts]
    request = {
        "text": text,
        "starts": starts,
        "tokens": TOKENS,
        "conversations": CONVERSATIONS,
        "dtypes": list(DTYPES),
    }
    reference = OurSide(config, weights)
    rows: list[dict[str, Any]] = []
    wrong: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        answer = run(request, place)
        plain = logits_of(reference.gpt("float32", **arch), text)
        for dtype in answer["greedy"]:
            theirs = np.load(place / f"{dtype}.npy")  # (T, V)
            gpt = reference.gpt(dtype, **arch)
            ours = plain if dtype == "float32" else logits_of(gpt, text)
            if theirs.shape != ours.shape:
                wrong.append(f"its logits have the shape {theirs.shape}, ours {ours.shape}")
                continue
            rows += _logit_rows(dtype, config, theirs, ours, plain)
            for start, written in zip(starts, answer["greedy"][dtype], strict=True):
                same = agreement(gpt, start, written)
                row = {"dtype": dtype, "greedy_after": len(start), "tokens": len(written)}
                rows.append({**row, "same_tokens": same})
    trained = _trained_tables(reference, text, plain, arch)
    expected = [render_prompt(tokenizer, {"messages": talk}) for talk in CONVERSATIONS]
    wrong += what_is_wrong(rows, answer, expected)
    return {
        "verdict": "red" if wrong else "green",
        "why": "; ".join(wrong) or "the same in fp32, logits, greedy tokens and template",
        "loaded_as": answer["model"],
        "versions": answer["versions"],
        "notes": answer.get("notes", []),
        "text_tokens": length,
        "comparisons": rows,
        "conversations_with_equal_ids": sum(
            a == b for a, b in zip(answer["prompts"], expected, strict=True)
        ),
        **trained,
    }


def _logit_rows(
    dtype: str, config: GPTConfig, theirs: np.ndarray, ours: np.ndarray, plain: np.ndarray
) -> list[dict[str, Any]]:
    rows = []
    for name, part in places(config, len(ours)).items():
        row = {"dtype": dtype, "where": name, "logit": largest(theirs[part], ours[part])}
        if dtype != "float32":
            row["our_own_from_fp32"] = largest(ours[part], plain[part])
            row["theirs_from_fp32"] = largest(theirs[part], plain[part])
        rows.append(row)
    return rows


def _trained_tables(
    reference: OurSide, text: list[int], plain: np.ndarray, arch: dict[str, Any]
) -> dict[str, Any]:
    """How much the precision of RoPE's tables in the other program changes the logits."""
    if not arch:
        return {}
    trained = logits_of(reference.gpt("float32"), text)
    return {"logit_as_trained": largest(plain, trained)}


def what_is_wrong(
    rows: list[dict[str, Any]], answer: dict[str, Any], expected: list[list[int]]
) -> list[str]:
    """The differences in words; empty if there are none."""
    wrong = []
    if answer["not_loaded"]:
        wrong.append(f"not loaded, or not in the export: {', '.join(answer['not_loaded'][:3])}")
    for row in rows:
        if row["dtype"] != "float32":
            continue
        if "where" in row and (row["logit"] is None or row["logit"] > BOUND):
            wrong.append(f"logits differ by {row['logit']} in {row['where']}")
        if "tokens" in row and row["same_tokens"] < row["tokens"]:
            wrong.append(
                f"after {row['greedy_after']} tokens only {row['same_tokens']} of {row['tokens']} "
                "greedy tokens are the same"
            )
    for number, (theirs, ours) in enumerate(zip(answer["prompts"], expected, strict=True)):
        if theirs != ours:
            wrong.append(f"conversation {number} has other ids")
    return wrong
