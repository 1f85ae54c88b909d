"""Export a checkpoint for other programs: `python -m nanochat.export ckpt=PATH out=DIR
format=hf`."""

import sys
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from nanochat.commands.app import command


def run(cfg: DictConfig) -> dict[str, Any] | None:
    from nanochat.checkpoint.runs import described, resolve
    from nanochat.runtime.paths import base_dir

    ckpts = [cfg.ckpt] if isinstance(cfg.ckpt, str) else list(cfg.ckpt or [])
    paths = [resolve(str(ckpt), base_dir() / "runs") for ckpt in ckpts]
    for path in paths:
        print(described(path), file=sys.stderr)
    if cfg.verify:
        return verify(cfg, Path(cfg.verify).expanduser(), paths)
    if cfg.out is None:
        raise ValueError("out must be given: add out=DIR, the folder to write")
    out = Path(cfg.out).expanduser()
    if not paths and not cfg.push:
        raise ValueError("ckpt must be given: add ckpt=RUN@latest or a folder")
    if cfg.format == "archive":
        archive(cfg, out, paths)
        return None
    if len(paths) > 1:
        raise ValueError(f"format={cfg.format} exports one checkpoint, and {len(paths)} are given")
    certificate = write_export(cfg, out, paths[0]) if paths else None
    if cfg.push:
        from nanochat.export.push import push

        push(out, cfg.push, private=cfg.private, confirm=cfg.confirm, force=cfg.force)
    return certificate


def write_export(cfg: DictConfig, out: Path, checkpoint: Path) -> dict[str, Any]:
    from nanochat.export.folder_export import Origin, to_huggingface, to_original

    if out.exists():
        raise ValueError(f"{out} exists already; choose another out=, or delete it")
    source = Origin(checkpoint)
    if cfg.format == "hf":
        certificate = to_huggingface(
            source, out, portable=cfg.portable, dtype=cfg.dtype, interpreter=cfg.interpreter
        )
    else:
        for name, kept in (("dtype", "stored"), ("portable", False)):
            if cfg[name] != kept:
                raise ValueError(f"{name}={cfg[name]} cannot take effect with format=nanochat")
        certificate = to_original(source, out, peer=cfg.peer, interpreter=cfg.interpreter)
    show(certificate)
    print(f"{checkpoint} -> {out}, certificate {certificate['verdict']}: {certificate['why']}")
    if certificate["verdict"] == "red" and not cfg.force:
        raise ValueError(f"the export in {out} is not the same model: {certificate['why']}")
    return certificate


def verify(cfg: DictConfig, folder: Path, paths: list[Path]) -> dict[str, Any]:
    from nanochat.checkpoint.certificate import colour_of, read_certificate, write_certificate

    found = colour_of(folder)
    if paths and found.colour != "red":
        from nanochat.export.folder_export import Origin, prove_again

        write_certificate(folder, prove_again(Origin(paths[0]), folder, cfg.peer, cfg.interpreter))
        found = colour_of(folder)
    if found.colour == "red":
        raise ValueError(f"{folder} is red: {found.why}")
    certificate = read_certificate(folder)
    show(certificate)
    print(f"{folder} is {found.colour}: {found.why}")
    return certificate


def archive(cfg: DictConfig, out: Path, paths: list[Path]) -> None:
    from nanochat.export.archive import SUMS, pack

    for name, new in pack(paths, out, trainer=cfg.trainer).items():
        print(f"{'packed' if new else 'there already'}: {out / name}")
    print(f"at the other end: sha256sum -c {SUMS} && for f in *.tar; do tar -xf $f; done")


def show(certificate: dict[str, Any]) -> None:
    for row in certificate.get("comparisons", []):
        if "where" in row:
            value = "not finite" if row["logit"] is None else f"{row['logit']:.2e}"
            more = ""
            if row.get("theirs_from_fp32") is not None:
                more = (
                    f" (from fp32: it {row['theirs_from_fp32']:.2e}, ours "
                    f"{row['our_own_from_fp32'] or 0:.2e})"
                )
            print(f"{row['dtype']:9} {row['where']}: logits differ by {value}{more}")
        else:
            print(
                f"{row['dtype']:9} greedy after {row['greedy_after']} tokens: {row['same_tokens']} "
                f"of {row['tokens']} the same"
            )
    for note in certificate.get("notes", []):
        print(f"note: {note}")
    for item in certificate.get("unsupported", []):
        print(f"not in stock programs: {item}")


main = command("export", run)

if __name__ == "__main__":
    main()
