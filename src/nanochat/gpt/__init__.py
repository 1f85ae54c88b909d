"""The network in pure PyTorch: sizes, attention back-ends, loss, counts. Imports nothing of the rest of nanochat."""

from nanochat.gpt.config import Arch, GPTConfig, build_arch, from_depth
from nanochat.gpt.model import GPT, ROLES

__all__ = ["GPT", "ROLES", "Arch", "GPTConfig", "build_arch", "from_depth"]
