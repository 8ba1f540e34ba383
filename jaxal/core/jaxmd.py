"""jax-md without the parts of it that take long to import and that dynamics has no use for.

`import jax_md` imports all its modules: three seconds at each start, most of them for the constants of rigid bodies,
which are compiled one by one, for networks and for potentials. Here these are loaded when something of theirs is
asked for.
"""

import importlib
import sys
from types import ModuleType
from typing import Any

import jax

LATER = ("energy", "interpolate", "nn", "rigid_body")


def _later(name: str) -> None:
    """Puts a module in the place of another, which is loaded when the first attribute is asked for."""
    place = ModuleType(name)

    def attribute(field: str) -> Any:
        if field.startswith("__"):  # the import system asks for these
            raise AttributeError(field)
        if sys.modules.get(name) is place:
            del sys.modules[name]
        with jax.ensure_compile_time_eval():  # its constants are none of a program that is being traced
            real = importlib.import_module(name)
        vars(place).update(vars(real))
        return getattr(real, field)

    vars(place)["__getattr__"] = attribute
    sys.modules[name] = place


if "jax_md" not in sys.modules:
    for module in LATER:
        _later(f"jax_md.{module}")

from jax_md import dataclasses, energy, simulate  # noqa: E402

__all__ = ["dataclasses", "energy", "simulate"]
