import inspect

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import get_method, instantiate
from omegaconf import OmegaConf

from nanochat import data
from nanochat.commands.configs import register
from nanochat.datamodules.shards import SPLITS
from nanochat.datamodules.sources import FileSource
from nanochat.datamodules.text import SOURCE_OPTIONS, TextDataModule
from nanochat.runtime.paths import conf_dir

TEXT = [
    path.stem
    for path in (conf_dir() / "data").glob("*.yaml")
    if "_target_: nanochat.datamodules.text." in path.read_text()
]
PRESETS = ["k12", "opc"]  # of hub


def composed(*words):
    register()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return compose("data", list(words))


@pytest.fixture
def say(tmp_path, texts, capsys):
    """What the command prints for a small file of one's own."""
    (tmp_path / "mine.txt").write_text("\n".join(texts(200)))
    own = [
        f"data.path={tmp_path}/mine.txt",
        "data.documents=line",
        "data.val_fraction=0.2",
        "data=local",
    ]

    def run(*words):
        data.run(
            composed(*own, "tokenizer=char", "model.sequence_len=16", "batch_tokens=64", *words)
        )
        return capsys.readouterr().out

    return run


def test_show_batch_prints_rows_documents_and_text(say, texts):
    out = say("show=batch", "step=3")
    assert out.startswith("⟦batch 3, epoch 0, 4 rows of 16 tokens⟧\n⟦row 0⟧\n⟦mine.txt#")
    assert out.count("⟦row ") == 4
    pieces = [
        line.removeprefix("<|bos|>") for line in out.splitlines() if line.startswith("<|bos|>")
    ]
    assert pieces
    assert all(any(text.startswith(piece) for text in texts(200)) for piece in pieces)
    assert "⟦3 more rows⟧" in say("show=batch", "rows=1")
    assert say("show=batch", "step=3") == out


def test_show_stats_counts_documents_characters_and_tokens(say, texts):
    out = say("show=stats")
    numbers = [
        line.split()
        for line in out.splitlines()
        if line.startswith(("train mine.txt", "val mine.txt"))
    ]
    assert sum(int(line[2].replace(",", "")) for line in numbers) == 200
    assert sum(int(line[3].replace(",", "")) for line in numbers) == sum(map(len, texts(200)))
    assert sum(int(line[4].replace(",", "")) for line in numbers) == sum(map(len, texts(200))) + 200
    assert "steps of 64 tokens" in out


def test_show_ledger_balances(say):
    last = say("show=ledger", "step=50", "data.packing=stream").splitlines()[-1]
    read, parts = last.replace(",", "").split(" = ")
    assert (
        int(read.split()[0]) == sum(int(part.split()[0]) for part in parts.split(" + ")) >= 50 * 64
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["show=pictures"], "show=pictures is not known; choose show=stats, show=batch"),
        (["step=-1"], "step=-1 is below 0"),
        (["show=download"], "local is read in place; show=download is for hub data"),
        (["batch_tokens=100"], "batch_tokens=100 is not a multiple of 16"),
    ],
)
def test_what_cannot_be_shown(say, words, message):
    with pytest.raises(ValueError, match=message):
        say(*words)


@pytest.mark.parametrize("name", [*TEXT, *PRESETS])
def test_every_text_config_has_the_keys_of_what_it_calls(name):
    cfg = composed(f"data={name}")
    keys = set(OmegaConf.to_container(cfg.data)) - {"_target_"}
    function = get_method(cfg.data._target_)
    own = {
        p.name for p in inspect.signature(function).parameters.values() if p.kind != p.VAR_KEYWORD
    }
    module = {p for p in inspect.signature(TextDataModule).parameters if p != "source"}
    known = set(inspect.signature(FileSource).parameters) & set(SOURCE_OPTIONS)
    assert keys <= own | module | known
    assert keys >= module


@pytest.mark.parametrize("name", ["open_prose", "pydocs", "hub", "local"])
def test_text_configs_build(name, mirror):
    given = {
        "hub": ["data.dataset=corpus/open-prose"],
        "local": [f"data.path={mirror}/karpathy/tinyshakespeare/input.txt", "data.val_by=tail"],
    }
    module = instantiate(composed(f"data={name}", *given.get(name, [])).data)
    assert all(module.source.parts(split) for split in SPLITS)
    assert next(module.source.documents("train"))
