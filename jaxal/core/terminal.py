"""What a terminal or a pipe can show: every text is printed, in letters that the stream knows."""

import codecs
import contextlib
import os
import sys
import unicodedata
from typing import Any, TextIO

ERRORS = "jaxal.readable"  # name of the rule for letters that a stream does not know
# Å has its own line: without it `eV/Å` would be `eV/A` by decomposition, as here, but the sign Å (U+212B) would not
READABLE = {
    "Å": "A", "→": "->", "←": "<-", "±": "+/-", "×": "x", "·": ".", "−": "-", "–": "-", "—": "-", "…": "...",
    "⁻": "-", "°": " deg", "µ": "u", "μ": "u", "σ": "sigma", "≤": "<=", "≥": ">=", "‘": "'", "’": "'", "“": '"',
    "”": '"', "─": "-", "━": "-", "╸": "-", "╺": "-", "│": "|", "┃": "|", "•": "*",
}  # fmt: skip


def _readable(error: UnicodeError) -> tuple[str, int]:
    """The letters that cannot be encoded, in ASCII: by the table, without their accents, or as a question mark."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(_plain(letter) for letter in error.object[error.start : error.end]), error.end


def _plain(letter: str) -> str:
    if letter in READABLE:
        return READABLE[letter]
    decomposed = unicodedata.normalize("NFKD", letter)
    return "".join(READABLE.get(part, part if part.isascii() else "") for part in decomposed) or "?"


def prepare() -> None:
    """Lets standard output and error print any text, whatever their encoding."""
    codecs.register_error(ERRORS, _readable)
    for stream in (sys.stdout, sys.stderr):
        if stream is not None and hasattr(stream, "reconfigure"):
            with contextlib.suppress(OSError, ValueError):  # closed
                stream.reconfigure(errors=ERRORS)  # pyright: ignore[reportAttributeAccessIssue]


def flush() -> None:
    """What was printed is on its way. Raises OSError where it is not."""
    if sys.stdout is not None:  # closed from the start
        sys.stdout.flush()


def abandon(stream: TextIO | Any) -> None:
    """Nothing more goes to a stream that nobody reads or that has no room; else Python complains when it ends."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def complain(text: str) -> None:
    """A line on standard error, where there is one."""
    if sys.stderr is None:
        return
    try:
        print(text, file=sys.stderr, flush=True)
    except OSError:
        abandon(sys.stderr)
