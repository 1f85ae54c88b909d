"""One training run, built from its composed config as plain values: model, data, optimizer, callbacks, Trainer."""

import logging
import os
import time
import warnings
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import lightning as L
import torch
from hydra.utils import get_class, instantiate

from nanochat import optim
from nanochat.callbacks.evaluate import Evaluate
from nanochat.callbacks.every import check_every
from nanochat.callbacks.report import Report, check_progress
from nanochat.callbacks.sample import Sample
from nanochat.callbacks.save import Save
from nanochat.checkpoint import folder as checkpoint_folder
from nanochat.checkpoint import lineage
from nanochat.checkpoint.lightning_io import FolderCheckpointIO
from nanochat.checkpoint.runs import RunCheckpoints, resolve
from nanochat.datamodules.by_step import share_out
from nanochat.datamodules.download import CHARACTERS_PER_TOKEN, shards_needed
from nanochat.evals.bpb import bits_per_byte
from nanochat.evals.chat import accuracy
from nanochat.gpt import GPT, GPTConfig, build_arch, counts, from_depth
from nanochat.inference.engine import Engine
from nanochat.inference.generate import complete
from nanochat.modules.phase import PhaseModule
from nanochat.runs import show
from nanochat.runs.run_folder import RunFolder, read_record, write_record
from nanochat.runtime import hardware
from nanochat.runtime.paths import base_dir
from nanochat.runtime.plan import Plan, estimate_seconds, make_epochs_plan, make_plan
from nanochat.tokenizer import Tokenizer, load_tokenizer, train_or_load
from nanochat.tokenizer.conversations import render_prompt
from nanochat.tokenizer.training import settings as tokenizer_settings

COMPILE_PAYS_SECONDS = (
    600  # measured: experiments/cpu_speed/README.md; on a CPU compiling costs about a minute and saves a quarter
)


class Job:
    """One training run, from its composed config as plain values. Nothing heavy is built before it is asked for."""

    def __init__(self, config: dict[str, Any], tokenizer_folder: Path | None = None) -> None:
        self.config, self.tokenizer_folder = config, tokenizer_folder
        settings = config["trainer"]
        self.world_size = settings["devices"] * settings["num_nodes"]
        self.parent = resolve(config["init_from"], base_dir() / "runs") if config["init_from"] else None

    # --- what the run is -----------------------------------------------------------------------------------------

    @cached_property
    def data(self) -> Any:
        """The datamodule. Its source may have to ask the hub which files there are."""
        config = self.config["data"]
        if config.get("num_shards") == "auto" and "val_shard" in config and self._vocab_asked_for() is not None:
            needed = shards_needed(self.plan.tokens, config["packing"], config["val_shard"])
            config = {**config, "num_shards": needed}
        data = instantiate(config)
        if self.is_chat:
            data.endless = self.config["max_steps"] is not None
        return data

    @property
    def is_chat(self) -> bool:
        """Whether the data are conversations: then the checkpoint brings the tokenizer and the epochs set the length."""
        return "train_tasks" in self.config["data"]

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The parent checkpoint's tokenizer, the run's own, or one trained on the run's text (and kept for the next run)."""
        if self.tokenizer_folder is not None:
            return load_tokenizer(self.tokenizer_folder)
        if self.parent is not None:
            return checkpoint_folder.load_tokenizer(self.parent)
        auto = (
            self.config["data"].get("num_shards") == "auto"
        )  # as many as the tokens need; a tokenizer reads the first few
        data = instantiate(self.config["data"]) if auto else self.data
        return train_or_load(data.source, **self.config["tokenizer"])

    @cached_property
    def gpt_config(self) -> GPTConfig:
        if self.parent is not None:
            return checkpoint_folder.read_config(self.parent)
        return self._sizes(self._vocab_size(), self.config["model"]["depth"])

    def _vocab_asked_for(self) -> int | None:
        """The vocabulary that a BPE tokenizer to be trained will have; None if only the tokenizer knows."""
        words = dict(self.config["tokenizer"])
        known = self.parent is None and words.pop("path") is None and words["kind"] == "bpe"
        return (tokenizer_settings(**words)[0] or 0) if known else None

    def _vocab_size(self) -> int:
        asked = self._vocab_asked_for() if self.config["dry_run"] else None  # a dry run trains no tokenizer
        return self.tokenizer.vocab_size if asked is None else asked

    def _sizes(self, vocab_size: int, depth: int, **more: Any) -> GPTConfig:
        model = {k: v for k, v in self.config["model"].items() if k != "depth"}
        return from_depth(depth, vocab_size=vocab_size, arch=build_arch(self.config["arch"]), **{**model, **more})

    def _plan(self, config: GPTConfig) -> Plan:
        by_depth = dict.fromkeys(("n_layer", "n_head", "n_kv_head", "n_embd"))
        return make_plan(
            config, self._sizes(config.vocab_size, 12, **by_depth), max_steps=self.config["max_steps"],
            batch_tokens=self.config["batch_tokens"], world_size=self.world_size, **self.config["plan"],
        )  # fmt: skip

    @cached_property
    def plan(self) -> Plan:
        if not self.is_chat:
            return self._plan(self.gpt_config)
        self.data.use(self.tokenizer)
        config = self.config
        return make_epochs_plan(
            self.gpt_config, rows=self.data.epochs_rows(), epochs=self.data.num_epochs, batch_tokens=config["batch_tokens"],
            max_steps=config["max_steps"], scale=config["plan"]["scale"],
        )  # fmt: skip

    def check(self) -> None:
        """Raise for settings that cannot work before a tokenizer is trained for them: sizes, plan, rates, device, precision."""
        config, vocab = self.config, self._vocab_asked_for()
        if self.is_chat:
            self._check_chat()
        if vocab is not None:
            sizes = self._sizes(vocab, config["model"]["depth"])
            plan = self._plan(sizes)
            self._share_out(plan, sizes)
            with torch.device("meta"):
                self._build_optimizer(plan)(GPT(sizes))
        optim.build_schedule(config["optim"]["schedule"])
        for name in ("save_every", "eval_every", "sample_every", "log_every"):
            check_every(name, config[name])
        check_every("tasks.every", config["tasks"]["every"])
        _ = self.eval_tasks
        RunCheckpoints(base_dir(), **config["checkpoints"])
        check_progress(config["progress"])
        if config["trainer"]["compile"] not in (True, False, "auto"):
            raise ValueError(
                f"trainer.compile={config['trainer']['compile']} is not known; choose from auto, true, false"
            )
        if config["trainer"]["num_nodes"] != 1:
            raise ValueError("trainer.num_nodes must be 1: runs over several machines are not supported yet")
        if not config["dry_run"]:
            _ = self.dtype
            devices = config["trainer"]["devices"]
            if self.device.type == "cuda" and torch.cuda.device_count() < devices:
                raise ValueError(
                    f"trainer.devices={devices} but this machine has {torch.cuda.device_count()}; try trainer.devices={torch.cuda.device_count()}"
                )

    def _check_chat(self) -> None:
        config = self.config
        if self.parent is None:
            start = f"init_from=base-d{config['model']['depth']}@latest"
            raise ValueError(
                f"phase {config['phase']} starts from a checkpoint; add init_from=RUN@latest, for example {start}"
            )
        for name in ("tokens", "flops"):
            if config["plan"][name] is not None:
                raise ValueError(
                    f"plan.{name} cannot take effect: data.num_epochs or max_steps set the length of phase {config['phase']}"
                )
        if config["batch_tokens"] is None:
            raise ValueError(
                f"batch_tokens must be given for phase {config['phase']} where it is not inherited; try batch_tokens=32768"
            )
        share_out(
            config["batch_tokens"], self.gpt_config.sequence_len, self.world_size, config["data"].get("rows_per_device")
        )

    @cached_property
    def device(self) -> torch.device:
        return hardware.accelerator_device(self.config["trainer"]["accelerator"], int(os.environ.get("LOCAL_RANK", 0)))

    @cached_property
    def dtype(self) -> tuple[torch.dtype, str]:
        return hardware.compute_dtype(self.config["trainer"]["precision"], self.device)

    @cached_property
    def hardware(self) -> hardware.Hardware:
        return hardware.detect(self.device, self.dtype[0])

    @cached_property
    def expected_seconds(self) -> float | None:
        return estimate_seconds(
            self.plan, self.hardware.peak_flops, self.world_size, self.config["trainer"]["expected_mfu"]
        )

    def print_plan(self, inherited: Sequence[tuple[str, str, str]] = ()) -> None:
        """The derived numbers, before anything is trained."""
        if inherited:
            show.inherited(inherited)
        if self.is_chat:
            self.data.use(self.tokenizer)
            show.mixture(self.data.shares(), self.data.utilisation(), self.data.rows("train").mixture.dropped)
            if self.config["phase"] == "sft" and self.parent is not None:
                show.skipped_mid(checkpoint_folder.phase(self.parent))
        machine = None if self.config["dry_run"] else (self.hardware.name, self.expected_seconds)
        show.plan(self.config["run_name"], self.plan, batch=self.data_shape(), text=self._text(), machine=machine)

    def _text(self) -> str:
        """Which text, and how many of its shards the plan needs and takes."""
        data = self.config["data"]
        if self.is_chat:
            return f"conversations of {', '.join(data['train_tasks'])}; packing {data['packing']}, supervise {data['supervise']}"
        name = str(data.get("dataset") or data.get("path") or data["_target_"].rpartition(".")[2])
        if "val_shard" not in data:
            return f"{name}; about {self.plan.tokens * CHARACTERS_PER_TOKEN / 1e6:,.1f} M characters trained"
        needed, taken = shards_needed(self.plan.tokens, data["packing"], data["val_shard"]), data["num_shards"]
        text = f"{name}; {needed:,} shards for one epoch"
        if taken != "auto" and taken < needed:
            text += f", data.num_shards={taken} repeats them about {needed / taken:.1f} times; auto takes enough"
        return text

    def _share_out(self, plan: Plan, sizes: GPTConfig) -> tuple[int, int]:
        return share_out(
            plan.batch_tokens, sizes.sequence_len, self.world_size, self.config["data"].get("rows_per_device")
        )

    def data_shape(self) -> str:
        """How a batch is shared out over processes and micro-batches."""
        rows, micro = self._share_out(self.plan, self.gpt_config)
        accumulated = rows // self.world_size // micro
        return f"{micro} rows x {self.gpt_config.sequence_len:,} tokens x {self.world_size} processes x {accumulated} accumulated"

    # --- doing it ------------------------------------------------------------------------------------------------

    def attach(self) -> None:
        self.data.attach(
            self.tokenizer,
            batch_tokens=self.plan.batch_tokens,
            world_size=self.world_size,
            rank=int(os.environ.get("RANK", 0)),
        )

    def _plan_facts(self) -> dict[str, Any]:
        return {k: v for k, v in vars(self.plan).items() if k != "config"}

    def prepare(self, folder: RunFolder) -> None:
        """What happens once, before any process trains: record, tokenizer, first token shards."""
        self.attach()
        code = lineage.code_state()
        if folder.resumed and (old := read_record(folder).get("plan")) and old != self._plan_facts():
            wrong = next(k for k in old if old[k] != self._plan_facts()[k])
            raise ValueError(
                f"{folder.path} was planned with {wrong}={old[wrong]}, this command gives {self._plan_facts()[wrong]}; resume on a number of "
                "devices that divides its batch"
            )
        facts = {
            "started": time.strftime("%Y-%m-%d %H:%M:%S"), "command": lineage.command_line(), "code": code, "versions": lineage.versions(),
            "hardware": {"device": self.hardware.name, "peak_flops": self.hardware.peak_flops, "memory_bytes": self.hardware.memory_bytes,
                         "processes": self.world_size},
            "seed": self.config["seed"],
            "plan": self._plan_facts(),
            "data": self.data.manifest(),
            "parent": None if self.parent is None else {"path": str(self.parent), "sha256": lineage.parent_hash(self.parent)},
        }  # fmt: skip
        write_record(folder, self.config, facts)
        (folder.path / "tokenizer").mkdir(exist_ok=True)
        self.tokenizer.save(folder.path / "tokenizer")
        self.data.prepare_data()

    @cached_property
    def eval_tasks(self) -> dict[str, Any]:
        """Tasks whose answers are scored while training."""
        return {name: instantiate(task) for name, task in (self.config["tasks"]["of"] or {}).items()}

    def checkpoints(self, folder: RunFolder) -> RunCheckpoints:
        return RunCheckpoints(folder.checkpoints, **self.config["checkpoints"])

    def is_finished(self, folder: RunFolder) -> bool:
        """True, and said, if the run to continue has its last step and the evaluation of it."""
        checkpoints = self.checkpoints(folder)
        steps = checkpoints.steps() if folder.resumed else []
        if steps and steps[-1] >= self.plan.steps and self.last_result(folder) is not None:
            print(
                f"this run is finished: {checkpoints.path(steps[-1])}; for another one change a setting, or drop resume="
            )
            return True
        return False

    def last_result(self, folder: RunFolder) -> float | None:
        """val/bpb of the last checkpoint, or None if it was not evaluated."""
        checkpoints = self.checkpoints(folder)
        return checkpoints.metrics(checkpoints.steps()[-1]).get("val/bpb") if checkpoints.steps() else None

    def build_gpt(self) -> GPT:
        gpt = GPT.build(self.gpt_config, seed=self.config["seed"] if self.parent is None else None, device=self.device)
        if self.parent is not None:
            gpt.load_state_dict(checkpoint_folder.read_weights(self.parent), strict=True)
        return gpt

    def wants_compile(self) -> bool:
        """trainer.compile is true, false or auto: on a GPU always, on a CPU where the run is long enough to earn it back."""
        wanted = self.config["trainer"]["compile"]
        if wanted != "auto":
            return bool(wanted)
        if self.device.type == "cpu":
            return (self.expected_seconds or 0) > COMPILE_PAYS_SECONDS and hardware.has_compiler()
        return self.device.type == "cuda"

    def _build_optimizer(
        self, plan: Plan, moments: dict[str, Any] | None = None
    ) -> Callable[[GPT], optim.GroupedOptimizer]:
        groups = self.config["optim"]["groups"]

        def build(gpt: GPT) -> optim.GroupedOptimizer:
            optimizer = optim.build(gpt, groups=groups, lr_factor=plan.lr_factor, weight_decay=plan.weight_decay)
            if moments is not None:
                optim.load_moments(optimizer, moments)
            return optimizer

        return build

    def moments(self) -> dict[str, Any] | None:
        """The state of the parent's optimizer, if this run is to begin with it (`init_optimizer`)."""
        wanted = self.config["init_optimizer"]
        if not wanted or self.parent is None:
            return None
        if wanted == "auto" and not (self.parent / checkpoint_folder.STATE).is_file():
            return None
        return checkpoint_folder.read_state(self.parent)["optimizer_states"][0]

    def build_module(self, gpt: GPT, moments: dict[str, Any] | None = None) -> PhaseModule:
        schedule = optim.build_schedule(self.config["optim"]["schedule"])
        module = get_class(self.config["module"]["_target_"])
        return module(gpt, self._build_optimizer(self.plan, moments), schedule, self.plan.steps)

    def build_callbacks(self, folder: RunFolder, rank: int) -> list[L.Callback]:
        config, checkpoints = self.config, self.checkpoints(folder)
        sample = dict(config["sample"])
        prompts = list(sample.pop("prompts") or [])

        def bpb(module: PhaseModule) -> dict[str, float]:
            return bits_per_byte(module.gpt, self.data.val_batches(config["eval_tokens"]), self.tokenizer.token_bytes)

        def write(gpt: GPT, texts: list[str]) -> list[str]:
            if not self.is_chat:
                return complete(gpt, self.tokenizer, texts, num_samples=1, **sample)
            asked = [{"messages": [{"role": "user", "content": text}]} for text in texts]
            answers = Engine(gpt, self.tokenizer).generate([render_prompt(self.tokenizer, c) for c in asked], **sample)
            return [f" -> {answer.text}" for answer in answers]

        def answers(module: PhaseModule) -> dict[str, float]:
            options = {"limit": config["tasks"]["limit"], "max_tokens": config["tasks"]["max_tokens"]}
            found = {
                name: accuracy(module.gpt, self.tokenizer, task, **options) for name, task in self.eval_tasks.items()
            }
            return {f"{name}_accuracy": numbers["accuracy"] for name, numbers in found.items()}

        evaluations = [Evaluate({"bpb": bpb}, config["eval_every"], checkpoints, at_start=config["eval_at_start"])]
        if self.eval_tasks:
            evaluations.append(
                Evaluate({"tasks": answers}, config["tasks"]["every"], checkpoints, at_start=config["eval_at_start"])
            )
        report = Report(
            batch_tokens=self.plan.batch_tokens, flops_per_token=counts.flops_per_token(self.gpt_config),
            peak_flops=self.hardware.peak_flops, log_every=config["log_every"], run_folder=folder.path,
            show=config["progress"] if rank == 0 else "none",
        )  # fmt: skip
        return [
            report,
            Save(checkpoints, config["save_every"], before=report.flush),
            *evaluations,
            Sample(write, prompts, config["sample_every"]),
            *[instantiate(c) for c in (config["callbacks"] or {}).values()],
        ]

    def train(self, folder: RunFolder) -> float | None:
        """Train in this process (all of the run, or one rank of it). Returns the last val/bpb."""
        rank, settings, checkpoints = int(os.environ.get("RANK", 0)), self.config["trainer"], self.checkpoints(folder)
        quiet_lightning()
        torch.manual_seed(self.config["seed"])
        self.attach()
        start, problems = checkpoints.latest_sound() if folder.resumed else (None, [])
        resume_step = int(start.name.removeprefix("step_")) if start else 0
        if rank == 0:
            for line in problems:
                print(f"skipped: {line}")
            if folder.resumed:
                print(
                    f"resuming {folder.path} "
                    + (f"after step {resume_step:,}" if start else "from the start: it has no checkpoint yet")
                )
        gpt = self.build_gpt()
        shape = (self.data.micro_rows, self.gpt_config.sequence_len)
        chosen = gpt.prepare(
            compute_dtype=self.dtype[0],
            attention_backend=settings["attention"],
            compile_for=shape if self.wants_compile() else None,
        )
        moments = self.moments() if start is None else None
        module = self.build_module(gpt, moments)
        if rank == 0:
            if self.config["init_optimizer"]:
                show.warm_start(moments is not None, resumed=start is not None)
            print(
                f"device: {self.hardware.name}; fp32 weights, {chosen['compute dtype']} compute ({self.dtype[1]}); compile: {chosen['compile']}"
            )
            print(f"attention: {chosen['attention']}")
            show.optimizer(module.optim(module.gpt))
            print(f"run folder: {folder.path}")
        loggers = (
            [
                instantiate(logger, folder=folder.path, resume_step=resume_step)
                for logger in self.config["logger"].values()
            ]
            if rank == 0
            else []
        )
        callbacks = self.build_callbacks(folder, rank)
        trainer = L.Trainer(
            accelerator=settings["accelerator"], devices=settings["devices"], num_nodes=settings["num_nodes"],
            strategy=settings["strategy"] if self.world_size > 1 else "auto", precision="32-true", max_steps=self.plan.steps, max_epochs=-1,
            accumulate_grad_batches=self.data.accumulate, gradient_clip_val=settings["gradient_clip_val"],
            limit_val_batches=0, num_sanity_val_steps=0, log_every_n_steps=1, logger=loggers, use_distributed_sampler=False,
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder.path,
            callbacks=callbacks,
            plugins=[FolderCheckpointIO(self.gpt_config, self.tokenizer, {"config": self.config, **read_record(folder)})],
        )  # fmt: skip
        if start is not None:
            self.data.start_step = resume_step
        trainer.fit(module, datamodule=self.data, ckpt_path=start)
        if (
            start is not None and resume_step >= self.plan.steps
        ):  # it was stopped between its last step and the evaluation
            for callback in callbacks:
                if isinstance(callback, Evaluate):
                    callback.catch_up(trainer, module)
        if rank == 0:
            step, place = trainer.global_step, checkpoints.path(trainer.global_step)
            if step < self.plan.steps:
                show.stopped(step, self.plan.steps, place)
            else:
                show.finished(
                    step,
                    module.clock.seconds,
                    self.data.ledger(step),
                    checkpoints.metrics(step),
                    checkpoints.best(),
                    place,
                    chats=self.is_chat,
                )
        return self.last_result(folder)


def quiet_lightning() -> None:
    """Lightning's banners and hints say nothing that the plan does not."""
    for name in (
        "lightning.pytorch",
        "lightning.fabric",
        "lightning.pytorch.utilities.rank_zero",
        "lightning.fabric.utilities.rank_zero",
    ):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
