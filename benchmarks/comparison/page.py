"""The page benchmarks/RESULTS.md, from the JSON files alone."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.comparison import figures, scaling
from benchmarks.comparison.contenders import UNIT
from benchmarks.comparison.measuring import DEEP, DEEP_TOLERANCE, TOLERANCE, in_words
from benchmarks.comparison.tasks import QUANTITIES

Record = dict[str, Any]
RESOLUTION = 1 << 20  # bytes; allocators keep as much
COMPARISONS = "comparison-*.json"
# Made by other scripts: {"title", "text", "columns", "rows", "machine"}.
SECTIONS = ("breakdown", "op_floors", "tracker_overhead", "instructions")

# Why ours takes longer than another, or more memory, where it does; by quantity.
CALL = (
    "before it works, a call checks its arguments and sends five samples through the network with hooks (plan, below)"
)
CALL_SHOWS = 0.1  # seconds; of longer calls it is next to nothing
SLOWER = {
    "layer_kernels": "each K is written in the order of samples and mirrored to be exactly symmetric",
    "top_eigenvalue": "the eigenpair comes from a dozen products with the factors, each a call of an op, and is held "
    "against one more; others form K where it is small",
}
PASS = "the pass through the network holds the gradients of all outputs at once"
HELD = "factors of all layers that fit the memory budget (2 GiB) are held at once, and the panels of each thread"
MORE_MEMORY = {
    "layer_kernel": f"{PASS}, the op the panels of each thread",
    "layer_kernels": f"{HELD}; each K is a tensor of its own before it goes into the one of all",
    "network_kernel": HELD,
    "alignment": HELD,
    "top_eigenvalue": f"{PASS}, the iteration a dozen vectors in float64",
}

HEAD = f"""# Results

Made from the JSON files in [results](results) by `python -m benchmarks.compare`, which measures and then writes this
page; `--page-only` writes it without measuring. [README.md](README.md) says how figures are taken.

How to read the tables. A row is a contender at its fastest variant. *Median* and *min* are of rounds in which the
contenders of that table take turns, each in its own process and on the same cores; *times ours* is the ratio of
medians, and is only taken within a table. *Memory* is the peak of a call above what was resident before the job was
prepared, less model and data. *Error* is against a float64 evaluation in the same run: the largest relative error of
alignments and eigenvalues, the relative Frobenius error of the worst kernel. Off by more than {TOLERANCE:g}, a value
is wrong and no competitor (by {DEEP_TOLERANCE:g} for image networks and beyond depth {DEEP}, where in fp32 some ReLU
turns the other way than in float64, for all alike). *Floor* is the flops that the job takes at least over the best
fp32 GEMM rate of torch in the run, and its bytes over the copy bandwidth; *of best* is a row's useful flop rate as a
share of that GEMM rate. On processors with AMX this package has a faster product of fp32 quality than torch, so that
shares above 100% are possible."""


def write(folder: Path) -> Path:
    """RESULTS.md beside the folder of the JSON files, with figures inside it."""
    parts = [HEAD]
    for path in sorted(folder.glob(COMPARISONS)):
        record, device = json.loads(path.read_text()), path.stem.removeprefix("comparison-")
        drawn = figures.draw(record, folder, device)
        parts += [f"## {'GPU' if device == 'cuda' else 'CPU'}", machine_of(record), tables_of(record, drawn)]
    for name in SECTIONS:
        path = folder / f"{name}.json"
        if path.exists():
            parts.append(section(json.loads(path.read_text())))
    page = folder.parent / "RESULTS.md"
    page.write_text("\n\n".join(part.strip() for part in parts) + "\n")
    return page


def tables_of(record: Record, drawn: dict[str, str] | None = None) -> str:
    """All tables of a comparison; `drawn` has the paths of the figures of tasks and sweeps."""
    drawn, parts = drawn or {}, []
    if record["tasks"]:
        parts += ["### Summary", summary(record)]
        if "tasks" in drawn:
            parts.append(f"![Time of every contender in units of ours]({drawn['tasks']})")
        parts.append("### Tasks")
        parts += [task_table(task, record) for task in record["tasks"]]
    if record["sweeps"]:
        parts += ["### How cost grows", growth(record)]
        if "sweeps" in drawn:
            parts.append(f"![Time and memory of the alignment of all layers against size]({drawn['sweeps']})")
    return "\n\n".join(parts)


def machine_of(record: Record) -> str:
    machine, rates, limits = record["machine"], record["ceilings"], record["configuration"]["settings"]
    gpu = f"{machine['device']} ({machine['memory_gib']} GiB) on a machine with " if "device" in machine else ""
    versions = ", ".join(f"{name} {machine[name]}" for name in ("python", "torch", "ahkernels") if machine.get(name))
    memory = limits["memory_limit"]
    text = (
        f"{gpu}{machine['cpu']}, {machine['threads']} of {machine['cores']} cores; {versions}. Best GEMM in fp32 "
        f"quality {rates['flops_per_s'] / 1e9:.0f} Gflop/s, copy {rates['bytes_per_s'] / 1e9:.1f} GB/s. A call may "
        f"take {limits['call_limit']:.0f} s ({limits['image_limit']:.0f} s for image networks)"
    )
    text += f" and {memory / 2**30:.3g} GiB" if memory else ""
    text += f". The run took {record['seconds'] / 60:.0f} minutes."
    rows = []
    for about in record["contenders"].values():
        packages = ", ".join(f"{name} {version}" for name, version in about.get("versions", {}).items())
        rows.append(
            (about["title"], f"not installed: {about['error']}" if "error" in about else packages or "as above")
        )
    return text + "\n\n" + table(("contender", "packages"), rows)


# ---- tasks


def task_table(task: Record, record: Record) -> str:
    """One task: a row for each contender, the fastest first after ours."""
    rates, least = record["ceilings"], task["work"]
    by_flops, by_bytes = least["flops"] / rates["flops_per_s"], least["bytes"] / rates["bytes_per_s"]
    unit = median_of_ours(task)
    shown = [row for row in task["rows"] if not (row["contender"].startswith(UNIT) and row["outcome"] == "no")]
    ordered = sorted(shown, key=lambda row: (row["contender"] != UNIT, not_counted(row), row.get("median_s", 0)))
    rows = [task_row(row, unit, least["flops"], by_flops) for row in ordered]
    head = ("contender", "variant", "median", "min", "times ours", "memory", "error", "Gflop/s", "of best")
    floor = f"Floor: {in_words(by_flops)} for {si(least['flops'])}flop, {in_words(by_bytes)} for {si(least['bytes'])}B."
    if task["reference"] not in (None, "float64"):
        floor += f" Errors are differences from {task['reference']}."
    others = other_variants(task)
    return f"#### {described(task['task'])}\n\n{table(head, rows)}\n\n{floor}{others}"


def task_row(row: Record, unit: float | None, flops: float, floor: float) -> tuple[str, ...]:
    name = bold(row["title"], row["contender"] == UNIT)
    if "median_s" not in row or row["outcome"] not in ("ok", "wrong", "estimate"):
        return (name, row["variant"], failure(row), *[""] * 6)
    median = row["median_s"]
    error = "" if row["error"] is None else f"{row['error']:.1e}"
    error = {"wrong": f"**wrong by {error}**", "estimate": f"estimate, {error or 'not compared'}"}.get(
        row["outcome"], error
    )
    ratio = "" if unit is None else f"{median / unit:.3g}"
    rate, share = f"{flops / median / 1e9:.3g}", f"{100 * floor / median:.2g}%"
    return (
        name,
        row["variant"],
        in_words(median),
        in_words(row["min_s"]),
        ratio,
        mib(row["peak_bytes"]),
        error,
        rate,
        share,
    )


def failure(row: Record) -> str:
    return f"no: {row['reason']}" if row["outcome"] == "no" else str(row["reason"])


def not_counted(row: Record) -> int:
    """0 for a right value, 1 for a wrong one, 2 for none, 3 for a task that cannot be done."""
    if row["outcome"] in ("ok", "estimate") and "median_s" in row:
        return 0
    return {"wrong": 1, "no": 3}.get(row["outcome"], 2)


def other_variants(task: Record) -> str:
    """The trials of the variants that are not in the table."""
    found = []
    for row in task["rows"]:
        texts = []
        for trial in row["trials"]:
            if trial["variant"] == row["variant"] or trial["outcome"] == "no":
                continue
            ran = trial["outcome"] in ("ok", "wrong", "estimate")
            what = f"{in_words(trial['seconds'])}, {mib(trial['peak_bytes'])}" if ran else trial["reason"]
            texts.append(f"{trial['variant']} {what}" + (", wrong" if trial["outcome"] == "wrong" else ""))
        if texts:
            found.append(f"{row['title']}: {'; '.join(texts)}")
    return f" Variants that were slower in their trial: {'. '.join(found)}." if found else ""


# ---- summary


def summary(record: Record) -> str:
    """A row for each task: ours, the best of the others, the best library, and memory."""
    head = (
        "task",
        "ours",
        "fastest other",
        "times ours",
        "fastest library",
        "times ours",
        "memory: ours",
        "leanest other",
    )
    rows, behind = [], []
    for task in record["tasks"]:
        ours = next((row for row in task["rows"] if row["contender"] == UNIT and not_counted(row) == 0), None)
        others = [row for row in task["rows"] if not row["contender"].startswith(UNIT) and not_counted(row) == 0]
        libraries = [row for row in others if not record["contenders"][row["contender"]].get("by_hand")]
        lean = leanest(others)
        cells = [short(task["task"]), "none" if ours is None else f"**{in_words(ours['median_s'])}**"]
        for found in (others, libraries):
            best = min(found, key=lambda row: row["median_s"], default=None)
            cells += ["none", ""] if best is None else [titled(best), ratio(best, ours)]
        cells.append("" if ours is None else mib(ours["peak_bytes"]))
        cells.append("none" if lean is None else f"{lean[0]}, {mib(lean[1])}")
        rows.append(cells)
        behind += shortfalls(task, ours, others, lean)
    listed = "\n".join(f"- {one}" for one in behind)
    if behind:
        words = f"Where ours is not the fastest, or not the leanest by more than 1 MiB:\n\n{listed}"
    else:
        words = "Ours is the fastest in every row, and none is leaner by more than 1 MiB."
    return f"{table(head, rows)}\n\n{words}"


def titled(row: Record) -> str:
    return f"{row['title']}, {in_words(row['median_s'])}"


def ratio(row: Record, ours: Record | None) -> str:
    return "" if ours is None else f"{row['median_s'] / ours['median_s']:.3g}"


def leanest(rows: Iterable[Record]) -> tuple[str, int] | None:
    """Contender and bytes of the variant that takes the least memory for a right value."""
    found = [
        (f"{row['title']} ({trial['variant']})" if trial["variant"] else row["title"], trial["peak_bytes"])
        for row in rows
        for trial in row["trials"]
        if trial["outcome"] == "ok" and trial["peak_bytes"] is not None
    ]
    return min(found, key=lambda one: one[1], default=None)


def shortfalls(task: Record, ours: Record | None, others: Sequence[Record], lean: tuple[str, int] | None) -> list[str]:
    """Sentences for a task at which another is ahead."""
    name, found = short(task["task"]), []
    if ours is None:
        return [f"{name}: ours has no right value"]
    fastest = min(others, key=lambda row: row["median_s"], default=None)
    if fastest is not None and fastest["median_s"] < ours["median_s"]:
        times = ours["median_s"] / fastest["median_s"]
        found.append(
            f"{name}: {fastest['title']} takes {in_words(fastest['median_s'])}, ours {times:.2f} times as long: "
            + "; ".join(why_slower(task["task"]["quantity"], ours["median_s"]))
        )
    if lean is not None and ours["peak_bytes"] - lean[1] > RESOLUTION:
        more = mib(ours["peak_bytes"] - lean[1])
        found.append(
            f"{name}: {lean[0]} needs {mib(lean[1])}, ours {more} more: {MORE_MEMORY[task['task']['quantity']]}"
        )
    return found


def why_slower(quantity: str, seconds: float) -> list[str]:
    """Reasons, of which there is one at least."""
    of_quantity = [SLOWER[quantity]] if quantity in SLOWER else []
    return [CALL, *of_quantity] if seconds < CALL_SHOWS or not of_quantity else of_quantity


# ---- sweeps


def growth(record: Record) -> str:
    """Exponents of every contender and sweep."""
    head = ("sweep", "contender", "sizes", "fitted over", "time", "memory", "flop count", "stopped by")
    rows = []
    for sweep in record["sweeps"]:
        for curve in scaling.curves(sweep):
            exponents = [number(curve.exponent(one)) for one in (curve.seconds, curve.bytes, curve.flops)]
            sizes, fitted = span(curve.sizes), span(curve.fitted) if len(curve.fitted) >= scaling.LEAST else "too few"
            title = bold(curve.title, curve.contender == UNIT)
            rows.append((figures.AXES[sweep["axis"]], title, sizes, fitted, *exponents, curve.stop or ""))
    base = record["sweeps"][0]["base"]
    return (
        f"Alignment of all layers of an MLP; but for what varies n = {base['n']}, width {base['width']}, depth "
        f"{base['depth']}, {base['outputs']} outputs. Exponents are slopes of the logarithms by least squares over the "
        "larger half of a contender's sizes, three at least; that of the flop count is of the least flops that the "
        "task takes, over the same sizes. Small sizes grow slower than their flops: calls have overheads.\n\n"
        + table(head, rows)
    )


def span(sizes: Sequence[int]) -> str:
    return f"{sizes[0]:,}" if len(sizes) == 1 else f"{sizes[0]:,} to {sizes[-1]:,}"


def number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


# ---- sections of other scripts


def section(record: Record) -> str:
    """A title, a text, a table, and the machine."""
    machine = record.get("machine", {})
    parts = [str(machine["cpu"])] if machine.get("cpu") else []
    parts += [f"{machine['threads']} cores"] if machine.get("threads") else []
    parts += [f"torch {machine['torch']}"] if machine.get("torch") else []
    where = f"\n\nMeasured on {', '.join(parts)}." if parts else ""
    rows = [[written(cell) for cell in row] for row in record["rows"]]
    drawn = [f"![{record['title']}](results/{name}.png)" for name in record.get("figures", [])]
    parts = [f"## {record['title']}", record["text"].strip(), *drawn, table(record["columns"], rows) + where]
    return "\n\n".join(parts)


def written(cell: str | float | None) -> str:
    if cell is None or isinstance(cell, str):
        return cell or ""
    return f"{cell:,}" if isinstance(cell, int) else f"{cell:.4g}"


# ---- words


def described(task: Record) -> str:
    """A heading."""
    network = (
        "ResNet18 on 32 x 32 images"
        if task["network"] == "resnet18"
        else f"MLP of depth {task['depth']} and width {task['width']}"
    )
    quantity = QUANTITIES[task["quantity"]]
    return f"{quantity[0].upper()}{quantity[1:]}: {network}, n = {task['n']:,}, {task['outputs']} outputs"


def short(task: Record) -> str:
    network = "ResNet18, " if task["network"] == "resnet18" else ""
    return f"{QUANTITIES[task['quantity']]}, {network}n = {task['n']:,}"


def median_of_ours(task: Record) -> float | None:
    ours = (row["median_s"] for row in task["rows"] if row["contender"] == UNIT and not_counted(row) == 0)
    return next(ours, None)


def mib(size: float | None) -> str:
    """Bytes in MiB, with a decimal below 10."""
    return "" if size is None else f"{size / 2**20:,.{int(size < 10 << 20)}f} MiB"


def si(value: float) -> str:
    """12.3 G, for a unit to follow."""
    for prefix, scale in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= scale:
            return f"{value / scale:.3g} {prefix}"
    return f"{value:.3g} "


def bold(text: str, yes: bool) -> str:
    return f"**{text}**" if yes else text


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Markdown; a bar inside a cell is written out."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)
