"""What one device of a compiled program sends and moves, from the program's text (HLO): every instruction as often as its loops run.

The compiler's own cost analysis takes the body of a loop once, so a stack of scanned layers counts as one. The text says how often a loop
runs: one variable starts at a constant, grows by a constant, and is compared with a constant.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

COLLECTIVES = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute")
SLICES = ("dynamic-slice", "slice", "gather")
# Opcodes that move nothing themselves: names for what is there, and calls, whose computations count for themselves.
FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call", "partition-id", "replica-id"}
FREE |= {"after-all", "opt-barrier", "async-start", "async-update", "custom-call"}  # (a custom call allocates or relabels)
_ASYNC_START = 'custom_call_target="AsyncCollectiveStart"'
_NAME = re.compile(r"%([\w.\-]+)")
_ARRAY = re.compile(r"\b(pred|[a-z]+?(\d+)\w*)\[([\d,]*)\](\{[^}]*\})?")
_IN_FAST_MEMORY = re.compile(r"S\([1-9]")


@dataclass(frozen=True)
class Instruction:
    """One line: name, result, opcode, what stands in its brackets, and what stands after them."""

    name: str
    result: str
    opcode: str
    arguments: str
    attributes: str
    is_root: bool

    @cached_property
    def operands(self) -> list[str]:
        return _NAME.findall(self.arguments)

    @property
    def kind(self) -> str:
        """The opcode, where an operation that is started and awaited counts at its start."""
        return self.opcode.removesuffix("-start")

    def called(self, key: str) -> str:
        """The computation that an attribute names."""
        found = re.search(rf"\b{key}=%([\w.\-]+)", self.attributes)
        if found is None:
            raise ValueError(f"{self.name}: no {key} in {self.attributes[:200]}")
        return found[1]

    @classmethod
    def parse(cls, line: str) -> "Instruction":
        name, _, rest = line.strip().removeprefix("ROOT ").partition(" = ")
        end = _closing(rest, 0) if rest.startswith("(") else rest.index(" ")
        opcode, _, _ = rest[end:].lstrip().partition("(")
        open_ = rest.index("(", end)
        close = _closing(rest, open_)
        is_root = line.lstrip().startswith("ROOT ")
        return cls(name.removeprefix("%"), rest[:end], opcode, rest[open_ + 1 : close - 1], rest[close:], is_root)


class Computation(dict[str, Instruction]):
    """Instructions by name, in order."""

    @cached_property
    def root(self) -> Instruction:
        return next(one for one in self.values() if one.is_root)

    def users(self, name: str) -> list[Instruction]:
        return [one for one in self.values() if name in one.operands]

    def constant(self, name: str) -> int | None:
        """The number that a scalar is, if it is a constant or a copy of one."""
        one = self[name]
        if one.opcode == "constant":
            return int(one.arguments) if re.fullmatch(r"-?\d+", one.arguments) else None
        return self.constant(one.operands[0]) if one.opcode in ("copy", "bitcast", "convert") else None


@dataclass(frozen=True)
class Program:
    """The computations of a program by name; `devices` is how many run it together."""

    computations: Mapping[str, Computation]
    entry: str
    devices: int

    @classmethod
    def parse(cls, text: str) -> "Program":
        """Read the text of a compiled program (`compiled.as_text()`)."""
        computations: dict[str, Computation] = {}
        entry, here = "", Computation()
        for line in text.splitlines():
            if line.endswith("{") and (head := re.match(r"(ENTRY )?%?([\w.\-]+) \(", line)):
                here = computations[head[2]] = Computation()
                entry = head[2] if head[1] else entry
            elif line.startswith("  ") and " = " in line:
                one = Instruction.parse(line)
                here[one.name] = one
        devices = re.search(r"num_partitions=(\d+)", text.partition("\n")[0])
        return cls(computations, entry, int(devices[1]) if devices else 1)

    def count(self, own: Callable[[Computation], Counter[str]], name: str | None = None) -> Counter[str]:
        """`own(computation)` summed over all that runs: loops as often as they run; of branches, of which the text does not say how often
        each is taken, the cheapest. Fusions are not entered."""
        computation = self.computations[name or self.entry]
        found = Counter(own(computation))
        for one in computation.values():
            if one.opcode == "while":
                times = self.trips(computation, one)
                found += Counter({key: times * size for key, size in self.count(own, one.called("body")).items()})
            elif one.opcode == "conditional":
                several = re.search(r"branch_computations=\{([^}]*)\}", one.attributes)
                keys = ("true_computation", "false_computation")
                branches = _NAME.findall(several[1]) if several else [one.called(key) for key in keys]
                found += min((self.count(own, branch) for branch in branches), key=Counter.total)
            elif one.opcode in ("call", "async-start"):
                found += self.count(own, one.called("to_apply" if one.opcode == "call" else "calls"))
        return found

    def trips(self, computation: Computation, loop: Instruction) -> int:
        """How often a loop of `computation` runs.

        Raises:
            ValueError: its text does not say.
        """
        if known := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes):
            return int(known[1])
        condition, body = (self.computations[loop.called(key)] for key in ("condition", "body"))
        compare, after = condition.root, body.root
        if compare.opcode == "compare" and "direction=LT" in compare.attributes and after.opcode == "tuple":
            variable, bound = compare.operands
            if place := re.search(r"index=(\d+)", condition[variable].attributes):
                first = computation.constant(computation[loop.operands[0]].operands[int(place[1])])
                change = body[after.operands[int(place[1])]]
                steps = [body.constant(name) for name in change.operands] if change.opcode == "add" else []
                step, last = next(filter(None, steps), None), condition.constant(bound)
                if first is not None and last is not None and step is not None:
                    return max(0, math.ceil((last - first) / step))
        raise ValueError(f"{loop.name}: the text does not say how often this loop runs.")

    def collectives(self, computation: Computation) -> Iterator[tuple[Computation, Instruction, Instruction | None]]:
        """(where it stands, the collective, the fusion of `computation` that it is in) of each that a computation or its fusions start."""
        for one in computation.values():
            if one.kind in COLLECTIVES:
                yield computation, one, None
            elif one.opcode == "fusion":
                inner = self.computations[one.called("calls")]
                yield from ((where, other, one) for where, other, _ in self.collectives(inner) if not _goes_on(where, other))


def _goes_on(computation: Computation, one: Instruction) -> bool:
    """Whether a fusion only goes on with a collective that another one started: a TPU does them piece by piece beside other work."""
    return _is_piecewise(one) and not any(_ASYNC_START in user.attributes for user in computation.users(one.name))


def _is_piecewise(one: Instruction) -> bool:
    return one.kind in COLLECTIVES and "async_collective_fusion_config" in one.attributes


def sent(program: Program) -> Counter[str]:
    """Kind of collective -> bytes that each device sends, as rings do it.

    From s bytes on each of n devices an all-gather sends s (n - 1), a reduce-scatter and an all-to-all s (n - 1) / n, an all-reduce twice
    that, a collective-permute s.
    """

    def own(computation: Computation) -> Counter[str]:
        found = Counter()
        for where, one, fusion in program.collectives(computation):
            # How a TPU's program writes a reduce-scatter: a fusion of an all-reduce and the part of it that is kept.
            scatters = fusion is not None and fusion.called("calls").startswith("all-reduce-scatter")
            kind = "reduce-scatter" if scatters else one.kind
            n = _group(one.attributes, program.devices)
            each = {"all-gather": n - 1, "all-reduce": 2 * (n - 1) / n, "collective-permute": 1}.get(kind, (n - 1) / n)
            found[kind] += round(each * sum(_sizes(where[name].result) for name in one.operands))
        return found

    return program.count(own)


def moved(program: Program) -> int:
    """Bytes that each device reads from its memory and writes to it, if every instruction reads its operands and writes its result once.

    Not counted is what the compiler keeps in faster memory (another memory space than 0); of an operand that is only sliced, the slice
    counts. An instruction may read an operand again, tile by tile: what really moves is at least this.
    """
    return program.count(lambda where: Counter(bytes=sum(_moved(program, where, one) for one in where.values())))["bytes"]


def _moved(program: Program, computation: Computation, one: Instruction) -> int:
    if one.opcode in FREE or one.opcode.endswith("-done"):
        return 0
    operands = [computation[name].result for name in one.operands]
    if one.opcode == "fusion":
        inner = program.computations[one.called("calls")]
        results = list(_ARRAY.finditer(one.result))
        if inner.root.opcode == "custom-call" and _ASYNC_START in inner.root.attributes:  # (what is sent, what arrives, flags)
            return sum(_size(array) for array in results[:2] if not _is_fast(array))
        read = sum(
            _read(program, inner, name) for name, shape in zip(_parameters(inner), operands, strict=True) if _sizes(shape, slow=True)
        )
        roots = [inner[name] for name in inner.root.operands] if inner.root.opcode == "tuple" else [inner.root]
        return read + sum(_written(inner, root) for root, array in zip(roots, results, strict=False) if not _is_fast(array))
    if one.kind in SLICES:
        arrays = list(_ARRAY.finditer(one.result))
        result = arrays[-2] if one.opcode.endswith("-start") else arrays[0]  # (operand, result, a flag)
        return _size(result) * (2 - _is_fast(result) - (not _sizes(operands[0], slow=True)))
    if one.opcode == "dynamic-update-slice":
        return 2 * _sizes(operands[1], slow=True)
    if one.opcode == "copy-start":
        return _sizes(one.result, slow=True)  # (to, from, a flag)
    if one.opcode.endswith("-start"):
        return sum(_sizes(shape, slow=True) for shape in operands)
    return sum(_sizes(shape, slow=True) for shape in (one.result, *operands))


def _parameters(inner: Computation) -> list[str]:
    """Names of a computation's parameters, by their number."""
    return [one.name for one in sorted((one for one in inner.values() if one.opcode == "parameter"), key=lambda one: int(one.arguments))]


def _read(program: Program, inner: Computation, name: str) -> int:
    """Bytes of an array that a fused computation reads: all of it at most, of slices theirs, nothing of what is written in its place."""
    found = 0
    for user in inner.users(name):
        if user.opcode in SLICES and user.operands[0] == name:
            found += _sizes(user.result)
        elif user.opcode == "bitcast":
            found += _read(program, inner, user.name)
        elif user.opcode == "fusion":
            deeper = program.computations[user.called("calls")]
            given = zip(_parameters(deeper), user.operands, strict=True)
            found += sum(_read(program, deeper, parameter) for parameter, operand in given if operand == name)
        elif not (user.opcode == "dynamic-update-slice" and user.operands[0] == name) and not _hands_through(user):
            return _sizes(inner[name].result)
    return min(found, _sizes(inner[name].result))


def _written(inner: Computation, one: Instruction) -> int:
    """Bytes that a fused computation writes of one of its results."""
    if one.opcode == "bitcast":
        return _written(inner, inner[one.operands[0]])
    if one.opcode == "dynamic-update-slice":
        return _sizes(inner[one.operands[1]].result)
    return 0 if one.opcode == "parameter" or _hands_through(one) else _sizes(one.result)


def _hands_through(one: Instruction) -> bool:
    """Whether it goes on with a collective, which counts where it started, or names a result."""
    return one.opcode == "tuple" or _is_piecewise(one) or 'custom_call_target="AsyncCollective' in one.attributes


def _is_fast(array: re.Match) -> bool:
    return bool(array[4] and _IN_FAST_MEMORY.search(array[4]))


def _size(array: re.Match) -> int:
    bits = 8 if array[1] == "pred" else int(array[2])
    return math.prod(int(size) for size in array[3].split(",") if size) * bits // 8


def _sizes(shape: str, *, slow: bool = False) -> int:
    """Bytes of the arrays of a shape; `slow`: of those in the device's main memory."""
    return sum(_size(array) for array in _ARRAY.finditer(shape) if not (slow and _is_fast(array)))


def _group(attributes: str, devices: int) -> int:
    """How many devices take part in one group of a collective, in each of the ways to write groups."""
    if found := re.search(r"replica_groups=\{\{([\d,]*)\}", attributes):
        return len(found[1].split(","))
    if found := re.search(r"replica_groups=\[\d+,(\d+)\]", attributes):
        return int(found[1])
    if found := re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", attributes):
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", found[1]))
        return math.prod(int(part or sizes[axis]) for axis, part in re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", found[2]))
    return devices


def _closing(text: str, start: int) -> int:
    """Behind the bracket that closes the one at `start`."""
    depth = 0
    for place in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[place], 0)
        if not depth:
            return place + 1
    raise ValueError(f"A bracket is not closed: {text[:200]}")
