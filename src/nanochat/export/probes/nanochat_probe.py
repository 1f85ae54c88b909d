"""Load exported files with the original's code, and write its results:
`python nanochat_probe.py PLACE`.

PLACE/request.json names its checkout (`peer`). Both generations work: the later one takes its
precision from NANOCHAT_DTYPE, the earlier one from autocast.
"""

import contextlib
import json
import os
import platform
import sys
from pathlib import Path

PLACE = Path(sys.argv[1])
ASKED = json.loads((PLACE / "request.json").read_text(encoding="utf-8"))
DTYPE = ASKED["dtypes"][0]
os.environ.update(NANOCHAT_BASE_DIR=ASKED["folder"], NANOCHAT_DTYPE=DTYPE)
sys.path.insert(0, ASKED["peer"])

import numpy as np  # noqa: E402
import torch  # noqa: E402

from nanochat import common  # noqa: E402
from nanochat import engine as its_engine  # noqa: E402
from nanochat.checkpoint_manager import load_model  # noqa: E402


def greedy(model, tokenizer, start: list[int]) -> list[int]:
    """Greedy tokens of the original's engine, with its cache and without its calculator, until
    the model ends its turn."""
    its_engine.use_calculator = lambda expression: None
    columns = its_engine.Engine(model, tokenizer).generate(
        start, num_samples=1, max_tokens=ASKED["tokens"], temperature=0.0
    )
    return [column[0] for column, _ in columns]


def by_its_own_forward(model, start: list[int], written: list[int]) -> bool:
    """Whether a pass over the whole text would have chosen the same tokens, up to rounding."""
    logits = model(torch.tensor([[*start, *written]]))[0, len(start) - 1 : -1].float()
    chosen = logits.gather(1, torch.tensor(written)[:, None])[:, 0]
    return bool((logits.max(-1).values - chosen < (1e-4 if DTYPE == "float32" else 1.0)).all())


def main() -> None:
    assert Path(ASKED["peer"]) in Path(common.__file__).parents
    autocast = contextlib.nullcontext()
    if not hasattr(common, "COMPUTE_DTYPE") and DTYPE != "float32":
        autocast = torch.amp.autocast(device_type="cpu", dtype=getattr(torch, DTYPE))
    device = torch.device("cpu")
    model, tokenizer, _ = load_model(
        ASKED["phase"], device, phase="eval", model_tag=ASKED["tag"], step=ASKED["step"]
    )
    prompts = []
    for talk in ASKED["conversations"]:
        # it drops the last message, which has to be the assistant's
        talk = [*talk, {"role": "assistant", "content": ""}]
        prompts.append(tokenizer.render_for_completion({"messages": talk}))
    with torch.no_grad(), autocast:
        logits = model(torch.tensor([ASKED["text"]]))[0]
        np.save(PLACE / f"{DTYPE}.npy", logits.float().numpy())
        written, notes = [], []
        for start in ASKED["starts"]:
            try:
                found = greedy(model, tokenizer, start)
                problem = "" if by_its_own_forward(model, start, found) else "writes another text"
            except RuntimeError as error:
                problem = f"fails ({str(error).splitlines()[0]})"
            if problem:
                notes.append(
                    f"{DTYPE}, after {len(start)} tokens: its engine, decoding with a cache, "
                    f"{problem}; its forward pass without a cache is compared"
                )
                found = list(model.generate(list(start), ASKED["tokens"], temperature=0))
            written.append(found)
    answer = {
        "model": "nanochat.gpt.GPT",
        "not_loaded": [],
        "notes": notes,
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "prompts": prompts,
        "greedy": {DTYPE: written},
    }
    (PLACE / "answer.json").write_text(json.dumps(answer), encoding="utf-8")


main()
