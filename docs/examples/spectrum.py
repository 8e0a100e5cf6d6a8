"""
What an alignment is made of
============================

*A layer has a higher alignment than another. Is its kernel simpler, or does it lie better with the labels?*

An alignment is a quotient of two numbers that can be read one by one: the *label correlation*, which says how much of
the labels lies along the largest eigenvectors of the kernel, and the root of the *stable rank*, the effective number of
those directions.
"""

# %%
# A network, before and after training
# ------------------------------------

import copy
from collections import OrderedDict

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import nn

import ahkernels as ah

torch.manual_seed(0)
images, digits = load_digits(return_X_y=True)
order = torch.randperm(len(digits))
x, y = torch.tensor(images / 16, dtype=torch.float32)[order], torch.tensor(digits)[order]
x_probe, y_probe, x, y = x[:200], y[:200], x[200:], y[200:]

layers = OrderedDict(fc1=nn.Linear(64, 128), act1=nn.ReLU())
for i in (2, 3, 4):
    layers |= {f"fc{i}": nn.Linear(128, 128), f"act{i}": nn.ReLU()}
untrained = nn.Sequential(OrderedDict(layers, fc5=nn.Linear(128, 10)))
trained = copy.deepcopy(untrained)

optimizer = torch.optim.Adam(trained.parameters(), lr=1e-3)
for _ in range(20):
    for batch in torch.randperm(len(x)).split(64):
        loss = nn.functional.cross_entropy(trained(x[batch]), y[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

# %%
# The two parts
# -------------
# They are measured with the alignment when they are asked for.

parts = ("stable_rank", "label_correlation")
before, after = (
    ah.layerwise_alignment(model, x_probe, y_probe, centering="per_output", statistics=parts)
    for model in (untrained, trained)
)
print(after)
difference = (after.label_correlation / after.stable_rank.sqrt() - after.cka).abs().max()
print(f"correlation / sqrt(stable rank) is the alignment but for {difference:.0e}")

# %%
# The largest eigenvalues come from products with the kernel, which is not formed.

spectra = {}
for name, model in (("before training", untrained), ("after training", trained)):
    kernel = ah.tangent_kernels(model, x_probe)["fc3"]
    spectra[name] = ah.eigenvalues(kernel, k=100, centering="per_output", tolerance=1e-5)

# %%
# The picture
# -----------

plt.style.use("seaborn-v0_8-colorblind")
fig, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
for (name, values), style in zip(spectra.items(), ("C1s--", "C0o-"), strict=True):
    left.loglog(range(1, 101), values / values[0], style, markersize=3, label=name)
left.set(xlabel="index", ylabel="eigenvalue / largest eigenvalue", title="spectrum of fc3")
left.legend()

starts, ends = (torch.stack([one.stable_rank, one.label_correlation]) for one in (before, after))
right.plot(*starts, "C1s", label="before training")
right.plot(*ends, "C0o", label="after training")
for name, start, end in zip(before.layers, starts.T, ends.T, strict=True):
    right.annotate("", end, start, arrowprops={"arrowstyle": "->", "color": "grey", "shrinkB": 4})
    right.annotate(name, start, (7, -3), textcoords="offset points")
right.set(xlabel="stable rank", ylabel="label correlation", xscale="log", yscale="log")
right.set(xlim=(2, 30), ylim=(0.02, 0.6))
for axis, ticks in ((right.xaxis, (2, 5, 10, 20)), (right.yaxis, (0.03, 0.1, 0.3))):
    axis.set_ticks(ticks, map(str, ticks))
    axis.set_minor_formatter("")
for level in (0.02, 0.05, 0.1, 0.2):  # the points of one alignment are a line on these axes
    right.axline((2, level * 2**0.5), (20, level * 20**0.5), color="lightgrey", linewidth=1, zorder=0)
    right.text(2.05, 1.2 * level, f"alignment {level}", color="grey", fontsize=8)
right.legend()
plt.show()

# %%
# An arrow that points up means that the labels lie better along the largest eigenvectors, and one that points to the
# left that these are fewer. In fc3 and fc4 the way up is by far the longer one: their alignments have risen because
# their kernels have turned towards the labels, more than because they have become simpler.
