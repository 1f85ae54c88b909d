"""The network in pure PyTorch: sizes, attention back-ends, loss, counts. Imports nothing of the
rest of nanochat."""

from nanochat.gpt.config import Arch, GPTConfig, PlainArch, build_arch, from_depth
from nanochat.gpt.gpt2 import GPT2
from nanochat.gpt.model import GPT, ROLES

__all__ = ["GPT", "GPT2", "ROLES", "Arch", "GPTConfig", "PlainArch", "build_arch", "from_depth"]
