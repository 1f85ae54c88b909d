"""A folder of `to_onnx.py` in transformers.js, compared with the checkpoint it is of:
`python browser_compare.py CKPT FOLDER NODE_MODULES`.

The text, starts and conversations are those of an export's certificate (export/proof.py).
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from nanochat.export.folder_export import Origin
from nanochat.export.proof import CONVERSATIONS, FAR, OurSide, agreement, logits_of, text_ids
from nanochat.tokenizer.conversations import render_prompt

TEXTS = ["It's 2024,  isn't it?\n\n\tzażółć 🙂 1234567", "no special tokens here"]


def main(checkpoint: str, folder: str, modules: str) -> None:
    source = Origin(Path(checkpoint))
    gpt = OurSide(source.config, source.weights(None)).gpt("float32", rope_dtype="compute")
    text = text_ids(source.tokenizer, FAR + 128)
    starts = [text[:16], text[:528], text[: FAR + 16]]
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        request = {
            "folder": os.path.abspath(folder),
            "text": text,
            "starts": starts,
            "tokens": 64,
            "conversations": CONVERSATIONS,
            "texts": TEXTS,
        }
        (place / "request.json").write_text(json.dumps(request))
        (place / "node_modules").symlink_to(os.path.abspath(modules))
        shutil.copy(Path(__file__).with_name("browser_probe.mjs"), place)
        subprocess.run(["node", "browser_probe.mjs", name], cwd=place, check=True)
        answer = json.loads((place / "answer.json").read_text())
        theirs = np.fromfile(place / "logits.f32", np.float32).reshape(len(text), -1)  # (T, V)
    print(f"loaded as {answer['model']}")
    print(f"logits: {np.abs(theirs - logits_of(gpt, text)).max():.1e} over {len(text)} tokens")
    for start, written in zip(starts, answer["greedy"], strict=True):
        same = agreement(gpt, start, written)
        print(f"greedy after {len(start)} tokens: {same} of {len(written)}")
    for talk, found in zip(CONVERSATIONS, answer["prompts"], strict=True):
        same = found == render_prompt(source.tokenizer, {"messages": talk})
        print(f"template ids equal: {same}")
    for text, found in zip(TEXTS, answer["texts"], strict=True):
        print(f"ids of {text!r} equal: {found == source.tokenizer.encode(text)}")


if __name__ == "__main__":
    main(*sys.argv[1:])
