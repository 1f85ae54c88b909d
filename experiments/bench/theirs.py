"""What `bench.py` measures of the original: `python theirs.py PART SETTINGS` with its checkout as
PYTHONPATH. Its own classes and functions, called as its training script calls them."""

import gc
import json
import os
import pickle
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

part, s = sys.argv[1], json.loads(sys.argv[2])
base = Path(s["base"])
# both are read when its modules are imported
os.environ |= {"NANOCHAT_BASE_DIR": str(base), "NANOCHAT_DTYPE": s["dtype"]}

import pyarrow.parquet as pq  # noqa: E402
import torch  # noqa: E402
from nanochat.checkpoint_manager import load_checkpoint, save_checkpoint  # noqa: E402
from nanochat.dataloader import tokenizing_distributed_data_loader_bos_bestfit as batches_of  # noqa: E402
from turns import Measures, in_turn, timed  # noqa: E402

from nanochat.gpt import GPT, GPTConfig  # noqa: E402
from nanochat.tokenizer import RustBPETokenizer  # noqa: E402

device, rows, T = s["device"], s["rows"], s["sequence_len"]
torch.set_float32_matmul_precision("high" if device == "cuda" else "highest")


def texts() -> list[str]:
    return pq.read_table(sorted(Path(s["text"]).glob("*.parquet"))[0])["text"].to_pylist()


def trained_tokenizer() -> RustBPETokenizer:
    """Kept for the other parts."""
    file = base / "bench-tokenizer.pkl"
    if file.is_file():
        return RustBPETokenizer(pickle.loads(file.read_bytes()), "<|bos|>")
    made = RustBPETokenizer.train_from_iterator(iter(texts()), s["vocab_size"])
    file.write_bytes(pickle.dumps(made.enc))
    return made


def network() -> torch.nn.Module:
    width = -(-64 * s["depth"] // 128) * 128
    heads = width // 128
    config = GPTConfig(T, s["vocab_size"], s["depth"], heads, heads, width, window_pattern="L")
    with torch.device("meta"):
        model = GPT(config)
    model.to_empty(device=device)
    model.init_weights()
    return model


def stepped_optimizer(model: torch.nn.Module) -> torch.optim.Optimizer:
    drawn = torch.Generator(device=device).manual_seed(0)
    for p in model.parameters():
        p.grad = torch.randn(p.shape, generator=drawn, device=device).to(p.dtype)
    return model.setup_optimizer()


def training() -> Callable[[], Measures]:
    whole = network()
    model = torch.compile(whole, dynamic=False) if s["compile"] else whole
    optimizer = whole.setup_optimizer()
    loader = batches_of(trained_tokenizer(), rows, T, split="train", device=device)
    tokens = s["steps"] * s["accumulate"] * rows * T
    batch = next(loader)

    def step() -> None:
        nonlocal batch
        for _ in range(s["accumulate"]):
            loss = model(*batch)
            last = loss.detach()
            (loss / s["accumulate"]).backward()
            batch = next(loader)
        optimizer.step()
        model.zero_grad(set_to_none=True)
        last.item()

    step(), step()
    gc.collect(), gc.freeze(), gc.disable()  # as it does after its first step

    def block() -> Measures:
        found: Measures = {}
        with timed(found, "training, tokens/s", tokens):
            for _ in range(s["steps"]):
                step()
        return found

    return block


def loader() -> Callable[[], Measures]:
    batches = batches_of(trained_tokenizer(), rows, T, split="train", device=device)

    def block() -> Measures:
        found: Measures = {}
        with timed(found, "loader, tokens/s", 20 * rows * T):
            for _ in range(20):
                next(batches)
        return found

    return block


def tokenizer() -> Callable[[], Measures]:
    documents = texts()
    size = sum(len(text.encode()) for text in documents) / 1e6

    def block() -> Measures:
        found: Measures = {}
        with timed(found, "tokenizer: training, MB/s", size):
            made = RustBPETokenizer.train_from_iterator(iter(documents), s["vocab_size"])
        with timed(found, "tokenizer: encoding on one thread, MB/s", size):
            made.encode(documents, num_threads=1)
        return found

    return block


def optimizer() -> Callable[[], Measures]:
    stepped = stepped_optimizer(network())

    def block() -> Measures:
        found: Measures = {}
        with timed(found, "optimizer, steps/s", 5):
            for _ in range(5):
                stepped.step()
        return found

    return block


def checkpoint() -> Callable[[], Measures]:
    model, path = network(), tempfile.mkdtemp(dir=base)
    made = stepped_optimizer(model)
    made.step()
    size = sum(p.numel() * 4 for p in model.parameters()) / 1e6

    def block() -> Measures:
        found: Measures = {}
        with timed(found, "checkpoint: save, MB of weights/s", size):
            save_checkpoint(path, 1, model.state_dict(), made.state_dict(), {})
        with timed(found, "checkpoint: load, MB of weights/s", size):
            weights, state, _ = load_checkpoint(path, 1, device, load_optimizer=True)
            model.load_state_dict(weights, strict=True, assign=True)
            made.load_state_dict(state)
        return found

    return block


in_turn(
    {
        "training": training,
        "loader": loader,
        "tokenizer": tokenizer,
        "optimizer": optimizer,
        "checkpoint": checkpoint,
    }[part]()
)
