"""A small model with random weights for both: `python start.py FOLDER [DEPTH]` writes weights,
sizes and the ids of the special tokens."""

import json
import sys
from pathlib import Path

import torch

from nanochat.gpt import GPT, GPTConfig
from nanochat.tokenizer.tokenizer import BPETokenizer

folder, depth = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 4
folder.mkdir(parents=True, exist_ok=True)
tokenizer = BPETokenizer([])
width = 64 * depth
config = GPTConfig(256, tokenizer.vocab_size, depth, width // 64, width // 64, width)
gpt = GPT.build(config)
drawn = torch.Generator().manual_seed(1)
with torch.no_grad():
    for p in gpt.parameters():  # nothing zero, so that every gradient counts
        p.normal_(0, 0.05, generator=drawn)
torch.save(gpt.state_dict(), folder / "start.pt")
sizes = {
    "sequence_len": 256,
    "vocab_size": tokenizer.vocab_size,
    "n_layer": depth,
    "n_head": width // 64,
    "n_kv_head": width // 64,
    "n_embd": width,
}
(folder / "start.json").write_text(json.dumps({"sizes": sizes, "specials": tokenizer.specials}))
