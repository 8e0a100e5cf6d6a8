"""What machine code with asynchronous matrix products (wgmma) and setmaxnreg must keep to.

Between a product and the wait for it nothing else may touch its registers; before a product a fence must follow what
has touched them. ptxas keeps both, but where the source does not it makes the products one by one, or drops setmaxnreg.
"""

from __future__ import annotations

from dataclasses import dataclass

from sass import Instruction, Kernel, bits

GROUPS = 8  # how many committed groups of products are told apart
ALL = bits(0, 256)


@dataclass(frozen=True)
class InFlight:
    """Registers, as sets of bits, of products that may be unfinished at some place of a kernel."""

    open: int = 0  # not yet in a group
    groups: tuple[int, ...] = ()  # of each group, the latest first
    unfenced: int = ALL  # touched by others since the last fence

    @property
    def all(self) -> int:
        every = self.open
        for group in self.groups:
            every |= group
        return every

    def join(self, other: InFlight) -> InFlight:
        longest = max(len(self.groups), len(other.groups))
        padded = [(*one.groups, *[0] * (longest - len(one.groups))) for one in (self, other)]
        groups = tuple(a | b for a, b in zip(*padded, strict=True))
        return InFlight(self.open | other.open, groups, self.unfenced | other.unfenced)

    def after(self, one: Instruction) -> InFlight:
        if one.product:
            unfinished = self.open | one.touched
            if "gsb0" not in one.operands:
                return InFlight(unfinished, self.groups, self.unfenced)
            groups = (unfinished, *self.groups)
            if len(groups) > GROUPS:
                groups = (*groups[: GROUPS - 1], groups[GROUPS - 1] | groups[GROUPS])
            return InFlight(0, groups, self.unfenced)
        if one.opcode == "WARPGROUP.ARRIVE":
            return InFlight(self.open, self.groups, 0)
        if one.opcode == "WARPGROUP.DEPBAR.LE":
            return InFlight(self.open, self.groups[: one.target], self.unfenced)
        return InFlight(self.open, self.groups, self.unfenced | one.touched)


def faults_of_products(kernel: Kernel) -> list[str]:
    """Registers that are touched while products may still write them, or that no fence hands over to a product."""
    faults = {}
    states = {(0, ()): InFlight()}
    to_do = list(states)
    while to_do:
        place = to_do.pop()
        state, one = states[place], kernel.instructions[place[0]]
        if one.product and one.touched & state.unfenced:
            faults[one.address, "a"] = f"no fence before the product at {one}"
        elif not one.product and one.touched & state.all:
            faults[one.address, "b"] = f"registers of unfinished products are touched at {one}"
        elif one.name == "EXIT" and state.all:
            faults[one.address, "c"] = f"nothing waits for products before {one}"
        next_state = state.after(one)
        for following in kernel.walk(*place):
            joined = states[following].join(next_state) if following in states else next_state
            if states.get(following) != joined:
                states[following] = joined
                to_do.append(following)
    return [faults[key] for key in sorted(faults)]


def sizes_of_groups(kernel: Kernel) -> list[dict[str, int]]:
    """For each group of products that the kernel commits, by the first register of the sums: their multiply-adds."""
    sizes: list[dict[str, int]] = [{}]
    for one in kernel.instructions:
        if one.product:
            size = int(one.product["rows"]) * int(one.product["cols"]) * int(one.product["k"])
            sums = one.list[0]
            sizes[-1][sums] = sizes[-1].get(sums, 0) + size
            if "gsb0" in one.operands:
                sizes.append({})
    return [size for size in sizes if size]


def register_limits(kernel: Kernel) -> list[int]:
    """What the kernel's setmaxnreg instructions ask for."""
    return [one.target for one in kernel.instructions if one.name == "USETMAXREG"]


def faults_of_limits(kernel: Kernel) -> list[str]:
    """Registers in use beyond the limit that a setmaxnreg has set."""
    faults = {}
    for start, limiter in enumerate(kernel.instructions):
        if limiter.name != "USETMAXREG":
            continue
        seen, to_do = set(), list(kernel.walk(start, ()))
        while to_do:
            place = to_do.pop()
            one = kernel.instructions[place[0]]
            if place in seen or one.name == "USETMAXREG":
                continue
            seen.add(place)
            if one.touched >> limiter.target:
                faults[one.address] = f"registers beyond the limit of {limiter.target} are in use at {one}"
            to_do += kernel.walk(*place)
    return [faults[address] for address in sorted(faults)]


def local_memory(kernel: Kernel) -> list[Instruction]:
    return [one for one in kernel.instructions if one.name in ("LDL", "STL")]
