"""Batches of conversations: purity, the ledger, targets, what is bad or too long, and the loss over
them."""

import json
import os
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from nanochat.datamodules.chat import ChatDataModule, jsonl
from nanochat.datamodules.chat_rows import ChatBatches
from nanochat.datamodules.rendered import render_task
from nanochat.gpt import GPT, from_depth
from nanochat.modules.next_token import NextTokenModule
from nanochat.tasks.task import Task
from nanochat.tokenizer import train_bpe
from nanochat.tokenizer.conversations import render

T = 32
MIRROR = os.environ.get("NANOCHAT_HUB_DIR", "")  # read before a fixture hides it


class Talk(Task):
    """`count` conversations of varying length; those in `silent` say nothing that can be trained
    within T tokens, `broken` ones are bad."""

    kind = "chat"

    def __init__(
        self,
        count: int = 40,
        *,
        name: str = "talk",
        long: int = 0,
        broken: tuple[int, ...] = (),
        **common: Any,
    ):
        super().__init__(name=name, **common)
        self.count, self.long, self.broken = count, long, broken

    def total(self) -> int:
        return self.count

    def conversation(self, i: int) -> dict[str, Any]:
        words = [f"w{(i * 7 + k) % 10}" for k in range(1 + i % 5)]
        if i in self.broken:
            return {"messages": [{"role": "assistant", "content": "first"}]}
        question = "why " * (60 if i < self.long else 1)
        return {
            "messages": [
                {"role": "user", "content": question},
                {"role": "assistant", "content": " ".join(words)},
            ]
        }


@pytest.fixture(scope="module")
def tokenizer():
    return train_bpe(
        ["why w1 w2 w3 w4 w5 w6 w7 w8 w9 w0 and so on"] * 4, 272, max_chars=None, doc_cap=None
    )


@pytest.fixture
def make(tokenizer, tmp_path: Path):
    def build(
        train: dict[str, Task],
        *,
        batch_rows: int = 4,
        world_size: int = 1,
        rank: int = 0,
        **options: Any,
    ) -> ChatDataModule:
        settings: dict[str, Any] = {
            "sequence_len": T,
            "num_workers": 0,
            "prepare_workers": 0,
            "rendered_dir": tmp_path,
        }
        data = ChatDataModule(train, {"talk": Talk(12)}, **{**settings, **options})
        data.attach(tokenizer, batch_tokens=batch_rows * T, world_size=world_size, rank=rank)
        data.prepare_data()
        data.setup()
        return data

    return build


def micro_batches(
    data: ChatDataModule, count: int, *, workers: int = 0, start: int = 0
) -> list[dict[str, Any]]:
    batches = ChatBatches(
        data.rows("train"), data.batch_rows, data.micro_rows, data.world_size, data.rank, start
    )
    loader = iter(DataLoader(batches, batch_size=None, num_workers=workers))
    return [next(loader) for _ in range(count)]


@pytest.mark.slow
@pytest.mark.parametrize("packing", ["best_fit", "single", "stream"])
def test_batch_k_is_the_same_on_two_processes_with_workers_and_after_a_resume(
    make, packing
) -> None:
    def build(**options: Any) -> ChatDataModule:
        return make({"a": Talk(50), "b": Talk(30, name="b", repeat=2)}, packing=packing, **options)

    whole = build(rows_per_device=4)
    halves = [build(rows_per_device=1, world_size=2, rank=r) for r in (0, 1)]
    for k in range(8):  # more than an epoch of some
        batch = whole.batch(k)
        got = [micro_batches(half, 2, workers=half.rank * 2, start=k) for half in halves]
        width = max(b["idx"].shape[1] for half in got for b in half)
        idx = torch.cat(
            [
                torch.nn.functional.pad(
                    b["idx"], (0, width - b["idx"].shape[1]), value=whole.tokenizer.bos_id
                )
                for half in got
                for b in half
            ]
        )
        targets = torch.cat(
            [
                torch.nn.functional.pad(b["targets"], (0, width - b["targets"].shape[1]), value=-1)
                for half in got
                for b in half
            ]
        )
        assert torch.equal(targets, batch.targets[:, :width]) and torch.equal(
            idx, batch.idx[:, :width]
        )
        assert (batch.targets[:, width:] == -1).all()
        assert {int(b["num_targets"]) for half in got for b in half} == {batch.num_targets}


def test_an_epoch_holds_every_conversation_as_it_was_rendered(make, tokenizer) -> None:
    task = Talk(40)
    data = make({"talk": task})
    rows, seen = data.rows("train"), []
    for row in range(rows.begin(1)):
        idx, targets = rows.gather([row])
        line = [*idx[0].tolist(), None]
        at = 0
        for item, start, length in rows.pieces(row):
            number = int(re.search(r"#(\d+)", rows.mixture.label(item))[1])
            ids, mask = render(tokenizer, task[number])
            assert (start, length) == (0, len(ids))
            last = min(at + length, T)
            assert line[at:last] == ids[: last - at]
            expected = [i if m else -1 for i, m in zip(ids, mask, strict=True)]
            # targets[t] is token t + 1 of the row
            assert (
                targets[0, max(at - 1, 0) : at + length - 1].tolist()
                == expected[1 if at == 0 else 0 :]
            )
            at += length
            seen.append(number)
        assert (targets[0, max(at - 1, 0) :] == -1).all(), "padding is no target"
    assert sorted(seen) == list(range(40))
    rows.last_row = None
    again = [
        rows.mixture.label(i)
        for row in range(rows.begin(1), rows.begin(2))
        for i, _, _ in rows.pieces(row)
    ]
    assert sorted(again) == sorted(f"talk#{n}" for n in seen) and again != [
        f"talk#{n}" for n in seen
    ], "reshuffled"


@pytest.mark.parametrize("packing", ["best_fit", "single", "stream"])
@pytest.mark.parametrize("supervise", ["assistant", "all"])
@pytest.mark.parametrize("over_long", ["trim", "drop"])
def test_the_ledger_balances_to_the_token(make, tokenizer, packing, supervise, over_long) -> None:
    if packing == "stream" and over_long == "drop":
        pytest.skip("refused")
    task = Talk(40, long=6)
    data = make({"talk": task}, packing=packing, supervise=supervise, over_long=over_long)
    steps = -(-data.epochs_rows() // data.batch_rows)
    found = data.ledger(steps)
    whole = sum(len(render(tokenizer, task[i])[0]) for i in range(40))
    assert found["tokens_read"] == whole
    assert found["tokens_read"] == sum(
        found[f"tokens_{k}"] for k in ("trained", "masked", "trimmed", "dropped")
    )
    batches = [data.batch(k) for k in range(steps)]
    assert (
        found["tokens_trained"]
        == sum(b.num_targets for b in batches)
        == sum(
            int(b["num_targets"])
            for b in micro_batches(data, steps * data.accumulate)[:: data.accumulate]
        )
    )
    if packing != "stream":
        lost = (
            found["conversations_dropped"]
            if over_long == "drop" or supervise == "assistant"
            else found["conversations_trimmed"]
        )
        assert lost == 6 and (found["tokens_trimmed"] > 0) == (
            supervise == "all" and over_long == "trim"
        )
    for k in range(steps + 1):
        part = data.ledger(k)
        assert part["tokens_read"] == sum(
            part[f"tokens_{w}"] for w in ("trained", "masked", "trimmed", "dropped")
        )
        assert part["tokens_trained"] == sum(b.num_targets for b in batches[:k])


def test_padding_ends_the_planned_epochs(make) -> None:
    data = make({"talk": Talk(9)}, batch_rows=8, packing="single")
    assert data.epochs_rows() == 9
    last = data.batch(1)
    assert [len(p) for p in last.documents] == [1] + [0] * 7 and (last.targets[1:] == -1).all()
    data.endless = True
    data.use(data.tokenizer)
    data.attach(data.tokenizer, batch_tokens=8 * T)
    assert [len(p) for p in data.batch(1).documents] == [1] * 8, (
        "a run of another length goes on into the next epoch"
    )


@pytest.mark.slow
def test_over_long_and_masked_conversations_cannot_stall_it(make, tokenizer) -> None:
    """300 steps of one row: every loss is finite, the consumed counter strictly grows (nanochat's
    SFT stalls here, facts sheet 10.2)."""
    data = make({"talk": Talk(200, long=120)}, batch_rows=1, rows_per_device=1)
    data.endless = True
    data.use(tokenizer)
    data.attach(tokenizer, batch_tokens=T)
    gpt = GPT.build(
        from_depth(1, vocab_size=tokenizer.vocab_size, sequence_len=T, aspect_ratio=32, head_dim=32)
    )
    consumed = -1
    for k, batch in enumerate(micro_batches(data, 300)):
        assert batch["num_targets"] > 0
        loss = NextTokenModule(gpt, None, None, 1).micro_loss(batch) / batch["num_targets"]
        assert torch.isfinite(loss)
        if k % 10 == 0:
            now = data.ledger(k + 1)["conversations"]
            assert now > consumed
            consumed = now


def gradients(data: ChatDataModule, gpt: GPT, micro: int) -> list[torch.Tensor]:
    """Of one step, as the phases make it, with `micro` rows at a time."""
    gpt.zero_grad()
    data.rows_per_device = micro
    data.attach(data.tokenizer, batch_tokens=8 * T)
    for batch in micro_batches(data, data.accumulate):
        (NextTokenModule(gpt, None, None, 1).micro_loss(batch) / batch["num_targets"]).backward()
    return [p.grad.clone() for p in gpt.parameters() if p.grad is not None]


@pytest.mark.parametrize("packing", ["best_fit", "single"])
def test_one_times_eight_and_eight_times_one_give_the_same_gradient(
    make, tokenizer, packing
) -> None:
    data = make({"talk": Talk(60)}, batch_rows=8, packing=packing)
    torch.manual_seed(0)
    gpt = GPT.build(
        from_depth(2, vocab_size=tokenizer.vocab_size, sequence_len=T, aspect_ratio=32, head_dim=32)
    )
    # else every logit is near 0 and nothing depends on anything
    torch.nn.init.normal_(gpt.lm_head.weight, std=0.5)
    for whole, split in zip(gradients(data, gpt, 8), gradients(data, gpt, 1), strict=True):
        assert torch.allclose(whole, split, atol=1e-5, rtol=1e-5) and whole.abs().max() < 10


@pytest.mark.parametrize("packing", ["best_fit", "single"])
def test_masked_targets_give_no_gradient(make, tokenizer, packing) -> None:
    """The gradient with respect to the logits, by autograd through the plain logits, is zero
    wherever the mask is."""
    data = make({"talk": Talk(60)}, batch_rows=8, packing=packing)
    batch = data.batch(0)
    gpt = GPT.build(
        from_depth(1, vocab_size=tokenizer.vocab_size, sequence_len=T, aspect_ratio=32, head_dim=32)
    )
    torch.nn.init.normal_(gpt.lm_head.weight, std=0.5)
    hidden = gpt.hidden(batch.idx).detach().requires_grad_()
    from nanochat.gpt.loss import head_loss

    head_loss(
        hidden, gpt.lm_head.weight, batch.targets, softcap=15.0, vocab=tokenizer.vocab_size
    ).backward()
    silent = batch.targets == -1
    assert (
        silent.any()
        and hidden.grad[silent].abs().max() == 0
        and (hidden.grad[~silent].abs().amax(-1) > 0).all()
    )
    # and changing a masked target's own token changes nothing the head sees: the loss counts
    # targets only
    assert batch.num_targets == int((~silent).sum())


def test_a_bad_conversation_is_named_or_counted(make) -> None:
    with pytest.raises(
        ValueError,
        match=(
            r"conversation 3 of talk: message 0 is of assistant where user "
            r"comes.*data.on_bad=skip"
        ),
    ):
        make({"talk": Talk(10, broken=(3, 5))})
    data = make({"talk": Talk(10, broken=(3, 5))}, on_bad="skip")
    assert len(data.rows("train").mixture) == 8 and data.shares()[0].bad == 2
    assert data.manifest()["bad"]["talk"]["count"] == 2


def test_repeats_and_shares(make) -> None:
    data = make({"a": Talk(10), "b": Talk(20, name="b", repeat=3)})
    assert [(share.task, share.conversations, share.lost) for share in data.shares()] == [
        ("a", 10, 0),
        ("b", 60, 0),
    ]


def test_what_trimming_and_dropping_cost_is_said_in_trained_tokens(make, tokenizer) -> None:
    task = Talk(40, long=6)
    data = make({"talk": task})
    masks = [render(tokenizer, task[i])[1] for i in range(40)]
    (share,) = data.shares()
    assert share.trained + share.lost == sum(map(sum, masks))
    assert share.trained == sum(sum(mask[: T + 1]) for mask in masks) and share.lost > 0


def test_validation_is_a_fair_part_of_every_task_and_the_same_for_every_seed(make) -> None:
    def first(seed: int) -> list[str]:
        data = make({"talk": Talk(10)}, seed=seed)
        data.val_tasks = {"a": Talk(60, name="a"), "b": Talk(60, name="b")}
        data.use(data.tokenizer)
        rows = data.rows("val")
        return [
            rows.mixture.label(item)
            for row in range(rows.begin(1) // 4)
            for item, _, _ in rows.pieces(row)
        ]

    assert first(1) == first(2)
    assert 8 <= sum(label.startswith("a#") for label in first(1)) <= 22, "of about 30"


def test_settings_that_cannot_work_are_one_line(make) -> None:
    for options, reason in (
        (
            {"packing": "tight"},
            "data.packing=tight is not known; choose from best_fit, single, stream",
        ),
        ({"supervise": "user"}, "data.supervise=user is not known"),
        ({"num_epochs": 0}, "data.num_epochs=0 is below 1"),
        ({"packing": "stream", "over_long": "drop"}, "data.over_long=drop cannot take effect"),
        ({"rows_per_device": 3}, "try data.rows_per_device=2"),
    ):
        with pytest.raises(ValueError, match=re.escape(reason)):
            make({"talk": Talk(10)}, **options)
    with pytest.raises(ValueError, match=r"data.train_tasks is empty; name a task"):
        make({})
    with pytest.raises(ValueError, match=r"no conversation with a target \(10 dropped"):
        make({"talk": Talk(10, long=10)})


@pytest.mark.slow
def test_rendering_in_processes_gives_the_same_and_is_found_again(tokenizer, tmp_path) -> None:
    from nanochat.tasks.arithmetic import Arithmetic

    task = Arithmetic(size=1500, digits=2)
    one = render_task(task, tokenizer, tmp_path / "one", processes=0)
    two = render_task(task, tokenizer, tmp_path / "two", processes=2)
    for name in ("ids", "mask", "offsets", "numbers"):
        assert np.array_equal(getattr(one, name), getattr(two, name))
    assert np.array_equal(pickle.loads(pickle.dumps(one)).ids, one.ids)
    before = sorted((tmp_path / "one").rglob("*"))
    render_task(task, tokenizer, tmp_path / "one", processes=0)
    assert sorted((tmp_path / "one").rglob("*")) == before
    expected = [sum(render(tokenizer, task[i])[1][:20]) for i in range(50)]
    assert one.supervised(20)[:50].tolist() == expected


def test_own_conversations_are_held_out_by_hash(tmp_path: Path, tokenizer) -> None:
    file = tmp_path / "own.jsonl"
    talks = [
        [{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": f"a{i}"}]
        for i in range(200)
    ]
    file.write_text("".join(json.dumps(talk) + "\n" for talk in talks))
    data = jsonl(str(file), sequence_len=T, num_workers=0, rendered_dir=tmp_path / "r")
    data.attach(tokenizer, batch_tokens=4 * T)
    train, val = (data.rows(split).mixture for split in ("train", "val"))
    assert len(train) + len(val) == 200 and 1 <= len(val) <= 25


@pytest.mark.skipif(not MIRROR, reason="needs the local mirror named by NANOCHAT_HUB_DIR")
@pytest.mark.slow
def test_dolly_balances_to_the_token_and_fills_its_rows(tmp_path: Path, monkeypatch) -> None:
    from nanochat.tasks.messages import Messages

    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path))
    monkeypatch.setenv("NANOCHAT_HUB_DIR", MIRROR)
    task = Messages(name="dolly", dataset="databricks/databricks-dolly-15k", split="train")
    tokenizer = train_bpe(
        (task[i]["messages"][1]["content"] for i in range(3000)), 4096, max_chars=None, doc_cap=None
    )
    # 1024: what packing promises; 512 has more conversations longer than a row
    for length, least in ((512, 0.90), (1024, 0.95)):
        data = ChatDataModule(
            {"dolly": task},
            {"dolly": task},
            sequence_len=length,
            num_workers=0,
            rendered_dir=tmp_path,
        )
        data.attach(tokenizer, batch_tokens=16 * length)
        found = data.ledger(-(-data.epochs_rows() // data.batch_rows))
        assert found["tokens_read"] == len(data.rendered("train")["dolly"].ids)
        assert found["tokens_read"] == sum(
            found[f"tokens_{k}"] for k in ("trained", "masked", "trimmed", "dropped")
        )
        assert found["conversations"] + found["conversations_dropped"] == len(task)
        assert data.utilisation() >= least
