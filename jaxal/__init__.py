"""jaxal: learn a reactive interatomic potential on the fly, in one compiled JAX program.

    structure → explore → score → gate → select → label → buffer → train → validate → report
                   ↑                                                  │
                   └────────────── params (an argument) ──────────────┘      the only arrow back

Everything between two labels is one XLA program (`jaxal.loop`); the labeler is the only thing outside. Names
are imported when they are first used, so that using a finished model imports nothing of how it was made.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxal.calculator import Calculator
    from jaxal.config import load as load_config
    from jaxal.model import Model
    from jaxal.model import load as load_model
    from jaxal.parts import import_file as import_part
    from jaxal.registry import register
    from jaxal.run import resume, start
    from jaxal.types import (
        Candidates,
        Explorer,
        Gate,
        InputError,
        Label,
        Neighbors,
        Potential,
        Prediction,
        Structure,
    )

# public name -> (module, name there), in pipeline order
_PUBLIC = {
    "register": ("jaxal.registry", "register"),
    "import_part": ("jaxal.parts", "import_file"),
    "Structure": ("jaxal.types", "Structure"),
    "Neighbors": ("jaxal.types", "Neighbors"),
    "Potential": ("jaxal.types", "Potential"),
    "Prediction": ("jaxal.types", "Prediction"),
    "Explorer": ("jaxal.types", "Explorer"),
    "Gate": ("jaxal.types", "Gate"),
    "Candidates": ("jaxal.types", "Candidates"),
    "Label": ("jaxal.types", "Label"),
    "InputError": ("jaxal.types", "InputError"),
    "load_config": ("jaxal.config", "load"),
    "start": ("jaxal.run", "start"),
    "resume": ("jaxal.run", "resume"),
    "Model": ("jaxal.model", "Model"),
    "load_model": ("jaxal.model", "load"),
    "Calculator": ("jaxal.calculator", "Calculator"),
}

__all__ = [
    "Calculator",
    "Candidates",
    "Explorer",
    "Gate",
    "InputError",
    "Label",
    "Model",
    "Neighbors",
    "Potential",
    "Prediction",
    "Structure",
    "import_part",
    "load_config",
    "load_model",
    "register",
    "resume",
    "start",
]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'jaxal' has no attribute {name!r}")
    module, attribute = _PUBLIC[name]
    return getattr(importlib.import_module(module), attribute)
