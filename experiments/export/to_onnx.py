"""A classic export (format=hf) as an ONNX graph with a cache, as transformers.js and `optimum` lay
it out: `python to_onnx.py FOLDER OUT`; needs torch, transformers, onnx and onnxscript.

Inputs are input_ids (B, T), attention_mask (B, P + T), position_ids (B, T) and for every layer
past_key_values.i.key and .value (B, G, P, D); outputs logits (B, T, V) and present.i.key, .value.
"""

import json
import shutil
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM


class Past:
    """Keys and values before these, of every layer; (B, G, P, D) each."""

    def __init__(self, tensors) -> None:
        self.tensors = list(tensors)

    def update(self, key, value, layer: int, **_):
        for i, new in ((2 * layer, key), (2 * layer + 1, value)):
            self.tensors[i] = torch.cat((self.tensors[i], new), dim=2)
        return self.tensors[2 * layer], self.tensors[2 * layer + 1]

    def get_seq_length(self) -> int:
        return self.tensors[0].size(2)


class WithCache(torch.nn.Module):
    """The model as a function of tensors alone."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids, attention_mask, position_ids, *tensors):
        past, T = Past(tensors), input_ids.size(1)
        places = torch.arange(attention_mask.size(1))  # of keys, (P + T,)
        seen = places <= torch.arange(T)[:, None] + tensors[0].size(2)  # (T, P + T)
        seen = seen & attention_mask[:, None, None].bool()  # (B, 1, T, P + T)
        mask = torch.where(seen, 0.0, torch.finfo(torch.float32).min)
        found = self.model(
            input_ids=input_ids,
            attention_mask=mask,
            position_ids=position_ids,
            cache=past,
            use_cache=True,
        )
        return found.logits, *past.tensors


def main(folder: Path, out: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    config = model.config
    n, G, D = config.num_hidden_layers, config.num_key_value_heads, config.head_dim
    B, P, T = 2, 5, 3
    ids = torch.randint(config.vocab_size, (B, T))
    past = [torch.randn(B, G, P, D) for _ in range(2 * n)]
    positions = torch.arange(P, P + T)[None].expand(B, T)
    names = [f"{i}.{kind}" for i in range(n) for kind in ("key", "value")]
    (out / "onnx").mkdir(parents=True)
    torch.onnx.export(
        WithCache(model),
        (ids, torch.ones(B, P + T, dtype=torch.long), positions, *past),
        out / "onnx" / "model.onnx",
        input_names=["input_ids", "attention_mask", "position_ids"]
        + [f"past_key_values.{name}" for name in names],
        output_names=["logits", *(f"present.{name}" for name in names)],
        dynamic_shapes=(
            # names by which transformers.js makes an empty cache
            {0: "batch_size", 1: "sequence_length"},
            {0: "batch_size", 1: "total_sequence_length"},
            {0: "batch_size", 1: "sequence_length"},
            tuple({0: "batch_size", 2: "past_sequence_length"} for _ in past),
        ),
        dynamo=True,
        external_data=False,
    )
    for file in folder.glob("*.json*"):
        if "safetensors" not in file.name and file.name != "certificate.json":
            shutil.copy(file, out)
    shutil.copy(folder / "chat_template.jinja", out)
    settings = json.loads((out / "tokenizer_config.json").read_text())
    settings["chat_template"] = (folder / "chat_template.jinja").read_text(encoding="utf-8")
    (out / "tokenizer_config.json").write_text(json.dumps(settings))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
