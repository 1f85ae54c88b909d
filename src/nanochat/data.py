"""`python -m nanochat.data`: what training will see. show=stats counts documents, characters and tokens and how well
they pack; show=batch prints the text of batch `step`, row by row, with the documents it is from; show=ledger says
what `step` steps took; show=download only gets the files."""

import os
import sys
from collections.abc import Iterator

from hydra.utils import instantiate
from omegaconf import DictConfig

from nanochat.datamodules.download import HubFiles
from nanochat.datamodules.packing import Tally, pack
from nanochat.datamodules.text import TextDataModule
from nanochat.runtime.app import command


def run(cfg: DictConfig) -> None:
    show = {"stats": stats, "batch": batch, "ledger": ledger, "download": download}.get(cfg.show)
    if show is None:
        raise ValueError(f"show={cfg.show} is not known; choose show=stats, show=batch, show=ledger or show=download")
    data: TextDataModule = instantiate(cfg.data)
    if cfg.show != "download":
        from nanochat.tokenizer import train_or_load

        if cfg.step < 0:
            raise ValueError(f"step={cfg.step} is below 0; steps are counted from 0")
        data.attach(train_or_load(data.source, **cfg.tokenizer), batch_tokens=cfg.batch_tokens)
        data.prepare_data()
        data.setup()
    try:
        for text in show(data, cfg):
            print(text)
        sys.stdout.flush()
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def stats(data: TextDataModule, cfg: DictConfig) -> Iterator[str]:
    """Documents, characters, tokens of every shard; rows, use and loss of what packs them."""
    data.prepare_all()
    folder = data.folder
    yield f"{data.source.name}, manifest {data.source.manifest_hash}, tokenizer {folder.tokenizer.hash}"
    yield f"shards in {folder.folder}"
    yield f"packing={data.packing}, sequence_len={data.sequence_len}; used and cropped as if a shard were packed alone"
    heads = ("documents", 10), ("characters", 13), ("tokens", 12), ("chars/token", 11), ("used", 7), ("cropped", 8)
    yield f"{'shard':40} " + " ".join(f"{head:>{width}}" for head, width in heads)
    for split in ("train", "val"):
        sums = [0, 0, 0]
        for spec in folder.specs[split]:
            meta = folder.meta(spec)
            assert meta is not None
            counts = [meta["documents"], meta["characters"], meta["tokens"]]
            sums = [a + b for a, b in zip(sums, counts, strict=True)]
            packed = pack(data.packing, folder.open(spec).lengths, data.sequence_len)
            notes = "".join(f"  {key}: {value}" for key, value in meta["notes"].items())
            yield line(f"{split} {spec.part.name}", counts, packed.tally(packed.rows)) + notes
        yield line(f"{split} together, as packed", sums, data.rows(split).epoch_tally())
    rows = data.rows("train").total()
    yield f"an epoch has {rows:,} rows, {rows / data.batch_rows:,.1f} steps of {cfg.batch_tokens:,} tokens"


def line(name: str, counts: list[int], tally: Tally) -> str:
    documents, characters, tokens = counts
    used = (tally.tokens_trained + tally.tokens_context) / max(tally.tokens_read, 1)
    cropped = tally.tokens_cropped / max(tally.tokens_read, 1)
    ratio = characters / max(tokens, 1)
    return f"{name:40} {documents:10,} {characters:13,} {tokens:12,} {ratio:11.2f} {used:7.1%} {cropped:8.1%}"


def batch(data: TextDataModule, cfg: DictConfig) -> Iterator[str]:
    """The text of batch `step`. ⟦ ⟧ hold what is not text: the documents, and where a row ends in the middle of one."""
    found = data.batch(cfg.step)
    yield f"⟦batch {found.step}, epoch {found.epoch}, {len(found.idx)} rows of {data.sequence_len} tokens⟧"
    decode = data.tokenizer.decode
    for number, (row, last, documents) in enumerate(
        zip(found.idx, found.targets[:, -1:], found.documents, strict=True)
    ):
        if cfg.rows is not None and number >= cfg.rows:
            yield f"⟦{len(found.idx) - number} more rows⟧"
            return
        yield f"⟦row {number}⟧"
        ids, at = [*row.tolist(), *last.tolist()], 0
        for document, start, length in documents:
            yield f"⟦{document} tokens {start}..{start + length - 1}⟧"
            yield decode(ids[at : at + length])
            at += length


def ledger(data: TextDataModule, cfg: DictConfig) -> Iterator[str]:
    """What the first `step` steps took from the text."""
    found = data.ledger(cfg.step)
    for name, value in found.items():
        yield f"{name:18} {value:15,}"
    parts = ("tokens_trained", "tokens_context", "tokens_cropped", "tokens_dropped")
    yield f"{found['tokens_read']:,} read = " + " + ".join(
        f"{found[name]:,} {name.removeprefix('tokens_')}" for name in parts
    )


def download(data: TextDataModule, cfg: DictConfig) -> Iterator[str]:
    """Get the files of a hub data set, several at a time; what is there already stays."""
    source = data.source
    if not isinstance(source, HubFiles):
        raise ValueError(f"{source.name} is read in place; show=download is for hub data, for example data=climbmix")
    source.download(print)
    yield f"all {len(source.files('train'))} training files are in {source.dataset.folder}"


main = command("data", run)

if __name__ == "__main__":
    main()
