"""CORE: what is asked, how it is decided and what the numbers are called,
against plain versions."""

import csv
import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from nanochat.checkpoint import folder
from nanochat.evals.core.bundle import CORRECTED, TASKS, Bundle, CoreTask, find
from nanochat.evals.core.core import Core, centred, numbers, passage_line
from nanochat.evals.core.prompts import ask, examples_of, reads_a_passage, render, swapped
from nanochat.evals.evaluation import Context
from nanochat.evals.items import Item
from nanochat.gpt import GPT, from_depth
from nanochat.tokenizer.tokenizer import BPETokenizer

CHOICE = [
    {"query": f"Passage: p{i}.\nQuestion: q{i}?", "choices": ["yes", "no", f"n{i}"], "gold": i % 3}
    for i in range(5)
]
SCHEMA = [
    {"context_options": [f"Ann {i}", f"Bob {i} too"], "continuation": "went.", "gold": i % 2}
    for i in range(6)
]
ANSWER = [{"context": f" 1 + {i} = ", "continuation": str(1 + i)} for i in range(4)]
LISTED = [
    ("boolq", "a/c.jsonl", "multiple_choice", 2, "\nAnswer: ", 50, CHOICE),
    ("agi_eval_lsat_ar", "a/s.jsonl", "schema", 0, None, 20, SCHEMA),
    ("sums", "b/l.jsonl", "language_modeling", 10, None, 0, ANSWER),  # more shots than items
]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bundle")
    tasks = []
    for label, uri, kind, shots, delimiter, _, items in LISTED:
        file = path / "eval_data" / uri
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(json.dumps(item) + "\n" for item in items))
        task = {"label": label, "dataset_uri": uri, "num_fewshot": [shots], "icl_task_type": kind}
        tasks.append({**task, **({"continuation_delimiter": delimiter} if delimiter else {})})
    (path / "core.yaml").write_text(json.dumps({"icl_tasks": tasks}))  # JSON is YAML
    with (path / "eval_meta_data.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["Eval Task", "Random baseline"])
        rows.writerows([one[0], one[5]] for one in LISTED)
    return path


@pytest.fixture(scope="module")
def context() -> Context:
    tokenizer = BPETokenizer([])
    config = from_depth(2, vocab_size=tokenizer.vocab_size, sequence_len=64, head_dim=32)
    gpt = GPT.build(config)
    drawn = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in gpt.parameters():
            p.normal_(0, 0.3, generator=drawn)
    return Context(gpt, tokenizer, lambda: pytest.fail("no data are needed"))


def tasks_of(bundle: Path) -> dict[str, CoreTask]:
    return {task.label: task for task in Bundle(bundle).tasks}


def test_texts_are_those_of_the_facts_sheet(bundle: Path) -> None:
    tasks = tasks_of(bundle)
    texts, _ = render(tasks["boolq"], CHOICE[0], CHOICE[1:3])
    shots = "Passage: p1.\nQuestion: q1?\nAnswer: no\n\nPassage: p2.\nQuestion: q2?\nAnswer: n2\n\n"
    assert texts[1] == shots + "Passage: p0.\nQuestion: q0?\nAnswer: no" and len(texts) == 3
    assert render(tasks["agi_eval_lsat_ar"], SCHEMA[0], SCHEMA[1:2])[0] == [
        "Bob 1 too went.\n\nAnn 0 went.",
        "Bob 1 too went.\n\nBob 0 too went.",
    ]
    assert render(tasks["sums"], ANSWER[3], ANSWER[:1])[0] == [
        "1 + 0 = 1\n\n1 + 3 =",
        "1 + 0 = 1\n\n1 + 3 = 4",
    ]


def test_examples_are_drawn_from_all_other_items_in_the_shuffled_order(bundle: Path) -> None:
    task = tasks_of(bundle)["boolq"]
    data = list(CHOICE)
    random.Random(1337).shuffle(data)
    others = [i for i in range(5) if i != 3]
    wanted = [data[i] for i in random.Random(1234 + 3).sample(others, 2)]
    assert examples_of(task, task.order(1337), 3) == wanted
    few = tasks_of(bundle)["sums"]
    assert len(examples_of(few, few.order(1337), 0)) == 3  # of ten that were wanted


def test_what_is_judged_is_where_the_texts_of_an_item_differ(
    bundle: Path, context: Context
) -> None:
    tasks, tokenizer = tasks_of(bundle), context.tokenizer
    parts = {}
    for name, item in (("boolq", CHOICE[4]), ("agi_eval_lsat_ar", SCHEMA[0]), ("sums", ANSWER[3])):
        asked = ask(tasks[name], item, [], tokenizer)
        parts[name] = [tokenizer.decode(one.continuation) for one in asked.continuations]
        assert all(one.context[0] == tokenizer.bos_id for one in asked.continuations)
    # "no" begins as "n4": only what is after that is judged
    assert parts == {
        "boolq": ["yes", "no", "n4"],
        "agi_eval_lsat_ar": [" went.", " went."],
        "sums": [" 4"],
    }
    cut = ask(tasks["boolq"], CHOICE[4], CHOICE[:1], tokenizer, longest=10)
    assert {len(one.context) + len(one.continuation) for one in cut.continuations} == {10}


@torch.no_grad()
def plainly_right(context: Context, task: CoreTask, idx: int) -> float:
    """One item with all its texts in full, one after the other, by the words of the facts sheet."""
    order, encode = task.order(1337), context.tokenizer.encode
    texts, _ = render(task, task.items[order[idx]], examples_of(task, order, idx))
    rows = [[context.tokenizer.bos_id, *encode(text)] for text in texts]
    logits = [context.gpt(torch.tensor([row]))[0] for row in rows]  # (T, V) each
    if task.kind == "language_modeling":
        start = len(rows[0])
        return float(logits[1][start - 1 : -1].argmax(-1).tolist() == rows[1][start:])
    end = -1 if task.kind == "schema" else 1
    shared = 0
    while all(row[::end][shared] == rows[0][::end][shared] for row in rows):
        shared += 1
    losses = []
    for row, z in zip(rows, logits, strict=True):
        start = len(row) - shared if end < 0 else shared
        ahead = torch.nn.functional.cross_entropy(z[start - 1 : -1], torch.tensor(row[start:]))
        losses.append(ahead.item())
    return float(losses.index(min(losses)) == task.items[order[idx]]["gold"])


def test_decisions_are_those_of_one_item_at_a_time(bundle: Path, context: Context) -> None:
    items: list[Item] = []
    context.record = items.append
    found = Core(str(bundle), passage_swap=False, batch_tokens=500)(context)
    wanted = {
        (task.label, task.order(1337)[i]): plainly_right(context, task, i)
        for task in Bundle(bundle).tasks
        for i in range(len(task.items))
    }
    assert {(item.task, item.index): item.correct for item in items} == wanted
    assert found["core/boolq"] == sum(wanted["boolq", i] for i in range(5)) / 5
    assert {item.correct for item in items} == {0.0, 1.0}  # or nothing was tested
    # a subset is asked as in the whole, and what is recorded is not asked again
    part: list[Item] = []
    context.record = part.append
    some = Core(str(bundle), limit=2, passage_swap=False)
    numbers = some(context)
    assert {(item.task, item.index): item.correct for item in part}.items() <= wanted.items()
    context.recorded = {(item.task, item.index): item for item in part[:3]}
    context.record = (again := []).append
    assert some(context) == numbers and len(again) == len(part) - 3
    context.recorded = {}


def test_a_passage_is_swapped_for_that_of_another_item(bundle: Path, context: Context) -> None:
    tasks = tasks_of(bundle)
    assert [name for name in tasks if reads_a_passage(tasks[name])] == ["boolq"]
    order = tasks["boolq"].order(1337)
    item = swapped(tasks["boolq"], order, 4)
    assert item["query"] == f"Passage: p{order[0]}.\nQuestion: q{order[4]}?"
    context.record = (items := []).append
    found = Core(str(bundle), tasks=["boolq"], limit=3)(context)
    assert [item.task for item in items].count(
        "boolq_swapped"
    ) == 3 and "core/boolq_swapped" in found


def judged(correct: float, count: int, task: str = "t", passages: int = 0) -> list[Item]:
    """Items of which every one is right to this share, of so many passages in turn."""
    of = [f"p{i % passages}" if passages else None for i in range(count)]
    return [Item(task, i, "", (), 0, 0, correct, cluster=of[i]) for i in range(count)]


def test_questions_of_one_passage_count_as_one_in_the_error_of_the_swap() -> None:
    """100 questions of 4 passages: those of the first fall from 1 to 0 by the swap, no other
    changes. As 100 independent questions that would be 0.25 +- 0.04."""
    own = judged(1.0, 100, passages=4)
    other = [replace(i, correct=float(i.cluster != "p0")) for i in own]
    line = passage_line(own, other)
    assert line == (
        "t 1.0000, with passages of other items 0.7500 (100 items of 4 passages, difference "
        "± 0.2500): the score is not seen to depend on the passage"
    )
    alone = [replace(i, cluster=f"p{i.index}") for i in own]
    assert "± 0.0435): the score depends" in passage_line(alone, other)


def test_a_part_is_never_called_core(bundle: Path) -> None:
    """v2 has other baselines for the three tasks that DCLM corrected, from the same accuracies."""
    tasks = Bundle(bundle).tasks
    found = numbers(tasks, {t.label: judged(0.6, len(t.items)) for t in tasks})
    assert found["centred_3of22_15items"] == pytest.approx((0.2 + 0.5 + 0.6) / 3)
    assert found["centred_3of22_15items_v2"] == pytest.approx((0.2 + 0.35 / 0.75 + 0.6) / 3)
    assert not any(name.startswith("CORE") for name in found)
    whole = [
        CoreTask(n, tasks[0].file, uri, "multiple_choice", 0, " ", 25) for n, uri in TASKS.items()
    ]
    full = numbers(whole, dict.fromkeys(TASKS, judged(0.5, 5)))
    v1, v2 = centred(0.5, 25), centred(0.5, CORRECTED["commonsense_qa"])
    assert full["CORE"] == pytest.approx(v1) and full["CORE_v2"] == pytest.approx(
        (21 * v1 + v2) / 22
    )
    assert not any(
        name.startswith("CORE") for name in numbers(whole, dict.fromkeys(TASKS, judged(0.5, 4)))
    )


def test_wrong_bundles_are_named(bundle: Path, tmp_path: Path, context: Context) -> None:
    with pytest.raises(ValueError, match=r"evals.core.bundle=/nowhere is not a folder"):
        find("/nowhere")
    with pytest.raises(ValueError, match=r"has no core.yaml, so it is not the CORE bundle"):
        find(str(tmp_path))
    with pytest.raises(ValueError, match=r"evals.core.tasks has piqa, .* choose from boolq"):
        Core(str(bundle), tasks=["piqa"]).check()
    with pytest.raises(ValueError, match=r"budget_seconds=1e-09 are over .* try evals.core.limit="):
        Core(str(bundle), budget_seconds=1e-9)(context)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_while_training_it_is_as_of_the_saved_checkpoint(
    bundle: Path, context: Context, dtype: torch.dtype, tmp_path: Path
) -> None:
    """The live network with its master weights, and the one that is read to run: the same
    decisions, and losses up to the order of sums, which follows where a weight is in memory."""
    gpt, tokenizer = context.gpt, context.tokenizer
    folder.save(tmp_path / "it", gpt.state_dict(), gpt.config, tokenizer, {})
    read = folder.load_to_run(tmp_path / "it", compute_dtype=dtype)
    live = GPT.build(gpt.config, compute_dtype=dtype)
    live.load_state_dict(gpt.state_dict())
    found: list[list[Item]] = [[], []]
    for one, items in zip((live, read), found, strict=True):
        Core(str(bundle))(Context(one, tokenizer, dict, record=items.append))
    for one, other in zip(*found, strict=True):
        assert (one.task, one.index, one.answer) == (other.task, other.index, other.answer)
        assert one.scores["nats"] == pytest.approx(other.scores["nats"], rel=1e-5)
