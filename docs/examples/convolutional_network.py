"""
A convolutional network, and what it costs
==========================================

*Which layers of my ResNet align with the labels, and what does it cost to find out?*

A small residual network is trained on scikit-learn's digits, and :func:`~ahkernels.explain` tells beforehand how each
of its layers will be measured.
"""

# %%
# A small ResNet
# --------------

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import nn

import ahkernels as ah


class Block(nn.Module):
    """Two convolutions with a way around them."""

    def __init__(self, channels):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)

    def forward(self, x):
        inside = torch.relu(self.norm1(self.conv1(x)))
        return torch.relu(x + self.norm2(self.conv2(inside)))


class ResNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 16, 3, padding=1)
        self.block1, self.block2 = Block(16), Block(16)
        self.down = nn.Conv2d(16, 32, 2, stride=2)
        self.block3, self.block4 = Block(32), Block(32)
        self.head = nn.Linear(32, 10)

    def forward(self, x):
        x = self.block2(self.block1(torch.relu(self.stem(x))))
        x = self.block4(self.block3(torch.relu(self.down(x))))
        return self.head(x.mean((2, 3)))


torch.manual_seed(0)
images, digits = load_digits(return_X_y=True)
order = torch.randperm(len(digits))
x = torch.tensor(images / 16, dtype=torch.float32).reshape(-1, 1, 8, 8)[order]
y = torch.tensor(digits)[order]
x_probe, y_probe, x, y = x[:100], y[:100], x[100:], y[100:]
model = ResNet()

# %%
# What it would cost
# ------------------
# Batch norms take their running statistics while the network is measured: ``evaluating`` puts the network in eval mode,
# and gives each module its own mode back afterwards.

with ah.evaluating(model):
    explanation = ah.explain(model, x_probe)
print(explanation)

# %%
# Train and measure
# -----------------

optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
for _ in range(5):
    for batch in torch.randperm(len(x)).split(64):
        loss = nn.functional.cross_entropy(model(x[batch]), y[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

with ah.evaluating(model):
    report = ah.layerwise_alignment(model, x_probe, y_probe, centering="per_output")
    y_shuffled = y_probe[torch.randperm(len(y_probe))]
    shuffled = ah.layerwise_alignment(model, x_probe, y_shuffled, centering="per_output")
    print(f"accuracy on the probe: {(model(x_probe).argmax(1) == y_probe).float().mean():.2f}")
print(report)

# %%
# The picture
# -----------

plt.style.use("seaborn-v0_8-colorblind")
fig, (left, right) = plt.subplots(1, 2, figsize=(10, 5.5), sharey=True, layout="constrained")
rows = list(range(len(report)))
kinds = [one.kind for one in explanation]
for kind, marker in (("Conv2d", "o"), ("BatchNorm2d", "s"), ("Linear", "D")):
    chosen = [row for row in rows if kinds[row] == kind]
    left.plot(report.cka[chosen], chosen, marker, label=kind)
    right.barh(chosen, [explanation[row].flops / 1e9 for row in chosen])
left.plot(shuffled.cka, rows, color="grey", linestyle=":", label="shuffled labels")
left.set_yticks(rows, report.layers)
left.invert_yaxis()
left.set(xlabel="alignment with the labels (CKA)", xlim=(0, None))
left.legend()
right.set(xlabel="work for the kernel (Gflop)")
plt.show()

# %%
# All layers are well above the level of shuffled labels, and the last layer is lowest. Convolutions take nearly all of
# the work, and batch norms, which have few parameters, cost little.
