"""The trainer's log-probabilities against the definition and against the engine; the loss
against plain autograd."""

import copy
import math

import pytest
import torch
from rollouts import Sums, letters_e
from tiny_networks import SPECIAL, TOKENIZER, chain, plain_distribution, random_gpt, scripted

import nanochat.rl.policy as policy
from nanochat.inference.engine import Engine
from nanochat.inference.sampling import Sampling
from nanochat.rl.algorithms import Algorithm
from nanochat.rl.collect import Collector, Row, drawn_logprobs, group_by_length, padded
from nanochat.rl.policy import check_sampling, logprobs, policy_loss, sampled_logprobs
from nanochat.rl.rewards import Rewards
from nanochat.rl.rollout import sample_rollouts

SAMPLINGS = [
    Sampling(),
    Sampling(temperature=0.7),
    Sampling(top_k=5),
    Sampling(top_p=0.8),
    Sampling(min_p=0.2),
    Sampling(temperature=1.3, top_k=20, top_p=0.9, min_p=0.01),
]


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
def test_log_probabilities_are_those_of_the_definition(sampling: Sampling) -> None:
    logits = torch.randn(20, 50, generator=torch.Generator().manual_seed(1)) * 3
    for row in logits:
        for token, p in plain_distribution(row, sampling, set()).items():
            (found,) = sampled_logprobs(row[None], torch.tensor([token]), sampling).tolist()
            assert found == pytest.approx(math.log(p), abs=1e-5)


def test_a_token_that_the_cut_would_leave_out_stays_in() -> None:
    logits = torch.tensor([[3.0, 2.0, 1.0, 0.0]])
    kept = torch.tensor([3.0, 2.0, 0.0]).log_softmax(0)[2]
    assert sampled_logprobs(logits, torch.tensor([3]), Sampling(top_k=2)).item() == pytest.approx(
        kept.item()
    )
    alone = torch.tensor([3.0, 0.0]).log_softmax(0)[1]
    assert sampled_logprobs(logits, torch.tensor([3]), Sampling(top_p=0.1)).item() == pytest.approx(
        alone.item()
    )


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
def test_the_trainer_agrees_with_the_engine(any_gpt, sampling: Sampling) -> None:
    """For every architecture and cut, with prompts of different lengths side by side. In double
    precision, where a difference is a fault and not what fp32 leaves (1e-5 of a log-probability of
    -8, by the order of sums)."""
    any_gpt = copy.deepcopy(any_gpt).double()
    any_gpt.compute_dtype, any_gpt.cos = torch.float64, torch.empty(0)
    any_gpt.grow_rope(any_gpt.config.sequence_len)
    engine = Engine(any_gpt, TOKENIZER, max_rows=8)
    wanted = Sampling(
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        min_p=sampling.min_p,
        max_tokens=12,
    )
    rollouts = sample_rollouts(
        engine,
        TOKENIZER,
        Sums(size=12),
        range(12),
        samples=3,
        sampling=wanted,
        seeds=[f"a/{n}" for n in range(12)],
    )
    rows = []
    for rollout in rollouts:
        ids, mask, drawn = rollout.tokens(train_stop=True)
        if any(mask):
            rows.append(Row(ids, mask, drawn, 0.0, 0.0, 0))
    assert len(rows) > 30
    for part in group_by_length(rows, 200):
        found = logprobs(any_gpt, *padded(part, torch.device("cpu")), wanted)
        assert (found - drawn_logprobs(part, torch.device("cpu"))).abs().max() < 1e-6


def plain_loss(gpt, rows: list[Row], sampling: Sampling, coefficients: list[float]) -> torch.Tensor:
    """The sum of coefficient * log-probability, row by row, token by token."""
    total = torch.zeros(())
    for row, c in zip(rows, coefficients, strict=True):
        logits = gpt(torch.tensor([row.ids]))[0]
        for at in range(1, len(row.ids)):
            if row.mask[at]:
                total = (
                    total
                    + c
                    * sampled_logprobs(logits[at - 1][None], torch.tensor([row.ids[at]]), sampling)[
                        0
                    ]
                )
    return total


@pytest.mark.parametrize(
    "sampling", [Sampling(), Sampling(temperature=0.8, top_k=7, top_p=0.9)], ids=str
)
@pytest.mark.parametrize("chunk", [3, 10_000])
def test_loss_and_gradients_are_those_of_plain_autograd(
    monkeypatch, sampling: Sampling, chunk: int
) -> None:
    monkeypatch.setattr(policy, "chunk_rows", lambda vocab, device: chunk)
    gpt = random_gpt(std=0.2)
    rows = [
        Row([5, 1, 2, 3, 9, 9], [0, 0, 1, 1, 0, 1], [0.0] * 6, 0, 0, 0),
        Row([5, 7, 8], [0, 0, 1], [0.0] * 3, 0, 0, 0),
    ]
    coefficients = [0.7, -1.3]
    idx, chosen = padded(rows, torch.device("cpu"))
    per_token = torch.tensor([0.7, 0.7, 0.7, -1.3])
    loss, logp, entropy = policy_loss(
        gpt, idx, chosen, sampling, lambda logp, at: (per_token[at] * logp).sum()
    )
    (2 * loss).backward()
    mine = {name: p.grad.clone() for name, p in gpt.named_parameters() if p.grad is not None}
    gpt.zero_grad()
    plain = plain_loss(gpt, rows, sampling, coefficients)
    (2 * plain).backward()
    assert loss.item() == pytest.approx(plain.item(), abs=1e-5) and logp.shape == entropy.shape == (
        4,
    )
    for name, p in gpt.named_parameters():
        if p.grad is not None:
            assert (mine[name] - p.grad).abs().max() < 1e-5 * p.grad.abs().max(), name
    logits = gpt(torch.tensor([rows[1].ids]))[0, 1]
    assert entropy[3].item() == pytest.approx(
        torch.distributions.Categorical(logits=logits).entropy().item(), abs=1e-4
    )


CALCULATES = chain("<|assistant_start|>", "<|python_start|>", "3+4", "<|python_end|>") | {
    SPECIAL["<|output_end|>"]: ord("Y"),
    ord("Y"): SPECIAL["<|assistant_end|>"],
}


def test_what_a_tool_forced_is_masked_and_the_end_is_trained() -> None:
    engine = Engine(scripted(CALCULATES), TOKENIZER)
    (one,) = sample_rollouts(
        engine,
        TOKENIZER,
        Sums(),
        [2],
        samples=1,
        sampling=Sampling(top_k=1, max_tokens=40),
        seeds=["a"],
    )
    ids, mask, drawn = one.tokens(train_stop=True)
    n = len(one.prompt)
    sampled = [SPECIAL["<|python_start|>"], *b"3+4", SPECIAL["<|python_end|>"]]
    forced = [SPECIAL["<|output_start|>"], ord("7"), SPECIAL["<|output_end|>"]]
    assert ids[n:] == [*sampled, *forced, ord("Y"), SPECIAL["<|assistant_end|>"]]
    assert mask == [0] * n + [1] * 5 + [0] * 3 + [1, 1]
    assert one.tokens(train_stop=False)[0] == ids[:-1] and len(drawn) == len(ids)
    assert (
        one.text == "<|python_start|>3+4<|python_end|><|output_start|>7<|output_end|>Y"
        and not one.truncated
    )


def collector(algorithm: Algorithm, **more) -> Collector:
    rewards = Rewards({"e": {"_target_": "nanochat.rl.rewards.Answer"}})
    rewards.of["e"].function = letters_e
    settings = {"questions": 4, "samples": 4, "seed": 1, "max_rows": 8, **more}
    return Collector(
        TOKENIZER, Sums(size=8), rewards, algorithm, Sampling(top_k=8, max_tokens=10), **settings
    )


def test_what_is_drawn_for_a_question_does_not_depend_on_the_others(any_gpt) -> None:
    algorithm = Algorithm("x")
    wide = collector(algorithm).collect(any_gpt, asked=4)
    narrow = collector(algorithm, max_rows=3).collect(any_gpt, asked=4)
    assert [r.completion for r in wide.rollouts] == [r.completion for r in narrow.rollouts]
    halves = [
        collector(algorithm, rank=rank, world_size=2).collect(any_gpt, asked=4).rollouts
        for rank in (0, 1)
    ]
    assert [r.question for r in halves[0]] == [4] * 4 + [6] * 4
    together = sorted([*halves[0], *halves[1]], key=lambda r: (r.question, r.sample))
    assert [r.completion for r in together] == [r.completion for r in wide.rollouts]
    assert (
        wide.asked == 8
        and [r.question for r in collector(algorithm).collect(any_gpt, asked=8).rollouts][:4]
        == [0] * 4
    )


def test_a_question_that_comes_again_gets_other_answers(gpt) -> None:
    found = collector(Algorithm("x"), questions=12).collect(gpt, asked=0)
    answers = [r.completion.ids for r in found.rollouts if r.question == 1]
    assert len(answers) == 8 and answers[:4] != answers[4:]


def test_groups_without_signal_are_left_out_and_asked_again() -> None:
    gpt = random_gpt(std=0.3)

    def only_seven(rollouts, task):
        return [float(r.question == 7 and r.sample == 0) for r in rollouts]

    made = collector(Algorithm("x", skip_dead=True, refill=2))
    made.rewards.of["e"].function = only_seven
    found = made.collect(gpt, asked=0)
    # four asked and dead, four more with question 7 live, then three for the rest
    assert found.asked == 4 + 4 + 3 and found.numbers["rl/questions"] == 11
    assert found.numbers["rl/dead_groups"] == pytest.approx(10 / 11)
    assert len(found.rows) == 4 and {row.weight for row in found.rows} == {
        1 / sum(sum(r.mask) for r in found.rows)
    }
    kept = collector(Algorithm("x"))
    kept.rewards.of["e"].function = only_seven
    found = kept.collect(gpt, asked=4)
    assert len(found.rows) == 4 and found.rows[0].weight < 1 / sum(
        sum(r.mask) for r in found.rows
    ), "the dead count too"


def test_a_question_without_room_is_left_out_and_counted() -> None:
    made = collector(Algorithm("x"))
    task, plain = made.task, made.task.conversation
    long = {
        "messages": [{"role": "user", "content": "x" * 60}, {"role": "assistant", "content": "1"}]
    }
    task.conversation = lambda i: long if i == 2 else plain(i)  # type: ignore[method-assign]
    found = made.collect(random_gpt(std=0.3), asked=0)
    assert (
        sorted({r.question for r in found.rollouts}) == [0, 1, 3]
        and found.numbers["rl/no_room"] == 1
        and found.asked == 4
    )
    task.conversation = lambda i: long  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="none of 4 questions of sums leaves room"):
        made.collect(random_gpt(std=0.3), asked=0)


def test_sampling_that_the_loss_cannot_follow_is_refused() -> None:
    with pytest.raises(ValueError, match=r"rollout.temperature=0 gives the same answer each time"):
        check_sampling(Sampling(temperature=0))
    with pytest.raises(ValueError, match="repetition_penalty"):
        check_sampling(Sampling(repetition_penalty=1.2))


def test_a_question_without_room_is_one_clear_line(gpt) -> None:
    task = Sums()
    task.conversation = lambda i: {
        "messages": [{"role": "user", "content": "x" * 60}, {"role": "assistant", "content": "1"}]
    }  # type: ignore[method-assign]
    with pytest.raises(
        ValueError, match=r"question 0 of sums has 64 tokens and leaves no room .* sequence_len=48"
    ):
        sample_rollouts(
            Engine(gpt, TOKENIZER),
            TOKENIZER,
            task,
            [0],
            samples=2,
            sampling=Sampling(),
            seeds=["a"],
        )
