"""Items of CORE decided by the original's own code; run by against_original.py with its Python.

    python theirs.py CHECKOUT BASE TAG BUNDLE TASK=ITEMS,… > decisions.json

Few-shot examples come from all items of a task. Written for each item: right or wrong, the mean
losses of its choices or the tokens that it likes best where its answer is, and the CPU seconds.
"""

import csv
import json
import os
import random
import sys
import time
from pathlib import Path

checkout, base, tag, bundle, wanted = sys.argv[1:6]
sys.path.insert(0, checkout)
os.environ["NANOCHAT_BASE_DIR"] = base
os.environ["NANOCHAT_DTYPE"] = "float32"

import torch  # noqa: E402
import yaml  # noqa: E402
from nanochat.checkpoint_manager import load_model  # noqa: E402

from nanochat import core_eval  # noqa: E402  the original's

assert Path(checkout) in Path(core_eval.__file__).parents

seen: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
forward = core_eval.forward_model


def watched(model: torch.nn.Module, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    losses, predictions = forward(model, ids)
    seen.append((ids, losses, predictions))
    return losses, predictions


core_eval.forward_model = watched
model, tokenizer, _ = load_model("base", torch.device("cpu"), phase="eval", model_tag=tag)
tasks = {
    task["label"]: task
    for task in yaml.safe_load((Path(bundle) / "core.yaml").read_text())["icl_tasks"]
}
with (Path(bundle) / "eval_meta_data.csv").open() as file:
    assert all(row["Random baseline"] for row in csv.DictReader(file))
found = {}
for label, items in (one.split("=") for one in wanted.split(",")):
    task = tasks[label]
    lines = (Path(bundle) / "eval_data" / task["dataset_uri"]).read_text(encoding="utf-8")
    data = [json.loads(line) for line in lines.splitlines()]
    random.Random(1337).shuffle(data)
    meta = {
        "task_type": task["icl_task_type"],
        "num_fewshot": task["num_fewshot"][0],
        "continuation_delimiter": task.get("continuation_delimiter", " "),
    }
    rows = []
    for index in range(min(int(items), len(data))):
        start = time.process_time()
        right = core_eval.evaluate_example(index, model, tokenizer, data, torch.device("cpu"), meta)
        spent = time.process_time() - start
        ids, losses, predictions = seen.pop()
        rows.append(
            {
                "right": bool(right),
                "cpu": spent,
                "predicted": predictions[0].tolist(),
                "ids": ids[0].tolist(),
            }
        )
    found[label] = rows
json.dump(found, sys.stdout)
