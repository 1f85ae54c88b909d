"""One export from beginning to end: written under a temporary name, compared, certified,
renamed."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nanochat.checkpoint import folder
from nanochat.checkpoint.atomic import write_atomic
from nanochat.checkpoint.certificate import read_certificate, write_certificate
from nanochat.checkpoint.lineage import parent_hash, versions
from nanochat.export import card, proof
from nanochat.export.huggingface import DTYPES, reader, tensor_names, write_folder
from nanochat.export.original import OriginalFiles, era_of, write_original
from nanochat.export.runtimes import NoRuntime, probe
from nanochat.gpt import GPTConfig
from nanochat.interop.hf_names import (
    nanochat_arch,
    rows_of_vocabulary,
    stock_lacks,
    unknown_switches,
)
from nanochat.interop.original import PHASES

TABLES = (
    "RoPE's tables are rounded to bf16 here, as in training, and are fp32 in transformers; "
    "certificate.json has the difference as logit_as_trained"
)


class Origin:
    """The checkpoint that is exported."""

    def __init__(self, path: Path) -> None:
        self.path, self.config = path, folder.read_config(path)
        if unknown := unknown_switches(nanochat_arch(self.config)):
            raise ValueError(
                f"an export cannot compute {', '.join(unknown)}; use the checkpoint itself"
            )
        self.tokenizer, self.phase = folder.load_tokenizer(path), folder.phase(path)
        file = path / "lineage.json"
        self.lineage: dict[str, Any] = folder.read_json(file) if file.is_file() else {}
        metrics = path / "metrics.json"
        self.metrics: dict[str, Any] = folder.read_json(metrics) if metrics.is_file() else {}
        self.step = int(self.lineage.get("step") or 0)

    def weights(self, dtype: torch.dtype | None) -> dict[str, Tensor]:
        """The exported weights under our names, with zeros in the padding rows."""
        file = self.path / "model.safetensors"
        read, found = reader(file, self.config, dtype), {}
        for name in tensor_names(file, self.config):
            tensor = read(name)
            if rows_of_vocabulary(name):
                missing = self.config.padded_vocab_size - len(tensor)
                tensor = torch.cat((tensor, tensor.new_zeros(missing, *tensor.shape[1:])))
            found[name] = tensor.float()
        return found

    def facts(self) -> dict[str, Any]:
        return {
            "path": str(self.path),
            "hash": parent_hash(self.path),
            "phase": self.phase,
            "step": self.step,
        }


def to_huggingface(
    source: Origin, out: Path, *, portable: bool, dtype: str, interpreter: str | None
) -> dict[str, Any]:
    """Write the folder `out` and return its certificate. ValueError if `portable` is set and stock
    transformers lacks something."""
    lacks = stock_lacks(source.config)
    if portable and lacks:
        raise ValueError(
            f"portable=true: no stock program computes {'; '.join(lacks)}. Train with arch=classic "
            "for one that does, or export with portable=false, which adds a modelling file"
        )
    rounded = DTYPES.get(dtype)
    certificate: dict[str, Any] = {}

    def write(place: Path) -> None:
        write_folder(
            place,
            source.path,
            source.config,
            source.tokenizer,
            phase=source.phase,
            own=bool(lacks),
            dtype=rounded,
        )
        certificate.update(prove_huggingface(source, place, rounded, interpreter))
        scores = card.scores_of(source.path)
        card.write_card(
            place,
            source.config,
            source.lineage,
            scores,
            certificate,
            phase=source.phase,
            own=bool(lacks),
            step=source.step,
        )
        write_certificate(place, certificate)

    write_atomic(out, write)
    return certificate


def prove_huggingface(
    source: Origin, place: Path, dtype: torch.dtype | None, interpreter: str | None
) -> dict[str, Any]:
    """The content of a certificate without the hashes of the files."""
    config, lacks = source.config, stock_lacks(source.config)
    arch = (
        {} if lacks or nanochat_arch(config).rope_dtype != "bfloat16" else {"rope_dtype": "compute"}
    )
    unsupported = [*lacks, *([TABLES] if arch else [])]

    def run(request: dict[str, Any], answers: Path) -> dict[str, Any]:
        asked = {**request, "folder": str(place.absolute()), "own": bool(lacks)}
        return probe("transformers_probe", asked, answers, interpreter)

    head = _head(source, config, "hf", "transformers", dtype, unsupported)
    weights = source.weights(dtype)
    try:
        return {**head, **proof.compare_with(config, source.tokenizer, weights, run, arch=arch)}
    except NoRuntime as error:
        return {**head, **_unproven(f"{error}; pip install transformers", "interpreter=PYTHON")}


def to_original(
    source: Origin, out: Path, *, peer: str | None, interpreter: str | None
) -> dict[str, Any]:
    """Write the original's files below `out` and return their certificate."""
    certificate: dict[str, Any] = {}

    def write(place: Path) -> None:
        written = write_original(
            place,
            source.path,
            source.config,
            source.tokenizer,
            source.lineage,
            source.metrics,
            source.phase,
        )
        certificate.update(prove_original(source, place, written, peer, interpreter))
        write_certificate(place, certificate)

    write_atomic(out, write)
    return certificate


def prove_original(
    source: Origin, place: Path, written: OriginalFiles, peer: str | None, interpreter: str | None
) -> dict[str, Any]:
    head = _head(source, source.config, "nanochat", f"nanochat, era {written.era}", None, [])
    if peer is None:
        return {**head, **_unproven("no checkout of the original was given", "peer=CHECKOUT")}

    def run(request: dict[str, Any], answers: Path) -> dict[str, Any]:
        """One process for each precision, which the original's code chooses at import."""
        found: dict[str, Any] = {}
        for dtype in request["dtypes"]:
            if dtype == "float16":
                continue  # the earlier generation has none
            asked = {**request, **written._asdict(), "dtypes": [dtype]}
            asked |= {
                "folder": str(place.absolute()),
                "peer": str(Path(peer).expanduser().absolute()),
            }
            answer = probe("nanochat_probe", asked, answers, interpreter)
            written_so_far = {**found.get("greedy", {}), **answer["greedy"]}
            notes = [*found.get("notes", []), *answer["notes"]]
            found = {**answer, "greedy": written_so_far, "notes": notes}
        return found

    longest = 10 * source.config.sequence_len  # from: facts sheet 1.3, the length of its tables
    weights = source.weights(None)
    try:
        compared = proof.compare_with(
            source.config, source.tokenizer, weights, run, arch={}, longest=longest
        )
    except NoRuntime as error:
        return {**head, **_unproven(str(error), "interpreter=PYTHON")}
    return {**head, **compared}


def prove_again(
    source: Origin, place: Path, peer: str | None, interpreter: str | None
) -> dict[str, Any]:
    """Compare a folder again with the checkpoint `source` it was exported from.
    ValueError if it was not."""
    old = read_certificate(place)
    if old["source"]["hash"] != parent_hash(source.path):
        raise ValueError(
            f"{place} is not an export of {source.path}; give ckpt={old['source']['path']}"
        )
    if old["format"] == "hf":
        dtype = next((d for d in DTYPES.values() if str(d)[6:] in old["weights"]), None)
        return prove_huggingface(source, place, dtype, interpreter)
    file = next(place.glob("*_checkpoints/*/model_*.pt"))
    phase, step = PHASES[file.parent.parent.name], int(file.stem.rpartition("_")[2])
    written = OriginalFiles(phase, file.parent.name, step, era_of(nanochat_arch(source.config)))
    return prove_original(source, place, written, peer, interpreter)


def _head(
    source: Origin,
    config: GPTConfig,
    form: str,
    runtime: str,
    dtype: torch.dtype | None,
    unsupported: list[str],
) -> dict[str, Any]:
    padding = config.padded_vocab_size - config.vocab_size
    left_out = (
        [f"{padding} rows that pad the vocabulary, which no token has"]
        if padding and form == "hf"
        else []
    )
    return {
        "format": form,
        "runtime": runtime,
        "arch": config.arch.name,
        "source": source.facts(),
        "made_with": versions(),
        "weights": "as stored" if dtype is None else f"rounded to {str(dtype)[6:]}",
        "unsupported": unsupported,
        "left_out": left_out,
        "bound": proof.BOUND,
    }


def _unproven(why: str, setting: str) -> dict[str, Any]:
    advice = f"then python -m nanochat.export verify=DIR ckpt=… {setting}"
    return {"verdict": "unproven", "why": f"{why}; {advice} compares it"}
