"""Counts the instructions that a tile kernel takes for a slice along k, and for a tile beside that."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass

from sass import Kernel

Edges = list[list[int]]


@dataclass(frozen=True)
class Counts:
    """Instructions of the shortest way through, by name, and of all ways together."""

    mainloop: Counter[str]
    mainloop_size: int
    between: Counter[str]  # from the end of one mainloop to the start of the next: the epilogue and what it takes
    between_size: int

    def as_dict(self) -> dict[str, object]:
        return {
            "mainloop": self.mainloop.total(),
            "mainloop_size": self.mainloop_size,
            "mainloop_by_name": dict(self.mainloop.most_common()),
            "epilogue": self.between.total(),
            "epilogue_size": self.between_size,
            "epilogue_by_name": dict(self.between.most_common()),
        }


def counts_of(kernel: Kernel) -> Counts:
    """The mainloop is the innermost loop with matrix products, and the epilogue lies in the next loop around it."""
    edges = [kernel.after(index) for index in range(len(kernel.instructions))]
    products = {index for index, one in enumerate(kernel.instructions) if one.product or one.name == "HMMA"}
    loops = sorted(loops_of(edges), key=len)
    inner = next((loop for loop in loops if loop & products), None)
    outer = next((loop for loop in loops if inner is not None and loop > inner), None)
    if inner is None or outer is None:
        raise ValueError(f"{kernel.name}: expected a loop with matrix products in a loop over tiles")
    names = [one.name for one in kernel.instructions]
    first = min(inner & products)
    mainloop = shortest(edges, [first], {first}, inner)
    exits = {after for index in inner for after in edges[index] if after in outer - inner}
    between = shortest(edges, exits, inner, outer)
    return Counts(
        Counter(names[index] for index in mainloop),
        len(inner),
        Counter(names[index] for index in between),
        len(outer - inner),
    )


def shortest(edges: Edges, starts: Iterable[int], ends: set[int], within: set[int]) -> list[int]:
    """The fewest instructions from one of the starts to the one before the ends."""
    before: dict[int, int | None] = dict.fromkeys(starts)
    queue = deque(before)
    while queue:
        index = queue.popleft()
        for following in edges[index]:
            if following in ends:
                path = [index]
                while (previous := before[path[-1]]) is not None:
                    path.append(previous)
                return path[::-1]
            if following in within and following not in before:
                before[following] = index
                queue.append(following)
    raise ValueError("no way from the starts to the ends")


def loops_of(edges: Edges) -> list[set[int]]:
    """Natural loops; those with the same entry are one."""
    before: Edges = [[] for _ in edges]
    order = postorder(edges)
    for index in order:
        for following in edges[index]:
            before[following].append(index)
    dominator = dominators(before, order)
    loops: dict[int, set[int]] = {}
    for end in order:
        for head in edges[end]:
            if dominates(dominator, head, end):
                loop, to_do = loops.setdefault(head, {head}), [end]
                while to_do:
                    index = to_do.pop()
                    if index not in loop:
                        loop.add(index)
                        to_do += before[index]
    return list(loops.values())


def postorder(edges: Edges) -> list[int]:
    order, seen, stack = [], {0}, [(0, iter(edges[0]))]
    while stack:
        index, rest = stack[-1]
        following = next((one for one in rest if one not in seen), None)
        if following is None:
            stack.pop()
            order.append(index)
        else:
            seen.add(following)
            stack.append((following, iter(edges[following])))
    return order


def dominators(before: Edges, order: list[int]) -> dict[int, int]:
    """The closest instruction that every way to an instruction passes (Cooper, Harvey and Kennedy 2001)."""
    rank = {index: place for place, index in enumerate(order)}
    dominator, changed = {0: 0}, True
    while changed:
        changed = False
        for index in reversed(order[:-1]):
            closest = None
            for other in (one for one in before[index] if one in dominator):
                while closest is not None and closest != other:
                    if rank[closest] < rank[other]:
                        closest = dominator[closest]
                    else:
                        other = dominator[other]
                closest = other
            if dominator.get(index) != closest:
                dominator[index], changed = closest, True
    return dominator


def dominates(dominator: dict[int, int], head: int, index: int) -> bool:
    while index != head and index != 0:
        index = dominator[index]
    return index == head
