"""A small GPT-2 in the hub's layout, with fixed weights, written without `transformers`."""

import json
from pathlib import Path

import tokenizers
import torch
from original_files import fixed_weights
from safetensors.torch import save_file
from tokenizers import decoders, models, pre_tokenizers, trainers

SIZES = {"n_positions": 64, "n_layer": 3, "n_head": 4, "n_embd": 64}
TEXT = ["The river ran over the stones, and it's 2024: a house of light. Ünïcödé 🙂"] * 20
SEPARATOR = "<|endoftext|>"


def tokenizer() -> tokenizers.Tokenizer:
    """Byte-level BPE whose ids are in GPT-2's order: printable bytes, merges, one special token."""
    library = tokenizers.Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=sorted(alphabet), show_progress=False
    )
    library.train_from_iterator(TEXT, trainer)
    library.add_special_tokens([tokenizers.AddedToken(SEPARATOR, normalized=False)])
    return library


def shapes(vocab: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes as GPT2LMHeadModel saves them: matrices are (in, out)."""
    C, found = SIZES["n_embd"], {}
    for i in range(SIZES["n_layer"]):
        for norm in ("ln_1", "ln_2"):
            found |= {f"h.{i}.{norm}.{leaf}": (C,) for leaf in ("weight", "bias")}
        sizes = {"attn.c_attn": 3 * C, "attn.c_proj": C, "mlp.c_fc": 4 * C, "mlp.c_proj": C}
        for layer, out in sizes.items():
            n_in = 4 * C if layer == "mlp.c_proj" else C
            found |= {f"h.{i}.{layer}.weight": (n_in, out), f"h.{i}.{layer}.bias": (out,)}
    tables = {"wte.weight": (vocab, C), "wpe.weight": (SIZES["n_positions"], C)}
    norms = {"ln_f.weight": (C,), "ln_f.bias": (C,)}
    return {f"transformer.{name}": shape for name, shape in {**tables, **found, **norms}.items()}


def tensors(vocab: int) -> dict[str, torch.Tensor]:
    found = fixed_weights(shapes(vocab))
    for name in found:
        if ".ln_" in name and name.endswith("weight"):
            found[name] += 1
    return found


def write_gpt2(folder: Path, **settings: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    library = tokenizer()
    vocab = library.get_vocab_size()
    library.save(str(folder / "tokenizer.json"))
    save_file(tensors(vocab), folder / "model.safetensors", metadata={"format": "pt"})
    config = {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        "vocab_size": vocab,
        "bos_token_id": vocab - 1,
        "eos_token_id": vocab - 1,
        **SIZES,
        **settings,
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder
