"""What vLLM's Transformers back-end computes with an export: `python vllm_probe.py FOLDER PLACE`.

PLACE/request.json has `starts` (lists of ids) and `tokens`; PLACE/answer.json gets for each start
the log-probability of every token after its first, and the greedy tokens, all decoded at once.
"""

import json
import os
import sys
from pathlib import Path

os.environ |= {
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GB
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_ALLOW_LONG_MAX_MODEL_LEN": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}

from vllm import LLM, SamplingParams


def main(folder: str, place: Path) -> None:
    asked = json.loads((place / "request.json").read_text())
    llm = LLM(
        model=folder,
        model_impl="transformers",
        trust_remote_code=True,
        dtype="float32",
        enforce_eager=True,
        enable_prefix_caching=False,
        max_model_len=max(map(len, asked["starts"])) + asked["tokens"],
        max_num_seqs=8,
    )
    params = SamplingParams(
        temperature=0, max_tokens=asked["tokens"], ignore_eos=True, prompt_logprobs=0
    )
    found = llm.generate([{"prompt_token_ids": ids} for ids in asked["starts"]], params)
    answer = {
        "greedy": [list(one.outputs[0].token_ids) for one in found],
        "logprobs": [
            [
                place[token].logprob
                for place, token in zip(one.prompt_logprobs[1:], ids[1:], strict=True)
            ]
            for one, ids in zip(found, asked["starts"], strict=True)
        ],
    }
    (place / "answer.json").write_text(json.dumps(answer))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
