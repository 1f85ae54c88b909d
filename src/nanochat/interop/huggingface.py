"""Reading models in the hub's layout: which kind one is, and a GPT-2 as sizes, weights and
tokenizer.

config.json  model.safetensors (or shards with an index, or pytorch_model.bin)  tokenizer.json (or
vocab.json, merges.txt)
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers
import torch
from safetensors.torch import load_file
from tokenizers import decoders, models, pre_tokenizers
from torch import Tensor

from nanochat.gpt import GPTConfig
from nanochat.gpt.config import PlainArch
from nanochat.interop.original import published, why_unread
from nanochat.tokenizer.library import LibraryTokenizer

PREFIX = "hf:"
# what is downloaded; *.py, which is never run, belongs to an export and its certificate
PARTS = ("*.json", "*.safetensors", "merges.txt", "*.jinja", "*.py")
OLD_PARTS = (*PARTS, "pytorch_model*.bin")  # of models from before safetensors
TURNED = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
BUFFERS = (".attn.bias", ".attn.masked_bias")  # masks that old files hold; no weights
# settings of a GPT-2 whose other values are other maths, and the values that are computed here
MATHS = {
    "activation_function": "gelu_new",
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
}


def place_of(text: str, mirror: Path | None, cache: Path) -> Path:
    """The folder that `hf:ID-or-folder` names; an id is downloaded once. ValueError if there is
    none, or no model in it."""
    name = text.removeprefix(PREFIX)
    folder = Path(name).expanduser()
    if not folder.is_dir():
        folder = published(name, mirror, cache, PARTS)
        if not list(folder.glob("*.safetensors")) and mirror is None:
            folder = published(name, mirror, cache, OLD_PARTS)
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} has no config.json, so it is not a model in the hub's layout")
    return folder


def read_settings(folder: Path) -> dict[str, Any]:
    """The content of config.json, with a `model_type`."""
    try:
        found = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if not isinstance(found["model_type"], str):
            raise KeyError("model_type")
        return found
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder}/config.json does not name a model_type: {error}") from error


def gpt2_config(folder: Path, settings: Mapping[str, Any]) -> GPTConfig:
    """Sizes of a GPT-2. ValueError for a variant that is not supported."""
    file = folder / "config.json"
    for name, wanted in MATHS.items():
        if settings.get(name, wanted) != wanted:
            raise ValueError(f"{file}: {name}={settings[name]} is not computed here, only {wanted}")
    sizes: dict[str, Any] = {
        key: settings.get(key) for key in ("vocab_size", "n_layer", "n_head", "n_embd")
    }
    sizes["sequence_len"] = settings.get("n_positions")
    if missing := [key for key, value in sizes.items() if type(value) is not int]:
        raise ValueError(f"{file} does not give {missing[0]} as a number")
    if settings.get("n_inner") not in (None, 4 * sizes["n_embd"]):
        raise ValueError(f"{file}: n_inner={settings['n_inner']} is not 4 times the width")
    arch = PlainArch(norm_eps=float(settings.get("layer_norm_epsilon", 1e-5)))
    return GPTConfig(**sizes, n_kv_head=sizes["n_head"], arch=arch)


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """Name -> tensor of all weight files, in their dtypes. Nothing in them is executed."""
    files = sorted(folder.glob("model*.safetensors"))
    old = sorted(folder.glob("pytorch_model*.bin")) if not files else []
    if not files and not old:
        raise ValueError(
            f"{folder} has no weights: neither model.safetensors nor pytorch_model.bin"
        )
    found: dict[str, Tensor] = {}
    for file in [*files, *old]:
        try:
            found |= load_file(file) if files else torch.load(file, weights_only=True, mmap=True)
        except Exception as error:  # both libraries raise many exception types for foreign files
            reason = why_unread(error)
            raise ValueError(f"{file} cannot be read as weights: {reason}") from error
    index = next(folder.glob("*.index.json"), None)
    wanted = (
        set(json.loads(index.read_text(encoding="utf-8"))["weight_map"]) if index else set(found)
    )
    if missing := sorted(wanted - set(found)):
        raise ValueError(f"{folder} lacks the file with {missing[0]}, which {index} names")
    return found


def gpt2_weights(folder: Path, config: GPTConfig, rows: int) -> dict[str, Tensor]:
    """The weights under the names and shapes of `gpt/gpt2.py`. ValueError if one is missing, left
    over or of another shape.

    The files have `rows` embeddings. Further tokens (those for conversations) get the mean
    embedding: a zero embedding would be the likeliest token of all, since logits of GPT-2 are far
    below 0 (Hewitt 2021, "Initializing new word embeddings").
    """
    from nanochat.gpt import GPT

    found = {name.removeprefix("transformer."): t for name, t in read_tensors(folder).items()}
    head = found.pop("lm_head.weight", None)
    if head is not None and not torch.equal(head, found.get("wte.weight", head[:0])):
        raise ValueError(f"{folder}: its head is not its embedding; only tied ones are read here")
    found = {name: t for name, t in found.items() if not name.endswith(BUFFERS)}
    with torch.device("meta"):
        wanted = {name: tuple(p.shape) for name, p in GPT(config).state_dict().items()}
    given = {f"transformer.{name}": tensor for name, tensor in found.items()}
    if wrong := sorted(wanted.keys() ^ given.keys()):
        side = "lacks" if wrong[0] in wanted else "has no place for"
        raise ValueError(
            f"{folder} is not a complete GPT-2: the model {side} {', '.join(wrong[:3])}"
        )
    result = {}
    for name, shape in wanted.items():
        tensor = given[name].T if name.endswith(TURNED) else given[name]
        if name == "transformer.wte.weight" and tuple(tensor.shape) == (rows, shape[1]):
            mean = tensor.float().mean(0, keepdim=True).to(tensor.dtype)
            more = mean.expand(config.vocab_size - rows, -1)
            tensor = torch.cat(
                (tensor, more, tensor.new_zeros(shape[0] - config.vocab_size, shape[1]))
            )
        if tuple(tensor.shape) != shape or not tensor.is_floating_point():
            kind = f"{tuple(tensor.shape)} of {tensor.dtype}"
            raise ValueError(f"{folder}: {name} is {kind}; the sizes in config.json want {shape}")
        result[name] = tensor
    return result


def read_tokenizer(folder: Path, settings: Mapping[str, Any]) -> LibraryTokenizer:
    """The tokenizer of a GPT-2. Its only special token separates texts and becomes our bos."""
    file, parts = folder / "tokenizer.json", (folder / "vocab.json", folder / "merges.txt")
    if file.is_file():
        content = file.read_text(encoding="utf-8")
    elif all(part.is_file() for part in parts):
        library = tokenizers.Tokenizer(models.BPE.from_file(*map(str, parts)))
        library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        library.decoder = decoders.ByteLevel()
        library.add_special_tokens([tokenizers.AddedToken("<|endoftext|>", normalized=False)])
        content = library.to_str()
    else:
        raise ValueError(f"{folder} has no tokenizer.json, nor vocab.json with merges.txt")
    separator = settings.get("bos_token_id", settings.get("eos_token_id"))
    if type(separator) is not int:
        raise ValueError(f"{folder}/config.json gives no bos_token_id, the token between texts")
    try:
        tokenizer = LibraryTokenizer(content, {"<|bos|>": separator})
    except Exception as error:  # `tokenizers` raises Exception itself
        raise ValueError(f"{folder}: its tokenizer cannot be read: {error}") from error
    if tokenizer.vocab_size != settings["vocab_size"]:
        raise ValueError(
            f"{folder}: its tokenizer has {tokenizer.vocab_size:,} tokens, the model "
            f"{settings['vocab_size']:,}"
        )
    return tokenizer
