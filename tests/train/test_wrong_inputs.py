"""What a user can get wrong, and the one line it gives: the value, the rule, what to type instead;
exit code 2."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from nanochat.commands.app import as_typed

pytestmark = pytest.mark.slow


@pytest.fixture
def error(
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    shared_base: Path,
    tmp_path: Path,
) -> Callable[..., str]:
    """Run a command in this process; it must end with exit code 2 and exactly one line on stderr,
    which is returned."""
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(shared_base))
    monkeypatch.chdir(tmp_path)

    def call(*words: str, command: str = "train") -> str:
        import importlib

        GlobalHydra.instance().clear()
        monkeypatch.setattr(sys, "argv", [f"nanochat/{command}.py", *words])
        with pytest.raises(SystemExit) as stopped:
            importlib.import_module(f"nanochat.{command}").main()
        captured = capfd.readouterr()
        assert stopped.value.code == 2, captured
        lines = captured.err.strip().splitlines()
        assert len(lines) == 1 and lines[0].startswith("error: "), captured.err
        assert "Traceback" not in captured.err
        return lines[0]

    return call


def text_file(folder: Path, name: str, content: str | bytes) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


CPU = ["+phase=base", "trainer=cpu", "model=d2"]


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["trainer=cpu"], ["no phase was chosen", "+phase=NAME", "base"]),
        (["+phase=bse", "trainer=cpu"], ["phase=bse is not known", "base"]),
        (["+phase=base", "trainer=cpuu"], ["trainer=cpuu is not known", "8xh100"]),
        ([*CPU, "modl.depth=3"], ["modl.depth is not a setting", "did you mean model.depth"]),
        ([*CPU, "+max_step=3"], ["max_step is not a setting", "max_steps"]),
        ([*CPU, "+plan.token=3"], ["plan.token is not a setting", "plan.tokens"]),
        ([*CPU, "max_steps=abc"], ["max_steps=abc must be a whole number from 1 up, or null"]),
        (
            [*CPU, "optim.groups.matrix.lr=fast"],
            ["optim.groups.matrix.lr=fast must be a number from 0"],
        ),
        (
            [*CPU, "optim=adamw", "plan.weight_decay=0.1"],
            ["plan.weight_decay=0.1 cannot take effect"],
        ),
        (
            [*CPU, "compute.compile=fast"],
            ["compute.compile=fast is not known", "true, false, auto"],
        ),
        ([*CPU, "save_every=0"], ["save_every=0 must be a whole number from 1 up, or null"]),
        ([*CPU, "trainer.num_nodes=2"], ["trainer.num_nodes=2 needs a launcher on every machine"]),
        (["experiment=demo", "+phase=base"], ["phase is chosen twice", "drop +phase"]),
        (
            [*CPU, "optim.groups.matrix.lrr=3"],
            ["optim.groups.matrix.lrr is not a setting", "optim.groups.matrix.lr"],
        ),
        (
            [*CPU, "+optim.groups.matrix.lrr=3", "tokenizer.vocab_size=300", "dry_run=false"],
            ["optim.groups.matrix.lrr is not a setting", "optim.groups.matrix.lr=…"],
        ),
        ([*CPU, "data=local"], ["data.path must be given"]),
        ([*CPU, "data=local", "data.path=/no/such/folder"], ["/no/such/folder"]),
        ([*CPU, "tokenizer.vocab_size=100"], ["100", "265"]),
        ([*CPU, "max_steps=0"], ["max_steps=0 must be a whole number from 1 up"]),
        ([*CPU, "dry_run=true", "plan.ratio=0.000001"], ["zero steps"]),
        (
            [*CPU, "dry_run=true", "max_steps=5", "plan.tokens=1000000"],
            ["max_steps=5 and plan.tokens=1,000,000", "keep one"],
        ),
        (
            [*CPU, "dry_run=true", "data.rows_per_device=7", "batch_tokens=8192"],
            ["batch_tokens=8,192 is not a multiple", "try data.rows_per_device="],
        ),
        (
            [*CPU, "dry_run=true", "batch_tokens=1000"],
            ["batch_tokens=1,000 is not a multiple of 512"],
        ),
        ([*CPU, "dry_run=true", "model.head_dim=127"], ["head_dim=127 must be even"]),
        (
            [*CPU, "dry_run=true", "model.n_embd=100", "model.n_head=4"],
            ["head size 25", "is odd", "try model.n_embd="],
        ),
        (
            [*CPU, "dry_run=true", "model.n_embd=100", "model.n_head=3"],
            ["does not divide into n_head=3 heads", "try model.n_head="],
        ),
        ([*CPU, "dry_run=true", "arch.window_pattern=SXL"], ["window_pattern=SXL", "S and L"]),
        (
            ["+phase=base", "model=d2", "trainer=1xgpu", "data=pydocs", "tokenizer.vocab_size=300"],
            ["no CUDA device", "trainer=cpu"],
        ),
        (
            [*CPU, "compute.precision=fp8", "tokenizer.vocab_size=300"],
            ["compute.precision=fp8", "bf16, fp32"],
        ),
        ([*CPU, "init_from=/no/such/checkpoint"], ["neither a folder nor RUN@latest"]),
        ([*CPU, "resume=/no/such/run", "tokenizer.vocab_size=300"], ["is not a run folder"]),
        # dry_run refuses what the run refuses
        (
            [*CPU, "resume=/no/such/run", "tokenizer.vocab_size=300", "dry_run=true"],
            ["is not a run folder"],
        ),
        ([*CPU, "data=local", "data.path=/no/such/folder", "dry_run=true"], ["/no/such/folder"]),
        (
            [*CPU, "data=local", "data.path=.", "data.documents=word", "dry_run=true"],
            ["data.documents=word is not known"],
        ),
        ([*CPU, "compute.precision=fp16", "dry_run=true"], ["compute.precision=fp16 is not known"]),
        (
            [*CPU, "compute.attention=flex", "dry_run=true"],
            ["compute.attention=flex cannot run on cpu"],
        ),
        (
            [*CPU, "checkpoints.best_metric=nope", "dry_run=true"],
            ["checkpoints.best_metric=nope", "val/bpb, val/loss"],
        ),
        (
            [*CPU, "paths.hub_dir=/no/such/folder", "dry_run=true"],
            ["paths.hub_dir=/no/such/folder is not a folder"],
        ),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) and "=" in value[-1] else None,
)
def test_one_line(error: Callable[..., str], words: list[str], parts: list[str]) -> None:
    line = error(*words)
    for part in parts:
        assert part in line, line


def test_bad_files(error: Callable[..., str], tmp_path: Path) -> None:
    small = ["tokenizer.vocab_size=300", "data.prepare_workers=0"]
    torn = text_file(tmp_path / "torn", "text.parquet", b"PAR1 this is not parquet")
    line = error(*CPU, "data=local", f"data.path={torn}", *small)
    assert "text.parquet" in line
    rows = text_file(tmp_path / "rows", "text.jsonl", json.dumps({"body": "words"}) + "\n")
    line = error(*CPU, "data=local", f"data.path={rows}", *small)
    assert "text" in line and "body" in line, "names the column it wants and those there are"
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "empty" in error(*CPU, "data=local", f"data.path={empty}", *small)
    blank = text_file(tmp_path / "blank", "a.txt", "")
    assert "blank" in error(
        *CPU, "data=local", f"data.path={blank.parent}", *small
    ) or "no " in error(*CPU, "data=local", f"data.path={blank.parent}", *small)
    strange = text_file(tmp_path / "strange", "a.docx", "x")
    assert "docx" in error(*CPU, "data=local", f"data.path={strange}", *small)


def test_sampling_errors(error: Callable[..., str]) -> None:
    assert "max_tokens=0" in error("ckpt=x", "max_tokens=0", command="sample")
    assert "temperature=-1" in error("ckpt=x", "temperature=-1", command="sample")
    assert "neither a folder nor" in error("ckpt=x", command="sample")
    assert "ckpt must be given" in error(command="sample")
    assert "evals=hellaswag is not known" in error("ckpt=x", "evals=hellaswag", command="evaluate")


def test_free_text_is_taken_as_typed() -> None:
    assert as_typed("start=Once, upon (a) time") == "start='Once, upon (a) time'"
    assert as_typed("start=it's") == r"start='it\'s'"
    assert as_typed("data.path=/my folder/a=b,c") == "data.path='/my folder/a=b,c'"
    assert as_typed("evals=core,bpb") == "evals=[core,bpb]"
    assert as_typed("model=d2,d4") == "model=d2,d4"
    assert as_typed("resume=auto") == "resume='auto'"


@pytest.mark.parametrize(
    "text",
    [
        "'Twas",
        "it's \\'",
        "a\\",
        "\\\\'x'",
        "${oc.env:HOME}",
        "a=b,c [d] {e}: #f",
        "tab\there",
        '"he said',
    ],
)
def test_hydra_reads_the_text_that_was_typed(text: str) -> None:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    value = OverridesParser.create().parse_override(as_typed(f"start={text}")).value()
    assert OmegaConf.create({"start": value}).start == text
