"""Faults in the CUDA kernels that show under some schedules alone, or in what a processor leaves undefined."""

from __future__ import annotations

from python_tests.mutations.mutant import Mutant

KERNELS = "python_tests/ops/test_cuda_kernels.py"
SCHEDULES = f"{KERNELS}::test_any_schedule"
INSTRUCTIONS = "csrc/cuda/instructions.cuh"
MMA = "csrc/cuda/mainloop_mma.cuh"
WGMMA = "csrc/cuda/mainloop_wgmma.cuh"


def mutant(name: str, file: str, text: str, replacement: str, fault: str) -> Mutant:
    return Mutant(name, file, text, replacement, fault, (SCHEDULES, KERNELS))


MUTANTS = [
    # ---- descriptors
    mutant(
        "descriptor-reserved-bit",
        INSTRUCTIONS,
        "(uint64_t{1} << 62);",
        "(uint64_t{1} << 62) | (uint64_t{1} << 52);",
        "a reserved bit of a matrix descriptor is set",
    ),
    mutant(
        "descriptor-address-too-long",
        INSTRUCTIONS,
        "(address & 0x3FFFF) >> 4",
        "(address | 0x40000) >> 4",
        "an address runs into reserved bits of a matrix descriptor",
    ),
    mutant(
        "descriptor-leading-offset",
        INSTRUCTIONS,
        "(uint64_t{1} << 16)",
        "(uint64_t{8} << 16)",
        "a swizzled matrix has a leading offset, which it must not",
    ),
    mutant(
        "descriptor-row-groups",
        INSTRUCTIONS,
        "(uint64_t{1024 >> 4} << 32)",
        "(uint64_t{512 >> 4} << 32)",
        "groups of eight rows are read from half the distance",
    ),
    mutant(
        "descriptor-base-offset",
        INSTRUCTIONS,
        "(uint64_t{1} << 62);",
        "(uint64_t{1} << 62) | (uint64_t{1} << 49);",
        "the swizzle of a matrix begins one row too late",
    ),
    mutant(
        "descriptor-swizzle",
        INSTRUCTIONS,
        "(uint64_t{1} << 62);",
        "(uint64_t{2} << 62);",
        "matrices are read as if they were swizzled in 64 bytes",
    ),
    # ---- fences and barriers
    mutant(
        "products-without-fence",
        WGMMA,
        "  products_begin();\n",
        "",
        "no wgmma.fence hands the registers over to products",
    ),
    mutant(
        "barriers-without-fence",
        WGMMA,
        "    barriers_ready();\n",
        "",
        "bulk copies do not know of the barriers that were initialised",
    ),
    mutant(
        "barriers-before-they-are-there",
        WGMMA,
        "  if (threadIdx.x == 0) ring.init();\n  sync_threads();\n",
        "  if (threadIdx.x == 0) ring.init();\n",
        "threads use barriers that another one may not have initialised yet",
    ),
    mutant(
        "emptied-by-one-warp",
        WGMMA,
        "barrier_init(emptied(stage), 4);",
        "barrier_init(emptied(stage), 1);",
        "a stage counts as empty when the first warp is done with it",
    ),
    mutant(
        "emptied-by-two-groups",
        WGMMA,
        "barrier_init(emptied(stage), 4);",
        "barrier_init(emptied(stage), 8);",
        "a stage waits for the warps of the other group, too",
    ),
    mutant(
        "turn-of-one-warp",
        WGMMA,
        "barrier_init(turn(group), 4);",
        "barrier_init(turn(group), 1);",
        "each warp that hands over ends a phase of its own",
    ),
    mutant(
        "one-arrival-of-four",
        WGMMA,
        "if (threadIdx.x % 32 == 0) barrier_arrive(barrier);",
        "if (threadIdx.x % 128 == 0) barrier_arrive(barrier);",
        "one warp of a group arrives where four are expected",
    ),
    mutant(
        "parity-never-turns",
        WGMMA,
        "last ? parity ^ 1 : parity",
        "parity",
        "the second round through the stages waits for the phases of the first",
    ),
    mutant(
        "half-the-bytes-expected",
        WGMMA,
        "barrier_arrive_expecting(ring.filled(slot.stage), Shape::kStageBytes);",
        "barrier_arrive_expecting(ring.filled(slot.stage), Shape::kStageBytes / 2);",
        "a stage counts as full when half of its bytes have come",
    ),
    mutant(
        "handed-over-at-the-first-slice",
        WGMMA,
        "if (slice == slices - 1) arrive(",
        "if (slice == 0) arrive(",
        "a group waits for slices while the other has not seen the last one before them",
    ),
    # ---- stages
    mutant(
        "stage-filled-while-it-is-read",
        WGMMA,
        "      barrier_wait(ring.emptied(slot.stage), slot.parity ^ 1);  // at first all are empty\n",
        "",
        "the producer does not wait for stages to be empty",
    ),
    mutant(
        "slice-read-before-it-has-come",
        WGMMA,
        "      barrier_wait(ring.filled(slot.stage), slot.parity);\n"
        "      multiply<Shape, kBlocks>(ring, slot.stage, 0, slice > 0, fragment);\n",
        "      multiply<Shape, kBlocks>(ring, slot.stage, 0, slice > 0, fragment);\n",
        "products do not wait for their slice",
    ),
    mutant(
        "slice-of-promoted-sums-read-before-it-has-come",
        WGMMA,
        "      barrier_wait(ring.filled(slot.stage), slot.parity);\n#pragma unroll\n",
        "#pragma unroll\n",
        "products of slices whose sums are added do not wait for their slice",
    ),
    mutant(
        "stage-released-before-its-products-are-done",
        WGMMA,
        "        arrive(ring.emptied(before));\n      }\n",
        "        arrive(ring.emptied(slot.stage));\n      }\n",
        "a stage is released while its products are in flight, and the one before it never is",
    ),
    mutant(
        "stage-released-one-wait-too-early",
        WGMMA,
        "        products_wait<1>();\n        arrive(ring.emptied(before));\n",
        "        arrive(ring.emptied(before));\n        products_wait<1>();\n",
        "a stage is released before the wait for its products",
    ),
    mutant(
        "stage-of-promoted-sums-released-too-early",
        WGMMA,
        "        products_wait<0>();\n        if (block == kBlocks - 1) arrive(ring.emptied(slot.stage));\n",
        "        if (block == kBlocks - 1) arrive(ring.emptied(slot.stage));\n        products_wait<0>();\n",
        "a stage is released before the wait for its products where the sums of slices are added",
    ),
    mutant(
        "two-groups-in-flight",
        WGMMA,
        "products_wait<1>();",
        "products_wait<2>();",
        "a stage is released while two groups of products are in flight",
    ),
    mutant(
        "last-products-not-waited-for",
        WGMMA,
        "    products_wait<0>();\n    arrive(ring.emptied(before));\n",
        "    arrive(ring.emptied(before));\n",
        "the sums are used while products are in flight",
    ),
    mutant(
        "sums-of-a-slice-not-waited-for",
        WGMMA,
        "        products_wait<0>();\n        if (block == kBlocks - 1) arrive(ring.emptied(slot.stage));\n",
        "        if (block == kBlocks - 1) arrive(ring.emptied(slot.stage));\n",
        "the sums of a slice are added while products are in flight",
    ),
    mutant(
        "products-never-committed",
        WGMMA,
        "  products_commit();\n",
        "",
        "no wait knows of the products",
    ),
    # ---- shared memory
    mutant(
        "no-room-to-align-stages",
        WGMMA,
        "kSharedBytes = 1024 + kStages",
        "kSharedBytes = kStages",
        "the launch asks for too little shared memory where this does not begin on 1024 bytes",
    ),
    mutant(
        "no-room-for-a-stage",
        WGMMA,
        "kSharedBytes = 1024 + kStages * kStageBytes",
        "kSharedBytes = 1024 + (kStages - 1) * kStageBytes",
        "the launch asks for too little shared memory for the stages",
    ),
    mutant(
        "stages-not-aligned",
        WGMMA,
        "stages_((shared + 1023) / 1024 * 1024)",
        "stages_((shared + 127) / 128 * 128)",
        "stages do not begin where the swizzle does",
    ),
    mutant(
        "barriers-in-the-last-stage",
        WGMMA,
        "return stages_ + Shape::kStages * Shape::kStageBytes + stage * 8;",
        "return stages_ + (Shape::kStages - 1) * Shape::kStageBytes + stage * 8;",
        "the barriers lie where a stage is copied to",
    ),
    mutant(
        "columns-over-rows",
        WGMMA,
        "return rows(stage, Shape::kParts) + part",
        "return rows(stage, Shape::kParts - 1) + part",
        "the columns of a stage are copied over its rows",
    ),
    mutant(
        "no-room-for-the-last-stage",
        MMA,
        "constexpr uint32_t kSharedBytes = kStages<kParts> * kParts",
        "constexpr uint32_t kSharedBytes = (kStages<kParts> - 1) * kParts",
        "the launch asks for too little shared memory for its stages",
    ),
    mutant(
        "pieces-in-two-banks",
        MMA,
        "(piece ^ (row / 2 % 4)) * 16",
        "(piece ^ (row / 4 % 4)) * 16",
        "pieces are swapped around, in copies and in products, such that rows share banks",
    ),
    # ---- registers
    mutant(
        "registers-not-by-eights",
        WGMMA,
        "kGroupRegisters = 240;",
        "kGroupRegisters = 236;",
        "registers are asked for in a number that is not a multiple of eight",
    ),
    mutant(
        "registers-beyond-the-register-file",
        WGMMA,
        "    acquire_registers<kGroupRegisters>();\n",
        "    acquire_registers<kGroupRegisters + 8>();\n",
        "the groups ask for more registers than the block has",
    ),
    mutant(
        "registers-never-released",
        WGMMA,
        "    release_registers<kProducerRegisters>();\n",
        "",
        "the groups wait for registers that nobody releases",
    ),
    # ---- copies of single threads
    mutant(
        "slice-not-there-for-all",
        MMA,
        "      sync_threads();  // this slice is there for all, and all are done with the one before\n",
        "",
        "warps read what other threads have not copied yet, and copies overwrite what they still read",
    ),
    mutant(
        "no-group-past-the-last-slice",
        MMA,
        "    copies_commit();\n",
        "    if (slice < slices) copies_commit();\n",
        "the wait for the last slices counts groups of copies that are not there",
    ),
    mutant(
        "one-stage-too-many-in-flight",
        MMA,
        "      load(slice + kStages<kParts> - 1);\n",
        "      load(slice + kStages<kParts>);\n",
        "a slice is copied over the one that is being read",
    ),
]
