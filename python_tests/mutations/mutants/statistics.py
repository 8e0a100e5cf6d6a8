"""Faults in statistics of kernels and in reports of them."""

from __future__ import annotations

from python_tests.mutations.mutant import Mutant

FOLDER = "python_tests/statistics"
SPECTRUM = f"{FOLDER}/test_spectrum.py"
DEBIASED = f"{FOLDER}/test_debiased.py"
ESTIMATE = f"{FOLDER}/test_estimate.py"
REGRESSION = f"{FOLDER}/test_regression.py"
KERNEL = "python_tests/test_kernel.py"
CENTERING = "python_tests/test_centering.py"
WAITING = "python_tests/test_waiting.py"

MUTANTS = [
    Mutant(
        "alignments-beyond-one",
        "ahkernels/statistics/cka.py",
        "alignments = (products / norms[:, None] / norms).clamp(0, 1)",
        "alignments = products / norms[:, None] / norms",
        "rounding takes an alignment of two kernels beyond 1",
        (KERNEL, SPECTRUM, "python_tests/capture/test_situations.py::test_similarities_keep_to_their_range"),
    ),
    Mutant(
        "rounding-of-kernels-100-times-looser",
        "ahkernels/statistics/degenerate.py",
        "64 * torch.finfo(dtype).eps / rows",
        "6400 * torch.finfo(dtype).eps / rows",
        "what is left of a kernel counts as rounding where it is 100 times more than that",
        (KERNEL, f"{FOLDER}/test_degenerate_warning.py", f"{CENTERING}::test_kernels_whose_blocks_are_constant"),
    ),
    Mutant(
        "rounding-of-kernels-100-times-tighter",
        "ahkernels/statistics/degenerate.py",
        "64 * torch.finfo(dtype).eps / rows",
        "0.64 * torch.finfo(dtype).eps / rows",
        "rounding that is left of a constant kernel counts as a kernel",
        (KERNEL, f"{FOLDER}/test_degenerate_warning.py", f"{CENTERING}::test_kernels_whose_blocks_are_constant"),
    ),
    Mutant(
        "rounding-of-kernels-by-all-rows",
        "ahkernels/statistics/degenerate.py",
        'rows = kernel.samples.n if centering == "per_output" else kernel.shape[0]',
        "rows = kernel.shape[0]",
        "the bound per output is that of global centering, smaller by the number of outputs",
        (KERNEL, f"{FOLDER}/test_degenerate_warning.py", f"{CENTERING}::test_kernels_whose_blocks_are_constant"),
    ),
    Mutant(
        "rounding-of-labels-100-times-looser",
        "ahkernels/statistics/labels.py",
        "norm > 64 * torch.finfo(torch.float64).eps * constant",
        "norm > 6400 * torch.finfo(torch.float64).eps * constant",
        "what is left of labels counts as rounding where it is 100 times more than that",
        (KERNEL, f"{FOLDER}/test_degenerate_warning.py"),
    ),
    Mutant(
        "debiased-by-one-sample-less",
        "ahkernels/statistics/debiased.py",
        "return n / (n - 2) * products",
        "return n / (n - 1) * products",
        "the products of samples with themselves are subtracted with another factor",
        (DEBIASED,),
    ),
    Mutant(
        "debiased-of-three-samples",
        "ahkernels/statistics/debiased.py",
        "    if n < LEAST_SAMPLES:\n",
        "    if n < LEAST_SAMPLES - 1:\n",
        "three samples are debiased, where the estimator divides by zero",
        (f"{DEBIASED}::test_less_than_four_samples_are_refused",),
    ),
    Mutant(
        "error-of-the-square",
        "ahkernels/statistics/estimate.py",
        "error = square.standard_error / (2 * norm) if norm else 0.0",
        "error = square.standard_error / norm if norm else 0.0",
        "the standard error of a norm is twice what follows from that of its square",
        (ESTIMATE,),
    ),
    Mutant(
        "independent-estimates",
        "ahkernels/statistics/leave_one_out.py",
        "math.sqrt(variance / size + max(covariance, 0.0))",
        "math.sqrt(variance / size)",
        "leave-one-out estimates are taken to be independent, so that error bars are too short",
        (ESTIMATE,),
    ),
    Mutant(
        "one-orthogonalisation-in-lanczos",
        "ahkernels/statistics/lanczos.py",
        "        for _ in range(2):\n            parts = samples.sum(image @ basis[:size].T)",
        "        for _ in range(1):\n            parts = samples.sum(image @ basis[:size].T)",
        "new vectors are made orthogonal to the basis once, and not twice",
        (
            f"{SPECTRUM}::test_eigenpairs_against_a_dense_decomposition",
            f"{SPECTRUM}::test_lanczos_iteration_on_few_rows",
            f"{SPECTRUM}::test_copies_of_eigenvalues_are_all_found",
        ),
    ),
    Mutant(
        "copies-of-eigenvalues-missing",
        "ahkernels/statistics/spectrum.py",
        "            if k > 1:\n                found = values, vectors",
        "            if k > rows:\n                found = values, vectors",
        "copies of eigenvalues that an iteration has not seen are not looked for",
        (SPECTRUM,),
    ),
    Mutant(
        "residual-of-the-recursion",
        "ahkernels/statistics/regression.py",
        "found = samples.norms(right - product(solution))",
        "found = samples.norms(residual)",
        "the residual of a regression is what the recursion believes, and not what the solution has",
        (
            f"{REGRESSION}::test_regression_against_dense_algebra",
            f"{REGRESSION}::test_regression_on_hard_spectra",
            f"{REGRESSION}::test_zero_and_constant_kernels",
        ),
        "Both agree up to rounding wherever the iteration converges; the product is a check of that.",
    ),
    Mutant(
        "fisher-without-the-outer-product",
        "ahkernels/statistics/fisher.py",
        "torch.diag_embed(p) - p[:, :, None] * p[:, None, :]",
        "torch.diag_embed(p)",
        "the Fisher information lacks - p p^T",
        (f"{SPECTRUM}::test_fisher_kernel", SPECTRUM),
    ),
    Mutant(
        "largest-eigenvalue-of-the-other-centering",
        "ahkernels/layerwise.py",
        "largest = largest_eigenvalue(kernel, centering=one)",
        'largest = largest_eigenvalue(kernel, centering="global")',
        "the stable rank per output takes the largest eigenvalue of the globally centered kernel",
        (f"{SPECTRUM}::test_statistics_in_a_report_against_dense_decompositions", SPECTRUM, CENTERING),
    ),
    Mutant(
        "fisher-labels-per-output",
        "ahkernels/layerwise.py",
        "of_fisher = (fisher_roots(capture.logits()), labels_of(outputs, None))",
        "of_fisher = (fisher_roots(capture.logits()), labels[-1])",
        "the Fisher information, which is not centered, takes labels that are centered per output",
        (f"{SPECTRUM}::test_statistics_in_a_report_against_dense_decompositions", SPECTRUM, CENTERING),
    ),
    Mutant(
        "every-layer-by-itself",
        "ahkernels/layerwise.py",
        "full = held >= most_bytes or kernel.o == 1",
        "full = True",
        "each layer takes launches of its own for what several share",
        (f"{WAITING}::test_launches", "python_tests/capture/test_kernels.py"),
    ),
    Mutant(
        "readings-for-each-layer",
        "ahkernels/layerwise.py",
        "of_each = {one: readings.add(found.stacked())",
        "of_each = {one: Readings().add(found.stacked())",
        "a measurement waits for a device once for each layer",
        (f"{WAITING}::test_no_layer_waits",),
    ),
    Mutant(
        "gradients-one-by-one",
        "ahkernels/capture/certify.py",
        "zip(rest, torch.stack([_norm(one) for one in rest.values()]).tolist(), strict=True)",
        "zip(rest, [float(_norm(one)) for one in rest.values()], strict=True)",
        "the certificate waits for a device once for each parameter in float64",
        (f"{WAITING}::test_no_layer_waits_in_float64",),
    ),
    Mutant(
        "bias-of-a-jacobian-from-the-host",
        "ahkernels/ops/plain.py",
        "yield backward.sum(1) * bias**0.5",
        "yield backward.sum(1) * torch.as_tensor(bias, dtype=torch.float64, device=backward.device).sqrt()",
        "each layer by its Jacobian waits for a device, to which its bias is copied",
        (f"{WAITING}::test_networks_of_other_kinds",),
    ),
    Mutant(
        "batches-without-bound",
        "ahkernels/layerwise.py",
        "full = held >= most_bytes or kernel.o",
        "full = kernel.o",
        "the factors of all layers are held at once to be measured by one op",
        ("python_tests/capture/test_kernels.py::test_layers_are_measured_in_batches_of_so_many_bytes",),
    ),
    Mutant(
        "layers-held-during-the-next-pass",
        "ahkernels/layerwise.py",
        "        del batch, same_rows, kernel, with_grams  # before the next pass\n",
        "",
        "the layers that have been measured stay in memory during the next pass over the model",
        ("python_tests/capture/test_kernels.py::test_layers_are_gone_before_the_next_pass",),
    ),
    Mutant(
        "error-without-the-alignment",
        "ahkernels/statistics/alignment_numbers.py",
        "return self.cka * self.relative_error",
        "return self.relative_error",
        "the standard error of an alignment is that of the norm, relative to it",
        (ESTIMATE, f"{SPECTRUM}::test_estimated_statistics_in_a_report"),
    ),
    Mutant(
        "labels-of-the-forward-gram",
        "ahkernels/layerwise.py",
        'of_samples = [labels_of(traced, one) for one in centerings] if "forward" in kinds else labels',
        "of_samples = labels",
        "the forward Gram over samples is held against the labels of pairs of samples and outputs",
        ("python_tests/capture/test_kernels.py::test_forward_and_backward_alignment", KERNEL),
    ),
]
