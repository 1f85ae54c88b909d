"""Memory that it takes to read and run a 2.2 B checkpoint in bf16 on a CPU: `python
experiments/serving/memory.py FOLDER`.

Writes a checkpoint of d34, arch=classic, with random weights (4.5 GB) into FOLDER if there is none.
A process of its own reads it and writes 8 tokens.
"""

import subprocess
import sys
from pathlib import Path

READ = """
import sys, torch
from pathlib import Path
from nanochat.checkpoint import folder
from nanochat.gpt import counts
from nanochat.inference.engine import Engine
def status(key):
    return int(Path("/proc/self/status").read_text().split(key + ":")[1].split()[0]) / 1024
before = status("VmRSS")
gpt = folder.load_to_run(Path(sys.argv[1]), compute_dtype=torch.bfloat16)
print(f"read: {status('VmRSS') - before:,.0f} MiB now, {status('VmHWM') - before:,.0f} at most")
engine = Engine(gpt, folder.load_tokenizer(Path(sys.argv[1])))
(answer,) = engine.generate([[1, 2, 3]], max_tokens=8)
weights = counts.parameters(gpt.config)["total"]
most = status("VmHWM") - before
size = 2 * weights / 2**20
print(f"run: {len(answer.ids)} tokens; {most:,.0f} MiB at most; "
      f"{weights:,} weights are {size:,.0f} MiB: {most / size:.3f} x")
"""


def main() -> None:
    path = Path(sys.argv[1])
    if not path.exists():
        import torch
        from omegaconf import OmegaConf

        from nanochat.checkpoint import folder
        from nanochat.gpt import GPT, build_arch, from_depth
        from nanochat.inference.measure import any_tokenizer
        from nanochat.runtime.paths import conf_dir

        classic = build_arch(
            OmegaConf.to_container(OmegaConf.load(conf_dir() / "arch" / "classic.yaml"))
        )
        with torch.device("meta"):
            gpt = GPT(from_depth(34, vocab_size=65536, arch=classic))
        weights = {
            name: torch.randn(p.shape, dtype=torch.bfloat16) / 50
            for name, p in gpt.state_dict().items()
        }
        folder.save(path, weights, gpt.config, any_tokenizer(65536), lineage={})
    subprocess.run([sys.executable, "-c", READ, str(path)], check=True)


if __name__ == "__main__":
    main()
