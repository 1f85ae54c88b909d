"""A checkpoint with random weights, to be exported:
`python random_weights.py OUT DEPTH ARCH TOKENIZER`.

TOKENIZER is the folder of one. Matrices get noise of 1 / sqrt(width) over their start, of which
some are zero, and vectors and scalars 0.1, so that every part of the network counts.
"""

import sys
from pathlib import Path

import torch

from nanochat.checkpoint import folder
from nanochat.gpt import GPT, build_arch, from_depth
from nanochat.interop.eras import preset
from nanochat.tokenizer.files import load_tokenizer


def main(out: Path, depth: int, era: str, tokenizer_folder: Path) -> None:
    tokenizer, arch = load_tokenizer(tokenizer_folder), build_arch(preset(era))
    sizes = {"vocab_size": tokenizer.vocab_size, "sequence_len": 1024}
    gpt = GPT.build(from_depth(depth, arch=arch, **sizes), seed=1)
    draw = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for p in gpt.parameters():
            std = gpt.config.n_embd**-0.5 if p.ndim > 1 else 0.1
            p.add_(torch.randn(p.shape, generator=draw) * std)
    lineage = {"step": 0, "config": {"phase": "sft", "run_name": f"random-d{depth}-{era}"}}
    folder.save(out, gpt.state_dict(), gpt.config, tokenizer, lineage)
    print(
        f"{out}: {sum(p.numel() for p in gpt.parameters()):,} parameters, V={tokenizer.vocab_size}"
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3], Path(sys.argv[4]))
