"""transformers' generate on the same classic weights: `python transformers_generate.py DEPTH VOCAB
PROMPT DECODE THREADS ROUNDS`.

Greedy, fp32, in turn in one process; the tokens have to be the same.
"""

import random
import statistics
import sys
import time

import torch
from omegaconf import OmegaConf
from transformers import NanoChatConfig, NanoChatForCausalLM

from nanochat.gpt import GPT, build_arch, from_depth
from nanochat.inference.engine import Engine
from nanochat.inference.frozen_gpt import FrozenGPT
from nanochat.inference.measure import any_tokenizer
from nanochat.runtime.paths import conf_dir

depth, vocab, prompt, decode, threads, rounds = map(int, sys.argv[1:7])
torch.set_num_threads(threads)
arch = build_arch(
    OmegaConf.to_container(OmegaConf.load(conf_dir() / "arch" / "classic.yaml"))
    | {"rope_dtype": "float32"}
)
config = from_depth(depth, vocab_size=vocab, arch=arch)
gpt, drawn = GPT.build(config), torch.Generator().manual_seed(0)
with torch.no_grad():
    for p in gpt.parameters():
        p.normal_(0, 0.05, generator=drawn)
theirs = NanoChatForCausalLM(
    NanoChatConfig(
        vocab_size=vocab,
        hidden_size=config.n_embd,
        intermediate_size=4 * config.n_embd,
        num_hidden_layers=config.n_layer,
        num_attention_heads=config.n_head,
        num_key_value_heads=config.n_kv_head,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
)
names = {
    "transformer.wte": "model.embed_tokens",
    "transformer.h": "model.layers",
    "c_q": "q_proj",
    "c_k": "k_proj",
    "c_v": "v_proj",
    "attn.c_proj": "self_attn.o_proj",
    "mlp.c_proj": "mlp.fc2",
    "c_fc": "fc1",
    ".attn.": ".self_attn.",
}


def named(name: str) -> str:
    for ours, other in names.items():
        name = name.replace(ours, other)
    return name


theirs.load_state_dict(
    {
        named(name): weight[:vocab] if "embed" in named(name) or "lm_head" in name else weight
        for name, weight in gpt.state_dict().items()
    }
)
theirs.eval()
gpt = FrozenGPT.of(gpt)
engine, chosen = Engine(gpt, any_tokenizer(vocab), prefill_tokens=None), random.Random(0)


def ids() -> list[int]:
    return [chosen.randrange(vocab - 300) for _ in range(prompt)]


for batch in (1, 16):
    ratios, speeds = [], []
    for _ in range(rounds):
        prompts = [ids() for _ in range(batch)]
        start = time.perf_counter()
        mine = engine.generate(prompts, max_tokens=decode, tools=False)
        middle = time.perf_counter()
        idx = torch.tensor(prompts)
        with torch.inference_mode():
            out = theirs.generate(
                idx,
                attention_mask=torch.ones_like(idx),
                max_new_tokens=decode,
                min_new_tokens=decode,
                do_sample=False,
            )
        end = time.perf_counter()
        same = sum(
            completion.ids == row[prompt:].tolist()[: len(completion.ids)]
            for completion, row in zip(mine, out, strict=True)
        )
        written = sum(len(completion.ids) for completion in mine)
        speeds.append((written / (middle - start), batch * decode / (end - middle)))
        ratios.append(speeds[-1][0] / speeds[-1][1])
    ours, other = (statistics.median(speed) for speed in zip(*speeds, strict=True))
    print(
        (
            f"{batch} prompts: {ours:,.0f} against {other:,.0f} tokens/s, "
            f"{statistics.median(ratios):.2f} x; {same} of {batch} texts the same"
        ),
        flush=True,
    )
