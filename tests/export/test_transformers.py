"""An export loaded by transformers, with its own class or the one that goes along: the same
logits, texts and gradients."""

import io
from contextlib import redirect_stdout
from pathlib import Path

import pytest
import torch

from nanochat.checkpoint import folder
from nanochat.export.folder_export import Origin, to_huggingface
from nanochat.export.huggingface import write_folder
from nanochat.interop.hf_names import stock_lacks
from nanochat.tokenizer.conversations import render_prompt

transformers = pytest.importorskip(
    "transformers", reason="needs transformers: pip install '.[hub]'"
)
ERAS = ("classic", "e1", "e2", "e3", "e4", "e5", "modern")
BOUND = 1e-4  # of a logit in fp32; sums are in another order


def exported(checkpoint: Path) -> tuple[Path, bool]:
    out, config = checkpoint.parent / "hf", folder.read_config(checkpoint)
    own = bool(stock_lacks(config))
    if not out.exists():
        out.mkdir()
        tokenizer, phase = folder.load_tokenizer(checkpoint), folder.phase(checkpoint)
        write_folder(out, checkpoint, config, tokenizer, phase=phase, own=own)
    return out, own


def load(checkpoint: Path, **more):
    out, own = exported(checkpoint)
    return transformers.AutoModelForCausalLM.from_pretrained(out, trust_remote_code=own, **more)


def text(gpt, length: int) -> torch.Tensor:
    draw = torch.Generator().manual_seed(4)
    return torch.randint(gpt.config.vocab_size, (1, length), generator=draw)


@pytest.fixture(autouse=True)
def _modules(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path))


@pytest.mark.parametrize("arch", ERAS)
@torch.no_grad()
def test_logits_and_greedy_text_are_ours(make, arch: str) -> None:
    """Over 512 tokens, past both windows and the 192 of training; 64 tokens by its
    cache, where ours has none."""
    stock = {"rope_dtype": "compute"} if arch == "classic" else {}  # stock tables are fp32
    checkpoint = make(arch, **stock)
    gpt, model = folder.load_gpt(checkpoint), load(checkpoint)
    assert type(model).__name__ == ("NanoChatForCausalLM" if stock else "NanochatErasForCausalLM")
    ids = text(gpt, 512)
    assert (model(ids, use_cache=False).logits - gpt(ids)).abs().max() < BOUND
    model.generation_config.eos_token_id = None
    for start in (1, 150):  # the windows are 128 (or 64 to 96) and 192
        found = model.generate(ids[:, :start], max_new_tokens=64, do_sample=False)
        ours = gpt(found)[0, start - 1 : -1]  # (64, V)
        chosen = ours.gather(1, found[0, start:, None])[:, 0]
        assert (ours.max(-1).values - chosen).max() < BOUND


@pytest.mark.parametrize("arch", ["e3", "modern"])
@torch.no_grad()
def test_padding_on_the_left_changes_nothing(make, arch: str) -> None:
    model, ids = load(make(arch)), text(folder.load_gpt(make(arch)), 20)
    model.generation_config.eos_token_id = None
    padded = torch.cat((torch.full((1, 9), 3), ids[:, :11]), dim=1)
    both = torch.cat((ids, padded))
    mask = torch.ones_like(both)
    mask[1, :9] = 0
    alone = [model.generate(x, max_new_tokens=30, do_sample=False) for x in (ids, ids[:, :11])]
    found = model.generate(both, attention_mask=mask, max_new_tokens=30, do_sample=False)
    assert torch.equal(found[0], alone[0][0]) and torch.equal(found[1, 9:], alone[1][0])
    logits = model(both, attention_mask=mask).logits[1, 9:]  # without positions
    assert (logits - model(ids[:, :11]).logits[0]).abs().max() < BOUND
    beams = model.generate(
        both, attention_mask=mask, max_new_tokens=12, num_beams=3, do_sample=False
    )
    one = model.generate(ids, max_new_tokens=12, num_beams=3, do_sample=False)
    assert torch.equal(beams[0], one[0])


@torch.no_grad()
def test_a_text_in_pieces_is_the_text(make) -> None:
    """The cache holds the token before a piece, for smear and bigrams."""
    for arch in ("e3", "modern"):
        model, ids = load(make(arch)), text(folder.load_gpt(make(arch)), 250)
        cache, pieces = transformers.DynamicCache(config=model.config), []
        for piece in ids.split([140, 1, 60, 49], dim=1):
            given = {"cache" if "cache" in model(ids[:, :2]) else "past_key_values": cache}
            pieces.append(model(piece, use_cache=True, **given).logits)
        assert (torch.cat(pieces, 1) - model(ids).logits).abs().max() < BOUND


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_gradients_are_ours_with_and_without_checkpointing(make, attention: str) -> None:
    gpt, model = folder.load_gpt(make()), load(make(), attn_implementation=attention)
    ids = text(gpt, 160)
    targets = torch.cat((ids[:, 1:], torch.tensor([[-1]])), dim=1)
    (gpt.loss_sum(ids, targets) / 159).backward()
    expected = [gpt.smear_lambda, gpt.transformer.h[0].attn.c_q.weight, gpt.x0_lambdas]
    for checkpointing in (False, True):
        model.zero_grad()
        if checkpointing:
            model.gradient_checkpointing_enable()
        model.train()(ids, labels=ids).loss.backward()
        inner = model.model
        found = [inner.smear_lambda, inner.layers[0].self_attn.q_proj.weight, inner.x0_lambdas]
        for a, b in zip(found, expected, strict=True):
            assert torch.allclose(a.grad, b.grad, rtol=1e-3, atol=1e-6)


def test_it_saves_what_it_loads(make, tmp_path: Path) -> None:
    model = load(make())
    model.save_pretrained(tmp_path)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, trust_remote_code=True)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name


def test_pipeline_and_streamer_say_what_generate_says(make, tokenizer) -> None:
    checkpoint = make("classic")
    out, model = exported(checkpoint)[0], load(checkpoint)
    words = transformers.AutoTokenizer.from_pretrained(out)
    talk = [{"role": "user", "content": "What is 2+2?"}]
    ids = render_prompt(tokenizer, {"messages": talk})
    expected = model.generate(torch.tensor([ids]), max_new_tokens=20, do_sample=False)
    said = words.decode(expected[0, len(ids) :], skip_special_tokens=True)
    pipe = transformers.pipeline("text-generation", model=model, tokenizer=words)
    answer = pipe(talk, max_new_tokens=20, do_sample=False)[0]["generated_text"]
    assert answer == [*talk, {"role": "assistant", "content": said}]
    streamer = transformers.TextStreamer(words, skip_prompt=True, skip_special_tokens=True)
    printed = io.StringIO()
    with redirect_stdout(printed):
        model.generate(torch.tensor([ids]), max_new_tokens=20, do_sample=False, streamer=streamer)
    assert printed.getvalue().strip() == said.strip()


@torch.no_grad()
def test_without_a_softcap_logits_are_what_the_head_gives(make) -> None:
    """`arch.softcap=null`, which llama.cpp computes too."""
    for arch in ("classic", "modern"):
        checkpoint = make(arch, softcap=None, rope_dtype="compute")
        gpt, model = folder.load_gpt(checkpoint), load(checkpoint)
        ids = text(gpt, 60)
        assert (model(ids).logits - gpt(ids)).abs().max() < BOUND
        cap = folder.load_gpt(make(arch, rope_dtype="compute"))  # the same weights
        assert (15 * (gpt(ids) / 15).tanh() - cap(ids)).abs().max() < BOUND
        assert (gpt(ids) - cap(ids)).abs().max() > 0.01


@pytest.mark.slow
def test_the_folder_may_be_named_from_where_one_is(
    make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The program that it is compared in runs elsewhere; it took `out` for a model of the hub."""
    monkeypatch.chdir(tmp_path)
    certificate = to_huggingface(
        Origin(make("classic")), Path("a folder"), portable=False, dtype="stored", interpreter=None
    )
    assert certificate["verdict"] == "green" and (tmp_path / "a folder/model.safetensors").is_file()
