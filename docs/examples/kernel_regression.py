"""
Predicting with the kernel of a layer
=====================================

*How much does each layer's kernel know about the labels of new samples?*

A kernel machine is fitted to a hundred labelled samples with the tangent kernel of one layer alone, before and after
training, and tested on samples that neither it nor the network has seen.
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
x_few, x_test, x = x[:100], x[100:600], x[600:]
y_few, y_test, y = y[:100], y[100:600], y[600:]

layers = OrderedDict(fc1=nn.Linear(64, 128), act1=nn.ReLU())
for i in range(2, 6):
    layers |= {f"fc{i}": nn.Linear(128, 128), f"act{i}": nn.ReLU()}
untrained = nn.Sequential(OrderedDict(layers, fc6=nn.Linear(128, 10)))
trained = copy.deepcopy(untrained)

optimizer = torch.optim.Adam(trained.parameters(), lr=1e-3)
for _ in range(30):
    for batch in torch.randperm(len(x)).split(64):
        loss = nn.functional.cross_entropy(trained(x[batch]), y[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

# %%
# One kernel machine for each layer
# ---------------------------------
# ``kernel_regression`` solves for the coefficients of the labelled samples without the kernel in memory, and
# ``predict`` takes the kernel of other samples. The ridge is in units of the mean eigenvalue.

targets = nn.functional.one_hot(y_few).double()
targets -= targets.mean(0)


def accuracies(model):
    kernels, kernels_test = ah.tangent_kernels(model, x_few), ah.tangent_kernels(model, x_test)
    found = {}
    for name, kernel in kernels.items():
        fit = ah.kernel_regression(kernel, targets, ridge=0.1 * kernel.trace() / kernel.shape[0])
        found[name] = (fit.predict(kernels_test[name]).argmax(1) == y_test).double().mean().item()
    return found


before, after = accuracies(untrained), accuracies(trained)
network = (trained(x_test).argmax(1) == y_test).double().mean().item()
for name in before:
    print(f"{name}: {before[name]:.3f} before training, {after[name]:.3f} after it")
print(f"the network itself: {network:.3f}")

# %%
# The picture
# -----------

plt.style.use("seaborn-v0_8-colorblind")
fig, ax = plt.subplots(figsize=(7, 4), layout="constrained")
ax.plot(after.keys(), after.values(), "o-", label="kernel of the layer, after training")
ax.plot(before.keys(), before.values(), "s--", label="kernel of the layer, before training")
ax.axhline(network, color="black", linestyle=":", label="the network itself")
ax.set(xlabel="layer", ylabel="accuracy on 500 test samples")
ax.legend()
plt.show()

# %%
# Before training the kernels of the first layers predict best, and after it those of the last ones: with a hundred
# labels the last layer's kernel comes close to the network itself, which has seen more than ten times as many.
