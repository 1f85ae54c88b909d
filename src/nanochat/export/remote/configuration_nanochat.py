"""Sizes and switches of a nanochat model of any era, as `transformers` reads them from config.json.

Every number in which the eras differ is a key here; the modelling file implies none.
"""

from transformers import PretrainedConfig


class NanochatErasConfig(PretrainedConfig):
    """`sliding_window` counts the keys that a short layer sees, the query's own among them, as is
    usual in transformers; `long_window` likewise for the other layers, null for all keys."""

    model_type = "nanochat_eras"
    keys_to_ignore_at_inference = ["cache", "past_key_values"]
    base_model_tp_plan = {
        "layers.*.self_attn.q_proj": "colwise",
        "layers.*.self_attn.k_proj": "colwise",
        "layers.*.self_attn.v_proj": "colwise",
        "layers.*.self_attn.o_proj": "rowwise",
        "layers.*.mlp.fc1": "colwise",
        "layers.*.mlp.fc2": "rowwise",
    }

    def __init__(
        self,
        vocab_size=32768,
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=12,
        num_attention_heads=6,
        num_key_value_heads=6,
        head_dim=128,
        max_position_embeddings=2048,
        rms_norm_eps=1.1920929e-07,
        rope_parameters=None,
        rope_table_dtype="compute",
        qk_scale=1.0,
        final_logit_softcapping=15.0,
        layer_types=None,
        sliding_window=None,
        long_window=None,
        lambdas=False,
        value_layers=(),
        value_gate_channels=12,
        value_gate_max=3.0,
        smear=False,
        smear_channels=24,
        backout=False,
        bigram_rows=0,
        initializer_range=0.02,
        use_cache=True,
        tie_word_embeddings=False,
        **more,
    ):
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.intermediate_size = intermediate_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.num_key_value_heads = num_key_value_heads
        self.head_dim = head_dim
        self.max_position_embeddings = max_position_embeddings
        self.rms_norm_eps = rms_norm_eps
        self.rope_parameters = rope_parameters or {"rope_type": "default", "rope_theta": 100000.0}
        self.rope_table_dtype = rope_table_dtype
        self.qk_scale = qk_scale
        self.final_logit_softcapping = final_logit_softcapping
        self.layer_types = layer_types or ["full_attention"] * num_hidden_layers
        self.sliding_window = sliding_window
        self.long_window = long_window
        self.lambdas = lambdas
        self.value_layers = list(value_layers)
        self.value_gate_channels = value_gate_channels
        self.value_gate_max = value_gate_max
        self.smear = smear
        self.smear_channels = smear_channels
        self.backout = backout
        self.bigram_rows = bigram_rows
        self.initializer_range = initializer_range
        self.use_cache = use_cache
        super().__init__(tie_word_embeddings=tie_word_embeddings, **more)
