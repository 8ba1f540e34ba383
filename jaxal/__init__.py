"""jaxal: learn a reactive interatomic potential on the fly, in one compiled JAX program.

    structure → explore → score → gate → select → label → buffer → train → validate → report
                   ↑                                                  │
                   └────────────── params (an argument) ──────────────┘      the only arrow back

Everything between two labels is one XLA program (`jaxal.program.loop`); the labeler is the only thing outside. Names
are imported when they are first used, so that using a finished model imports nothing of how it was made.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxal.config.loading import load as load_config
    from jaxal.core.discovery import import_file as import_part
    from jaxal.core.registry import register
    from jaxal.core.types import (
        Candidates,
        Explorer,
        Gate,
        InputError,
        Label,
        Neighbors,
        Potential,
        Prediction,
        Sampler,
        Structure,
    )
    from jaxal.deploy.calculator import Calculator
    from jaxal.deploy.model import Model
    from jaxal.deploy.model import load as load_model
    from jaxal.run.driver import resume, start

# public name -> (module, name there), in pipeline order
_PUBLIC = {
    "register": ("jaxal.core.registry", "register"),
    "import_part": ("jaxal.core.discovery", "import_file"),
    "Structure": ("jaxal.core.types", "Structure"),
    "Neighbors": ("jaxal.core.types", "Neighbors"),
    "Potential": ("jaxal.core.types", "Potential"),
    "Prediction": ("jaxal.core.types", "Prediction"),
    "Explorer": ("jaxal.core.types", "Explorer"),
    "Sampler": ("jaxal.core.types", "Sampler"),
    "Gate": ("jaxal.core.types", "Gate"),
    "Candidates": ("jaxal.core.types", "Candidates"),
    "Label": ("jaxal.core.types", "Label"),
    "InputError": ("jaxal.core.types", "InputError"),
    "load_config": ("jaxal.config.loading", "load"),
    "start": ("jaxal.run.driver", "start"),
    "resume": ("jaxal.run.driver", "resume"),
    "Model": ("jaxal.deploy.model", "Model"),
    "load_model": ("jaxal.deploy.model", "load"),
    "Calculator": ("jaxal.deploy.calculator", "Calculator"),
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
    "Sampler",
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
