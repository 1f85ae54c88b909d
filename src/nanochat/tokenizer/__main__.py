"""`python -m nanochat.tokenizer`: train a tokenizer on a text source, save it, and print a
compression table."""

import time
from pathlib import Path

from hydra.utils import instantiate
from omegaconf import DictConfig
from rich.console import Console

from nanochat.commands.app import command
from nanochat.tokenizer import train_or_load
from nanochat.tokenizer.compression import compression_table, first_characters, reference_encodings
from nanochat.tokenizer.samples import SAMPLES
from nanochat.tokenizer.training import cached_folder, resolve_settings

# guess: characters of each split in the table; changes the second decimal at most
CORPUS_CHARS = 2_000_000


def run(cfg: DictConfig) -> None:
    # checked before the text source is opened
    chosen = resolve_settings(cfg.kind, cfg.vocab_size, cfg.max_chars, cfg.doc_cap)
    source = instantiate(cfg.data).source
    folder = cached_folder(source, cfg.kind, *chosen)
    made_before = folder.is_dir()
    began = time.perf_counter()
    tokenizer = train_or_load(source, cfg.kind, cfg.vocab_size, cfg.max_chars, cfg.doc_cap)
    how = "found, made before" if made_before else f"trained in {time.perf_counter() - began:.1f} s"
    if cfg.out:
        folder = Path(cfg.out).expanduser().absolute()
        tokenizer.save(folder)

    texts = dict(SAMPLES)
    for split in ("train", "val"):
        if text := first_characters(source.documents(split), CORPUS_CHARS):
            texts[f"{source.name} {split}"] = text
    references, missing = reference_encodings()
    console = Console(soft_wrap=True, highlight=False)
    console.print(
        f"{tokenizer.kind} tokenizer of {source.name}: {how}, hash {tokenizer.hash}", markup=False
    )
    console.print(compression_table(tokenizer, texts, references))
    if missing:
        console.print(missing, markup=False)
    console.print(
        f"saved in {folder}; train with it: tokenizer={tokenizer.kind} tokenizer.path={folder}",
        markup=False,
    )


main = command("tokenizer", run)

if __name__ == "__main__":
    main()
