"""
How alike layers are, and what training changes
===============================================

*Which layers learn alike, and which of them has training changed the most?*

Kernels can be compared with one another as they are with labels, layer with layer or one layer at two times.
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
x_probe, x, y = x[:150], x[150:], y[150:]

layers = OrderedDict(fc1=nn.Linear(64, 128), act1=nn.ReLU())
for i in range(2, 8):
    layers |= {f"fc{i}": nn.Linear(128, 128), f"act{i}": nn.ReLU()}
untrained = nn.Sequential(OrderedDict(layers, fc8=nn.Linear(128, 10)))
trained = copy.deepcopy(untrained)

optimizer = torch.optim.Adam(trained.parameters(), lr=1e-3)
for _ in range(20):
    for batch in torch.randperm(len(x)).split(64):
        loss = nn.functional.cross_entropy(trained(x[batch]), y[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

# %%
# Similarity
# ----------
# ``similarity`` takes all kernels of a network in one pass. With the kernels of two networks it compares each of one
# with each of the other, and the diagonal says how much of each layer's kernel is left.

before, after = ah.tangent_kernels(untrained, x_probe), ah.tangent_kernels(trained, x_probe)
panels = {
    "before training": ah.similarity(before, centering="per_output"),
    "after training": ah.similarity(after, centering="per_output"),
}
left_over = ah.similarity(before, after, centering="per_output").diagonal()

# %%
# The picture
# -----------

fig, axes = plt.subplots(1, 3, figsize=(13, 3.8), layout="constrained")
for ax, (title, matrix) in zip(axes, panels.items(), strict=False):
    ah.plot_similarity(matrix, list(after), ax=ax)
    ax.set_title(title)
axes[2].plot(before.keys(), left_over, "o-")
axes[2].set(title="each layer with itself before training", ylim=(0, 1))
axes[2].tick_params(axis="x", rotation=90)
plt.show()

# %%
# The hidden layers have become more alike, and few of their kernels are what they were: no layer is as similar to
# itself before training as it is to its neighbour now.
