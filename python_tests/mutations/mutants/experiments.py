"""Faults in what the experiments share."""

from __future__ import annotations

from python_tests.mutations.mutant import Mutant

FOLDER = "python_tests/experiments/common"
STORE_TESTS = f"{FOLDER}/test_store.py"
TRAINING = f"{FOLDER}/test_training.py"
DATA = f"{FOLDER}/test_data.py"
STUDY = f"{FOLDER}/test_study.py"
STORE = "experiments/common/store.py"

MUTANTS = [
    Mutant(
        "tables-before-the-checkpoint",
        STORE,
        '        content = {"state": state, "rows": self.rows, "tables": self.tables, "finished": finished}\n',
        '        content = {"state": state, "rows": self.rows, "tables": self.tables, "finished": finished}\n'
        "        self._write_tables()\n",
        "tables are written before the checkpoint, so that they may have more rows than it holds",
        (STORE_TESTS,),
    ),
    Mutant(
        "the-same-order-in-each-epoch",
        "experiments/common/training.py",
        "np.random.default_rng([self.recipe.seed, epoch])",
        "np.random.default_rng([self.recipe.seed])",
        "batches come in the same order in each epoch",
        (TRAINING,),
    ),
    Mutant(
        "the-state-is-not-copied",
        "experiments/common/training.py",
        'copy.deepcopy(state["optimizer"])',
        'state["optimizer"]',
        "training goes on in the tensors of the state that it was restored from",
        (TRAINING,),
    ),
    Mutant(
        "small-ends-in-any-order",
        "experiments/common/training.py",
        "self._small_ends = self._small_ends + 1 if self.averaged_loss < self.recipe.stop_loss else 0",
        "self._small_ends += self.averaged_loss < self.recipe.stop_loss",
        "a run ends after two epochs with a small loss that are not in a row",
        (TRAINING,),
    ),
    Mutant(
        "mean-of-the-means-of-batches",
        "experiments/common/training.py",
        'loss += functional.cross_entropy(outputs, ys, reduction="sum").item()',
        "loss += functional.cross_entropy(outputs, ys).item() * EVALUATION_BATCH",
        "the last batch, which is smaller, counts as much as the others",
        (f"{TRAINING}::test_evaluate_is_the_mean_over_all_samples", TRAINING),
    ),
    Mutant(
        "denormals-stay-flushed",
        "experiments/common/training.py",
        "    finally:\n        torch.set_flush_denormal(False)\n",
        "    finally:\n        pass\n",
        "denormal numbers stay zero after a training",
        (TRAINING,),
    ),
    Mutant(
        "eigenvalues-by-sign",
        "experiments/common/hessian.py",
        "order = np.argsort(-np.abs(values))",
        "order = np.argsort(-values)",
        "the eigenvalues of greatest absolute value are sorted by their sign",
        (f"{FOLDER}/test_hessian.py",),
    ),
    Mutant(
        "noise-from-the-stream-of-batches",
        "experiments/common/data.py",
        "np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(1,)))",
        "np.random.default_rng(seed)",
        "the choice of noisy labels is that of the probe with the same seed",
        (DATA,),
    ),
    Mutant(
        "test-images-by-their-own-mean",
        "experiments/common/data.py",
        "        images -= mean.astype(np.float32)\n",
        "        images -= images.mean((0, 2), keepdims=True)\n",
        "test images are standardised by their own mean",
        (DATA,),
    ),
    Mutant(
        "remainders-to-the-first-classes",
        "experiments/common/data.py",
        'take[np.argsort(take - share, kind="stable")[: size - take.sum()]] += 1',
        "take[: size - take.sum()] += 1",
        "what rounding leaves over goes to the first classes instead of the largest remainders",
        (DATA,),
    ),
    Mutant(
        "a-died-run-is-left",
        "experiments/common/jobs.py",
        "        if not worked:  # otherwise look again",
        "        if True:  # otherwise look again",
        "a run that another process has left is not looked for again",
        (f"{STUDY}::test_a_run_that_another_process_has_left_is_taken_over",),
    ),
]
