"""Midtraining: pretraining goes on, on conversations. By default every token is a target, as in nanochat (facts sheet 5.6)."""

from nanochat.modules.sft import SFTModule


class MidModule(SFTModule):
    """Next-token loss on the targets of conversations; `data.supervise` says which those are."""
