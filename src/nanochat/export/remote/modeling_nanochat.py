"""nanochat's GPT of any era for `transformers`:

    AutoModelForCausalLM.from_pretrained(FOLDER, trust_remote_code=True)

The network is the one that exported this file; the certificate in the same folder says how far the
logits of the two were apart when it was made. Needs transformers 5.

What other models do not have:
- RoPE turns by minus the angle, and queries and keys are normalised after it.
- Short layers see `sliding_window` keys, the others `long_window` (null: all).
- With smear or a bigram table a token reads the one before it. While decoding, that token
  is in an extra layer of the cache, so that whatever reorders, repeats or crops the cache
  does so with it. Position 0 has no predecessor; with padding on the left, positions must
  count from the first token.
- Value embeddings are looked up by token id, so `inputs_embeds` cannot take the place of ids.

Letters: B rows, T tokens, C width, H query heads, G key heads, D head width, V vocabulary.
"""

import torch
import torch.nn.functional as F
from torch import nn
from transformers import DynamicCache, GenerationMixin, PreTrainedModel
from transformers.cache_utils import DynamicLayer
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

try:
    from .configuration_nanochat import NanochatErasConfig
except ImportError:  # opened as a plain file
    from configuration_nanochat import NanochatErasConfig

# `past_key_values` until transformers 5.23
CACHE = "cache" if "cache" in CausalLMOutputWithPast.__dataclass_fields__ else "past_key_values"
# from: the hash of the era that had a bigram table
BIGRAM_FACTORS = (36313, 27191)
ROPE_DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


def rotate(x, cos, sin):
    """x (B, T, heads, D), cos and sin (B, T, 1, D/2) -> x turned by minus the angle."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos + second * sin, second * cos - first * sin), dim=-1).to(x.dtype)


def eager_attention(module, query, key, value, attention_mask, scaling, **kwargs):
    """query (B, H, T, D), key and value (B, G, S, D) -> output (B, T, H, D),
    weights (B, H, T, S)."""
    share = query.size(1) // key.size(1)
    key, value = key.repeat_interleave(share, 1), value.repeat_interleave(share, 1)
    scores = query @ key.mT * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = scores.softmax(-1, dtype=torch.float32).to(query.dtype)
    return (weights @ value).transpose(1, 2).contiguous(), weights


class NanochatErasAttention(nn.Module):
    is_causal = True

    def __init__(self, config, layer_idx):
        super().__init__()
        self.config, self.layer_idx = config, layer_idx
        C, self.head_dim = config.hidden_size, config.head_dim
        H, G = config.num_attention_heads, config.num_key_value_heads
        self.num_key_value_groups, self.scaling = H // G, self.head_dim**-0.5
        short = config.layer_types[layer_idx] == "sliding_attention"
        self.sliding_window = config.sliding_window if short else config.long_window
        self.q_proj = nn.Linear(C, H * self.head_dim, bias=False)
        self.k_proj = nn.Linear(C, G * self.head_dim, bias=False)
        self.v_proj = nn.Linear(C, G * self.head_dim, bias=False)
        self.o_proj = nn.Linear(H * self.head_dim, C, bias=False)
        if layer_idx in config.value_layers:
            self.value_gate = nn.Linear(config.value_gate_channels, G, bias=False)

    def forward(self, h, ve, cos, sin, attention_mask, cache=None, **kwargs):
        """h (B, T, C) normalised, ve (B, T, G * D) or None -> (B, T, C), weights or None."""
        heads = (*h.shape[:2], -1, self.head_dim)
        q, k, v = (p(h).view(heads) for p in (self.q_proj, self.k_proj, self.v_proj))
        if ve is not None:
            gate = torch.sigmoid(self.value_gate(h[..., : self.config.value_gate_channels]))
            v = v + self.config.value_gate_max * gate.unsqueeze(-1) * ve.view(heads)
        eps, scale = self.config.rms_norm_eps, self.config.qk_scale
        q, k = (F.rms_norm(rotate(x, cos, sin), (self.head_dim,), eps=eps) for x in (q, k))
        if scale != 1:
            q, k = q * scale, k * scale
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # (B, heads, T, D)
        if cache is not None:
            k, v = cache.update(k, v, self.layer_idx)
        # one look-up in one assignment: by that vLLM recognises an attention layer
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention
        )
        y, weights = attend(
            self,
            q,
            k,
            v,
            attention_mask,
            dropout=0.0,
            scaling=self.scaling,
            sliding_window=self.sliding_window,
            **kwargs,
        )
        return self.o_proj(y.reshape(*h.shape[:2], -1)), weights


class NanochatErasMLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x):
        return self.fc2(F.relu(self.fc1(x)).square())


class NanochatErasLayer(GradientCheckpointingLayer):
    def __init__(self, config, layer_idx):
        super().__init__()
        self.width, self.eps = (config.hidden_size,), config.rms_norm_eps
        self.self_attn = NanochatErasAttention(config, layer_idx)
        self.mlp = NanochatErasMLP(config)

    def forward(self, x, ve, cos, sin, attention_mask, cache=None, **kwargs):
        h = F.rms_norm(x, self.width, eps=self.eps)
        x = x + self.self_attn(h, ve, cos, sin, attention_mask, cache=cache, **kwargs)[0]
        return x + self.mlp(F.rms_norm(x, self.width, eps=self.eps))


class NanochatErasPreTrainedModel(PreTrainedModel):
    config_class = NanochatErasConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["NanochatErasLayer"]
    _skip_keys_device_placement = ["cache", "past_key_values"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    def _init_weights(self, module):
        """For a model that starts without weights; the exported ones overwrite all of it."""
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=self.config.initializer_range)
        for name, value in (("resid_lambdas", 1.0), ("x0_lambdas", 0.0), ("bigram_lambdas", 0.1)):
            if isinstance(getattr(module, name, None), nn.Parameter):
                nn.init.constant_(getattr(module, name), value)
        for name in ("smear_lambda", "backout_lambda"):
            if isinstance(getattr(module, name, None), nn.Parameter):
                nn.init.zeros_(getattr(module, name))


class NanochatErasModel(NanochatErasPreTrainedModel):
    def __init__(self, config):
        super().__init__(config)
        n, C, V = config.num_hidden_layers, config.hidden_size, config.vocab_size
        self.embed_tokens = nn.Embedding(V, C)
        self.layers = nn.ModuleList(NanochatErasLayer(config, i) for i in range(n))
        if config.lambdas:
            self.resid_lambdas = nn.Parameter(torch.ones(n))
            self.x0_lambdas = nn.Parameter(torch.zeros(n))
        if config.smear:
            self.smear_gate = nn.Linear(config.smear_channels, 1, bias=False)
            self.smear_lambda = nn.Parameter(torch.zeros(1))
        if config.backout:
            self.backout_lambda = nn.Parameter(torch.zeros(1))
        if config.bigram_rows:
            self.bigram_embed = nn.Embedding(config.bigram_rows, C)
            self.bigram_lambdas = nn.Parameter(torch.full((n,), 0.1))
        if config.value_layers:
            width = config.num_key_value_heads * config.head_dim
            self.value_embeds = nn.ModuleDict(
                {str(i): nn.Embedding(V, width) for i in config.value_layers}
            )
        self.gradient_checkpointing = False
        self.post_init()

    def norm(self, x):
        return F.rms_norm(x, (x.size(-1),), eps=self.config.rms_norm_eps)

    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        position_ids=None,
        cache=None,
        past_key_values=None,
        inputs_embeds=None,
        use_cache=None,
        output_hidden_states=None,
        **kwargs,
    ):
        """input_ids (B, T) -> normalised hidden states (B, T, C)."""
        if input_ids is None:
            raise ValueError("a nanochat model needs input_ids: its embeddings are looked up by id")
        for name in ("return_dict", "output_attentions", "cache_position", "logits_to_keep"):
            kwargs.pop(name, None)
        cache = self._cache(cache if cache is not None else past_key_values, use_cache)
        seen = int(cache.get_seq_length()) if cache is not None else 0
        position_ids = self._positions(input_ids, attention_mask, position_ids, seen)  # (B, T)
        x, pair = self._embed(input_ids, position_ids, cache)
        masks = self._masks(x, attention_mask, position_ids, cache, seen)
        cos, sin = self._turns(position_ids, x)
        x0, halfway, n = x, x, self.config.num_hidden_layers
        states = ()
        for i, layer in enumerate(self.layers):
            if output_hidden_states:
                states += (x,)
            if self.config.lambdas:
                x = self.resid_lambdas[i].to(x) * x + self.x0_lambdas[i].to(x) * x0.to(x)
            if pair is not None:
                x = x + self.bigram_lambdas[i].to(x) * pair.to(x)
            has_ve = i in self.config.value_layers
            ve = self.value_embeds[str(i)](input_ids).to(x) if has_ve else None  # (B, T, G * D)
            mask = masks[self.config.layer_types[i]]
            x = layer(x, ve, cos, sin, mask, cache=cache, position_ids=position_ids, **kwargs)
            if i == n // 2:
                halfway = x
        if self.config.backout:
            x = x - self.backout_lambda.to(x) * halfway.to(x)
        x = self.norm(x)
        states = (*states, x) if output_hidden_states else None
        return BaseModelOutputWithPast(last_hidden_state=x, hidden_states=states, **{CACHE: cache})

    def _cache(self, cache, use_cache):
        """The cache of this call, None without one; with a layer for the tokens
        where they are needed."""
        wanted = self.config.use_cache if use_cache is None else use_cache
        if self.gradient_checkpointing and self.training:
            return None  # the backward pass would write every key a second time
        if cache is None and wanted:
            cache = DynamicCache(config=self.config)
        return cache

    def _positions(self, input_ids, attention_mask, position_ids, seen):
        B, T = input_ids.shape
        if position_ids is None and attention_mask is not None and attention_mask.dim() == 2:
            return (attention_mask.long().cumsum(-1) - 1).clamp(min=0)[:, -T:]
        if position_ids is None:
            position_ids = torch.arange(seen, seen + T, device=input_ids.device)[None]
        return position_ids.expand(B, -1)

    def _embed(self, input_ids, position_ids, cache):
        """Token ids (B, T) -> what enters the layers, and the rows of token pairs or
        None; (B, T, C) each."""
        x, pair = self.norm(self.embed_tokens(input_ids)), None
        if not (self.config.smear or self.config.bigram_rows):
            return x, None
        last = self._last_token(input_ids, cache)  # (B, 1)
        follows = position_ids > 0  # (B, T)
        if self.config.smear:
            before = torch.cat((self.norm(self.embed_tokens(last)), x[:, :-1]), dim=1)  # (B, T, C)
            gate = torch.sigmoid(self.smear_gate(x[..., : self.config.smear_channels]))  # (B, T, 1)
            gate = self.smear_lambda.to(x) * gate * follows.unsqueeze(-1).to(x)
            x = x + gate * before.to(x)
        if self.config.bigram_rows:
            before, none = torch.cat((last, input_ids[:, :-1]), dim=1), self.config.bigram_rows - 1
            a, b = BIGRAM_FACTORS
            rows = torch.where(follows, torch.bitwise_xor(a * input_ids, b * before) % none, none)
            pair = self.bigram_embed(rows).to(x)
        return x, pair

    def _last_token(self, input_ids, cache):
        """The token before these, (B, 1), and these into the cache for the next call."""
        if cache is None:
            return input_ids[:, :1]  # of position 0, which reads nothing
        n = self.config.num_hidden_layers
        if len(cache.layers) <= n and not getattr(cache, "layer_class_to_replicate", None):
            if type(cache) is not DynamicCache:
                raise ValueError(
                    f"a nanochat model with smear or bigrams cannot use {type(cache).__name__}: it "
                    "has no place for the tokens; use the default cache (cache_implementation=None)"
                )
            cache.layers.append(DynamicLayer())
        ids = input_ids[:, None, :, None]  # (B, 1, T, 1), as keys are laid out
        known = cache.update(ids, ids, n)[0]  # (B, 1, all tokens, 1)
        place = known.size(2) - input_ids.size(1)
        return known[:, 0, max(place - 1, 0), :].to(input_ids.device)  # (B, 1)

    def _masks(self, x, attention_mask, position_ids, cache, seen):
        """Kind of layer -> its mask. None where every key is seen."""
        given = {"attention_mask": attention_mask, "position_ids": position_ids, CACHE: cache}
        given |= {"config": self.config, "inputs_embeds": x}
        masks, kinds, window = {}, set(self.config.layer_types), self.config.long_window
        if "full_attention" in kinds:
            total = max(
                seen + x.size(1), attention_mask.size(-1) if attention_mask is not None else 0
            )
            beyond = window is not None and total > window
            limit = (lambda b, h, q, k: q - k < window) if beyond else None
            masks["full_attention"] = create_causal_mask(**given, and_mask_function=limit)
        if "sliding_attention" in kinds:
            masks["sliding_attention"] = create_sliding_window_causal_mask(**given)
        return masks

    def _turns(self, position_ids, x):
        """cos and sin of the positions (B, T), (B, T, 1, D/2) each, in the
        precision of training."""
        D, base = self.config.head_dim, self.config.rope_parameters["rope_theta"]
        channels = torch.arange(0, D, 2, dtype=torch.float32, device=x.device) / D
        angle = position_ids[..., None, None].to(x.device).float() * (1.0 / base**channels)
        dtype = ROPE_DTYPES.get(self.config.rope_table_dtype, x.dtype)
        return angle.cos().to(dtype), angle.sin().to(dtype)


class NanochatErasForCausalLM(NanochatErasPreTrainedModel, GenerationMixin):
    _tp_plan = {"lm_head": "colwise_gather_output"}

    def __init__(self, config):
        super().__init__(config)
        self.model = NanochatErasModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        position_ids=None,
        cache=None,
        past_key_values=None,
        inputs_embeds=None,
        labels=None,
        use_cache=None,
        logits_to_keep=0,
        return_dict=None,
        **kwargs,
    ):
        """input_ids (B, T) -> capped logits (B, T, V) in fp32, and the mean loss
        where there are labels."""
        found = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            cache=cache if cache is not None else past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        cap = self.config.final_logit_softcapping
        logits = self.lm_head(found.last_hidden_state[:, keep]).float()
        if cap is not None:
            logits = cap * torch.tanh(logits / cap)
        loss = None
        if labels is not None:
            loss = self.loss_function(logits, labels, vocab_size=self.vocab_size, **kwargs)
        result = CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            hidden_states=found.hidden_states,
            **{CACHE: getattr(found, CACHE)},
        )
        return result if return_dict is not False else result.to_tuple()
