"""Reads kernels in machine code (SASS) as nvdisasm prints it: instructions, the registers they touch, where they lead.

What NVIDIA does not document is taken the safe way: an instruction that leads to places unknown is an error.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

REGISTER = re.compile(r"(?<![A-Z])R(\d+)(\.64)?")
BRACKETS = re.compile(r"\[[^\]]*\]")
PREDICATE = re.compile(r"[!~]?U?P(\d|T)")
TARGET = re.compile(r"0x[0-9a-f]+$")
PRODUCT = re.compile(r"HGMMA\.(?P<rows>\d+)x(?P<cols>\d+)x(?P<k>\d+)\.F32\.")
INDIRECT = ("BRX", "BRXU", "JMP", "JMX", "CALL.ABS", "RET.ABS", "LEPC")


@dataclass(frozen=True)
class Instruction:
    """One instruction; operands are without blanks, as in "R2,R3,0x1"."""

    address: int
    opcode: str
    operands: str = ""
    predicate: str = ""

    @property
    def name(self) -> str:
        return self.opcode.partition(".")[0]

    @property
    def list(self) -> list[str]:
        return self.operands.split(",")

    @property
    def target(self) -> int:
        found = TARGET.search(self.operands)
        if found is None:
            raise ValueError(f"expected an address at the end of {self}")
        return int(found[0], 16)

    @property
    def conditional(self) -> bool:
        return bool(self.predicate) or any(PREDICATE.fullmatch(one) for one in self.list)

    @cached_property
    def product(self) -> re.Match[str] | None:
        """Rows, columns and k of an asynchronous matrix product with fp32 sums."""
        if self.name.endswith("GMMA") and PRODUCT.match(self.opcode) is None:
            raise ValueError(f"expected products with fp32 sums, got {self}")
        return PRODUCT.match(self.opcode)

    @cached_property
    def touched(self) -> int:
        """The registers that are read or written, as a set of bits."""
        touched = 0
        for place, operand in enumerate(one for one in self.operand_texts() if not PREDICATE.fullmatch(one)):
            for number, pair in REGISTER.findall(operand):
                touched |= bits(int(number), 2 if pair else self.width(place))
        for address in BRACKETS.findall(self.operands):
            for number, pair in REGISTER.findall(address):
                touched |= bits(int(number), 2 if pair else 1)
        return touched

    def operand_texts(self) -> list[str]:
        """The operands without the addresses in brackets."""
        return BRACKETS.sub("", self.operands).split(",")

    def width(self, place: int) -> int:
        """How many registers the operand in this place takes."""
        parts = self.opcode.split(".")
        if self.product:
            return int(self.product["cols"]) // 2 if place == 0 or place == len(self.register_places()) - 1 else 4
        if self.name == "HMMA":
            return (4, 4 if "16816" in parts else 2, 2 if "16816" in parts else 1, 4)[min(place, 3)]
        if self.name in ("I2F", "F2I", "F2F"):
            return self.width_of_conversion(place)
        if "128" in parts or (self.name == "LDSM" and "4" in parts):
            return 4
        if self.name == "IMAD" and ("WIDE" in parts or "HI" in parts):
            return 2 if place == 3 or (place == 0 and "WIDE" in parts) else 1
        pairs = self.name in ("DADD", "DMUL", "DFMA", "DSETP", "DMNMX", "RET") or "64" in parts
        return (
            2 if pairs or (self.name == "CS2R" and "32" not in parts) or (self.name == "LDSM" and "2" in parts) else 1
        )

    def register_places(self) -> list[str]:
        return [one for one in self.operand_texts() if REGISTER.search(one) or "gdesc" in one]

    def width_of_conversion(self, place: int) -> int:
        types = [one for one in self.opcode.split(".")[1:] if re.fullmatch(r"[FUSB]\d+", one)]
        if len(types) == 1:  # the other one is of 32 bits
            is_result = (self.name == "I2F") == types[0].startswith("F")
            types = [types[0], "32"] if is_result else ["32", types[0]]
        return 2 if types and place < 2 and types[place].endswith("64") else 1

    def __str__(self) -> str:
        return f"{self.address:04x}: {self.predicate} {self.opcode} {self.operands}".replace("  ", " ")


def bits(first: int, count: int) -> int:
    return ((1 << count) - 1) << first


@dataclass
class Kernel:
    """A kernel with the functions that it calls."""

    name: str
    instructions: list[Instruction] = field(default_factory=list)
    functions: dict[str, int] = field(default_factory=dict)  # where each one starts

    @cached_property
    def index(self) -> dict[int, int]:
        return {instruction.address: index for index, instruction in enumerate(self.instructions)}

    @cached_property
    def regions(self) -> dict[str, set[int]]:
        """For a barrier of BSSY, where those who wait at its BSYNC go on."""
        regions: dict[str, set[int]] = {}
        for one in self.instructions:
            if one.name == "BSSY":
                regions.setdefault(one.list[0], set()).add(self.index[one.target])
        return regions

    def callee(self, one: Instruction) -> int | None:
        """The start of the function that is called. ptxas also writes jumps as calls of addresses in the kernel."""
        if one.name != "CALL":
            return None
        start = self.functions.get(one.operands)
        start = one.target if start is None else start
        return start if start in self.functions.values() else None

    def after(self, index: int) -> list[int]:
        """The instructions that may come next in the same function; a call comes back."""
        one = self.instructions[index]
        following = [index + 1] if index + 1 < len(self.instructions) else []
        if one.opcode.startswith(INDIRECT):
            raise ValueError(f"expected jumps to addresses only, got {one}")
        if one.name in ("EXIT", "RET"):
            return following if one.conditional else []
        if one.name == "BRA" or (one.name == "CALL" and self.callee(one) is None):
            return [*(following if one.conditional or "DIV" in one.opcode else []), self.index[one.target]]
        if one.opcode == "WARPSYNC.COLLECTIVE":
            return [*following, self.index[one.target]]
        if one.name == "BSYNC":
            regions = self.regions.get(one.list[0], set())
            return following if index + 1 in regions else [*following, *regions]
        return following

    def walk(self, index: int, calls: tuple[int, ...]) -> Iterator[tuple[int, tuple[int, ...]]]:
        """The same through calls: (instruction, where the calls that it lies in will come back to)."""
        one = self.instructions[index]
        callee = self.callee(one)
        if callee is not None:
            yield self.index[callee], (*calls, index + 1)
        elif one.name == "RET" and calls:
            yield calls[-1], calls[:-1]
        if callee is None or one.conditional:
            yield from ((following, calls) for following in self.after(index))


def read_kernels(cubin: Path, nvdisasm: str) -> list[Kernel]:
    done = subprocess.run([nvdisasm, "-json", str(cubin)], capture_output=True, text=True, check=True)
    return kernels_of(json.loads(done.stdout))


def kernels_of(disassembly: list) -> list[Kernel]:
    kernels: list[Kernel] = []
    for function in disassembly[1]:
        if function["start"] == 0:  # others are called by the one before them
            kernels.append(Kernel(function["function-name"]))
        kernels[-1].functions[function["function-name"]] = function["start"]
        for index, one in enumerate(function["sass-instructions"]):
            address = function["start"] + 16 * index
            kernels[-1].instructions.append(
                Instruction(address, one["opcode"], one.get("operands", ""), one.get("predicate", ""))
            )
    return kernels
