"""Load an exported folder with transformers, and write its results:
`python transformers_probe.py PLACE`.

PLACE/request.json says what to compute; answer.json and one array of logits per
precision are written next to it.
"""

import json
import platform
import sys
from pathlib import Path

import numpy as np
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

PLACE = Path(sys.argv[1])


def greedy(model, prompt: list[int], tokens: int) -> list[int]:
    ids = torch.tensor([prompt])
    found = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=tokens,
        do_sample=False,
        temperature=None,
        top_k=None,
    )
    return found[0, len(prompt) :].tolist()


def main() -> None:
    asked = json.loads((PLACE / "request.json").read_text(encoding="utf-8"))
    folder, trust = asked["folder"], asked["own"]
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust)
    answer = {
        "model": "",
        "versions": {
            "python": platform.python_version(),
            "transformers": transformers.__version__,
            "torch": torch.__version__,
        },
        "prompts": [
            tokenizer.apply_chat_template(talk, add_generation_prompt=True, return_dict=False)
            for talk in asked["conversations"]
        ],
        "greedy": {},
    }
    for dtype in asked["dtypes"]:
        model, report = AutoModelForCausalLM.from_pretrained(
            folder, trust_remote_code=trust, dtype=getattr(torch, dtype), output_loading_info=True
        )
        model.generation_config.eos_token_id = None  # every continuation has the same length
        answer["model"] = type(model).__name__
        answer["not_loaded"] = sorted({*report["missing_keys"], *report["unexpected_keys"]})
        with torch.no_grad():
            logits = model.eval()(torch.tensor([asked["text"]]), use_cache=False).logits[0]
        np.save(PLACE / f"{dtype}.npy", logits.float().numpy())
        answer["greedy"][dtype] = [greedy(model, p, asked["tokens"]) for p in asked["starts"]]
    (PLACE / "answer.json").write_text(json.dumps(answer), encoding="utf-8")


main()
