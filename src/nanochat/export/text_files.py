"""The tokenizer, chat template and sampling defaults of an export for transformers.

`tokenizer.json` is ours with two additions. It begins a text with <|bos|>, as every
document and conversation in training does. And it removes CUT, two characters that
Unicode reserves for internal use, and splits there. With CUT the chat template gives
exactly the ids of tokenizer/conversations.py, which encodes each part separately and
never turns text into a special token.
"""

import json
from pathlib import Path
from typing import Any

from nanochat.tokenizer.tokenizer import SPECIAL_TOKENS, TOKENIZER_FILE, Tokenizer

CUT = "\ufdd0\ufdd1"
TEMPLATE = "chat_template.jinja"
# from: facts sheet 7.5
SAMPLING = {"do_sample": True, "temperature": 0.8, "top_k": 50}


def chat_template() -> str:
    text = (Path(__file__).with_name(TEMPLATE)).read_text(encoding="utf-8")
    cut = "".join(f"| replace('{name}', '<|' ~ cut ~ '{name[2:]}')" for name in SPECIAL_TOKENS)
    return text.replace("SPECIALS", cut).replace("'CUT'", f"'{CUT}'")


def tokenizer_json(tokenizer: Tokenizer) -> str:
    content = json.loads(tokenizer.to_json())
    old = content["pre_tokenizer"]
    steps = old["pretokenizers"] if old["type"] == "Sequence" else [old]
    # as an expression: transformers.js keeps a "String" that is to be removed
    cut = {"type": "Split", "pattern": {"Regex": CUT}, "behavior": "Removed", "invert": False}
    content["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [cut, *steps]}
    bos = {"id": "<|bos|>", "ids": [tokenizer.bos_id], "tokens": ["<|bos|>"]}
    start, text = {"SpecialToken": {"id": "<|bos|>", "type_id": 0}}, {"id": "A", "type_id": 0}
    other = {"Sequence": {"id": "B", "type_id": 1}}
    content["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [start, {"Sequence": text}],
        "pair": [start, {"Sequence": text}, other],
        "special_tokens": {"<|bos|>": bos},
    }
    return json.dumps(content, ensure_ascii=False)


def ends(phase: str | None) -> str:
    """The token that ends the output of a model of this phase."""
    return "<|bos|>" if phase == "base" else "<|assistant_end|>"


def write_text_files(folder: Path, tokenizer: Tokenizer, phase: str | None, length: int) -> None:
    """tokenizer.json, tokenizer_config.json, chat_template.jinja and generation_config.json."""
    (folder / TOKENIZER_FILE).write_text(tokenizer_json(tokenizer), encoding="utf-8")
    (folder / TEMPLATE).write_text(chat_template(), encoding="utf-8")
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|bos|>",
        "eos_token": ends(phase),
        "pad_token": "<|bos|>",
        "additional_special_tokens": list(SPECIAL_TOKENS[1:]),
        "clean_up_tokenization_spaces": False,
        "model_max_length": length,
        "padding_side": "left",
        "model_input_names": ["input_ids", "attention_mask"],
    }
    write_json(folder / "tokenizer_config.json", config)
    stops = sorted({tokenizer.specials[ends(phase)], tokenizer.bos_id})
    ids = {
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": stops,
        "pad_token_id": tokenizer.bos_id,
    }
    write_json(folder / "generation_config.json", {**ids, **SAMPLING})


def write_json(path: Path, data: Any) -> None:
    path.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
