"""nanochat: train small chat models, from text to chat, as Hydra-composed Lightning runs."""

import os
import signal
import sys
from types import FrameType

__version__ = "0.1.0"


def _interrupted(number: int, frame: FrameType | None) -> None:
    """Ctrl-C while a command is imported: there is nothing to undo."""
    if "NANOCHAT_RANK_OF" not in os.environ:  # the process that started the ranks reports it
        os.write(2, b"error: interrupted\n")
    os._exit(130)


# `python -m nanochat.COMMAND` imports this first, and seconds of other packages before the command
# itself takes Ctrl-C (commands/app.py)
_is_command = sys.argv[:1] == ["-m"] and any(word.startswith("nanochat.") for word in sys.orig_argv)
if _is_command and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, _interrupted)
