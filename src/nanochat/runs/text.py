"""A run on text: the tokens of the plan set its length, and its tokenizer may have to be trained
first."""

from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import torch
from hydra.utils import instantiate

from nanochat import optim
from nanochat.checkpoint import folder as checkpoint_folder
from nanochat.datamodules.download import CHARACTERS_PER_TOKEN, CROPPED, shards_needed
from nanochat.datamodules.text import PIECE_CHARS, TextDataModule, crop_note
from nanochat.gpt import GPT, GPTConfig, build_arch, from_depth
from nanochat.inference.complete import complete
from nanochat.runs import doubts
from nanochat.runs.plan import Plan, make_plan
from nanochat.runs.recipe import Recipe
from nanochat.runs.schema import Train
from nanochat.runtime.settings import Built
from nanochat.tokenizer import Tokenizer, load_tokenizer, train_or_load
from nanochat.tokenizer.training import resolve_settings

PLAIN = (".txt", ".md", ".jsonl", ".json")  # about as many bytes as characters


class TextSettings(Train):
    data: Annotated[
        dict,
        Built(makes=TextDataModule, instead="trains on text; choose data=pydocs, data=local …"),
    ]


class TextRecipe(Recipe):
    settings = TextSettings

    @cached_property
    def data(self) -> Any:
        """The datamodule. Its source may have to ask the hub which files there are."""
        config = self.config["data"]
        if (
            config.get("num_shards") == "auto"
            and "val_shard" in config
            and self._vocab_asked_for() is not None
        ):
            needed = shards_needed(self.plan.tokens, config["packing"], config["val_shard"])
            config = {**config, "num_shards": needed}
        return instantiate(config)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The parent checkpoint's tokenizer, the run's own, or one trained on the run's text (and
        kept for the next run)."""
        if self.tokenizer_folder is not None:
            return load_tokenizer(self.tokenizer_folder)
        if self.parent is not None:
            return checkpoint_folder.load_tokenizer(self.parent)
        # `auto` shards are as many as the tokens need; a tokenizer reads the first few
        auto = self.config["data"].get("num_shards") == "auto"
        data = instantiate(self.config["data"]) if auto else self.data
        return train_or_load(data.source, **self.config["tokenizer"])

    @cached_property
    def gpt_config(self) -> GPTConfig:
        if self.parent is not None:
            return checkpoint_folder.read_config(self.parent)
        return self._sizes(self._vocab_size(), self.config["model"]["depth"])

    @cached_property
    def plan(self) -> Plan:
        return self._plan(self.gpt_config)

    def check_data(self) -> None:
        """Before a tokenizer is trained for them: sizes, plan, rates."""
        vocab = self._vocab_asked_for()
        if vocab is not None:
            sizes = self._sizes(vocab, self.config["model"]["depth"])
            plan = self._plan(sizes)
            self.share_out(plan, sizes)
            with torch.device("meta"):
                self.build_optimizer(plan)(GPT(sizes))

        if "dataset" not in self.config["data"]:
            # the user's files are checked now, those of the hub when they are needed
            _ = self.data

    def no_effect(self) -> dict[str, str]:
        if self.config["plan"]["scale"] == "classic":
            classic = "plan.scale=classic decays nothing; set optim.groups.matrix.weight_decay=…"
            return {**super().no_effect(), "plan.weight_decay": classic}
        if optim.uses_planned_decay(self.config["optim"]["groups"]):
            return super().no_effect()
        instead = "set optim.groups.matrix.weight_decay=…"
        return {
            **super().no_effect(),
            "plan.weight_decay": f"no group of optim has weight_decay: auto; {instead}",
        }

    def _about_text(self) -> list[str]:
        """What was decided about the text without being asked for."""
        data, dry = self.config["data"], self.config["dry_run"]
        # text of this Python, which takes seconds to gather
        if dry and "path" not in data and "dataset" not in data:
            return []
        if dry and "dataset" in data:  # a dry run asks no hub
            share = CROPPED[data["packing"]] if data.get("document_chars") is None else 0.0
            return crop_note(share, int(PIECE_CHARS * self.config["model"]["sequence_len"]))
        try:
            return self.data.notes(None if dry else self.tokenizer)
        except FileNotFoundError:
            if dry:  # needs no data
                return []
            raise

    def notes(self) -> tuple[str, ...]:
        mixed = mixed_generations(self.config, self.gpt_config.vocab_size)
        size = self.config["size"]
        small = (
            f"size={size} set context, vocabulary, length and data that were not typed; size=full "
            "sets those for a GPU"
        )
        return (
            *([small] if size != "full" else []),
            *([mixed] if mixed else []),
            *self.plan.notes,
            *self._about_text(),
        )

    def doubts(self) -> list[str]:
        data, text = self.config["data"], self._tokens_of_text()
        epochs = self.plan.tokens / text if text else 0.0
        more = "data.num_shards=auto takes enough" if "val_shard" in data else "add text"
        return [*super().doubts(), *doubts.repeated_text(epochs, f"{more}, or shorten the run")]

    def _tokens_of_text(self) -> float | None:
        """About how many tokens the text has, where that is known without reading it."""
        data = self.config["data"]
        if "val_shard" in data:
            if data["num_shards"] == "auto":
                return None
            needed = shards_needed(self.plan.tokens, data["packing"], data["val_shard"])
            return self.plan.tokens * data["num_shards"] / needed
        if "path" not in data:
            return None
        try:
            files = self.data.source.files("train")
        except FileNotFoundError:
            if self.config["dry_run"]:  # needs no data
                return None
            raise
        plain = all(Path(file.name).suffix in PLAIN for file in files)
        return sum(file.size for file in files) / CHARACTERS_PER_TOKEN if plain else None

    def describe(self) -> str:
        """Which text, and how many of its shards the plan needs and takes."""
        data = self.config["data"]
        name = str(data.get("dataset") or data.get("path") or data["_target_"].rpartition(".")[2])
        if "val_shard" not in data:
            return (
                f"{name}; about {self.plan.tokens * CHARACTERS_PER_TOKEN / 1e6:,.1f} M characters "
                "trained"
            )
        needed = shards_needed(self.plan.tokens, data["packing"], data["val_shard"])
        taken = data["num_shards"]
        text = f"{name}; {needed:,} shards for one epoch"
        if taken != "auto" and taken < needed:
            text += (
                f", data.num_shards={taken} repeats them about {needed / taken:.1f} times; auto "
                "takes enough"
            )
        return text

    def sampled(self, gpt: GPT, prompts: list[str], settings: dict[str, Any]) -> list[str]:
        return complete(gpt, self.tokenizer, prompts, num_samples=1, **settings)

    def _vocab_asked_for(self) -> int | None:
        """The vocabulary that a BPE tokenizer to be trained will have; None if only the tokenizer
        knows."""
        words = dict(self.config["tokenizer"])
        known = self.parent is None and words.pop("path") is None and words["kind"] == "bpe"
        return (resolve_settings(**words)[0] or 0) if known else None

    def _vocab_size(self) -> int:
        # a dry run trains no tokenizer
        asked = self._vocab_asked_for() if self.config["dry_run"] else None
        return self.tokenizer.vocab_size if asked is None else asked

    def _sizes(self, vocab_size: int, depth: int, **more: Any) -> GPTConfig:
        model = {k: v for k, v in self.config["model"].items() if k != "depth"}
        return from_depth(
            depth, vocab_size=vocab_size, arch=build_arch(self.config["arch"]), **{**model, **more}
        )

    def _plan(self, config: GPTConfig) -> Plan:
        by_depth = dict.fromkeys(("n_layer", "n_head", "n_kv_head", "n_embd"))
        return make_plan(
            config,
            self._sizes(config.vocab_size, 12, **by_depth),
            max_steps=self.config["max_steps"],
            batch_tokens=self.config["batch_tokens"],
            world_size=self.world_size,
            **self.config["plan"],
        )


def mixed_generations(config: dict[str, Any], vocab_size: int) -> str | None:
    """A line that names which of a run's choices belong to which of nanochat's generations, if some
    are classic and others modern.

    What neither generation has (other rules, a small vocabulary) is no part of the mixture.
    """
    by_length = not any((config["max_steps"], config["plan"]["tokens"], config["plan"]["flops"]))
    matrix = config["optim"]["groups"].get("matrix")
    which = {
        "arch": config["arch"]["name"],
        "optim": optim.configured(matrix, "variant") if matrix else None,
        "plan.scale": config["plan"]["scale"],
        "plan.ratio": {20: "classic", 12: "modern"}.get(config["plan"]["ratio"])
        if by_length
        else None,
        "tokenizer.vocab_size": {65536: "classic", 32768: "modern"}.get(vocab_size),
        "trainer.gradient_clip_val": {1: "classic", None: "modern"}.get(
            config["trainer"]["gradient_clip_val"]
        ),
    }
    first = [which[name] for name in ("arch", "optim", "plan.scale")]
    if "classic" not in first or "modern" not in which.values():
        return None
    parts = [
        f"{kind}: {', '.join(n for n, w in which.items() if w == kind)}"
        for kind in ("classic", "modern")
    ]
    return f"mixed generations: {'; '.join(parts)}; experiment=classic sets all"
