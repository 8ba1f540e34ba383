"""What a file with a pseudopotential says of itself."""

import re
from pathlib import Path


def valence(file: Path) -> float | None:
    """Valence electrons that a pseudopotential leaves to an atom; None where the file does not say.

    Reads UPF (versions 1 and 2), PAW datasets in XML, and ABINIT's own formats, whose second line begins with the
    charges of the nucleus and of the core that is left.
    """
    text = file.read_text(encoding="utf-8", errors="replace")
    for pattern in (r'z_valence *= *" *([^"\s]+)', r"(\S+) +Z valence", r'<atom [^>]*valence="([^"]+)"'):
        if match := re.search(pattern, text):
            return _number(match[1])
    words = "".join(text.splitlines()[1:2]).split()
    return _number(words[1]) if len(words) > 1 and _number(words[0]) else None


def _number(text: str) -> float | None:
    try:
        return float(text.upper().replace("D", "E"))
    except ValueError:
        return None
