"""The checks of machine code in .ci: small programs that keep to the rules, and one for each way not to."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

CI = Path(__file__).resolve().parents[2] / ".ci"
sys.path.insert(0, str(CI))
try:
    check_cuda, sass, sass_counts, sass_rules = map(
        importlib.import_module, ("check_cuda", "sass", "sass_counts", "sass_rules")
    )
finally:
    sys.path.remove(str(CI))

NAME = "wgmma::tiles<1, true, false, squares, false>"
CONSTANTS = {"kTile": 64, "kSlice": 32, "kProducerRegisters": 24, "kGroupRegisters": 240}


@pytest.fixture(autouse=True)
def constants(monkeypatch):
    """Those that the programs here are written for."""
    monkeypatch.setattr(check_cuda, "constant", lambda name, *_: CONSTANTS[name])


def kernel(text, functions=("kernel",)):
    """A line is an instruction, after its predicate if it has one. A name and a colon start a function or a place."""
    lines = [line.split("#")[0].strip() for line in text.strip().splitlines()]
    places, code = {}, []
    for line in lines:
        if line.endswith(":"):
            places[line[:-1]] = 16 * len(code)
        else:
            code.append(line.split())
    made = sass.Kernel("kernel", functions={name: places.get(name, 0) for name in functions})
    for index, words in enumerate(code):
        predicate = words.pop(0) if words[0].startswith("@") else ""
        operands = ",".join(hex(places[one]) if one in places and one not in functions else one for one in words[1:])
        made.instructions.append(sass.Instruction(16 * index, words[0], operands, predicate))
    return made


# A producer of one instruction, and a group whose products are in pairs: a mainloop in a loop over tiles.
WHOLE = """
    S2R R0 SR_TID.X
    @P0 BRA producer
    USETMAXREG.TRY_ALLOC.CTAPOOL UP0 0xf0
tile:
    MOV R2 RZ
slice:
    WARPGROUP.ARRIVE
    HGMMA.64x64x16.F32.BF16 R24 gdesc[UR4] R24 UP0
    R2UR UR4 R4
    HGMMA.64x64x16.F32.BF16 R24 gdesc[UR4] R24 gsb0
    @P3 BRA first
    WARPGROUP.DEPBAR.LE gsb0 0x1
    SYNCS.ARRIVE.TRANS64.A1T0 RZ [R3+URZ+0x18] RZ
first:
    VIADD R2 R2 0x1
    @P1 BRA slice
    WARPGROUP.DEPBAR.LE gsb0 0x0
    FADD R6 R24 R55
    FFMA R6 R6 R6 R7
    @P2 BRA tile
    STG.E desc[UR6][R8.64] R6
    EXIT
producer:
    USETMAXREG.DEALLOC.CTAPOOL 0x18
    UTMALDG.2D [UR8] [UR10]
    EXIT
"""


def faults(text):
    return check_cuda.faults_of_kernel(kernel(text), NAME, hot=True)


def changed(old, new):
    assert WHOLE.count(old) == 1
    return WHOLE.replace(old, new)


def test_kernel_that_keeps_to_the_rules():
    assert faults(WHOLE) == []


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("    WARPGROUP.DEPBAR.LE gsb0 0x0\n", "", "unfinished products are touched"),
        ("gsb0 0x0\n    FADD", "gsb0 0x1\n    FADD", "unfinished products are touched"),
        (
            "    WARPGROUP.DEPBAR.LE gsb0 0x0\n",
            "    FADD R25 R25 R25\n    WARPGROUP.DEPBAR.LE gsb0 0x0\n",
            "touched at",
        ),
        ("VIADD R2 R2 0x1", "VIADD R2 R55 0x1", "touched at"),  # the last register, read
        ("VIADD R2 R2 0x1", "IMAD.WIDE R54 R2 R2 RZ", "touched at"),  # the second half of a pair
        ("VIADD R2 R2 0x1", "LDG.E.128 R20 desc[UR6][R54.64]", "touched at"),  # an address
        ("R2UR UR4 R4", "R2UR UR4 R30", "touched at"),  # before the group is complete
        ("R24 gsb0", "R24", "unfinished products are touched"),
        (
            "    HGMMA.64x64x16.F32.BF16 R24 gdesc[UR4] R24 UP0\n",
            "",
            "expected 131072 multiply-adds for 64 rows in each group",
        ),
        ("    WARPGROUP.ARRIVE\n", "", "no fence before the product"),
        ("    MOV R2 RZ\n", "    WARPGROUP.ARRIVE\n    MOV R40 RZ\n", None),
        ("    WARPGROUP.ARRIVE\n", "    WARPGROUP.ARRIVE\n    @P4 MOV R40 RZ\n", "no fence before the product"),
        ("    STG.E desc[UR6][R8.64] R6\n", "    STL [R1] R6\n", "local memory is used"),
        ("    USETMAXREG.DEALLOC.CTAPOOL 0x18\n", "", "expected setmaxnreg of [24, 240], found [240]"),
        ("UP0 0xf0", "UP0 0xe8", "expected setmaxnreg of [24, 240], found [232, 24]"),
        ("UTMALDG.2D [UR8] [UR10]", "MOV R24 RZ", "beyond the limit of 24"),
        ("UTMALDG.2D [UR8] [UR10]", "LDC.64 R22 c[0x0][0x210]", None),
        ("UTMALDG.2D [UR8] [UR10]", "LDC.64 R23 c[0x0][0x210]", "beyond the limit of 24"),
        ("FFMA R6 R6 R6 R7", "FFMA R6 R6 R6 R240", "beyond the limit of 240"),
        ("@P2 BRA tile", "EXIT\n    @P2 BRA tile", None),
        ("    WARPGROUP.DEPBAR.LE gsb0 0x0\n", "    @P5 EXIT\n    WARPGROUP.DEPBAR.LE gsb0 0x0\n", "nothing waits"),
    ],
)
def test_each_fault_is_found(old, new, fault):
    found = faults(changed(old, new))
    if fault is None:
        assert found == []
    else:
        assert any(fault in one for one in found)


def test_a_group_that_is_let_run_holds_only_its_own_registers():
    text = """
        WARPGROUP.ARRIVE
        HGMMA.64x64x16.F32.BF16 R24 gdesc[UR4] RZ !UPT gsb0
        HGMMA.64x64x16.F32.BF16 R56 gdesc[UR8] RZ !UPT gsb0
        WARPGROUP.DEPBAR.LE gsb0 0x1
        FADD R4 R24 R55
        WARPGROUP.DEPBAR.LE gsb0 0x0
        FADD R4 R56 R87
        EXIT
    """
    assert sass_rules.faults_of_products(kernel(text)) == []
    early = kernel(text.replace("FADD R4 R24 R55", "FADD R4 R24 R56"))
    assert len(sass_rules.faults_of_products(early)) == 1


def test_functions_that_are_called_count_where_they_are_called():
    text = """
    kernel:
        CALL.REL.NOINC divide
        WARPGROUP.ARRIVE
        HGMMA.64x64x16.F32.BF16 R24 gdesc[UR4] RZ !UPT gsb0
        {}
        WARPGROUP.DEPBAR.LE gsb0 0x0
        CALL.REL.NOINC divide
        EXIT
    divide:
        IADD3 R24 R24 R2 RZ
        RET.REL.NODEC R20 0x0
    """
    functions = ("kernel", "divide")
    assert sass_rules.faults_of_products(kernel(text.format("NOP"), functions)) == []
    (fault,) = sass_rules.faults_of_products(kernel(text.format("CALL.REL.NOINC divide"), functions))
    assert "IADD3" in fault


def test_jumps_to_unknown_places_are_refused():
    with pytest.raises(ValueError, match="expected jumps to addresses only, got 0000: BRX R2"):
        sass_rules.faults_of_products(kernel("BRX R2 -0x10\nEXIT"))


@pytest.mark.parametrize(
    ("line", "registers"),
    [
        ("IMAD.WIDE.U32 R26 P0 R166 0x55555555 R24", {26, 27, 166, 24, 25}),
        ("IMAD.HI.U32 R3 R3 R7 R2", {2, 3, 7}),
        ("F2F.F32.F64 R25 R18", {25, 18, 19}),
        ("F2F.F64.F32 R28 R34", {28, 29, 34}),
        ("I2F.U64.RP R26 R28", {26, 28, 29}),
        ("F2I.FTZ.U32.TRUNC.NTZ R3 R5", {3, 5}),
        ("F2I.U64.TRUNC R32 R40", {32, 33, 40}),
        ("DFMA R36 R24 -R32 1", {36, 37, 24, 25, 32, 33}),
        ("CS2R R208 SRZ", {208, 209}),
        ("STG.E.64 desc[UR10][R2.64+0x8] R8", {2, 3, 8, 9}),
        ("STS.128 [R4+UR5] R8", {4, 8, 9, 10, 11}),
        ("LDSM.16.M88.4 R80 [R52+UR26]", {52, 80, 81, 82, 83}),
        ("HMMA.16816.F32.BF16 R136 R80.reuse R48 RZ", {48, 49, *range(80, 84), *range(136, 140)}),
        ("HGMMA.64x16x16.F32.BF16 R24 R4 gdesc[UR6] R24 gsb0", {*range(4, 8), *range(24, 32)}),
        ("UIADD3 UR6 UR4 0x3ff URZ", set()),
        ("@!P0 IADD3 R5 P1 R2.reuse -UR7 RZ", {5, 2}),
    ],
)
def test_registers_that_an_instruction_touches(line, registers):
    (one,) = kernel(line).instructions
    assert one.touched == sum(1 << register for register in registers)


def test_counts_of_the_shortest_way():
    counts = sass_counts.counts_of(kernel(WHOLE))
    assert (counts.mainloop.total(), counts.mainloop_size) == (7, 9)
    assert (counts.between.total(), counts.between_size) == (5, 5)
    assert counts.between == {"WARPGROUP": 1, "FADD": 1, "FFMA": 1, "BRA": 1, "MOV": 1}


def test_counts_need_both_loops():
    with pytest.raises(ValueError, match="expected a loop with matrix products in a loop over tiles"):
        sass_counts.counts_of(kernel(changed("    @P2 BRA tile\n", "")))


def test_names():
    tiles = "_ZN9ahkernels4cuda5wgmma5tilesILi3ELb1ELb0ELNS0_6ResultE{}ELb0EEEvNS0_7ProblemE14CUtensorMap_stS5_"
    mangled = [tiles.format(0), tiles.format(1), "_ZN9ahkernels4cuda4packENS0_7PackingE"]
    assert check_cuda.short_names(mangled) == [
        "wgmma::tiles<3, true, false, squares, false>",
        "wgmma::tiles<3, true, false, matrix, false>",
        "pack",
    ]


def test_hot_kernels_must_be_there():
    tiles = "_ZN9ahkernels4cuda5wgmma5tilesILi{}ELb1ELb0ELNS0_6ResultE0ELb0EEEvNS0_7ProblemE14CUtensorMap_stS5_"
    kernels = [sass.Kernel(tiles.format(parts), kernel(WHOLE).instructions, {"kernel": 0}) for parts in (1, 3)]
    entries = {(one.name, "sm_90a"): {"registers": "168", "stores": "0", "loads": "0"} for one in kernels}
    rows, failures = check_cuda.check_target(kernels, "sm_90a", entries)
    assert [(row["hot"], row["mainloop"]) for row in rows] == [(True, 7)] * 2
    (failure,) = failures
    assert "wgmma::tiles<3, true, false, squares, false>: expected 786432 multiply-adds" in failure  # of one part
    for parts in (1, 2, 3):
        of_parts = f"tiles<{parts}, true, false, squares"
        rows += [{"target": "sm_80", "kernel": f"mma::{of_parts}, {of}>"} for of in ("false", "true")]
        rows.append({"target": "sm_90a", "kernel": f"wgmma::{of_parts}, true>"})
    (missing,) = check_cuda.missing_kernels(rows)
    assert missing.startswith("sm_90a: expected a kernel like wgmma::")
    assert missing.endswith("for 2 parts, false at the end, found none")


@pytest.mark.parametrize(
    "line",
    [
        "ptxas info    : (C7518) Potential Performance Loss: wgmma.mma_async instructions are serialized due to x",
        "ptxas info    : (C7508) Potential Performance Loss: 'setmaxnreg' ignored; unable to determine register count",
        "ptxas warning : Too big maxrregcount value specified 300, will be ignored",
    ],
)
def test_anything_unusual_in_the_report_is_a_fault(line):
    usual = """ptxas info    : 28 bytes gmem, 224 bytes cmem[4]
ptxas info    : Compiling entry function 'f' for 'sm_80'
ptxas info    : Function properties for f
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 4 registers, used 0 barriers, 768 bytes cmem[0]
ptxas info    : Compile time = 6.904 ms
"""
    assert check_cuda.faults_of_report(usual) == []
    assert check_cuda.faults_of_report(usual + line) == [line]


def test_disassembly_is_read_by_functions():
    instructions = [{"opcode": "CALL.REL.NOINC", "operands": "divide"}, {"predicate": "@P0", "opcode": "EXIT"}]
    returning = [{"opcode": "RET.REL.NODEC", "operands": "R28,kernel"}]
    names = [("kernel", 0, instructions), ("divide", 32, returning), ("other", 0, returning)]
    keys = ("function-name", "start", "sass-instructions")
    first, second = sass.kernels_of([{}, [dict(zip(keys, one, strict=True)) for one in names]])
    assert first.functions == {"kernel": 0, "divide": 32}
    assert [str(one).split()[1] for one in first.instructions] == ["CALL.REL.NOINC", "@P0", "RET.REL.NODEC"]
    assert list(first.walk(0, ())) == [(2, (1,))]
    assert list(first.walk(2, (1,))) == [(1, ())]
    assert (second.name, len(second.instructions)) == ("other", 1)
