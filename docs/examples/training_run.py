"""
Following a training run
========================

*When in training does which layer align with the labels?*

An :class:`~ahkernels.AlignmentTracker` measures a network on the same samples again and again while it trains.
"""

# %%
# A deep network
# --------------
# Ten layers of width 128 classify scikit-learn's digits. Kaiming's initialisation keeps signals and gradients alive
# through all of them.

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
x_test, y_test, x, y = x[:300], y[:300], x[300:], y[300:]

layers, sizes = OrderedDict(), [64, *[128] * 9, 10]
for i in range(10):
    layers |= {f"fc{i + 1}": nn.Linear(sizes[i], sizes[i + 1]), f"act{i + 1}": nn.ReLU()}
    nn.init.kaiming_normal_(layers[f"fc{i + 1}"].weight, nonlinearity="relu")
layers.popitem()  # no activation at the outputs
model = nn.Sequential(layers)

# %%
# A tracker in the training loop
# ------------------------------
# ``measurement_grid`` gives steps that are dense early in training and rare later. ``update`` takes any numbers to be
# kept beside the alignments. The training itself goes on as it would have without the tracker.

epochs, batch_size = 15, 50
total = epochs * len(x.split(batch_size))
steps = ah.measurement_grid(total=total, count=20)
tracker = ah.AlignmentTracker(model, x[:200], y[:200], centering="per_output")
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)


def update(step):
    with torch.no_grad():
        training_loss = nn.functional.cross_entropy(model(x), y)
        test_loss = nn.functional.cross_entropy(model(x_test), y_test)
    tracker.update(step, training_loss=training_loss, test_loss=test_loss)


step = 0
update(step)
for _ in range(epochs):
    for batch in torch.randperm(len(x)).split(batch_size):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
        optimizer.step()
        step += 1
        if step in steps:
            update(step)

# %%
# What it has measured
# --------------------
# ``tracker.cka`` is a tensor [steps, layers], and ``tracker.save("run.json")`` writes everything to a file.

print(tracker)

# %%
# The picture
# -----------

tracker.plot()
plt.show()

# %%
# At the left, each line is a layer, from the first (dark) to the last (light), and black lines are the losses. The
# layers begin with similar alignments. In this run all of them grow in training, those of the hidden layers more than
# that of the last one.
