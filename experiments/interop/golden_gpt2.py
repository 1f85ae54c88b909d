"""Logits and a greedy text that `transformers` gives for the GPT-2 of
`tests/interop/gpt2_files.py`:

    python experiments/interop/golden_gpt2.py tests/golden/gpt2_transformers.npz

Run it where transformers is installed; `tests/interop/test_gpt2.py` compares with the file.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from transformers import GPT2LMHeadModel

sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "interop"))
from gpt2_files import SIZES, write_gpt2

LENGTH, PROMPT = SIZES["n_positions"], 12


def main(out: str) -> None:
    with tempfile.TemporaryDirectory() as place:
        model = GPT2LMHeadModel.from_pretrained(write_gpt2(Path(place))).eval()
    ids = torch.from_numpy(np.random.RandomState(1).randint(0, 250, (1, LENGTH)))
    with torch.no_grad():
        result = model(ids, labels=ids)
        greedy = model.generate(ids[:, :PROMPT], max_length=LENGTH - 1, do_sample=False)
    logits = result.logits[0, ::4].numpy()
    np.savez_compressed(out, logits=logits, loss=result.loss.item(), greedy=greedy[0].numpy())
    print(logits.shape, float(np.abs(logits).max()), greedy.shape)


if __name__ == "__main__":
    main(sys.argv[1])
