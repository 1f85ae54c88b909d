"""What `bench.py` measures here: `python ours.py PART SETTINGS`, in turn with the original's."""

import itertools
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import torch
from turns import Measures, in_turn, timed

from nanochat import optim
from nanochat.checkpoint import folder
from nanochat.commands.configs import compose_choice
from nanochat.datamodules.text import local
from nanochat.gpt import GPT, build_arch, from_depth
from nanochat.tokenizer.training import train_bpe

part, s = sys.argv[1], json.loads(sys.argv[2])
device = torch.device(s["device"])
shards = sorted(Path(s["text"]).glob("*.parquet"))


def texts() -> list[str]:
    return pq.read_table(shards[0])["text"].to_pylist()


def network() -> GPT:
    arch = build_arch({**compose_choice("arch", "modern"), "window_pattern": "L"})
    sizes = from_depth(
        s["depth"], vocab_size=s["vocab_size"], sequence_len=s["sequence_len"], arch=arch
    )
    return GPT.build(sizes, device=device, compute_dtype=getattr(torch, s["dtype"]))


def optimizer_of(gpt: GPT) -> optim.GroupedOptimizer:
    drawn = torch.Generator(device=device).manual_seed(0)
    for p in gpt.parameters():
        p.grad = torch.randn(p.shape, generator=drawn, device=device)
    groups = compose_choice("optim", "muon")["groups"]
    for group in groups.values():
        if group["rule"] == "adamw":  # as in a run whose network is compiled
            group["compile"] = bool(s["compile"])
    return optim.build(gpt, groups, weight_decay=0.1)


def loader() -> Callable[[], Measures]:
    tokens = s["rows"] * s["sequence_len"]
    data = local(
        str(shards[0]),
        str(shards[1]),
        sequence_len=s["sequence_len"],
        num_workers=0,
        prepare_workers=0,
    )
    data.attach(
        train_bpe(texts(), s["vocab_size"], max_chars=None, doc_cap=None), batch_tokens=tokens
    )
    data.prepare_data()
    data.setup()
    batches = iter(data.train_dataloader())

    def block() -> Measures:
        found: Measures = {}
        with timed(found, "loader, tokens/s", 20 * tokens):
            for batch in itertools.islice(batches, 20):
                batch["idx"].to(device)
        return found

    return block


def tokenizer() -> Callable[[], Measures]:
    documents = texts()
    size = sum(len(text.encode()) for text in documents) / 1e6

    def block() -> Measures:
        found: Measures = {}
        with timed(found, "tokenizer: training, MB/s", size):
            made = train_bpe(documents, s["vocab_size"], max_chars=None, doc_cap=None)
        with timed(found, "tokenizer: encoding on one thread, MB/s", size):
            for text in documents:
                made.encode_array(text)
        return found

    return block


def optimizer() -> Callable[[], Measures]:
    stepped = optimizer_of(network())

    def block() -> Measures:
        found: Measures = {}
        with timed(found, "optimizer, steps/s", 5):
            for _ in range(5):
                stepped.step()
        return found

    return block


def checkpoint() -> Callable[[], Measures]:
    gpt = network()
    made, path = optimizer_of(gpt), Path(tempfile.mkdtemp(dir=s["base"])) / "checkpoint"
    made.step()
    bpe = train_bpe(texts()[:200], 1024, max_chars=None, doc_cap=None, fewer=True)
    size = sum(p.nbytes for p in gpt.parameters()) / 1e6

    def block() -> Measures:
        found: Measures = {}
        state = {"optimizer_states": [made.state_dict()], "global_step": 1}
        with timed(found, "checkpoint: save, MB of weights/s", size):
            folder.save(path, gpt.state_dict(), gpt.config, bpe, {}, state)
        with timed(found, "checkpoint: load, MB of weights/s", size):
            gpt.load_state_dict(folder.read_weights(path))
            made.load_state_dict(folder.read_state(path)["optimizer_states"][0])
        return found

    return block


in_turn(
    {"loader": loader, "tokenizer": tokenizer, "optimizer": optimizer, "checkpoint": checkpoint}[
        part
    ]()
)
