"""Sizes, switches and tensor names of a GPT as `transformers` has them, in both directions.

`transformers` has a model type `nanochat` for era E0 alone: no lambdas, value embeddings, smear,
backout, windows or scaled queries. `stock_lacks` lists those that a model has. A model with none is
exported for the stock type, so that every program with that type can load it; any other for the
modelling file in the export (export/remote/). Both use the tensor names of the stock type.
"""

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from nanochat.gpt import Arch, GPTConfig, build_arch
from nanochat.gpt.counts import BIGRAM_ROWS
from nanochat.gpt.elementary import NORM_EPS
from nanochat.interop.eras import preset

STOCK, OWN = "nanochat", "nanochat_eras"  # model_type in config.json
OURS = "nanochat_config"  # key of config.json with this project's own sizes and switches
_BLOCK = {
    "attn.c_q": "self_attn.q_proj",
    "attn.c_k": "self_attn.k_proj",
    "attn.c_v": "self_attn.v_proj",
    "attn.c_proj": "self_attn.o_proj",
    "attn.ve_gate": "self_attn.value_gate",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_WHOLE = {
    "transformer.wte.weight": "model.embed_tokens.weight",
    "lm_head.weight": "lm_head.weight",
    "bigram_embed.embed.weight": "model.bigram_embed.weight",
}


def hf_name(name: str) -> str:
    """
    >>> hf_name("transformer.h.3.attn.c_q.weight"), hf_name("value_embeds.1.weight")
    ('model.layers.3.self_attn.q_proj.weight', 'model.value_embeds.1.weight')
    """
    if name in _WHOLE:
        return _WHOLE[name]
    if name.startswith("transformer.h."):
        layer, _, part = name.removeprefix("transformer.h.").partition(".")
        return f"model.layers.{layer}.{_BLOCK[part.removesuffix('.weight')]}.weight"
    return f"model.{name}"


# switches covered by the modelling file or by a key of config.json, or used in training only
KNOWN = set(
    """name width_rule rope_base rope_dtype qk_scale softcap window_pattern short_window_divisor
    short_window_multiple long_window_limited lambdas value_embeds value_gate_channels
    value_gate_max smear smear_channels backout bigram embed_std head_std matrix_init
    fc_init_scale resid_init x0_init value_gate_init smear_gate_init backout_init""".split()
)


def nanochat_arch(config: GPTConfig) -> Arch:
    """ValueError for a network that is not nanochat's."""
    if not isinstance(config.arch, Arch):
        raise ValueError(
            f"arch={config.arch.name} is not a network of nanochat and is not exported; the hub "
            "has its own files of it"
        )
    return config.arch


def unknown_switches(arch: Arch) -> list[str]:
    """Switches of `Arch` that are on and that no export computes yet."""
    return [
        f"arch.{f.name}={getattr(arch, f.name)}"
        for f in fields(Arch)
        if f.name not in KNOWN and getattr(arch, f.name) != f.default
    ]


def rows_of_vocabulary(name: str) -> bool:
    """Whether a tensor has a row for each token, plus padding rows."""
    return name in ("transformer.wte.weight", "lm_head.weight") or name.startswith("value_embeds.")


def stock_lacks(config: GPTConfig) -> list[str]:
    """What this model computes and the stock `nanochat` of transformers does
    not; empty if nothing."""
    arch, found = nanochat_arch(config), []
    if arch.lambdas:
        found.append(
            "lambdas (resid_lambdas, x0_lambdas: the embedding mixed in before each layer)"
        )
    if arch.value_embeds:
        found.append(f"value embeddings in {len(config.value_layers)} layers, with their gates")
    if arch.smear:
        found.append("smear (a token reads the one before it)")
    if arch.backout:
        found.append("backout (the middle layer taken off the last)")
    if arch.bigram:
        found.append("the bigram table")
    if arch.qk_scale != 1:
        found.append(f"queries and keys times {arch.qk_scale:g}")
    if any(window is not None for window in config.windows):
        windows = sorted({window for window in config.windows if window is not None})
        found.append(f"attention windows of {' and '.join(map(str, windows))} tokens")
    return found


def hf_config(config: GPTConfig, *, own: bool) -> dict[str, Any]:
    """config.json without the parts that depend on the tokenizer. `own`: for the modelling file."""
    arch = nanochat_arch(config)
    common = {
        "architectures": ["NanochatErasForCausalLM" if own else "NanoChatForCausalLM"],
        "model_type": OWN if own else STOCK,
        "vocab_size": config.vocab_size,
        "hidden_size": config.n_embd,
        "intermediate_size": 4 * config.n_embd,
        "num_hidden_layers": config.n_layer,
        "num_attention_heads": config.n_head,
        "num_key_value_heads": config.n_kv_head,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.sequence_len,
        "rms_norm_eps": NORM_EPS,
        "rope_parameters": {"rope_type": "default", "rope_theta": arch.rope_base},
        "final_logit_softcapping": arch.softcap,
        "tie_word_embeddings": False,
        "use_cache": True,
        OURS: config.to_json(),
    }
    if not own:
        # transformers 4 reads RoPE's base here
        return {**common, "hidden_act": "relu2", "rope_theta": arch.rope_base}
    long = config.windows[-1]
    short = next((w for w in config.windows if w != long), None)
    kinds = ["full_attention" if w == long else "sliding_attention" for w in config.windows]
    return {
        **common,
        "auto_map": {
            "AutoConfig": "configuration_nanochat.NanochatErasConfig",
            "AutoModel": "modeling_nanochat.NanochatErasModel",
            "AutoModelForCausalLM": "modeling_nanochat.NanochatErasForCausalLM",
        },
        "rope_table_dtype": arch.rope_dtype,
        "qk_scale": arch.qk_scale,
        "layer_types": kinds,
        # the keys a query sees, its own among them
        "sliding_window": None if short is None else short + 1,
        "long_window": None if long is None else long + 1,
        "lambdas": arch.lambdas,
        "value_layers": list(config.value_layers),
        "value_gate_channels": arch.value_gate_channels,
        "value_gate_max": arch.value_gate_max,
        "smear": arch.smear,
        "smear_channels": arch.smear_channels,
        "backout": arch.backout,
        "bigram_rows": BIGRAM_ROWS * config.vocab_size if arch.bigram else 0,
    }


def is_export(data: Mapping[str, Any]) -> bool:
    """Whether a config.json is one that this project exported for transformers, or of the same type
    by another program."""
    return isinstance(data.get(OURS), dict) or data.get("model_type") == STOCK


def config_of(data: Mapping[str, Any]) -> GPTConfig:
    """Sizes and switches from such a config.json. One without this project's own is of era E0, as
    the type is; ValueError if it has other maths."""
    if isinstance(data.get(OURS), dict):
        return GPTConfig.from_json(data[OURS])
    C, H = data.get("hidden_size"), data.get("num_attention_heads")
    sizes: dict[str, Any] = {
        "sequence_len": data.get("max_position_embeddings"),
        "vocab_size": data.get("vocab_size"),
        "n_layer": data.get("num_hidden_layers"),
        "n_head": H,
        "n_kv_head": data.get("num_key_value_heads") or H,
        "n_embd": C,
    }
    if missing := [name for name, value in sizes.items() if type(value) is not int]:
        raise ValueError(f"config.json does not give {missing[0]} as a number")
    config = GPTConfig(**sizes)
    rope = data.get("rope_parameters") or {}
    wanted = {
        "hidden_act": "relu2",
        "attention_bias": False,
        "tie_word_embeddings": False,
        "intermediate_size": 4 * config.n_embd,
        "head_dim": config.head_dim,
    }
    given = {"rope_type": rope.get("rope_type", "default"), **data}
    for name, value in {"rope_type": "default", **wanted}.items():
        if given.get(name, value) not in (value, None):
            raise ValueError(
                f"config.json: {name}={given[name]} is not computed here, only {value}"
            )
    known: dict[str, Any] = {}
    if (base := rope.get("rope_theta", data.get("rope_theta"))) is not None:
        known["rope_base"] = float(base)
    if "final_logit_softcapping" in data:
        known["softcap"] = data["final_logit_softcapping"]
    return replace(config, arch=build_arch({**preset("classic"), **known}))
