"""Is CORE scored here as by the original's own code, item by item?

    python experiments/core/against_original.py peer=DIR base=DIR bundle=DIR [tag=d4]
        [tasks=copa=100,…] [python=…]

`peer` is a checkout of the original, `base` the folder with a checkpoint that it saved and its
tokenizer, `python` an interpreter that has its packages. The checkpoint is imported here, and both
decide the same items of the three kinds of task in fp32 on a CPU.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from nanochat.checkpoint import folder, imported
from nanochat.evals.core.bundle import Bundle
from nanochat.evals.core.core import Core
from nanochat.evals.evaluation import Context
from nanochat.evals.items import Item

TASKS = (
    "copa=100,openbook_qa=40,winogrande=120,lambada_openai=100,arc_easy=8,bigbench_dyck_languages=8"
)


def main(words: dict[str, str]) -> int:
    bundle, base = Path(words["bundle"]).absolute(), Path(words["base"]).absolute()
    wanted, tag = words.get("tasks", TASKS), words.get("tag", "d4")
    theirs = Path(__file__).with_name("theirs.py")
    command = [
        words.get("python", sys.executable),
        str(theirs),
        str(Path(words["peer"]).absolute()),
    ]
    said = subprocess.run(
        [*command, str(base), tag, str(bundle), wanted], capture_output=True, text=True, cwd=base
    )
    if said.returncode:
        print(said.stderr, file=sys.stderr)
        return 1
    original = json.loads(said.stdout[said.stdout.index('{"') :])
    source = imported.find(str(base / "base_checkpoints" / tag))
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "checkpoint"
        imported.convert(source, path)
        gpt, tokenizer = folder.load_to_run(path), folder.load_tokenizer(path)
    print(f"{'task':28} {'items':>5} {'unequal':>7} {'right':>5} {'CPU s, theirs':>13} {'ours':>6}")
    wrong = 0
    for task in Bundle(bundle).tasks:
        if task.label not in original:
            continue
        rows, items = original[task.label], []
        core = Core(str(bundle), [task.label], limit=len(rows), passage_swap=False)
        start = time.process_time()
        core(Context(gpt, tokenizer, dict, record=items.append))
        ours = time.process_time() - start
        place = {number: i for i, number in enumerate(task.order(1337))}
        unequal = sum(differs(item, rows[place[item.index]], tokenizer) for item in items)
        right, cpu = sum(row["right"] for row in rows), sum(row["cpu"] for row in rows)
        print(f"{task.label:28} {len(items):5} {unequal:7} {right:5} {cpu:13.1f} {ours:6.1f}")
        wrong += unequal
    return 1 if wrong else 0


def differs(item: Item, row: dict, tokenizer: object) -> bool:
    """Whether the decisions differ; of a free answer, also whether other tokens are liked best in
    the places of its tokens, whether they are right or not."""
    if bool(item.correct) != row["right"]:
        return True
    if item.choices:
        return False
    n = int(item.scores["tokens"][0])
    end = len(row["ids"]) - 1
    return tokenizer.decode(row["predicted"][end - n : end]) != item.answer  # type: ignore[attr-defined]


if __name__ == "__main__":
    sys.exit(main(dict(word.split("=", 1) for word in sys.argv[1:])))
