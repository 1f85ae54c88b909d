"""The same questions by CORE's own scoring and by the lm-evaluation-harness: are they decided
alike?

    # prompts of CORE as tasks of lm_eval; then its --log_samples
    python experiments/lm_eval/compare.py tasks DIR SHOTS LIMIT
    python experiments/lm_eval/compare.py compare CKPT SHOTS LIMIT SAMPLES...

Both choose by the summed likelihood here. What the choices of a question begin with in common is
judged by lm_eval and not by CORE; it adds the same to all of them.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

from nanochat.checkpoint.opened import open_checkpoint
from nanochat.evals.core.bundle import find
from nanochat.evals.core.judge import judge
from nanochat.evals.core.prompts import ask, examples_of, render
from nanochat.evals.smooth import by_sum

TASKS = ("arc_easy", "hellaswag", "piqa")
YAML = """task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
output_type: multiple_choice
test_split: test
doc_to_text: "{{{{query}}}}"
doc_to_choice: choices
doc_to_target: gold
target_delimiter: {delimiter}
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
  - {{metric: acc_norm, aggregation: mean, higher_is_better: true}}
"""


def core_tasks(shots: int):
    bundle = find(None)
    return [replace(task, shots=shots) for task in bundle.tasks if task.label in TASKS]


def write_tasks(folder: Path, shots: int, limit: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for task in core_tasks(shots):
        order, name = task.order(1337), f"core_{task.label}"
        with (folder / f"{name}.jsonl").open("w") as file:
            for i in range(limit):
                item = task.items[order[i]]
                # a text is parted between two words, where it is in the middle of no token
                query = render(task, item, examples_of(task, order, i))[1]
                query += task.delimiter.rstrip(" ")
                row = {
                    "index": order[i],
                    "query": query,
                    **{k: item[k] for k in ("choices", "gold")},
                }
                file.write(json.dumps(row) + "\n")
        text = YAML.format(name=name, file=folder / f"{name}.jsonl", delimiter="' '")
        (folder / f"{name}.yaml").write_text(text)


def compare(ckpt: str, shots: int, limit: int, samples: list[Path]) -> None:
    opened = open_checkpoint(ckpt)
    for task in core_tasks(shots):
        order = task.order(1337)
        asked = [
            (
                order[i],
                ask(task, task.items[order[i]], examples_of(task, order, i), opened.tokenizer),
            )
            for i in range(limit)
        ]
        items = judge(opened.gpt, opened.tokenizer, task.label, asked)
        ours = {item.index: item for item in items}
        for file in samples:
            if f"samples_core_{task.label}_" not in file.name:
                continue
            alike, gaps, unlike = 0, [], []
            for line in map(json.loads, file.read_text().splitlines()):
                item = ours[line["doc"]["index"]]
                nats = [-float(given[0]) for given in line["filtered_resps"]]
                theirs, mine = nats.index(min(nats)), by_sum(item)
                offset = nats[0] - item.scores["nats"][0]
                gaps += [
                    abs(a - b - offset) for a, b in zip(nats, item.scores["nats"], strict=True)
                ]
                alike += theirs == mine
                if theirs != mine:
                    own = sorted(item.scores["nats"])
                    unlike.append(f"item {item.index}: margin {own[1] - own[0]:.4f} nats")
            print(
                f"{task.label}, {file.parent.parent.name}: {alike} of {len(ours)} alike; "
                f"likelihoods differ by {max(gaps):.1e} nats at most"
                f"{'; ' if unlike else ''}{'; '.join(unlike)}"
            )


if __name__ == "__main__":
    what, *rest = sys.argv[1:]
    if what == "tasks":
        write_tasks(Path(rest[0]).absolute(), int(rest[1]), int(rest[2]))
    else:
        compare(rest[0], int(rest[1]), int(rest[2]), [Path(name) for name in rest[3:]])
