"""
A series of checkpoints
=======================

*My training is over, and I have its checkpoints. How did the alignment of each layer develop?*

:func:`~ahkernels.measure_checkpoints` loads one after the other into the same model, and keeps what it has measured in
a file, so that it can be interrupted and can go on when more checkpoints come.
"""

# %%
# Checkpoints
# -----------
# They stand here for those of a run of your own. By default, the last number in the name of a file is its step.

import tempfile
from collections import OrderedDict
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import nn

import ahkernels as ah

folder = tempfile.TemporaryDirectory()
run = Path(folder.name)
torch.manual_seed(0)
images, digits = load_digits(return_X_y=True)
order = torch.randperm(len(digits))
x, y = torch.tensor(images / 16, dtype=torch.float32)[order], torch.tensor(digits)[order]
x_probe, y_probe, x, y = x[:200], y[:200], x[200:], y[200:]


def make_model():
    layers = OrderedDict(fc1=nn.Linear(64, 128), act1=nn.ReLU())
    for i in range(2, 8):
        layers |= {f"fc{i}": nn.Linear(128, 128), f"act{i}": nn.ReLU()}
    return nn.Sequential(OrderedDict(layers, fc8=nn.Linear(128, 10)))


model = make_model()
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
steps = ah.measurement_grid(total=400, count=16)
for step in range(401):
    if step in steps:
        torch.save(model.state_dict(), run / f"step_{step}.pt")
    batch = torch.randint(len(x), (64,))
    loss = nn.functional.cross_entropy(model(x[batch]), y[batch])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

# %%
# Measure them
# ------------
# The command line does the same: ``ahkernels measure --help``.

history = ah.measure_checkpoints(
    make_model,
    run.glob("step_*.pt"),
    x_probe,
    y_probe,
    centering="per_output",
    history=run / "alignment.json",
    progress=False,
)
print(history)

# %%
# The file can be read anywhere, and later.

history = ah.AlignmentHistory.load(run / "alignment.json")
folder.cleanup()

# %%
# The picture
# -----------
# ``history.plot()`` draws lines, as that of a tracker does. A map of ``history.cka``, which is a tensor [steps,
# layers], shows the same.

fig, ax = plt.subplots(figsize=(8, 4), layout="constrained")
image = ax.imshow(history.cka.T.numpy(), cmap="viridis", vmin=0, aspect="auto")
ax.set_xticks(range(len(history)), history.steps)
ax.set_yticks(range(len(history.layers)), history.layers)
ax.set(xlabel="training step", ylabel="layer")
fig.colorbar(image, ax=ax, label="alignment with the labels (CKA)")
plt.show()

# %%
# In this run the alignment has risen in every layer, and the most in a hidden layer.
