"""Faults in measurements over several processes."""

from __future__ import annotations

from python_tests.mutations.mutant import Mutant

FOLDER = "python_tests/distributed"
SHARDED = f"{FOLDER}/test_sharded.py"
EXPLAINED = f"{FOLDER}/test_explained.py"
MISTAKES = f"{FOLDER}/test_mistakes.py"

MUTANTS = [
    Mutant(
        "triangles-of-the-ranks-behind",
        "ahkernels/distributed/samples.py",
        "begin = sum(heights[: self.group.rank])",
        "begin = sum(heights[self.group.rank + 1 :])",
        "each rank takes the rows of an orthonormal basis in the opposite order of the ranks",
        (f"{SHARDED}::test_statistics_of_kernels",),
    ),
    Mutant(
        "form-of-this-rank",
        "ahkernels/distributed/samples.py",
        "forms += self.sum((v * product).sum((0, 1)))",
        "forms += (v * product).sum((0, 1))",
        "quadratic forms through samples are those of this rank alone",
        (f"{SHARDED}::test_wide_layers_go_through_samples",),
    ),
    Mutant(
        "zeros-up-to-a-panel",
        "ahkernels/distributed/samples.py",
        "                to[count : self.second_begin] = to[rest]\n",
        "                to[count : self.second_begin] = 0\n",
        "samples up to a whole panel are zeros, which are far from the means of near-constant kernels",
        (f"{SHARDED}::test_blocks_close_to_constant_keep_their_digits", f"{SHARDED}::test_more_samples_than_a_panel"),
        "These samples take part in no pair and in no mean, and zeros change no scale.",
    ),
    Mutant(
        "half-of-the-ring-twice",
        "ahkernels/distributed/samples.py",
        "    return counts[rank] ** 2 + 2 * met\n",
        "    return counts[rank] ** 2 + met\n",
        "pairs with other ranks are counted once in the work of a rank",
        (f"{EXPLAINED}::test_all_pairs_are_taken_once", f"{EXPLAINED}::test_work_of_the_busiest_rank"),
    ),
    Mutant(
        "layers-by-turns",
        "ahkernels/distributed/cost.py",
        "rank = held.index(min(held))",
        "rank = sum(map(len, found)) % ranks",
        "layers go to the ranks by turns, whatever they cost",
        (f"{EXPLAINED}::test_shares_of_layers",),
    ),
    Mutant(
        "the-shard-that-costs-more",
        "ahkernels/distributed/cost.py",
        'min(shards, key=lambda one: (shards[one].seconds, one == "layers"))',
        'min(shards, key=lambda one: (shards[one].flops, one == "layers"))',
        "what ranks send and wait for does not count in the choice of what they share out",
        (f"{EXPLAINED}::test_the_axis_that_costs_less_is_taken",),
    ),
    Mutant(
        "errors-of-other-ranks",
        "ahkernels/distributed/group.py",
        "        self._raise_for_others(found)\n        return",
        "        return",
        "a rank goes on where another one has failed",
        (f"{MISTAKES}::test_each_rank_says_what_is_wrong",),
    ),
    Mutant(
        "numbers-of-the-model-differ",
        "ahkernels/capture/sharded.py",
        "numbers = told_of_numbers(unwrapped(model))",
        "numbers = [name for name, _ in unwrapped(model).named_parameters()]",
        "ranks may measure models with other parameters",
        (f"{MISTAKES}::test_each_rank_says_what_is_wrong",),
    ),
    Mutant(
        "newest-certificate-of-the-ranks",
        "ahkernels/distributed/layers.py",
        "calls_ago = max((one.calls_ago for one in certificates), default=0)",
        "calls_ago = min((one.calls_ago for one in certificates), default=0)",
        "a report by layers says when the newest certificate of any rank was, and not the oldest",
        ("python_tests/distributed/test_reports_of_ranks.py::test_the_oldest_certificate_of_the_ranks_counts",),
    ),
    Mutant(
        "a-bar-on-each-rank",
        "ahkernels/distributed/layers.py",
        "progress = options.capture.progress and group.rank == 0",
        "progress = options.capture.progress",
        "every rank that measures layers shows a progress bar",
        ("python_tests/distributed/test_reports_of_ranks.py::test_rank_0_alone_shows_a_bar",),
    ),
    Mutant(
        "layers-in-the-order-of-the-ranks",
        "ahkernels/distributed/layers.py",
        "        layers=list(plan.groups),\n",
        "        layers=list(values),\n",
        "a report by layers has them in the order of the ranks, and their numbers in forward order",
        (f"{SHARDED}::test_layers_over_ranks",),
    ),
    Mutant(
        "every-rank-writes",
        "ahkernels/tracker.py",
        "self._writes = group is None or Group.of(group).rank == 0",
        "self._writes = True",
        "every rank logs and writes the file of a tracker",
        (f"{SHARDED}::test_a_tracker_writes_on_rank_0_alone",),
    ),
    Mutant(
        "smallest-differences-of-the-ranks",
        "ahkernels/capture/sharded.py",
        "largest = {name: max(one.differences.get(name, 0.0) for one in found) for name in names}",
        "largest = {name: found[0].differences.get(name, 0.0) for name in names}",
        "the certificate of all ranks is that of the first one",
        (
            "python_tests/distributed/test_reports_of_ranks.py::test_the_certificate_has_the_largest_difference_of_any_rank",
        ),
    ),
    Mutant(
        "unreached-on-some-rank",
        "ahkernels/capture/sharded.py",
        "if all(name in one for one in unreached)]",
        "if any(name in one for one in unreached)]",
        "a layer that the samples of one rank do not reach is said to be reached by none",
        (
            "python_tests/distributed/test_reports_of_ranks.py::test_a_layer_that_the_samples_of_one_rank_reach_is_reached",
        ),
    ),
    Mutant(
        "collectives-without-the-sum",
        "ahkernels/distributed/traffic.py",
        "collectives=calls + 1)",
        "collectives=calls)",
        "the exchange of parts of a sum is not counted among the collectives",
        (f"{EXPLAINED}::test_bytes_are_those_that_ranks_give",),
    ),
    Mutant(
        "same-call-of-other-arguments",
        "ahkernels/distributed/together.py",
        "                if one != told[0]:\n",
        '                if one.partition("(")[0] != told[0].partition("(")[0]:\n',
        "ranks may call a statistic with other arguments",
        (f"{MISTAKES}::test_statistics_with_different_arguments",),
    ),
]
