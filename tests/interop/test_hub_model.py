"""Llama-shaped models through `transformers`: same logits, and the engine's texts are those
of its own `generate`."""

from pathlib import Path

import pytest
import torch
from gpt2_files import tokenizer

from nanochat.checkpoint.opened import Opened, open_checkpoint
from nanochat.checkpoint.runs import resolve
from nanochat.inference.engine import Engine
from nanochat.inference.likelihood import Continuation, likelihoods
from nanochat.tokenizer.conversations import render_prompt

transformers = pytest.importorskip("transformers", reason="transformers is not installed")

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SIZES = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
KINDS = {"Llama": {}, "Qwen3": {"head_dim": 32}, "Mistral": {"sliding_window": 16}}


def write(folder: Path, kind: str, **more: object) -> Path:
    library = tokenizer()
    library.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    own = transformers.PreTrainedTokenizerFast(
        tokenizer_object=library, eos_token="<|im_end|>", bos_token="<|endoftext|>"
    )
    own.chat_template = CHATML
    own.save_pretrained(folder)
    settings = getattr(transformers, f"{kind}Config")(**SIZES, eos_token_id=302, **more)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(settings)
    for p in model.parameters():
        p.data += 0.05 * torch.randn_like(p)
    model.save_pretrained(folder)
    return folder


def opened(folder: Path) -> Opened:
    return open_checkpoint(f"hf:{folder}", device="cpu", precision="fp32")


@pytest.mark.parametrize("kind", KINDS)
def test_texts_of_any_length_together_are_those_of_generate(kind: str, tmp_path: Path) -> None:
    one = opened(write(tmp_path / kind, kind, **KINDS[kind]))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / kind).eval()
    ids = torch.randint(0, 300, (1, 100), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = theirs(ids).logits
        torch.testing.assert_close(one.gpt(ids), expected, atol=1e-5, rtol=1e-5)
        text = ids[0].tolist()
        asked = [Continuation(text[:9], text[9:12]), Continuation(text[:60], text[60:])]
        nats = -expected[0].log_softmax(-1)
        for (context, rest), found in zip(
            asked, likelihoods(one.gpt, asked, batch_tokens=512), strict=True
        ):
            places = range(len(context) - 1, len(context) + len(rest) - 1)
            plain = [float(nats[i, token]) for i, token in zip(places, rest, strict=True)]
            assert found.nats == pytest.approx(plain, abs=1e-4)
    prompts = [ids[0, :n].tolist() for n in (3, 40, 90)]
    engine = Engine(one.gpt, one.tokenizer, ends=())
    for prompt, completion in zip(
        prompts, engine.generate(prompts, max_tokens=20, tools=False), strict=True
    ):
        text = theirs.generate(
            torch.tensor([prompt]),
            max_new_tokens=20,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
        assert completion.ids == text[0, len(prompt) :].tolist()


def test_it_is_asked_by_its_own_template_and_never_trained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = opened(write(tmp_path / "my-llama", "Llama"))
    assert "a llama run through transformers, 2 layers, chats" in capsys.readouterr().err
    assert one.chats and one.name == "my-llama"
    said = {"messages": [{"role": "user", "content": "Hi"}]}
    prompt = render_prompt(one.tokenizer, said)
    assert one.tokenizer.decode(prompt) == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert one.tokenizer.specials["<|assistant_end|>"] == 302 and 302 in prompt
    with pytest.raises(ValueError, match="compile=true cannot take effect"):
        Engine(one.gpt, one.tokenizer, compile=True)
    with pytest.raises(ValueError, match="it cannot be trained or converted here"):
        resolve(f"hf:{tmp_path / 'my-llama'}", tmp_path)


def test_maths_that_is_not_computed_here_is_found_at_opening(tmp_path: Path) -> None:
    """Gemma 2 caps its scores and its logits."""
    write(tmp_path / "gemma", "Gemma2", head_dim=16, attn_logit_softcapping=0.5)
    with pytest.raises(
        ValueError, match=r"logits of this gemma2 differ by .* it cannot be run here"
    ):
        opened(tmp_path / "gemma")
