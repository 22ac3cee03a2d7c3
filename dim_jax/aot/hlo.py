"""Bytes that a device sends and moves in a compiled program, from its text (HLO); instructions of a loop count as often as it runs.

The compiler's cost analysis counts the body of a loop once, so a stack of scanned layers counts as one. The text tells the number of
iterations: a variable starts at a constant, grows by a constant, and is compared with a constant.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

COLLECTIVES = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute")
SLICES = ("dynamic-slice", "slice", "gather")
# Opcodes that move nothing: other names for arrays, and calls, whose computations are counted separately.
FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call", "partition-id", "replica-id"}
FREE |= {"after-all", "opt-barrier", "async-start", "async-update", "call-start"}
_KERNEL = 'custom_call_target="tpu_custom_call"'  # Pallas; any other custom call allocates or relabels
_ASYNC_START = 'custom_call_target="AsyncCollectiveStart"'
_NAME = re.compile(r"%([\w.\-]+)")
_ARRAY = re.compile(r"\b(pred|[a-z]+?(\d+)\w*)\[([\d,]*)\](\{[^}]*\})?")
_IN_FAST_MEMORY = re.compile(r"S\([1-9]")


@dataclass(frozen=True)
class Instruction:
    """One line: name, result, opcode, the text in its parentheses (arguments) and after them (attributes)."""

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
        """The opcode; an asynchronous operation counts at its start."""
        return self.opcode.removesuffix("-start")

    def called(self, key: str) -> str:
        """The computation that an attribute names."""
        match = re.search(rf"\b{key}=%([\w.\-]+)", self.attributes)
        if match is None:
            raise ValueError(f"{self.name}: no {key} in {self.attributes[:200]}")
        return match[1]

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
        return next(instruction for instruction in self.values() if instruction.is_root)

    def users(self, name: str) -> list[Instruction]:
        return [instruction for instruction in self.values() if name in instruction.operands]

    def original(self, name: str) -> Instruction:
        """The instruction that makes a value; copies are followed back."""
        instruction = self[name]
        return self.original(instruction.operands[0]) if instruction.opcode in ("copy", "bitcast", "convert") else instruction

    def constant(self, name: str) -> int | None:
        """The number that a scalar is, if it is a constant or a copy of one."""
        instruction = self.original(name)
        return int(instruction.arguments) if instruction.opcode == "constant" and re.fullmatch(r"-?\d+", instruction.arguments) else None


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
                instruction = Instruction.parse(line)
                here[instruction.name] = instruction
        devices = re.search(r"num_partitions=(\d+)", text.partition("\n")[0])
        return cls(computations, entry, int(devices[1]) if devices else 1)

    def count(self, counter: Callable[[Computation], Counter[str]], name: str | None = None) -> Counter[str]:
        """`counter(computation)` summed over everything that runs: loops as often as they run, and the cheapest of branches, since the text
        does not say which is taken. Fusions are not entered."""
        computation = self.computations[name or self.entry]
        total = Counter(counter(computation))
        for instruction in computation.values():
            if instruction.opcode == "while":
                times = self.trip_count(computation, instruction)
                total += Counter({key: times * size for key, size in self.count(counter, instruction.called("body")).items()})
            elif instruction.opcode == "conditional":
                listed = re.search(r"branch_computations=\{([^}]*)\}", instruction.attributes)
                keys = ("true_computation", "false_computation")
                branches = _NAME.findall(listed[1]) if listed else [instruction.called(key) for key in keys]
                total += min((self.count(counter, branch) for branch in branches), key=Counter.total)
            elif instruction.opcode in ("call", "call-start", "async-start"):
                total += self.count(counter, instruction.called("calls" if instruction.opcode == "async-start" else "to_apply"))
        return total

    def trip_count(self, computation: Computation, loop: Instruction) -> int:
        """How often a loop of `computation` runs.

        Raises:
            ValueError: its text does not say.
        """
        if known_count := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes):
            return int(known_count[1])
        condition, body = (self.computations[loop.called(key)] for key in ("condition", "body"))
        compare, after = condition.root, body.root
        if compare.opcode == "compare" and "direction=LT" in compare.attributes and after.opcode == "tuple":
            variable, bound = compare.operands
            if index := re.search(r"index=(\d+)", condition.original(variable).attributes):
                first = computation.constant(computation[loop.operands[0]].operands[int(index[1])])
                change = body.original(after.operands[int(index[1])])
                steps = [body.constant(name) for name in change.operands] if change.opcode == "add" else []
                step, last = next(filter(None, steps), None), condition.constant(bound)
                if first is not None and last is not None and step is not None:
                    return max(0, math.ceil((last - first) / step))
        raise ValueError(f"{loop.name}: the text does not say how often this loop runs.")

    def collectives(self, computation: Computation) -> Iterator[tuple[Computation, Instruction, Instruction | None]]:
        """(its computation, the collective, the fusion around it or None) of each that a computation or its fusions start."""
        for instruction in computation.values():
            if instruction.kind in COLLECTIVES:
                yield computation, instruction, None
            elif instruction.opcode == "fusion":
                inner = self.computations[instruction.called("calls")]
                yield from (
                    (where, other, instruction) for where, other, _ in self.collectives(inner) if not _continues_collective(where, other)
                )


def _continues_collective(computation: Computation, instruction: Instruction) -> bool:
    """Whether a fusion only continues a collective that another one started: a TPU runs them in pieces beside other work."""
    return _is_piecewise(instruction) and not any(_ASYNC_START in user.attributes for user in computation.users(instruction.name))


def _is_piecewise(instruction: Instruction) -> bool:
    return instruction.kind in COLLECTIVES and "async_collective_fusion_config" in instruction.attributes


def bytes_sent(program: Program) -> Counter[str]:
    """Kind of collective -> bytes that each device sends, as rings do it.

    From s bytes on each of n devices an all-gather sends s (n - 1), a reduce-scatter and an all-to-all s (n - 1) / n, an all-reduce twice
    that, a collective-permute s.
    """

    def send_counts(computation: Computation) -> Counter[str]:
        counts = Counter()
        for where, instruction, fusion in program.collectives(computation):
            # How a TPU's program writes a reduce-scatter: a fusion of an all-reduce and the part of it that is kept.
            scatters = fusion is not None and fusion.called("calls").startswith("all-reduce-scatter")
            kind = "reduce-scatter" if scatters else instruction.kind
            n = _group(instruction.attributes, program.devices)
            factor = {"all-gather": n - 1, "all-reduce": 2 * (n - 1) / n, "collective-permute": 1}.get(kind, (n - 1) / n)
            counts[kind] += round(factor * sum(_sizes(where[name].result) for name in instruction.operands))
        return counts

    return program.count(send_counts)


def bytes_moved(program: Program) -> int:
    """Bytes that each device reads from its memory and writes to it, if every instruction reads its operands and writes its result once.

    Arrays in faster memory (a memory space other than 0) do not count; of an operand that is only sliced, the slice
    counts. An instruction may read an operand several times, so the real number is at least this.
    """
    return program.count(
        lambda where: Counter(bytes=sum(_instruction_bytes(program, where, instruction) for instruction in where.values()))
    )["bytes"]


def _instruction_bytes(program: Program, computation: Computation, instruction: Instruction) -> int:
    if instruction.opcode in FREE or instruction.opcode.endswith(("-update", "-done")):  # their start counts, or what it calls
        return 0
    if instruction.opcode == "custom-call" and _KERNEL not in instruction.attributes:
        return 0
    operands = [computation[name].result for name in instruction.operands]
    if instruction.opcode == "fusion":
        inner = program.computations[instruction.called("calls")]
        results = list(_ARRAY.finditer(instruction.result))
        if inner.root.opcode == "custom-call" and _ASYNC_START in inner.root.attributes:  # (what is sent, what arrives, flags)
            return sum(_size(array) for array in results[:2] if not _is_fast(array))
        read = sum(
            _read(program, inner, name) for name, shape in zip(_parameters(inner), operands, strict=True) if _sizes(shape, slow=True)
        )
        written = zip(_results(inner), results, strict=False)
        return read + sum(_written(inner, root) for root, array in written if not _is_fast(array))
    if instruction.kind in SLICES:
        arrays = list(_ARRAY.finditer(instruction.result))
        result = arrays[-2] if instruction.opcode.endswith("-start") else arrays[0]  # (operand, result, a flag)
        return _size(result) * (2 - _is_fast(result) - (not _sizes(operands[0], slow=True)))
    if instruction.opcode == "dynamic-update-slice":
        return 2 * _sizes(operands[1], slow=True)
    if instruction.opcode == "copy-start":
        return _sizes(instruction.result, slow=True)  # (to, from, a flag)
    if instruction.opcode.endswith("-start"):
        return sum(_sizes(shape, slow=True) for shape in operands)
    return sum(_sizes(shape, slow=True) for shape in (instruction.result, *operands))


def _results(inner: Computation) -> list[Instruction]:
    """What makes each result of a fused computation."""
    return [inner[name] for name in inner.root.operands] if inner.root.opcode == "tuple" else [inner.root]


def _parameters(inner: Computation) -> list[str]:
    """Names of a computation's parameters, by their number."""
    return [
        instruction.name
        for instruction in sorted(
            (instruction for instruction in inner.values() if instruction.opcode == "parameter"),
            key=lambda instruction: int(instruction.arguments),
        )
    ]


def _read(program: Program, inner: Computation, name: str) -> int:
    """Bytes of an array that a fused computation reads: at most all, only the slices if it is sliced, none if it is updated in place."""
    nbytes = 0
    for user in inner.users(name):
        if user.opcode in SLICES and user.operands[0] == name:
            nbytes += _sizes(user.result)
        elif user.opcode == "bitcast" or (_relabels(program, user) and user not in _results(inner)):
            nbytes += _read(program, inner, user.name)
        elif user.opcode == "fusion":
            called = program.computations[user.called("calls")]
            pairs = zip(_parameters(called), user.operands, strict=True)
            nbytes += sum(_read(program, called, parameter) for parameter, operand in pairs if operand == name)
        elif not (user.opcode == "dynamic-update-slice" and user.operands[0] == name) and not _moves_nothing(user):
            return _sizes(inner[name].result)
    return min(nbytes, _sizes(inner[name].result))


def _relabels(program: Program, instruction: Instruction) -> bool:
    """Whether an instruction inside a fusion only gives an array another layout, as part of reading it; so do fusions of such."""
    if instruction.opcode == "fusion":
        return all(_relabels(program, inner) for inner in program.computations[instruction.called("calls")].values())
    return instruction.opcode in ("parameter", "bitcast", "copy")


def _written(inner: Computation, instruction: Instruction) -> int:
    """Bytes that a fused computation writes of one of its results."""
    if instruction.opcode == "bitcast":
        return _written(inner, inner[instruction.operands[0]])
    if instruction.opcode == "dynamic-update-slice":
        return _sizes(inner[instruction.operands[1]].result)
    return 0 if instruction.opcode == "parameter" or _moves_nothing(instruction) else _sizes(instruction.result)


def _moves_nothing(instruction: Instruction) -> bool:
    """Whether it continues a collective, which counts at its start, or only names a result."""
    return instruction.opcode == "tuple" or _is_piecewise(instruction) or 'custom_call_target="AsyncCollective' in instruction.attributes


def _is_fast(array: re.Match) -> bool:
    return bool(array[4] and _IN_FAST_MEMORY.search(array[4]))


def _size(array: re.Match) -> int:
    bits = 8 if array[1] == "pred" else int(array[2])
    return math.prod(int(size) for size in array[3].split(",") if size) * bits // 8


def _sizes(shape: str, *, slow: bool = False) -> int:
    """Bytes of the arrays of a shape; `slow`: of those in the device's main memory."""
    return sum(_size(array) for array in _ARRAY.finditer(shape) if not (slow and _is_fast(array)))


def _group(attributes: str, devices: int) -> int:
    """Devices in a group of a collective, for each notation of groups."""
    if match := re.search(r"replica_groups=\{\{([\d,]*)\}", attributes):
        return len(match[1].split(","))
    if match := re.search(r"replica_groups=\[\d+,(\d+)\]", attributes):
        return int(match[1])
    if match := re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", attributes):
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", match[1]))
        return math.prod(int(part or sizes[axis]) for axis, part in re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", match[2]))
    return devices


def _closing(text: str, start: int) -> int:
    """The index after the bracket that closes the one at `start`."""
    depth = 0
    for index in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[index], 0)
        if not depth:
            return index + 1
    raise ValueError(f"A bracket is not closed: {text[:200]}")
