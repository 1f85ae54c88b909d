"""Counts against both scale tables of the facts sheet (1.9), the built network, and sums written
out."""

import pytest
import torch
from plain_gpt import FACTS, Plain, arch

from nanochat.gpt import GPT, GPTConfig, counts, from_depth

# depth, width, heads, parameters, FLOPs per token (seven digits)
CLASSIC = [
    (4, 256, 2, 36_700_160, "1.447035e8"),
    (6, 384, 3, 60_948_480, "2.713190e8"),
    (8, 512, 4, 92_274_688, "4.529848e8"),
    (10, 640, 5, 133_038_080, "7.038566e8"),
    (12, 768, 6, 185_597_952, "1.038090e9"),
    (16, 1024, 8, 335_544_320, "2.013266e9"),
    (20, 1280, 10, 560_988_160, "3.491758e9"),
    (24, 1536, 12, 880_803_840, "5.586813e9"),
    (26, 1664, 13, 1_081_999_360, "6.900941e9"),
    (32, 2048, 16, 1_879_048_192, "1.207960e10"),
    (34, 2176, 17, 2_217_082_880, "1.426509e10"),
]

# depth, width, heads, parameters, scaling parameters, FLOPs per token (seven digits)
MODERN = [
    (4, 256, 2, 36_700_242, 11_534_384, "8.021650e7"),
    (6, 384, 3, 73_531_538, 23_199_852, "1.675108e8"),
    (8, 512, 4, 125_829_354, 41_943_232, "2.956997e8"),
    (10, 640, 5, 195_952_986, 70_123_820, "4.954541e8"),
    (12, 768, 6, 286_261_730, 110_100_912, "7.596960e8"),
    (14, 896, 7, 399_114_882, 164_233_804, "1.128534e9"),
    (16, 1024, 8, 536_871_738, 234_881_792, "1.585452e9"),
    (18, 1152, 9, 701_891_594, 324_404_172, "2.179995e9"),
    (20, 1280, 10, 896_533_746, 435_160_240, "2.886213e9"),
    (22, 1408, 11, 1_123_157_490, 569_509_292, "3.763086e9"),
    (24, 1536, 12, 1_384_122_122, 729_810_624, "4.775226e9"),
    (26, 1664, 13, 1_681_786_938, 918_423_532, "5.991051e9"),
    (28, 1792, 14, 2_018_511_234, 1_137_707_312, "7.365736e9"),
    (30, 1920, 15, 2_396_654_306, 1_390_021_260, "8.977138e9"),
    (32, 2048, 16, 2_818_575_450, 1_677_724_672, "1.077099e10"),
]


def seven_digits(value: float, like: str) -> str:
    """`value` in the notation of the tables: 1.447035e8."""
    mantissa, exponent = f"{value:.6e}".split("e")
    assert len(like.split("e")[0]) == 8
    return f"{mantissa}e{int(exponent)}"


@pytest.mark.parametrize(
    ("depth", "d", "H", "total", "flops"), CLASSIC, ids=[f"d{row[0]}" for row in CLASSIC]
)
def test_classic_scale_table(depth, d, H, total, flops):
    config = from_depth(depth, vocab_size=65536, arch=arch("E0"))
    assert (config.n_layer, config.n_embd, config.n_head, config.n_kv_head) == (depth, d, H, H)
    assert counts.parameters(config)["total"] == total
    assert seven_digits(counts.flops_per_token(config), flops) == flops


@pytest.mark.parametrize(
    ("depth", "d", "H", "total", "scaling", "flops"), MODERN, ids=[f"d{row[0]}" for row in MODERN]
)
def test_modern_scale_table(depth, d, H, total, scaling, flops):
    config = from_depth(depth, vocab_size=32768, arch=arch("E6"))
    assert (config.n_layer, config.n_embd, config.n_head, config.n_kv_head) == (depth, d, H, H)
    assert counts.parameters(config)["total"] == total
    assert counts.parameters(config)["scaling"] == scaling
    assert seven_digits(counts.flops_per_token(config), flops) == flops


@pytest.mark.parametrize(
    ("depth", "groups"),
    [
        (
            12,
            {
                "embedding": 25_165_824,
                "value_embeddings": 150_994_944,
                "head": 25_165_824,
                "matrices": 84_935_088,
                "scalars": 50,
            },
        ),
        (
            24,
            {
                "embedding": 50_331_648,
                "value_embeddings": 603_979_776,
                "head": 50_331_648,
                "matrices": 679_478_976,
                "scalars": 74,
            },
        ),
    ],
)
def test_modern_groups(depth, groups):
    found = counts.parameters(from_depth(depth, vocab_size=32768, arch=arch("E6")))
    assert {name: found[name] for name in groups} == groups
    assert found["total"] == sum(groups.values())


@pytest.mark.parametrize(
    ("depth", "width", "heads", "head_dim"), [(3, 192, 2, 96), (7, 448, 4, 112), (15, 960, 8, 120)]
)
def test_classic_odd_depths_have_uneven_heads(depth, width, heads, head_dim):
    config = from_depth(depth, vocab_size=65536, arch=arch("E0"))
    assert (config.n_embd, config.n_head, config.head_dim) == (width, heads, head_dim)


@pytest.mark.parametrize("depth", [5, 9, 11, 13, 17, 19])
def test_classic_depths_whose_heads_do_not_divide_are_refused(depth):
    with pytest.raises(ValueError, match="n_head"):
        from_depth(depth, vocab_size=65536, arch=arch("E0"))


def test_modern_width_is_rounded_up_to_whole_heads():
    config = from_depth(11, vocab_size=32768, arch=arch("E6"))
    assert (config.n_layer, config.n_embd, config.n_head, config.head_dim) == (11, 768, 6, 128)


# --- against the network itself
# -------------------------------------------------------------------------------------

GROUP_OF = {  # by the start of a tensor's name
    "transformer.wte": "embedding",
    "bigram_embed": "embedding",
    "value_embeds": "value_embeddings",
    "lm_head": "head",
    "transformer.h": "matrices",
    "resid_lambdas": "scalars",
    "x0_lambdas": "scalars",
    "bigram_lambdas": "scalars",
    "smear": "scalars",
    "backout": "scalars",
}


@pytest.mark.parametrize("era", FACTS)
@pytest.mark.parametrize(
    ("n", "H", "G", "d", "V"),
    [(1, 2, 2, 32, 64), (4, 4, 2, 64, 265), (5, 6, 1, 48, 1001), (6, 3, 3, 96, 640)],
)
def test_counts_equal_the_built_network(era, n, H, G, d, V):
    config = Plain(era, T=64, V=V, n=n, H=H, G=G, d=d).config()
    built: dict[str, int] = dict.fromkeys(
        ["embedding", "value_embeddings", "head", "matrices", "scalars"], 0
    )
    for name, p in GPT(config).named_parameters():
        built[next(group for start, group in GROUP_OF.items() if name.startswith(start))] += (
            p.numel()
        )
    counted = counts.parameters(config)
    assert {name: counted[name] for name in built} == built
    assert counted["total"] == sum(built.values())
    assert counted["scaling"] == built["matrices"] + built["head"]


@pytest.mark.parametrize("era", ["E0", "E2", "E6"])
def test_matmul_parameters_are_the_weights_of_all_linear_layers(era):
    gpt = GPT(Plain(era, T=64, V=265, n=5, H=4, G=2, d=64).config())
    linear = sum(m.weight.numel() for m in gpt.modules() if isinstance(m, torch.nn.Linear))
    assert counts.matmul_parameters(gpt.config) == linear


# --- FLOPs and bytes, each sum written out position by position
# -----------------------------------------------------

# training length and context, shorter and longer than windows
SIZES = [(64, 40), (64, 64), (256, 200), (256, 700), (640, 1000)]


@pytest.mark.parametrize("era", ["E0", "E1", "E6"])
@pytest.mark.parametrize(("T", "context"), SIZES)
def test_inference_flops_and_kv_bytes(era, T, context):
    p = Plain(era, T=T, V=265, n=6, H=4, G=2, d=64)
    config, weights = p.config(), counts.matmul_parameters(p.config())
    windows = [p.window(i) for i in range(p.n)]
    assert counts.decode_flops(config, context) == 2 * weights + sum(
        4 * p.d * min(context, w) for w in windows
    )
    # a prompt is read as if token by token: the t-th adds attention over min(t, window) keys
    read = 2 * weights * context + sum(
        4 * p.d * min(t, w) for w in windows for t in range(1, context + 1)
    )
    assert counts.prefill_flops(config, context) == read
    for size in (1, 2, 4):
        assert counts.kv_bytes_per_token(config, size) == p.n * 2 * p.G * p.D * size
        assert counts.kv_bytes_read(config, context, size) == sum(
            2 * p.G * p.D * size * min(context, w) for w in windows
        )


def test_training_flops_by_hand():
    """6 per linear weight and 12 d min(window, T) per layer, for a network small enough to add up
    on paper."""
    # layer 0 S = 128, layer 1 L = 512 with value gate
    config = GPTConfig(512, 64, 2, 2, 1, 32, arch("E6"))
    block = 32 * 32 * 2 + 32 * 16 * 2 + 8 * 32 * 32
    weights = 2 * block + 12 * 1 + 64 * 32 + 24
    assert counts.flops_per_token(config) == 6 * weights + 12 * 32 * (128 + 512)


def test_kv_bytes_of_the_published_d32():
    """32 layers, 16 heads of 128, two bytes, keys and values: 256 KiB a token."""
    assert counts.kv_bytes_per_token(from_depth(32, vocab_size=65536, arch=arch("E0"))) == 262_144
