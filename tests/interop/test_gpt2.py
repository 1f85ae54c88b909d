"""A GPT-2 in the hub's layout: the numbers of `transformers` (tests/golden,
`experiments/interop/golden_gpt2.py`), and its way through checkpoints, decoding and training. A
folder that is not one is refused in a line."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from gpt2_files import SEPARATOR, TEXT, tensors, tokenizer, write_gpt2
from safetensors.torch import load_file, save_file

from nanochat.checkpoint import folder, imported
from nanochat.checkpoint.runs import described, resolve
from nanochat.gpt import GPT, GPT2, GPTConfig, PlainArch, counts
from nanochat.inference.engine import Engine
from nanochat.optim import build
from nanochat.tokenizer.conversations import check_chat_tokens, render

GOLDEN = Path(__file__).parents[1] / "golden" / "gpt2_transformers.npz"
PROMPT = 12


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path / "base"))
    return tmp_path / "base"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_gpt2(tmp_path / "my-gpt2")


def opened(source: Path, base: Path) -> Path:
    return resolve(f"hf:{source}", base / "runs")


def ids() -> torch.Tensor:
    return torch.from_numpy(np.random.RandomState(1).randint(0, 250, (1, 64)))


@pytest.mark.parametrize("load", [folder.load_gpt, folder.load_to_run])
def test_its_logits_are_those_of_transformers(load: Callable, base: Path, source: Path) -> None:
    path = opened(source, base)
    gpt, golden = load(path), np.load(GOLDEN)
    assert isinstance(gpt, GPT2) and isinstance(gpt, GPT)
    targets = torch.cat((ids()[:, 1:], torch.full((1, 1), -1)), 1)
    with torch.no_grad():
        logits, losses = gpt(ids())[0, ::4], gpt.losses(ids(), targets)
    # fp32 over 3 layers, logits up to 3.6; 1.2e-6 measured
    torch.testing.assert_close(logits, torch.from_numpy(golden["logits"]), atol=5e-6, rtol=0)
    assert losses.sum().item() / 63 == pytest.approx(golden["loss"].item(), abs=2e-6)


def test_several_texts_are_decoded_at_once_as_by_transformers(base: Path, source: Path) -> None:
    path, golden = opened(source, base), np.load(GOLDEN)["greedy"].tolist()
    engine = Engine(folder.load_to_run(path), folder.load_tokenizer(path), ends=("<|bos|>",))
    prompts = [golden[:PROMPT], golden[: PROMPT + 20], golden[:PROMPT]]
    found = engine.generate(prompts, max_tokens=63 - PROMPT, tools=False)
    for prompt, completion in zip(prompts, found, strict=True):
        assert [*prompt, *completion.ids][:63] == golden


def test_it_reads_no_more_tokens_than_it_has_positions(base: Path, source: Path) -> None:
    gpt = folder.load_to_run(opened(source, base))
    assert gpt.longest == 64, "by which CORE crops"
    with pytest.raises(ValueError, match="65 tokens are more than the 64 positions"):
        gpt(torch.zeros(1, 65, dtype=torch.long))


def test_the_gradient_is_that_of_the_plain_loss(base: Path, source: Path) -> None:
    """The embedding is the head too: both parts of its gradient, chunk by chunk."""
    gpt = folder.load_gpt(opened(source, base))
    targets = ids()[:, 1:].clone()
    targets[0, :5] = -1
    gpt.loss_sum(ids()[:, :-1], targets).backward()
    found = {name: p.grad.clone() for name, p in gpt.named_parameters()}
    gpt.zero_grad()
    logits = gpt(ids()[:, :-1])[0]
    torch.nn.functional.cross_entropy(
        logits, targets[0], ignore_index=-1, reduction="sum"
    ).backward()
    for name, p in gpt.named_parameters():
        torch.testing.assert_close(found[name], p.grad, atol=2e-4, rtol=1e-4, msg=name)


def test_its_tokenizer_gives_the_ids_of_the_library(base: Path, source: Path) -> None:
    ours, theirs = folder.load_tokenizer(opened(source, base)), tokenizer()
    for text in (*TEXT[:1], "  two\n\n\tlines ", "zażółć 🙂 123456"):
        assert ours.encode(text) == theirs.encode(text).ids
        assert ours.decode(ours.encode(text)) == text
        lengths = ours.token_bytes[ours.encode(text)].sum()
        assert lengths == len(text.encode()), "bits per byte count each byte once"
    assert ours.bos_id == theirs.token_to_id(SEPARATOR) not in ours.encode(SEPARATOR)
    assert ours.decode(ours.encode(SEPARATOR)) == SEPARATOR


def test_conversations_need_tokens_that_are_added_when_asked_for(
    base: Path, source: Path, tmp_path: Path
) -> None:
    plain = opened(source, base)
    with pytest.raises(ValueError, match=r"has no <\|user_start\|>.*chat_tokens=true"):
        check_chat_tokens(folder.load_tokenizer(plain))
    imported.convert_gpt2(f"hf:{source}", source, tmp_path / "chat", chat_tokens=True)
    tokenizer, gpt = folder.load_tokenizer(tmp_path / "chat"), folder.load_gpt(tmp_path / "chat")
    said = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]}
    row, mask = render(tokenizer, said)
    assert row[0] == tokenizer.bos_id and max(row) < gpt.config.vocab_size == 309
    assert sum(mask) == len(tokenizer.encode("Ho")) + 1
    # a new token is as likely as the mean of the others, and the others keep their logits
    with torch.no_grad():
        before, after = folder.load_gpt(plain)(ids()), gpt(ids())
    torch.testing.assert_close(after[..., :301], before, atol=1e-5, rtol=0)
    mean = before.mean(-1, keepdim=True).expand(-1, -1, 8)
    torch.testing.assert_close(after[..., 301:], mean, atol=1e-5, rtol=0)


def test_it_says_what_it_is_and_brings_rates_to_fine_tune_with(base: Path, source: Path) -> None:
    path = opened(source, base)
    assert "phase base, step 0, arch gpt2, 3 layers" in described(path)
    assert described(path).endswith(f"from {source}")
    lineage = folder.read_lineage(path)
    gpt = folder.load_gpt(path)
    optimizer = build(gpt, lineage["config"]["optim"]["groups"])
    assert lineage["inherit"] == ["optim.groups"]
    assert {group["lr"] for group in optimizer.param_groups} == {3e-5}
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 40
    assert opened(source, base) == path  # converted once


@pytest.mark.parametrize("depth", [12, 24, 36, 48])
def test_the_published_sizes(depth: int) -> None:
    """124, 355, 774 and 1,558 million parameters, by name (Radford et al. 2019, and the files)."""
    width, total = {
        12: (768, 124_439_808),
        24: (1024, 354_823_168),
        36: (1280, 774_030_080),
        48: (1600, 1_557_611_200),
    }[depth]
    heads = width // 64
    config = GPTConfig(1024, 50257, depth, heads, heads, width, PlainArch())
    with torch.device("meta"):
        gpt = GPT(config)
    padding = (config.padded_vocab_size - 50257) * width
    assert sum(p.numel() for p in gpt.parameters()) - padding == total
    assert counts.parameters(config)["total"] - padding == total


def _config(source: Path, **changes: object) -> None:
    file = source / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def _tensors(source: Path, change: Callable[[dict], object]) -> None:
    found = load_file(source / "model.safetensors")
    change(found)
    save_file(found, source / "model.safetensors")


def _truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1000])


NORM = "transformer.ln_f.weight"
WRONG = {
    "another model": (lambda s: _config(s, model_type="llama"), "is a llama, which runs through"),
    "other maths": (lambda s: _config(s, activation_function="relu"), "activation_function=relu"),
    "another width": (lambda s: _config(s, n_embd=128), r"the sizes in config.json want"),
    "no sizes": (lambda s: _config(s, n_layer=None), "does not give n_layer as a number"),
    "no config": (lambda s: (s / "config.json").unlink(), "has no config.json"),
    "no weights": (lambda s: (s / "model.safetensors").unlink(), "has no weights"),
    "truncated": (lambda s: _truncate(s / "model.safetensors"), "cannot be read as weights"),
    "a tensor less": (lambda s: _tensors(s, lambda t: t.pop(NORM)), f"lacks {NORM}"),
    "a tensor more": (
        lambda s: _tensors(s, lambda t: t.update(x=torch.ones(1))),
        "has no place for transformer.x",
    ),
    "another head": (
        lambda s: _tensors(
            s, lambda t: t.update({"lm_head.weight": tensors(301)["transformer.wte.weight"] + 1})
        ),
        "its head is not its embedding",
    ),
    "no tokenizer": (lambda s: (s / "tokenizer.json").unlink(), "has no tokenizer.json"),
    "no JSON": (lambda s: (s / "tokenizer.json").write_text("{"), "its tokenizer cannot be read"),
    "another vocabulary": (lambda s: _config(s, vocab_size=400), "301 tokens, the model 400"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_folder_is_a_line(what: str, base: Path, source: Path) -> None:
    change, line = WRONG[what]
    change(source)
    with pytest.raises(ValueError, match=line) as error:
        opened(source, base)
    assert "\n" not in str(error.value)
    assert not (base / "imported").exists() or not list((base / "imported").iterdir())
