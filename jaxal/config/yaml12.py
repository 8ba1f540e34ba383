"""PyYAML with the scalars of YAML 1.2, and without its silent answers.

PyYAML follows YAML 1.1: `1e-3` is text, `1:30` is 90, `010` is 8 and `no` is false. Here the core schema of
YAML 1.2 holds (https://yaml.org/spec/1.2.2, 10.3.2), and a key given twice is a mistake.
"""

import math
import re
import typing
from typing import Any

import yaml

from jaxal.core.types import InputError

_RESOLVERS: dict[str, list[tuple[str, re.Pattern]]] = {}
for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+", list("-+0123456789")),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", list("-+.0123456789")),
    ("float", r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", list("-+.")),
):
    for _letter in _first:
        _RESOLVERS.setdefault(_letter, []).append((f"tag:yaml.org,2002:{_tag}", re.compile(f"(?:{_pattern})$")))


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: typing.ClassVar = _RESOLVERS

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"{key.value!r} is given twice", problem_mark=key.start_mark)
            if isinstance(key, yaml.ScalarNode):
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def _integer(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    return int(loader.construct_scalar(node))


_Loader.add_constructor("tag:yaml.org,2002:int", _integer)


class _Dumper(yaml.SafeDumper):
    """Quotes text that the loader would read as something else."""

    yaml_implicit_resolvers: typing.ClassVar = _RESOLVERS


def parse(text: str, source: str) -> Any:
    """The value of one YAML document. Raises InputError with `source`, the line and what is wrong there."""
    try:
        return yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise InputError(f"{source}{line}: not valid YAML: {error.problem or error.context}") from None
    except RecursionError:
        raise InputError(f"{source}: not valid YAML: nested too deeply") from None
    except ValueError as error:  # Python reads no number of more than 4300 digits
        raise InputError(f"{source}: a number that cannot be read: {str(error).partition(';')[0]}") from None
    except yaml.YAMLError as error:
        raise InputError(f"{source}: not valid YAML: {' '.join(str(error).split())}") from None


def inline(value: Any) -> str:
    """A value as YAML on one line, which `parse` reads back equal."""
    text = yaml.dump(
        value, Dumper=_Dumper, default_flow_style=True, allow_unicode=True, sort_keys=False, width=math.inf
    )
    return text.removesuffix("\n").removesuffix("\n...")
