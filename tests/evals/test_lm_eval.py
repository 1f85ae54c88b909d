"""The adapter for the lm-evaluation-harness against plain computations, and under the
harness's own command."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from tests.test_additions import save_untrained

from nanochat.inference.engine import Engine
from nanochat.tokenizer import train_bpe
from nanochat.tokenizer.conversations import render_prompt

pytest.importorskip("lm_eval", reason="lm_eval is not installed: pip install 'nanochat[lm-eval]'")


@pytest.fixture(scope="module")
def ckpt(tmp_path_factory):
    path = tmp_path_factory.mktemp("it") / "step_000001"
    save_untrained(path)
    return path


@pytest.fixture(scope="module")
def lm(ckpt):
    from nanochat.evals.lm_eval import NanochatLM

    return NanochatLM(ckpt=str(ckpt), precision="fp32", device="cpu")


def asked(*pairs):
    return [SimpleNamespace(args=pair) for pair in pairs]


def plain(lm, ids, start):
    """Log-likelihood of ids[start:] and whether each is the likeliest, in one forward pass."""
    with torch.no_grad():
        logp = lm.gpt(torch.tensor([ids]))[0].double().log_softmax(-1)  # (T, V)
    own = [logp[n - 1, ids[n]].item() for n in range(start, len(ids))]
    best = [int(logp[n - 1].argmax()) == ids[n] for n in range(start, len(ids))]
    return sum(own), all(best)


def test_likelihoods_are_those_of_the_whole_text(lm):
    pairs = [
        ("Where is it?", " In the river"),
        ("", "stone"),
        ("a trailing space ", "x"),
        ("a", "b"),
    ]
    bos = lm.text.bos_id
    for (context, text), (found, greedy) in zip(
        pairs, lm.loglikelihood(asked(*pairs), disable_tqdm=True), strict=True
    ):
        ids = [bos, *lm.text.encode(context + text)]
        start = 1 + len(lm.text.encode(context.rstrip()))
        wanted, best = plain(lm, ids, start)
        assert found == pytest.approx(wanted, rel=1e-5) and greedy == best  # fp32


def test_a_token_over_the_border_is_judged_and_the_text_stays_the_same(lm):
    """ "?" and "\n" are one token here where they follow each other."""
    tokenizer = train_bpe(["Is it?\nAnswer: a river\n"] * 3, 279, max_chars=None, doc_cap=None)
    own = lm.text
    lm.text = tokenizer
    try:
        before, after = lm._encode_pair("Is it?", "\nAnswer: a")
        assert tokenizer.decode(after).startswith("?\n")
        assert [*before, *after] == lm.tok_encode("Is it?\nAnswer: a")
    finally:
        lm.text = own


def test_a_rolling_likelihood_counts_every_token_once(lm):
    short = "the quick brown fox"
    [found] = lm.loglikelihood_rolling(asked((short,)), disable_tqdm=True)
    ids = [lm.text.bos_id, *lm.text.encode(short)]
    assert found == pytest.approx(plain(lm, ids, 1)[0], rel=1e-5)
    long = "stone house light " * lm.max_length
    [found] = lm.loglikelihood_rolling(asked((long,)), disable_tqdm=True)
    ids, total, T = [lm.text.bos_id, *lm.text.encode(long)], 0.0, lm.max_length
    for first in range(1, len(ids), T):  # windows of T predictions; the last looks back to be full
        last = min(first + T, len(ids))
        begin = max(0, last - T - 1)
        if first == 1:
            begin = 0
        total += plain(lm, ids[begin:last], first - begin)[0]
    assert found == pytest.approx(total, rel=1e-5)


def test_texts_are_those_of_the_engine_and_end_before_a_stop_string(lm):
    settings = {"until": ["\n\n"], "max_gen_toks": 12, "do_sample": False}
    prompts = ["Where is it?", "Count: one two"]
    found = lm.generate_until(asked(*((p, settings) for p in prompts)), disable_tqdm=True)
    engine = Engine(lm.gpt, lm.text, ends=lm.engine.ends)
    ids = [lm.tok_encode(p) for p in prompts]
    wanted = [c.text for c in engine.generate(ids, max_tokens=12, tools=False)]
    assert found == [text.partition("\n\n")[0] for text in wanted]
    cut = wanted[0][1:3]
    [text] = lm.generate_until(asked((prompts[0], {"until": [cut], "max_gen_toks": 12})))
    assert text == wanted[0].partition(cut)[0]
    with pytest.raises(ValueError, match="generation_kwargs has num_beams"):
        lm.generate_until(asked(("a", {"until": [], "num_beams": 4})))


def test_the_chat_template_is_that_of_training(lm):
    talk = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello <|bos"}]
    text = lm.apply_chat_template(talk)
    assert lm.tok_encode(text) == render_prompt(lm.text, {"messages": talk})
    more = [*talk, {"role": "assistant", "content": "The answer is"}]
    text = lm.apply_chat_template(more, add_generation_prompt=False)
    assert lm.tok_encode(text) == render_prompt(lm.text, {"messages": more}, go_on=True)


@pytest.mark.slow  # a process of the harness
def test_the_command_of_the_harness_runs_a_local_task(lm, ckpt, tmp_path):
    rows = [{"q": f"{n} and", "c": [" one", " two"], "gold": n % 2} for n in range(4)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "local.yaml").write_text(
        "task: local\ndataset_path: json\n"
        f"dataset_kwargs: {{data_files: {{test: {tmp_path}/rows.jsonl}}}}\n"
        'output_type: multiple_choice\ntest_split: test\ndoc_to_text: "{{q}}"\ndoc_to_choice: c\n'
        "doc_to_target: gold\ntarget_delimiter: ''\n"
        "metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]\n"
    )
    words = [
        *("--model", "nanochat", "--model_args", f"ckpt={ckpt},precision=fp32"),
        "--device",
        "cpu",
    ]
    words += ["--include_path", tmp_path, "--tasks", "local", "--log_samples"]
    done = subprocess.run(
        [sys.executable, "-m", "nanochat.evals.lm_eval", *words, "--output_path", tmp_path / "o"],
        env={**os.environ, "HF_DATASETS_OFFLINE": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    [samples] = (tmp_path / "o").rglob("samples_local_*.jsonl")
    for sample in map(json.loads, samples.read_text().splitlines()):
        row = sample["doc"]
        for choice, given in zip(row["c"], sample["filtered_resps"], strict=True):
            ids = lm.tok_encode(row["q"] + choice)
            start = 1 + len(lm.text.encode(row["q"]))
            assert float(given[0]) == pytest.approx(plain(lm, ids, start)[0], rel=1e-4)
