"""Faults in the host code of the CUDA ops, which the tests run on a stub of the runtime and the driver."""

from __future__ import annotations

from python_tests.mutations.mutant import Mutant

LAUNCHES = "python_tests/ops/test_cuda_launches.py"
LIBRARY = "python_tests/ops/test_cuda_library.py"
LAUNCH = "csrc/cuda/launch.cuh"
OPS = "csrc/cuda/ops.cu"
BUILD = "ahkernels/ops/build.py"

MUTANTS = [
    Mutant(
        "launch-without-its-shared-memory",
        LAUNCH,
        "  STD_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, "
        "static_cast<int>(shared)));\n",
        "",
        "a kernel is launched with more shared memory than is allowed without asking",
        (LAUNCHES,),
    ),
    Mutant(
        "launch-that-nobody-checks",
        LAUNCH,
        "  STD_CUDA_KERNEL_LAUNCH_CHECK();\n",
        "",
        "a launch that failed goes on with numbers that nobody has written",
        (LAUNCHES,),
    ),
    Mutant(
        "map-of-bytes-between-rows",
        LAUNCH,
        "const uint64_t row_stride[1] = {k * 2};",
        "const uint64_t row_stride[1] = {k};",
        "rows of the tensor map overlap",
        (LAUNCHES,),
    ),
    Mutant(
        "map-of-one-part",
        LAUNCH,
        "static_cast<uint64_t>(parts.numel()) / k}",
        "static_cast<uint64_t>(parts.size(2))}",
        "the tensor map ends with the first part, and zeros stand for the others",
        (LAUNCHES,),
    ),
    Mutant(
        "map-with-boxes-of-a-tile",
        LAUNCH,
        "tensor_map(parts, Shape::kTurnRows)",
        "tensor_map(parts, kTile)",
        "with three parts a copy brings twice the bytes that the barrier expects",
        (LAUNCHES,),
    ),
    Mutant(
        "map-errors-ignored",
        LAUNCH,
        "STD_TORCH_CHECK(result == CUDA_SUCCESS,",
        "STD_TORCH_CHECK(result != CUDA_SUCCESS || true,",
        "a tensor map that the driver has refused is used",
        (LAUNCHES,),
    ),
    Mutant(
        "warpgroup-products-after-hopper",
        LAUNCH,
        "attribute(cudaDevAttrComputeCapabilityMajor, parts) == 9",
        "attribute(cudaDevAttrComputeCapabilityMajor, parts) >= 9",
        "later devices are given a kernel that is empty for them",
        (LAUNCHES,),
    ),
    Mutant(
        "blocks-without-tiles",
        LAUNCH,
        "std::min(hopper ? processors : 2 * processors, tiles)",
        "(hopper ? processors : 2 * processors)",
        "blocks are launched that have no tile",
        (LAUNCHES,),
    ),
    Mutant(
        "rows-of-one-part-alone",
        OPS,
        "rows * positions * count < kRowsLimit",
        "rows * positions < kRowsLimit",
        "rows of later parts are counted past 32 bits",
        (LAUNCHES,),
    ),
    Mutant(
        "nothing-to-pack",
        OPS,
        "STD_TORCH_CHECK(rows * positions > 0,",
        "STD_TORCH_CHECK(rows * positions >= 0,",
        "no rows at all end in an error of CUDA's about the configuration",
        (LAUNCHES,),
    ),
    Mutant(
        "any-number-of-parts",
        "csrc/cuda/arguments.cuh",
        "parts.size(0) >= 1 && parts.size(0) <= 3 && parts.size(2) == ceil_div(size",
        "parts.size(2) == ceil_div(size",
        "parts that the kernel does not know are left out",
        (LAUNCHES,),
    ),
    Mutant(
        "any-library-in-the-folder",
        BUILD,
        "    if not _CUDA_LIBRARY.is_file():\n",
        "    if not any(_CUDA_LIBRARY.parent.glob('_cuda*.so')):\n",
        "a library for another Python hides that the right one is missing",
        (LIBRARY,),
    ),
]
