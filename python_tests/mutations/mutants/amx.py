"""Faults in the kernels for AMX, which the tests compile and run with its tile registers emulated."""

from __future__ import annotations

from python_tests.mutations.mutant import Mutant

KERNELS = "csrc/cpu/isa/tile_amx.cpp"
TESTS = ("python_tests/native/test_tile_kernels.py::test_every_instruction_set_of_this_processor",)


def mutant(name: str, text: str, replacement: str, fault: str) -> Mutant:
    return Mutant(f"amx-{name}", KERNELS, text, replacement, fault, TESTS)


MUTANTS = [
    # ---- configuration
    mutant("rows", "{16, 16, 16, 16, 16, 16, 16, 16};", "{16, 16, 16, 16, 16, 16, 16, 15};", "a tile lacks a row"),
    mutant(
        "ninth-tile",
        "{64, 64, 64, 64, 64, 64, 64, 64};",
        "{64, 64, 64, 64, 64, 64, 64, 64, 64};",
        "reserved bytes of the configuration are not zero",
    ),
    mutant("palette", "uint8_t palette = 1,", "uint8_t palette = 2,", "the palette does not exist"),
    mutant(
        "not-configured",
        "  if (std::memcmp(before, &kOurs, sizeof(kOurs)) != 0) _tile_loadconfig(&kOurs);\n",
        "",
        "tile registers are used that nobody has set up",
    ),
    mutant("not-released", "    _tile_release();\n", "", "tile registers stay set up"),
    mutant(
        "configuration-of-others",
        "    _tile_loadconfig(before);\n",
        "    _tile_release();\n",
        "what another library has set up is lost",
    ),
    # ---- memory
    mutant("rows-of-a-tile", "kTileRow = kPanel * sizeof(float)", "kTileRow = kSide * sizeof(float)", "a wrong stride"),
    mutant(
        "stride-of-columns", "_tile_loadd(5, b, kLine);", "_tile_loadd(5, b, 2 * kLine);", "every other row is read"
    ),
    mutant(
        "second-columns",
        "_tile_loadd(6, b + kRegister, kLine);",
        "_tile_loadd(6, b, kLine);",
        "the first columns twice",
    ),
    mutant(
        "third-digit", "_tile_loadd(6, b + 2 * kPart, kLine);", "_tile_loadd(6, b + kPart, kLine);", "a digit twice"
    ),
    mutant(
        "sums-not-stored",
        "    if (store) _tile_stored(1, before->sums[1], kLine);\n",
        "",
        "the sums of a weight are those of an earlier call",
    ),
    # ---- sums
    mutant("sums-not-cleared", "    if (first) _tile_zero(1);\n", "", "sums begin with those of the call before"),
    mutant(
        "tile-not-cleared",
        "    if constexpr (Columns > 2) _tile_zero(2);\n",
        "",
        "the last columns of a tile begin with what a register held",
    ),
    mutant("swapped-factors", "_tile_dpbf16ps(1, 3, 6);", "_tile_dpbf16ps(1, 6, 3);", "left and right are swapped"),
    mutant("swapped-digits", "_tile_dpbssd(2, 4, 7);", "_tile_dpbssd(2, 7, 4);", "left and right are swapped"),
    mutant("weight", "_tile_dpbssd(1, 4, 6);", "_tile_dpbssd(0, 4, 6);", "a product counts with the weight of another"),
    mutant(
        "sums-of-a-block",
        "accumulate || begin > 0, tile + r * kPanel);",
        "accumulate, tile + r * kPanel);",
        "only the last block along k counts",
    ),
    # ---- around the tiles
    mutant(
        "carry",
        "_mm512_srai_epi32(_mm512_add_epi32(integers, _mm512_set1_epi32(128)), 8)",
        "_mm512_srai_epi32(integers, 8)",
        "what exceeds a digit is not carried to the next",
    ),
    mutant(
        "rows-beyond-the-tile",
        "for (int64_t r = first; r < end && r < count; ++r) {",
        "for (int64_t r = first; r < end; ++r) {",
        "rows that fill up a register count in forms and squares",
    ),
    mutant(
        "columns-of-the-next-tile",
        "      if (r == 0 && c == 0 && j > 0) done(j - 1);\n",
        "",
        "the sums of all tiles but the last are left out",
    ),
]
