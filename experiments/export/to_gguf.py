"""A classic export (format=hf) as GGUF for llama.cpp: `python to_gguf.py FOLDER OUT.gguf`; needs
torch, safetensors and gguf.

llama.cpp has no nanochat, but its architecture `talkie` computes all of classic but the softcap:

- relu(x)^2 is silu(s x) x / s for a large s: gate = s * fc1, up = fc1, down = fc2 / s. With
  s = 2^14 the scaling is exact, and silu(z) is z or 0 but for |z| < 20, which is |x| < 0.0012;
  there the two differ by less than 0.3 |x| / s.
- RoPE by minus the angle is RoPE by the angle, the second halves of queries and keys negated.
- Talkie's gain of the queries is 1, and its share of the embedding in every layer 0.
- There is no softcap: a logit is z where ours is 15 tanh(z / 15). The order of the tokens is the
  same, so greedy text is; the probabilities are not. Trained with arch.softcap=null, they are.
- No split of words there has numbers of two digits: `bailingmoe` differs from ours in that alone,
  and splits 2024 in four.
"""

import json
import sys
from pathlib import Path

import gguf
import numpy as np
from safetensors.torch import load_file

STEEP = 2.0**14
BLOCK = {"self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output"}


def turned(weight: np.ndarray, head_dim: int) -> np.ndarray:
    """weight (heads * D, C), with the second half of each head's rows negated."""
    heads = weight.reshape(-1, 2, head_dim // 2, weight.shape[1]).copy()
    heads[:, 1] *= -1
    return heads.reshape(weight.shape)


def add_weights(writer: gguf.GGUFWriter, weights: dict[str, np.ndarray], sizes: dict) -> None:
    """All in fp32. A tensor without a place is a KeyError."""
    put = writer.add_tensor
    put("token_embd.weight", weights.pop("model.embed_tokens.weight"))
    put("output.weight", weights.pop("lm_head.weight"))
    for i in range(sizes["num_hidden_layers"]):
        layer = {
            name: weights.pop(f"model.layers.{i}.{name}.weight")
            for name in (*BLOCK, "self_attn.q_proj", "self_attn.k_proj", "mlp.fc1", "mlp.fc2")
        }
        for name, theirs in BLOCK.items():
            put(f"blk.{i}.{theirs}.weight", layer[name])
        for kind in "qk":
            put(
                f"blk.{i}.attn_{kind}.weight",
                turned(layer[f"self_attn.{kind}_proj"], sizes["head_dim"]),
            )
        put(f"blk.{i}.attn_q_norm.weight", np.ones((sizes["num_attention_heads"], 1), np.float32))
        put(f"blk.{i}.ffn_gate.weight", layer["mlp.fc1"] * np.float32(STEEP))
        put(f"blk.{i}.ffn_up.weight", layer["mlp.fc1"])
        put(f"blk.{i}.ffn_down.weight", layer["mlp.fc2"] / np.float32(STEEP))
        put(f"blk.{i}.layer_output_scale.weight", np.zeros(1, np.float32))
    if weights:
        raise KeyError(f"no place for {', '.join(weights)}")


def add_tokenizer(writer: gguf.GGUFWriter, folder: Path) -> None:
    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    special = {entry["content"]: entry["id"] for entry in content["added_tokens"]}
    ids = {**content["model"]["vocab"], **special}
    names = sorted(ids, key=ids.__getitem__)
    assert [ids[name] for name in names] == list(range(len(names)))
    kinds = gguf.TokenType
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("bailingmoe")
    writer.add_token_list(names)
    writer.add_token_types([kinds.CONTROL if n in special else kinds.NORMAL for n in names])
    merges = content["model"]["merges"]
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in merges])
    stops = json.loads((folder / "generation_config.json").read_text())["eos_token_id"]
    bos = special["<|bos|>"]
    writer.add_bos_token_id(bos)
    writer.add_eos_token_id(next((stop for stop in stops if stop != bos), bos))
    writer.add_add_bos_token(True)
    writer.add_chat_template((folder / "chat_template.jinja").read_text(encoding="utf-8"))


def main(folder: Path, out: Path) -> None:
    sizes = json.loads((folder / "config.json").read_text())
    if sizes["model_type"] != "nanochat":
        raise SystemExit(f"{folder} is no classic model (portable=true)")
    writer = gguf.GGUFWriter(out, "talkie")
    writer.add_block_count(sizes["num_hidden_layers"])
    writer.add_context_length(sizes["max_position_embeddings"])
    writer.add_embedding_length(sizes["hidden_size"])
    writer.add_feed_forward_length(sizes["intermediate_size"])
    writer.add_head_count(sizes["num_attention_heads"])
    writer.add_head_count_kv(sizes["num_key_value_heads"])
    writer.add_key_length(sizes["head_dim"])
    writer.add_value_length(sizes["head_dim"])
    writer.add_rope_dimension_count(sizes["head_dim"])
    writer.add_rope_freq_base(sizes["rope_parameters"]["rope_theta"])
    writer.add_layer_norm_rms_eps(sizes["rms_norm_eps"])
    writer.add_logit_scale(1.0)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    add_tokenizer(writer, folder)
    weights: dict[str, np.ndarray] = {}
    for file in sorted(folder.glob("*.safetensors")):
        weights |= {name: w.float().numpy() for name, w in load_file(file).items()}
    add_weights(writer, weights, sizes)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
