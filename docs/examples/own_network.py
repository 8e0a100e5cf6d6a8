"""
The alignment of my own network
===============================

*How well does each layer of my network align with the labels, and how much of that does chance give?*

A network is measured before and after training, and once more with shuffled labels.
"""

# %%
# A network and its data
# ----------------------
# Any PyTorch network will do. This one classifies scikit-learn's digits, 8 x 8 pixels each. A fixed set of samples that
# it does not train on is the *probe*, on which it is measured.

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
x_probe, y_probe, x, y = x[:300], y[:300], x[300:], y[300:]

layers = OrderedDict(fc1=nn.Linear(64, 128), act1=nn.ReLU())
for i in (2, 3, 4, 5):
    layers |= {f"fc{i}": nn.Linear(128, 128), f"act{i}": nn.ReLU()}
model = nn.Sequential(OrderedDict(layers, fc6=nn.Linear(128, 10)))

# %%
# Measure, train, measure
# -----------------------
# A measurement is one call, which leaves the network as it was. ``centering="per_output"`` centers each output over the
# samples.

before = ah.layerwise_alignment(model, x_probe, y_probe, centering="per_output")

optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
for _ in range(20):
    for batch in torch.randperm(len(x)).split(64):
        loss = nn.functional.cross_entropy(model(x[batch]), y[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

after = ah.layerwise_alignment(model, x_probe, y_probe, centering="per_output")
print(after)
print(f"accuracy on the probe: {(model(x_probe).argmax(1) == y_probe).float().mean():.2f}")

# %%
# The level of chance
# -------------------
# An alignment is never negative, so that labels without meaning have a positive one, too. Shuffled labels show how much
# that is for these kernels and this number of samples.

y_shuffled = y_probe[torch.randperm(len(y_probe))]
shuffled = ah.layerwise_alignment(model, x_probe, y_shuffled, centering="per_output")
print(f"highest alignment with shuffled labels: {shuffled.cka.max():.3f}")

# %%
# The picture
# -----------

fig, ax = plt.subplots(figsize=(7, 4), layout="constrained")
after.plot(ax, null=shuffled)  # the null level in grey
ax.plot(range(1, len(before) + 1), before.cka, "--", color="C1", label="before training")
ax.annotate(
    "before training", (len(before), before.cka[-1]), (-4, 6), textcoords="offset points", color="C1", ha="right"
)
plt.show()

# %%
# Training has raised the alignment of every layer, to many times what shuffled labels give. How high it is in which
# layer differs from network to network and from seed to seed.
