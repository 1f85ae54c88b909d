"""Signals that come where an exception is dropped or leaves a trace."""

import subprocess
import sys
from pathlib import Path

PROGRAM = """
import signal, sys, time
from nanochat.runtime.signals import StopAtOnce, raise_stop_at_once

signal.signal(signal.SIGINT, lambda *_: raise_stop_at_once())

class Holder:
    def __del__(self):
        signal.raise_signal(signal.SIGINT)
        time.sleep(0)

try:
    holder = Holder()
    del holder
    print("dropped", flush=True)
    time.sleep(20)
    print("lost")
except StopAtOnce:
    print("stopped")
"""


def test_a_stop_that_comes_in_a_destructor_is_not_lost() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60
    )
    assert done.stdout.split() == ["dropped", "stopped"] and not done.stderr, (
        done.stdout + done.stderr
    )


INTERRUPTED = '''
import signal, sys
from nanochat.runtime.signals import end_undisturbed

try:
    exec("""
import signal
signal.raise_signal(signal.SIGINT)
""")
except KeyboardInterrupt:
    end_undisturbed()
    sys.exit(130)
'''


def test_an_interrupt_out_of_exec_ends_by_our_exit_code(tmp_path: Path) -> None:
    """By `python -m`, as commands are started; CPython alone ends with -SIGINT."""
    (tmp_path / "interrupted.py").write_text(INTERRUPTED)
    done = subprocess.run([sys.executable, "-m", "interrupted"], cwd=tmp_path, timeout=60)
    assert done.returncode == 130
