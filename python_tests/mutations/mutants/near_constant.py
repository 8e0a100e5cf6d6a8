"""Faults in what CUDA does with near-constant kernels, in tiles on an emulator and beside them."""

from __future__ import annotations

from python_tests.mutations.mutant import Mutant

TESTS = "python_tests/ops/test_near_constant_kernels.py"
DIGITS = f"{TESTS}::test_near_constant_kernels_keep_their_digits"
NUMBERS = f"{TESTS}::test_a_kernel_is_its_tiles_and_numbers"
ROWS = f"{TESTS}::test_other_means_of_rows_are_subtracted_as_they_are"
OPERANDS = "csrc/cuda/near_constant.cuh"
PYTHON = "ahkernels/ops/near_constant.py"
DEVIATIONS = "ahkernels/ops/cuda/deviation_kernel.py"

MUTANTS = [
    Mutant(
        "deviations-output-past-the-last",
        OPERANDS,
        "offset(of_eight_ + e == problem_.o ? 0 : of_eight_ + e, place_.row)",
        "offset(of_eight_ + e, place_.row)",
        "the second of two columns has an output past the last one where outputs begin anew",
        (DIGITS,),
    ),
    Mutant(
        "deviations-first-of-a-pair",
        OPERANDS,
        "at<float>(of_row_[block][h] + 4, col_)",
        "at<float>(of_row_[block][h], col_)",
        "columns take what all samples share in the place of their own number",
        (DIGITS,),
    ),
    Mutant(
        "deviations-products-with-the-mean-alone",
        OPERANDS,
        "return constant_ + kappa_ * (p_row + col);",
        "return constant_ + kappa_ * (p_row + p_col);",
        "the Gram of deviations of gradients is multiplied by products of inputs with their mean alone",
        (DIGITS,),
    ),
    Mutant(
        "deviations-product-of-all-left-out",
        OPERANDS,
        "const float row = p_row + z,",
        "const float row = p_row,",
        "a product of deviations is left out, which counts where kernels are far from constant",
        (DIGITS,),
    ),
    Mutant(
        "deviations-row-for-column",
        OPERANDS,
        "pair.y * col;",
        "pair.y * row;",
        "the number of a row is multiplied by another of the row, and not by the column's",
        (DIGITS,),
    ),
    Mutant(
        "deviations-rows-of-the-first-block",
        OPERANDS,
        "const Place of_block{place.row_of(block, 0), place.col, place.block_rows};",
        "const Place of_block{place.row, place.col, place.block_rows};",
        "all blocks of rows take what belongs to the first one",
        (DIGITS,),
    ),
    Mutant(
        "deviations-zeros-have-a-scale",
        DEVIATIONS,
        "(1 / scales).masked_fill(largest == 0, 0.0)",
        "1 / scales",
        "the size of deviations that are zero makes others vanish beside it",
        (f"{TESTS}::test_deviations_of_one_factor_alone", TESTS),
    ),
    Mutant(
        "deviations-unit-of-the-smaller",
        PYTHON,
        "t = sizes.amax()",
        "t = sizes.amin()",
        "numbers leave the range of fp32 where one factor deviates much less than the other",
        (f"{TESTS}::test_deviations_of_one_factor_alone", TESTS),
    ),
    Mutant(
        "deviations-means-not-rounded",
        PYTHON,
        "factor.mean(0, dtype=torch.float64).to(dtype).double()",
        "factor.mean(0, dtype=torch.float64)",
        "what is not in the tiles has other means than the deviations in them",
        (NUMBERS, DIGITS),
    ),
    Mutant(
        "deviations-means-of-rows-once",
        PYTHON,
        "of_tiles - 2 * n * _products(",
        "of_tiles - n * _products(",
        "means of what tiles hold are subtracted from rows and not from columns",
        (DIGITS,),
    ),
    Mutant(
        "deviations-mean-of-all-left-out",
        PYTHON,
        "found += n**2 * _products(",
        "found += 0 * _products(",
        "the mean of a block is subtracted twice",
        (DIGITS,),
    ),
    Mutant(
        "deviations-block-without-columns",
        PYTHON,
        "h.mean(0) + h.mean(0).T + kernel.constant",
        "2 * h.mean(0) + kernel.constant",
        "the mean of a block has what depends on rows twice, and nothing of what depends on columns",
        (DIGITS,),
    ),
    Mutant(
        "deviations-constant-twice",
        PYTHON,
        "kernel.constant[0] / 2",
        "kernel.constant[0]",
        "rows and columns both take the whole constant",
        (ROWS, TESTS),
    ),
    Mutant(
        "deviations-sums-without-offsets",
        PYTHON,
        "2 * (cross + cross.T)",
        "4 * cross",
        "sums of the rows of one kernel meet offsets of the other, and not the other way round",
        (ROWS, TESTS),
    ),
    Mutant(
        "deviations-unit-of-one-kernel",
        "ahkernels/ops/cuda/inner_products.py",
        "precision) * units * units[:, None]",
        "precision) * units * units",
        "products of two kernels have the unit of one of them twice",
        (f"{TESTS}::test_three_kernels_in_panels", TESTS),
    ),
    Mutant(
        "deviations-pairs-past-32-bits",
        DEVIATIONS,
        "if -(-batch.n * batch.o // tiles.TILE) * tiles.TILE * batch.o >= MOST_PAIRS:",
        "if -(-batch.n * batch.o // tiles.TILE) * tiles.TILE * batch.o > MOST_PAIRS:",
        "offsets of pairs of outputs leave 32 bits",
        (f"{TESTS}::test_more_pairs_than_offsets_reach", TESTS),
    ),
]
