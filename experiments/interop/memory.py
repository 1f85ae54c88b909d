"""RAM and seconds to convert and run a file of the size of d34:
`python experiments/interop/memory.py FOLDER`.

Writes a d34 as it is published (arch=classic, fp32, the embedding in bf16, random weights: 8.6
GB) into FOLDER, converts it with `nanochat.import` and asks it once with `nanochat.cli`, each in
a process of its own; then deletes both. The memory of a process is the most that the kernel
counted, mapped files included.
"""

import json
import os
import pickle
import shutil
import subprocess
import sys
import time
from pathlib import Path

SIZES = ("sequence_len", "vocab_size", "n_layer", "n_head", "n_kv_head", "n_embd")
STEP = 169150  # that of the published file


def write(folder: Path) -> int:
    """A model of that size as the original saves it; its bytes."""
    import tiktoken
    import torch

    from nanochat.gpt import GPT, build_arch, from_depth
    from nanochat.interop.eras import preset
    from nanochat.tokenizer.tokenizer import SPECIAL_TOKENS
    from nanochat.tokenizer.words import SPLIT_PATTERN

    folder.mkdir(parents=True)
    config = from_depth(34, vocab_size=65536, arch=build_arch(preset("classic")))
    with torch.device("meta"):
        shapes = {name: p.shape for name, p in GPT(config).state_dict().items()}
    dtype = {"transformer.wte.weight": torch.bfloat16}
    weights = {n: torch.randn(s, dtype=dtype.get(n)).mul_(0.02) for n, s in shapes.items()}
    torch.save(weights, folder / f"model_{STEP}.pt")
    meta = {"step": STEP, "val_loss": 1.0}  # as after SFT: a base model does not chat
    sizes = {"model_config": {name: getattr(config, name) for name in SIZES}}
    (folder / f"meta_{STEP}.json").write_text(json.dumps(meta | sizes))
    ranks = {bytes([byte]): byte for byte in range(256)}
    ranks |= {bytes([k // 256, k % 256]): 256 + k for k in range(65527 - 256)}
    specials = {name: 65527 + k for k, name in enumerate(SPECIAL_TOKENS)}
    encoding = tiktoken.Encoding(
        "made", pat_str=SPLIT_PATTERN, mergeable_ranks=ranks, special_tokens=specials
    )
    (folder / "tokenizer.pkl").write_bytes(pickle.dumps(encoding, protocol=4))
    return (folder / f"model_{STEP}.pt").stat().st_size


def measured(*words: str) -> tuple[float, int]:
    """Seconds and most bytes of `python -m …`."""
    start = time.perf_counter()
    child = subprocess.Popen([sys.executable, *words], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    if status:
        sys.exit(f"error: {' '.join(words)} failed")
    return time.perf_counter() - start, usage.ru_maxrss * 1024


def main(folder: Path) -> None:
    source, out = folder / "nanochat-d34", folder / "converted"
    if not source.exists():  # in a process of its own, whose memory is not counted
        subprocess.run([sys.executable, __file__, "write", str(source)], check=True)
    size = (source / f"model_{STEP}.pt").stat().st_size
    _, libraries = measured("-c", "import lightning, nanochat.checkpoint.opened")
    print(f"file {size / 1e9:.2f} GB; the libraries alone {libraries / 1e9:.2f} GB\n")
    print("| what | seconds | most memory, GB | of the file's size |\n|---|---|---|---|")
    ask = ["-m", "nanochat.cli", f"ckpt={out}", "prompt=Why is the sky blue?", "max_tokens=8"]
    for name, words in {
        "nanochat.import": ["-m", "nanochat.import", f"src={source}", f"out={out}"],
        "nanochat.cli, one answer of 8 tokens, bf16": [*ask, "precision=bf16"],
        "nanochat.cli, one answer of 8 tokens, fp32": [*ask, "precision=fp32"],
    }.items():
        seconds, most = measured(*words)
        print(f"| `{name}` | {seconds:.0f} | {most / 1e9:.2f} | {most / size:.2f} |", flush=True)
    shutil.rmtree(source)
    shutil.rmtree(out)


if __name__ == "__main__":
    write(Path(sys.argv[2])) if sys.argv[1] == "write" else main(Path(sys.argv[1]))
