"""A run, from its composed config as plain values: what is checked, planned and prepared before
anything is trained.

What depends on the kind of data is a recipe of its own, which a phase names (`recipe:` in
conf/phase): `text.py`, `chat.py`, `rl.py`.
"""

import os
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import lightning as L
import torch
from hydra.utils import instantiate
from lightning.pytorch.callbacks import WeightAveraging

from nanochat import optim
from nanochat.callbacks.evaluate import Eval
from nanochat.checkpoint import folder as checkpoint_folder
from nanochat.checkpoint.runs import RunCheckpoints, resolve
from nanochat.datamodules.by_step import share_out
from nanochat.evals.evaluation import Context, Evaluation, Result, build_evaluations
from nanochat.gpt import GPT, GPTConfig, build_arch, fp8, from_depth
from nanochat.gpt.attention import runnable
from nanochat.modules.phase import PhaseModule
from nanochat.runs import doubts, parent, parts, show
from nanochat.runs.forecast import Forecast, foresee, is_foreseen, on_card
from nanochat.runs.memory import Prediction
from nanochat.runs.plan import Plan, estimate_seconds
from nanochat.runs.run_folder import RunFolder
from nanochat.runs.schema import Train
from nanochat.runtime import hardware
from nanochat.runtime.paths import base_dir
from nanochat.runtime.settings import locate
from nanochat.tokenizer import Tokenizer

# measured: experiments/cpu_speed/README.md; on a CPU compiling costs about a minute and saves a
# quarter
COMPILE_PAYS_SECONDS = 600


class Recipe:
    """A training run. Nothing heavy is built before it is asked for.

    A subclass says what its data are. Its `settings` are those of every run (`Train`) with
    annotations of its own: the class of `data`, and keys that only its phase has.
    """

    settings: type[Train] = Train

    def __init__(self, config: dict[str, Any], tokenizer_folder: Path | None = None) -> None:
        self.config, self.tokenizer_folder = config, tokenizer_folder
        self.predictions: dict[str, Prediction] = {}  # of memory, by what is recomputed
        settings = config["trainer"]
        self.world_size = settings["devices"] * settings["num_nodes"]
        self.parent = (
            resolve(config["init_from"], base_dir() / "runs") if config["init_from"] else None
        )

    # --- what the run is: a kind of data fills in
    # -------------------------------------------------------------------

    @cached_property
    def data(self) -> Any:
        """The datamodule."""
        raise NotImplementedError

    @cached_property
    def tokenizer(self) -> Tokenizer:
        raise NotImplementedError

    @cached_property
    def gpt_config(self) -> GPTConfig:
        raise NotImplementedError

    @cached_property
    def plan(self) -> Plan:
        raise NotImplementedError

    def check_data(self) -> None:
        """Raise for settings of data, sizes and plan that cannot work."""
        raise NotImplementedError

    def no_effect(self) -> dict[str, str]:
        """Settings that this kind of run has no use for, and why."""
        found = {}
        if self.config["optim"]["schedule"].get("warmup_steps", "auto") != "auto":
            found["optim.schedule.warmup_auto_steps"] = (
                "optim.schedule.warmup_steps is a number, which holds; drop one"
            )
        return found

    def check_length(self) -> None:
        """Raise for a schedule that the planned steps are too few for."""
        optim.build_schedule(self.config["optim"]["schedule"]).check_length(self.plan.steps)

    def notes(self) -> tuple[str, ...]:
        """What of the plan is not what one would expect, and what to type for that."""
        return self.plan.notes

    def doubts(self) -> list[str]:
        """Settings that look like a mistake."""
        schedule = optim.build_schedule(self.config["optim"]["schedule"])
        tokens, context = self.config["eval_tokens"], self.gpt_config.sequence_len
        return [
            *doubts.never_decays(schedule, self.plan.steps),
            *doubts.few_rows(tokens, context, self.world_size),
        ]

    def describe(self) -> str:
        """What the run reads, for the plan."""
        raise NotImplementedError

    def sampled(self, gpt: GPT, prompts: list[str], settings: dict[str, Any]) -> list[str]:
        """What the model writes after each prompt."""
        raise NotImplementedError

    chats = False  # whether the model that comes out answers

    @property
    def result(self) -> str | None:
        """The metric that the run is judged by, lower is better; None: by none."""
        return self.config["checkpoints"]["best_metric"]

    def check(self) -> None:
        """Raise for settings that cannot work before a tokenizer is trained for them: sizes, plan,
        rates, device, precision."""
        config = self.config
        self.check_data()
        if (given := config["data"]["sequence_len"]) != self.config["model"]["sequence_len"]:
            raise ValueError(
                f"data.sequence_len={given} is not the model's context; set model.sequence_len "
                "instead"
            )
        if config["trainer"]["strategy"] == "fsdp":
            self.check_fsdp()
        if config["compute"]["fp8"]:
            self.check_fp8()
        optim.build_schedule(config["optim"]["schedule"])
        for evaluation in self.evaluations.values():
            evaluation.check()
        parent.check_init_optimizer(config["init_optimizer"], self.parent)
        parts.check_callbacks(config["callbacks"])
        parts.check_loggers(config["logger"] or {})
        metrics = [
            f"val/{name}" for found in self.evaluations.values() for name in found.lower_is_better
        ]
        if self.result is not None and self.result not in metrics:
            raise ValueError(
                f"checkpoints.best_metric={self.result} is not known; choose from "
                f"{', '.join([*metrics, 'null'])}, "
                "which this run evaluates and where lower is better"
                if metrics
                else (
                    f"no evaluation of this run gives {self.result}; add "
                    "checkpoints.best_metric=null"
                )
            )
        wanted = self.attention()
        if (
            config["trainer"]["accelerator"] == "cpu"
            and wanted != "auto"
            and (no := runnable(wanted, self.device, self.dtype[0]))
        ):
            raise ValueError(
                f"compute.attention={wanted} cannot run on {self.device}: {no}; try "
                "compute.attention=auto"
            )
        if not config["dry_run"]:  # which may be for another machine
            _ = self.dtype
            devices = config["trainer"]["devices"]
            if self.device.type == "cuda" and torch.cuda.device_count() < devices:
                raise ValueError(
                    f"trainer.devices={devices} but this machine has {torch.cuda.device_count()}; "
                    f"try trainer.devices={torch.cuda.device_count()}"
                )

    def check_fsdp(self) -> None:
        """Raise for what cannot be with weights that are shared out over processes."""
        if self.world_size == 1:
            raise ValueError(
                "trainer.strategy=fsdp shares out the weights over several processes; add "
                "trainer.devices=2, or take trainer.strategy=auto"
            )
        if self.config["compute"]["trial"] is True:
            raise ValueError(
                "compute.trial=true is not there for trainer.strategy=fsdp, where a process that "
                "runs out leaves the others waiting; the forecast alone chooses rows: drop it"
            )
        targets = {n: c["_target_"] for n, c in self.config["callbacks"].items() if c}
        for name, target in targets.items():
            if issubclass(locate(target), WeightAveraging):
                raise ValueError(
                    f"callbacks.{name} copies the network, which trainer.strategy=fsdp has in "
                    "parts; take trainer.strategy=ddp"
                )

    def check_fp8(self) -> None:
        """Raise where products in eight bits cannot be had or are known to be slower."""
        compute, arch = self.config["compute"], build_arch(self.config["arch"])
        sizes = from_depth(**self.config["model"], vocab_size=1, arch=arch)
        there = torch.device("cuda" if on_card(self.config) else "cpu")
        problem = fp8.problem(sizes.n_embd, there, compute["compile"] is not False)
        if self.config["phase"] == "rl":
            problem = "the log-probabilities of what was sampled would not be the trainer's"
        if type(arch) in GPT.kinds:
            problem = f"arch={arch.name} has products with a bias, which are not done in it"
        if problem:
            raise ValueError(f"compute.fp8=true cannot be: {problem}; take compute.fp8=false")

    @cached_property
    def device(self) -> torch.device:
        return hardware.accelerator_device(
            self.config["trainer"]["accelerator"], int(os.environ.get("LOCAL_RANK", 0))
        )

    @cached_property
    def dtype(self) -> tuple[torch.dtype, str]:
        return hardware.compute_dtype(self.config["compute"]["precision"], self.device)

    @cached_property
    def hardware(self) -> hardware.Hardware:
        return hardware.detect(self.device, self.dtype[0])

    @cached_property
    def expected_seconds(self) -> float | None:
        return estimate_seconds(
            self.plan,
            self.hardware.peak_flops,
            self.world_size,
            self.config["compute"]["expected_mfu"],
        )

    @cached_property
    def foreseen(self) -> bool:
        """Whether there is a forecast. Asked before it sets what is `auto`."""
        return is_foreseen(self.config)

    @cached_property
    def forecast(self) -> Forecast:
        """Memory, time and cost, with what is `auto` chosen by them."""
        return foresee(self)

    def choose_by_forecast(self) -> None:
        """Set rows of a micro-batch and what is recomputed where they are `auto`, before the plan
        is printed or a rank is started."""
        if not self.foreseen:
            return
        data, compute = self.config["data"], self.config["compute"]
        if compute["trial"] == "auto":
            whole = self.config["trainer"]["strategy"] != "fsdp"
            compute["trial"] = whole and data.get("rows_per_device") == "auto"
        compute["checkpointing"] = self.forecast.checkpointing
        if data.get("rows_per_device") == "auto":
            memory = self.forecast.memory
            data["rows_per_device"] = memory.rows if memory else None
            if "data" in vars(self):
                self.data.rows_per_device = data["rows_per_device"]

    def print_plan(self, inherited: Sequence[tuple[str, str, str]] = ()) -> None:
        """The derived numbers, before anything is trained. `inherited`: (setting, value, source) of
        what the parent's run gives."""
        foreseen = self.foreseen
        machine = None if self.config["dry_run"] else (self.hardware.name, self.expected_seconds)
        schedule = optim.build_schedule(self.config["optim"]["schedule"]).describe(self.plan.steps)
        show.planned(
            self.config["run_name"],
            self.plan,
            batch=self.data_shape(),
            text=self.describe(),
            machine=machine,
            groups=self.config["optim"]["groups"],
            schedule=schedule,
            forecast=self.forecast.rows() if foreseen else (),
            notes=(*self.notes(), *self.doubts(), *(self.forecast.notes() if foreseen else ())),
        )

    def share_out(self, plan: Plan, sizes: GPTConfig) -> tuple[int, int]:
        return share_out(
            plan.batch_tokens,
            sizes.sequence_len,
            self.world_size,
            self.config["data"].get("rows_per_device"),
        )

    def data_shape(self) -> str:
        """How a batch is shared out over processes and micro-batches."""
        rows, micro = self.share_out(self.plan, self.gpt_config)
        accumulated = rows // self.world_size // micro
        return (
            f"{micro} rows x {self.gpt_config.sequence_len:,} tokens x {self.world_size} processes "
            f"x {accumulated} accumulated"
        )

    # --- doing it ---------------------------------------------------------------------------------
    # ---------------

    def attach(self) -> None:
        self.data.attach(
            self.tokenizer,
            batch_tokens=self.plan.batch_tokens,
            world_size=self.world_size,
            rank=int(os.environ.get("RANK", 0)),
        )

    def plan_facts(self) -> dict[str, Any]:
        """The plan in numbers, for the record."""
        return {k: v for k, v in vars(self.plan).items() if k not in ("config", "notes")}

    def forecast_facts(self) -> dict[str, Any] | None:
        """The forecast in numbers, for the record."""
        if not self.foreseen:
            return None
        found = self.forecast
        return {
            "peak_bytes": found.memory and found.memory.peak,
            "parts": found.memory and found.memory.parts(),
            "seconds": found.seconds,
            "tokens_per_second": found.tokens_per_second,
            "checkpointing": found.checkpointing,
            "rows_per_device": found.memory and found.memory.rows,
            "corrected": vars(found.earlier),
        }

    def length_shows(self, before: dict[str, Any], done: int, old: int, new: int) -> str | None:
        """Why the `done` first steps of a run of `old` steps are not those of one of `new` steps,
        None if they are. `before` is its config."""
        schedule = optim.build_schedule(self.config["optim"]["schedule"])
        groups, decay = self.config["optim"]["groups"], self.plan.weight_decay
        what = optim.shows_length(groups, schedule, decay, done, old, new)
        return what and f"the {what} follows from the length (optim.schedule)"

    def checkpoints(self, folder: RunFolder) -> RunCheckpoints:
        return RunCheckpoints(folder.checkpoints, **self.config["checkpoints"])

    def build_gpt(self, *, filled: bool) -> GPT:
        """The network; not `filled` if a checkpoint of this run is about to bring every weight."""
        fresh = filled and self.parent is None
        gpt = GPT.build(
            self.gpt_config, seed=self.config["seed"] if fresh else None, device=self.device
        )
        if filled and self.parent is not None:
            gpt.load_state_dict(checkpoint_folder.read_weights(self.parent), strict=True)
        return gpt

    def wants_compile(self) -> bool:
        """compute.compile is true, false or auto: on a GPU always, on a CPU where the run is long
        enough to earn it back."""
        wanted = self.config["compute"]["compile"]
        if wanted != "auto":
            if wanted:
                hardware.check_compiler("compute.compile", self.device)
            return bool(wanted)
        if self.device.type == "cpu":
            pays = (self.expected_seconds or 0) > COMPILE_PAYS_SECONDS
            return pays and hardware.has_compiler(self.device)
        return self.device.type == "cuda" and hardware.has_compiler(self.device)

    def attention(self) -> str:
        return str(self.config["compute"]["attention"])

    def build_optimizer(
        self, plan: Plan, moments: dict[str, Any] | None = None
    ) -> Callable[[GPT], optim.GroupedOptimizer]:
        groups = self.config["optim"]["groups"]

        def build(gpt: GPT) -> optim.GroupedOptimizer:
            nonlocal moments
            optimizer = optim.build(
                gpt, groups=groups, lr_factor=plan.lr_factor, weight_decay=plan.weight_decay
            )
            if moments is not None:
                # not kept in memory for the whole run
                taken, moments = (optim.load_moments(optimizer, moments), None)
                if int(os.environ.get("RANK", 0)) == 0:
                    show.warm_start(taken, len(gpt.parameter_roles()))
            return optimizer

        return build

    def build_module(self, gpt: GPT, moments: dict[str, Any] | None = None) -> PhaseModule:
        """The phase that `module` names, with the arguments given there and those of the run."""
        schedule = optim.build_schedule(self.config["optim"]["schedule"])
        make, optimizer = (
            instantiate(self.config["module"], _partial_=True),
            self.build_optimizer(self.plan, moments),
        )
        return make(gpt, optimizer, schedule, self.plan.steps, **self.module_arguments())

    def module_arguments(self) -> dict[str, Any]:
        """What this kind of run gives its phase in addition to what all get."""
        return {}

    def eval_settings(self) -> dict[str, Any]:
        """`evals`: the settings of each evaluation by name."""
        return self.config["evals"] or {}

    @cached_property
    def evaluations(self) -> dict[str, Evaluation]:
        return build_evaluations(self.eval_settings())

    def evals(self, rank: int) -> dict[str, Eval]:
        """What is evaluated while training: how often, and how."""

        def of_module(evaluation: Evaluation) -> Callable[[PhaseModule], Result]:
            return lambda module: evaluation(
                Context(module.gpt, self.tokenizer, lambda: self.data, rank, self.world_size)
            )

        settings = self.eval_settings()
        return {
            name: (settings[name]["every"], of_module(found))
            for name, found in self.evaluations.items()
        }

    def first_callbacks(self, folder: RunFolder) -> list[L.Callback]:
        """What happens before anything else that happens every N steps."""
        return []

    def print_result(self, before: dict[str, float], after: dict[str, float]) -> None:
        """What came of it, from the evaluations before the first step (if there was one) and after
        the last."""

    def batch_of_report(self) -> int | None:
        """Tokens of a step, where all steps have as many."""
        return self.plan.batch_tokens


def build_recipe(config: dict[str, Any], tokenizer_folder: Path | None = None) -> Recipe:
    """The run that a composed config describes. `tokenizer_folder`: where the tokenizer is, for a
    process that did not prepare the run."""
    return instantiate(config["recipe"], _partial_=True)(config, tokenizer_folder)
