"""A GGUF of `to_gguf.py` in llama.cpp, compared with the checkpoint it is of:
`python gguf_compare.py CKPT MODEL.gguf PROBE BACKENDS`.

PROBE is `llama_probe.cpp`, compiled; BACKENDS the folder of llama.cpp's libraries. The text and the
starts are those of an export's certificate (export/proof.py).
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from nanochat.export.folder_export import Origin
from nanochat.export.proof import FAR, OurSide, agreement, logits_of, text_ids

PROSE = Path(__file__).parents[2] / "README.md"


def main(checkpoint: str, model: str, probe: str, backends: str) -> None:
    source = Origin(Path(checkpoint))
    ours_side = OurSide(source.config, source.weights(None))
    gpt = ours_side.gpt("float32", rope_dtype="compute")  # its tables are fp32 there
    tokenizer, cap = source.tokenizer, gpt.config.arch.softcap
    text = text_ids(tokenizer, FAR + 128)
    starts = [text[:16], text[:528], text[: FAR + 16]]
    with tempfile.TemporaryDirectory() as place:
        ids, logits, words = (Path(place) / name for name in ("ids", "logits", "words"))
        ids.write_text("".join(" ".join(map(str, line)) + "\n" for line in (text, *starts)))
        words.write_text(PROSE.read_text(encoding="utf-8"), encoding="utf-8")
        done = subprocess.run(
            [probe, model, backends, str(ids), str(logits), str(words)],
            capture_output=True,
            text=True,
            check=True,
        )
        theirs = np.fromfile(logits, np.float32).reshape(len(text), -1)  # (T, V)
    *greedy, split = [[int(i) for i in line.split()] for line in done.stdout.splitlines()]
    ours = logits_of(gpt, text)
    if cap is not None:
        off = np.abs(cap * np.tanh(theirs / cap) - ours).max()
        print(f"logits, with the cap applied to its: {off:.1e}")
    off, largest = np.abs(theirs - ours).max(), np.abs(ours).max()
    print(f"logits as they are: {off:.1e} (largest of ours {largest:.1f})")
    p, q = (torch.from_numpy(x).log_softmax(-1) for x in (ours, theirs))
    print(
        f"KL of its probabilities from ours: {(p.exp() * (p - q)).sum(-1).mean():.1e} nats a token"
    )
    for start, written in zip(starts, greedy, strict=True):
        same = agreement(gpt, start, written)
        print(f"greedy after {len(start)} tokens: {same} of {len(written)}")
    expected = tokenizer.encode(PROSE.read_text(encoding="utf-8"))
    print(f"README as ids: {len(split)} there, {len(expected)} here, equal: {split == expected}")
    plain = [id for id in expected if not any(c.isdigit() for c in tokenizer.decode([id]))]
    numbers = [id for id in split if not any(c.isdigit() for c in tokenizer.decode([id]))]
    print(f"without the ids of digits: equal: {plain == numbers}")


if __name__ == "__main__":
    main(*sys.argv[1:])
