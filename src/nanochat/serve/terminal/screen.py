"""What a person reads in a terminal or a pipe: answers as they are written, and notes about
them."""

import os
from typing import TextIO

# Text from a model, a file or a pipe must not move the cursor, rename the window or fake keyboard
# input: of the control characters (C0, DEL and C1, with ESC and CSI) only newline and tab are
# written. Carriage returns are removed, so that no line is overwritten.
CONTROLS = {
    code: "\N{REPLACEMENT CHARACTER}"
    for code in [*range(0x20), *range(0x7F, 0xA0)]
    if chr(code) not in "\n\t"
}
CONTROLS[ord("\r")] = ""


class Screen:
    """Writes text without control characters but newline and tab, at once. Notes go to `notes`
    (default: where the text goes)."""

    def __init__(self, out: TextIO, notes: TextIO | None = None) -> None:
        self.out, self.notes = out, notes or out

    def write(self, text: str, *, dim: bool = False) -> None:
        self._put(self.out, text, dim)

    def end(self) -> None:
        self._put(self.out, "\n")

    def line(self, text: str) -> None:
        self._put(self.out, f"{text}\n")

    def note(self, text: str) -> None:
        self._put(self.notes, f"({text})", dim=True)
        self._put(self.notes, "\n")

    def error(self, error: BaseException) -> None:
        self._put(self.notes, f"error: {' '.join(str(error).split())}\n")

    def _put(self, stream: TextIO, text: str, dim: bool = False) -> None:
        text = text.translate(CONTROLS)
        stream.write(f"\x1b[2m{text}\x1b[22m" if dim and _can_dim(stream) else text)
        stream.flush()


def _can_dim(stream: TextIO) -> bool:
    return (
        stream.isatty()
        and not os.environ.get("NO_COLOR")
        and os.environ.get("TERM", "dumb") != "dumb"
    )
