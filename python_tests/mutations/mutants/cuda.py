"""Faults in the CUDA kernels, which the tests run on an emulator."""

from __future__ import annotations

from python_tests.mutations.mutant import Mutant

KERNELS = "python_tests/ops/test_cuda_kernels.py"
SCHEDULES = f"{KERNELS}::test_any_schedule"
PRODUCTS = f"{KERNELS}::test_gram_and_inner_products"
MMA = "csrc/cuda/mainloop_mma.cuh"
WGMMA = "csrc/cuda/mainloop_wgmma.cuh"
EPILOGUE = "csrc/cuda/epilogue.cuh"
GRAM_TILE = "csrc/cuda/gram_tile.cuh"
TILING = "csrc/tiling.h"
FORWARD_GRAM = "python_tests/ops/test_forward_gram.py"
OPS = "ahkernels/ops/cuda.py"
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
        "      if constexpr (kParts == 3) {\n",
        "      if constexpr (kParts == 4) {\n",
        "sums over many numbers are kept in the tensor cores, which cut them off",
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
        "return place.on_diagonal() ? total : 2 * total;",
        "return total;",
        "a tile off the diagonal does not stand for its mirror image",
        (KERNELS,),
    ),
    Mutant(
        "samples-past-the-last",
        EPILOGUE,
        "kWhole || sample < problem_.n ? sample : problem_.n - 1",
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
        "(e == 1 && at_.output + 1 == problem_.o ? 1 : 0)",
        "(e == 1 && at_.output == problem_.o ? 1 : 0)",
        "the second of two columns is of the same sample also where outputs begin anew",
        (KERNELS,),
    ),
    Mutant(
        "gram-tile-written-while-it-is-read",
        GRAM_TILE,
        "    sync_warpgroup(group_);  // the last turn's has been read\n",
        "",
        "copies for the next turn come while other warps still read the forward Gram of the last one",
        (SCHEDULES, PRODUCTS),
    ),
    Mutant(
        "gram-tile-read-before-copies-are-done",
        GRAM_TILE,
        "    copies_wait<0>();\n",
        "",
        "the forward Gram is read before its copies are done",
        (SCHEDULES, PRODUCTS),
    ),
    Mutant(
        "gram-tile-read-before-others-have-copied",
        GRAM_TILE,
        "    sync_warpgroup(group_);  // all have brought their share\n",
        "",
        "a thread waits for its own copies alone",
        (SCHEDULES, PRODUCTS),
    ),
    Mutant(
        "gram-tile-too-small",
        GRAM_TILE,
        "return (static_cast<int32_t>(kTile) - 2) / o + 2 <= Samples;",
        "return o > 0;",
        "the samples of a tile with few outputs do not fit into shared memory",
        (SCHEDULES, PRODUCTS),
    ),
    Mutant(
        "gram-tile-a-sample-short",
        GRAM_TILE,
        "(end < last ? end : last) + 1)",
        "(end < last ? end : last))",
        "the last sample of a tile's columns is not brought",
        (SCHEDULES, PRODUCTS),
    ),
    Mutant(
        "gram-tile-rows-in-another-order",
        GRAM_TILE,
        "slot % 2 * 8 + slot / (2 * Blocks) % 8",
        "slot % 2 + slot / (2 * Blocks) % 8 * 2",
        "the forward Gram and the means are those of other rows",
        (SCHEDULES, PRODUCTS),
    ),
    Mutant(
        "gram-tiles-at-one-place",
        WGMMA,
        "group * Shape<kParts>::Gram::kBytes",
        "0 * group * Shape<kParts>::Gram::kBytes",
        "the forward Grams of both groups, and the barriers, lie at one place",
        (SCHEDULES, PRODUCTS),
    ),
    Mutant(
        "gram-tiles-at-one-barrier",
        WGMMA,
        "ring.gram(turn % kGroups), turn % kGroups)",
        "ring.gram(turn % kGroups), 0)",
        "both groups wait for their own threads at one barrier",
        (SCHEDULES, PRODUCTS),
    ),
    Mutant(
        "forward-gram-in-tf32",
        OPS,
        "keeps = layer.forward.shape[2] <= LONGEST_FLOAT32_SUM and products_are_in_float32(layer.forward.device)",
        "keeps = layer.forward.shape[2] <= LONGEST_FLOAT32_SUM",
        "what torch is set to lowers the digits of the forward Gram at a precision that was asked for",
        (FORWARD_GRAM,),
    ),
    Mutant(
        "forward-gram-of-long-sums",
        OPS,
        "keeps = layer.forward.shape[2] <= LONGEST_FLOAT32_SUM and products",
        "keeps = products",
        "sums of many products in fp32 lose the digits of two bf16 parts",
        (FORWARD_GRAM,),
    ),
    Mutant(
        "bands-of-any-height",
        TILING,
        "ceil_div(rows, ceil_div(rows, kMostBandRows))",
        "int64_t{kMostBandRows}",
        "the last band of tiles may be a low one",
        (f"{KERNELS}::test_tile_bands_are_of_one_height",),
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
        TILING,
        "height * (height + 1) / 2",
        "height * (height - 1) / 2",
        "the tiles of a band are counted without those on the diagonal",
        (f"{KERNELS}::test_tile_bands_visit_each_tile_once", KERNELS),
    ),
]
