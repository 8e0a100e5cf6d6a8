"""Faults in the CUDA kernels, which the tests run on an emulator."""

from __future__ import annotations

from python_tests.mutations.mutant import Mutant

KERNELS = "python_tests/ops/test_cuda_kernels.py"
MMA = "csrc/cuda/mainloop_mma.cuh"
WGMMA = "csrc/cuda/mainloop_wgmma.cuh"
EPILOGUE = "csrc/cuda/epilogue.cuh"
PACK = "csrc/cuda/pack.cuh"

MUTANTS = [
    Mutant(
        "mma-last-product-not-waited-for",
        MMA,
        "    sync_threads();  // the last product has been read\n",
        "",
        "copies for the next product overwrite what other warps still read",
        (KERNELS,),
    ),
    Mutant(
        "mma-a-slice-too-early",
        MMA,
        "copies_wait<kStages<kParts> - 2>();",
        "copies_wait<kStages<kParts> - 1>();",
        "a slice is read before its copies are done",
        (KERNELS,),
    ),
    Mutant(
        "mma-sums-over-all-slices",
        MMA,
        "      if constexpr (kPromoted) {\n",
        "      if constexpr (kParts == 3) {\n",
        "sums over many numbers are kept in the tensor cores, which cut them off",
        (f"{KERNELS}::test_sums_over_long_k_keep_their_digits", KERNELS),
    ),
    Mutant(
        "mma-the-same-rows-twice",
        MMA,
        "multiply<kBlocksAtOnce>(slice, first, of_slice);",
        "multiply<kBlocksAtOnce>(slice, 0, of_slice);",
        "with several positions, the second half of a warp's rows gets the sums of the first",
        (KERNELS,),
    ),
    Mutant(
        "wgmma-sums-over-all-slices",
        WGMMA,
        "  if constexpr (kPromoted) {\n",
        "  if constexpr (kParts == 3) {\n",
        "sums over many numbers are kept in the tensor cores, which cut them off",
        (f"{KERNELS}::test_sums_over_long_k_keep_their_digits", KERNELS),
    ),
    Mutant(
        "wgmma-emptied-before-all-rows-are-read",
        WGMMA,
        "if (block == kBlocks - 1) arrive(ring.emptied(slot.stage));",
        "if (block == 0) arrive(ring.emptied(slot.stage));",
        "a stage is filled again before the second half of a tile's rows has been multiplied",
        (f"{KERNELS}::test_any_schedule", KERNELS),
    ),
    Mutant(
        "straight-sums-by-parts",
        "ahkernels/ops/cuda.py",
        "            STRAIGHT[precision],\n",
        '            STRAIGHT["medium" if count == 1 else precision],\n',
        "factors that are bf16 already are summed as at medium, whatever precision was asked for",
        (f"{KERNELS}::test_sums_over_long_k_keep_their_digits", KERNELS),
    ),
    Mutant(
        "mma-pieces-in-the-same-banks",
        MMA,
        "((piece ^ (row / 2 % 4)) * 16)",
        "(piece * 16)",
        "the pieces of a row are not swapped around, so that eight rows are read from the same banks",
        (KERNELS,),
    ),
    Mutant(
        "wgmma-turns-without-waiting",
        WGMMA,
        "  if (turn > 0) barrier_wait(ring.turn(turn % kGroups), static_cast<uint32_t>((turn - 1) / kGroups % 2));\n",
        "",
        "a group waits for slices before the other group has seen the last one of its turn",
        (KERNELS,),
    ),
    Mutant(
        "wgmma-full-stages-are-filled",
        WGMMA,
        "barrier_wait(ring.emptied(slot.stage), slot.parity ^ 1);",
        "barrier_wait(ring.emptied(slot.stage), slot.parity);",
        "the producer waits for stages that nobody has filled yet",
        (KERNELS,),
    ),
    Mutant(
        "wgmma-emptied-before-it-is-read",
        WGMMA,
        "        products_wait<1>();\n",
        "",
        "a stage is filled again while products still read it",
        (KERNELS,),
    ),
    Mutant(
        "rows-past-the-end",
        EPILOGUE,
        "if (!kWhole && (row >= problem.size || col >= problem.size)) return;",
        "if (!kWhole && col >= problem.size) return;",
        "rows that fill up the last tile count, and are written past the end",
        (KERNELS,),
    ),
    Mutant(
        "tiles-off-the-diagonal-once",
        EPILOGUE,
        "return place.tile.row == place.tile.col ? total : 2 * total;",
        "return total;",
        "a tile off the diagonal does not stand for its mirror image",
        (KERNELS,),
    ),
    Mutant(
        "samples-past-the-last",
        EPILOGUE,
        "kWhole || sample < problem.n ? sample : problem.n - 1",
        "sample",
        "the forward Gram is read past its end for columns that fill up a tile",
        (KERNELS,),
    ),
    Mutant(
        "gram-at-the-first-pair-of-positions",
        EPILOGUE,
        "static_cast<uint32_t>(pair * problem.p_rows)",
        "static_cast<uint32_t>(0 * pair * problem.p_rows)",
        "every pair of positions takes the forward Gram of the first one",
        (KERNELS,),
    ),
    Mutant(
        "output-of-the-next-column",
        EPILOGUE,
        "(e == 1 && at.output + 1 == o ? 1 : 0)",
        "(e == 1 && at.output == o ? 1 : 0)",
        "the second of two columns is of the same sample also where outputs begin anew",
        (KERNELS,),
    ),
    Mutant(
        "parts-cut-off",
        PACK,
        "(bits + 0x7FFF + (bits >> 16 & 1)) >> 16",
        "bits >> 16",
        "numbers are cut off to bf16 and not rounded",
        (f"{KERNELS}::test_factors_of_16_bits_are_exact_in_parts", KERNELS),
    ),
    Mutant(
        "subnormal-halves",
        PACK,
        "from_bits(0x77800000u)",
        "from_bits(0x77000000u)",
        "numbers of 16 bits are half of what they are",
        (f"{KERNELS}::test_factors_of_16_bits_are_exact_in_parts", KERNELS),
    ),
    Mutant(
        "smallest-products-left-out",
        "csrc/cuda/problem.cuh",
        "for (int a = 0; a <= order; ++a) visit(a, order - a);",
        "for (int a = 0; a <= order; ++a) if (order < 2) visit(a, order - a);",
        "three parts are multiplied as if there were two",
        (KERNELS,),
    ),
    Mutant(
        "band-of-tiles-too-high",
        "csrc/tiling.h",
        "int64_t{height} * (height + 1) / 2",
        "int64_t{height} * (height - 1) / 2",
        "the tiles of a band are counted without those on the diagonal",
        (f"{KERNELS}::test_tile_bands_visit_each_tile_once", KERNELS),
    ),
]
