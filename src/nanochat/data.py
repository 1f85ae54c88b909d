"""`python -m nanochat.data`: show what training will see.

show=stats counts documents, characters and tokens, and how well they pack. show=batch prints the
text of batch `step`, row by row, with the documents it comes from. show=ledger prints the token
counts of the first `step` steps. show=download only downloads the files.

For conversations (`data=sft_mix ckpt=base-d20@latest`), stats describes the mixture, and batch
marks the trained tokens: green on a terminal, between « and » elsewhere.
"""

import itertools
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig

from nanochat.commands.app import command, overridden
from nanochat.datamodules.chat import ChatDataModule
from nanochat.datamodules.download import HubFiles
from nanochat.datamodules.packing import Tally, pack
from nanochat.datamodules.text import TextDataModule


def run(cfg: DictConfig) -> None:
    show: Callable[[Any, DictConfig], Iterator[str]] | None
    show = {"stats": show_stats, "batch": show_batch, "ledger": ledger, "download": download}.get(
        cfg.show
    )
    if show is None:
        raise ValueError(
            f"show={cfg.show} is not known; choose show=stats, show=batch, show=ledger or "
            "show=download"
        )
    data = instantiate(cfg.data)
    if isinstance(data, ChatDataModule):
        show = {"stats": show_mixture, "batch": chat_batch, "ledger": ledger}.get(cfg.show)
        if show is None:
            raise ValueError(
                f"show={cfg.show} is for text; conversations have show=stats, show=batch and "
                "show=ledger"
            )
        prepare_chat(data, cfg)
    elif cfg.ckpt is not None:
        raise ValueError(
            f"ckpt={cfg.ckpt} is for conversations, which are shown in its tokens; text takes "
            "tokenizer.path=FOLDER"
        )
    elif cfg.show != "download":
        from nanochat.tokenizer import train_or_load

        if cfg.step < 0:
            raise ValueError(f"step={cfg.step} is below 0; steps are counted from 0")
        tokenizer = train_or_load(data.source, **cfg.tokenizer)
        for note in data.notes(tokenizer):
            print(f"note: {note}", file=sys.stderr)
        data.attach(tokenizer, batch_tokens=cfg.batch_tokens)
        data.prepare_data()
        data.setup()
    try:
        for text in show(data, cfg):
            print(text)
        sys.stdout.flush()
    except BrokenPipeError:  # e.g. `| head` has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def show_stats(data: TextDataModule, cfg: DictConfig) -> Iterator[str]:
    """Documents, characters and tokens of every shard; rows, utilisation and loss by packing."""
    data.prepare_all()
    folder = data.folder
    yield (
        f"{data.source.name}, manifest {data.source.manifest_hash}, tokenizer "
        f"{folder.tokenizer.hash}"
    )
    yield f"shards in {folder.folder}"
    yield (
        f"packing={data.packing}, sequence_len={data.sequence_len}; used and cropped as if a shard "
        "were packed alone"
    )
    heads = (
        ("documents", 10),
        ("characters", 13),
        ("tokens", 12),
        ("chars/token", 11),
        ("used", 7),
        ("cropped", 8),
    )
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
    yield (
        f"an epoch has {rows:,} rows, {rows / data.batch_rows:,.1f} steps of {cfg.batch_tokens:,} "
        "tokens"
    )


def line(name: str, counts: list[int], tally: Tally) -> str:
    documents, characters, tokens = counts
    used = (tally.tokens_trained + tally.tokens_context) / max(tally.tokens_read, 1)
    cropped = tally.tokens_cropped / max(tally.tokens_read, 1)
    ratio = characters / max(tokens, 1)
    return (
        f"{name:40} {documents:10,} {characters:13,} {tokens:12,} {ratio:11.2f} {used:7.1%} "
        f"{cropped:8.1%}"
    )


def show_batch(data: TextDataModule, cfg: DictConfig) -> Iterator[str]:
    """The text of batch `step`. ⟦ ⟧ enclose what is not text: the documents, and rows that end
    within one."""
    found = data.batch(cfg.step)
    yield (
        f"⟦batch {found.step}, epoch {found.epoch}, {len(found.idx)} rows of {data.sequence_len} "
        "tokens⟧"
    )
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


def ledger(data: TextDataModule | ChatDataModule, cfg: DictConfig) -> Iterator[str]:
    """Token counts of the first `step` steps."""
    found = data.ledger(cfg.step)
    for name, value in found.items():
        yield f"{name:21} {value:15,}"
    text = "tokens_trained", "tokens_context", "tokens_cropped", "tokens_dropped"
    chat = "tokens_trained", "tokens_masked", "tokens_trimmed", "tokens_dropped"
    parts = chat if isinstance(data, ChatDataModule) else text
    yield f"{found['tokens_read']:,} read = " + " + ".join(
        f"{found[name]:,} {name.removeprefix('tokens_')}" for name in parts
    )


def prepare_chat(data: ChatDataModule, cfg: DictConfig) -> None:
    """Prepare conversations in the tokens and rows of the checkpoint that is to be
    trained on them."""
    from nanochat.checkpoint import folder
    from nanochat.checkpoint.runs import described, resolve
    from nanochat.runtime.paths import base_dir

    if cfg.ckpt is None:
        raise ValueError(
            "conversations are shown in the tokens of a model; add ckpt=RUN@latest, the checkpoint "
            "to be trained on them"
        )
    if cfg.step < 0:
        raise ValueError(f"step={cfg.step} is below 0; steps are counted from 0")
    checkpoint = resolve(cfg.ckpt, base_dir() / "runs")
    print(described(checkpoint), file=sys.stderr)
    if not overridden("model.sequence_len"):
        data.sequence_len = folder.read_config(checkpoint).sequence_len
    data.attach(folder.load_tokenizer(checkpoint), batch_tokens=cfg.batch_tokens)
    for note in data.notes():
        print(f"note: {note}", file=sys.stderr)
    steps = -(-data.epochs_rows() // data.batch_rows)
    if cfg.step > steps or (cfg.show == "batch" and cfg.step == steps):
        length = (
            f"data.num_epochs={data.num_epochs} has {steps:,} steps of "
            f"batch_tokens={cfg.batch_tokens}"
        )
        raise ValueError(f"step={cfg.step} is past the end: {length}")


def show_mixture(data: ChatDataModule, cfg: DictConfig) -> Iterator[str]:
    """The parts of the mixture, and how full its rows are."""
    from nanochat.runs import show

    show.shares(data.shares(), data.utilisation(), data.rows("train").mixture.dropped)
    rows = data.epochs_rows()
    epochs = "an epoch is" if data.num_epochs == 1 else f"{data.num_epochs} epochs are"
    yield (
        f"{epochs} {rows:,} rows, {rows / data.batch_rows:,.1f} steps of "
        f"{data.batch_rows * data.sequence_len:,} tokens"
    )


def chat_batch(data: ChatDataModule, cfg: DictConfig) -> Iterator[str]:
    """The rows of batch `step`, every token marked by whether it is trained, special tokens by
    their names."""
    found = data.batch(cfg.step)
    terminal = sys.stdout.isatty()
    before, after = ("\x1b[32m", "\x1b[0m") if terminal else ("«", "»")
    yield (
        f"⟦batch {found.step}, epoch {found.epoch}, {len(found.idx)} rows of {data.sequence_len} "
        f"tokens, {found.num_targets} trained⟧"
    )
    for number, (row, targets, pieces) in enumerate(
        zip(found.idx, found.targets, found.documents, strict=True)
    ):
        if cfg.rows is not None and number >= cfg.rows:
            yield f"⟦{len(found.idx) - number} more rows⟧"
            return
        used = sum(length for _, _, length in pieces)
        yield (
            f"⟦row {number}: {', '.join(label for label, _, _ in pieces) or 'padding'}; {used} of "
            f"{data.sequence_len + 1} tokens⟧"
        )
        # token t + 1 is trained where targets[t] is set; a trained last token is only a target
        ids = [*row.tolist(), *([int(targets[-1])] if targets[-1] >= 0 else [])][:used]
        trained = [False, *(targets >= 0).tolist()][: len(ids)]
        for is_trained, group in itertools.groupby(
            zip(ids, trained, strict=True), key=lambda pair: pair[1]
        ):
            text = data.tokenizer.decode([token for token, _ in group])
            yield f"{before}{text}{after}" if is_trained else text


def download(data: TextDataModule, cfg: DictConfig) -> Iterator[str]:
    """Download the files of a hub data set, several at a time; files that are present are kept."""
    source = data.source
    if not isinstance(source, HubFiles):
        raise ValueError(
            f"{source.name} is read in place; show=download is for hub data, for example "
            "data=climbmix"
        )
    source.download(print)
    yield f"all {len(source.files('train'))} training files are in {source.dataset.folder}"


main = command("data", run)

if __name__ == "__main__":
    main()
