"""What a compiled program will do, read from its text: kernels to launch, bytes to move, loops, foreign calls."""

import re
from collections.abc import Iterator
from math import prod
from typing import NamedTuple

COMMENT = re.compile(r"/\*.*?\*/")
HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{$")
# the name of an instruction, its type (which may be a tuple), its operation, and what follows
LINE = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)$")
ARRAY = re.compile(r"\b([a-z]+\d*(?:e\dm\d\w*)?)\[([\d,]*)\]")
WORKSPACE = re.compile(r", s8\[\d+\]\S*\)$")
NAME = re.compile(r"%([\w.\-]+)")
CALLED = re.compile(r"(?:to_apply|calls)=%?([\w.\-]+)")
BODY = re.compile(r"body=%?([\w.\-]+)")
BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}|true_computation=%?([\w.\-]+), false_computation=%?([\w.\-]+)")
TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
TARGET = re.compile(r'custom_call_target="([^"]+)"')
# what is no work of the device: names for what is there, and the ends of what was begun
FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "opt-barrier", "partition-id"}
FREE |= {"replica-id", "add-dependency", "async-update", "async-done", "copy-done", "send-done", "recv-done"}
# marks and memory of XLA's own, which are no calls
OWN = {"AllocateBuffer", "Sharding", "SPMDFullToShardShape", "SPMDShardToFullShape", "AssumeGatherIndicesInBound"}


class Work(NamedTuple):
    """What a program does when it is run once, a loop of unknown length counted as one round."""

    kernels: int
    bytes: int  # what they read and write, each of their arguments and results once
    loops: int  # of unknown length: in each round the host is asked whether there is another


class _Instruction(NamedTuple):
    name: str
    size: int  # bytes of its result
    operation: str
    rest: str  # operands and attributes


def foreign(text: str) -> tuple[str, ...]:
    """What an optimized HLO module calls from other libraries, sorted, each once."""
    return tuple(sorted(set(TARGET.findall(text)) - OWN))


def work(text: str) -> Work:
    """Counts the entry of an optimized HLO module and all that it calls.

    Of a conditional the branch with fewer kernels counts: neighbors are seldom searched anew.
    """
    computations = dict(_computations(COMMENT.sub("", text)))
    works: dict[str, Work] = {}

    def of(name: str) -> Work:
        if name not in works:
            instructions = computations.get(name, [])
            sizes = {each.name: each.size for each in instructions}
            works[name] = _sum(of_one(each, sizes) for each in instructions)
        return works[name]

    def of_one(each: _Instruction, sizes: dict[str, int]) -> Work:
        operation, rest = each.operation, each.rest
        if operation in FREE or (operation == "custom-call" and OWN & set(TARGET.findall(rest))):
            return Work(0, 0, 0)
        if operation == "conditional":
            groups = BRANCHES.search(rest)
            names = re.findall(r"[\w.\-]+", " ".join(filter(None, groups.groups()))) if groups else []
            return min((of(name) for name in names), default=Work(0, 0, 0))
        if operation == "while":
            trips, body = TRIPS.search(rest), BODY.search(rest)
            once = of(body[1]) if body else Work(0, 0, 0)
            rounds = int(trips[1]) if trips else 1
            return Work(rounds * once.kernels, rounds * once.bytes, once.loops + (trips is None))
        if operation in ("call", "async-start"):
            return _sum(of(name) for name in CALLED.findall(rest))
        operands = NAME.findall(rest.partition("), ")[0])
        return Work(1, each.size + sum(sizes.get(name, 0) for name in operands), 0)

    return of(ENTRY)


ENTRY = "ENTRY"


def _sum(works: Iterator[Work]) -> Work:
    return Work(*map(sum, zip(Work(0, 0, 0), *works, strict=True)))


def _computations(text: str) -> Iterator[tuple[str, list[_Instruction]]]:
    """(name, instructions) of all computations; that of the entry is `ENTRY`."""
    name, instructions = "", []
    for line in text.splitlines():
        head = HEAD.match(line)
        if head:
            name, instructions = ENTRY if head[1] else head[2], []
        elif line.startswith("}") and name:
            yield name, instructions
            name = ""
        elif name and (parts := LINE.match(line)):
            # the last of the results of a library's call is its workspace
            kind = WORKSPACE.sub("", parts[2]) if parts[3] == "custom-call" else parts[2]
            instructions.append(_Instruction(parts[1], _size(kind), parts[3], parts[4]))


def _size(kind: str) -> int:
    """Bytes of a type, of a tuple those of all its arrays."""
    return sum(_width(name) * prod(int(n) for n in shape.split(",") if n) for name, shape in ARRAY.findall(kind))


def _width(name: str) -> int:
    """Bytes of a number of a type such as f32, bf16, s8, pred or c64."""
    bits = re.search(r"\d+", name)
    return max(1, int(bits[0]) // 8) if bits else 1
