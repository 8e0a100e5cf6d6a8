"""
Two ways to center a kernel
===========================

*The alignment of my deep network depends on* ``centering=``. *Why, and which one do I want?*

Both take means out of the kernel before it is compared with the labels: one mean of everything (``"global"``), or the
mean of each output over the samples (``"per_output"``). A picture of a kernel shows what one of them leaves in.
"""

# %%
# A deep network
# --------------

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

depth = 20
layers, sizes = OrderedDict(), [64, *[128] * (depth - 1), 10]
for i in range(depth):
    layers |= {f"fc{i + 1}": nn.Linear(sizes[i], sizes[i + 1]), f"act{i + 1}": nn.ReLU()}
    nn.init.kaiming_normal_(layers[f"fc{i + 1}"].weight, nonlinearity="relu")
layers.popitem()  # no activation at the outputs
model = nn.Sequential(layers)

optimizer = torch.optim.Adam(model.parameters(), lr=3e-4)
for _ in range(5):
    for batch in torch.randperm(len(x)).split(64):
        loss = nn.functional.cross_entropy(model(x[batch]), y[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

# %%
# Both alignments
# ---------------
# Several centerings come from one pass over the kernels. The norms say what part of a kernel they disagree about.

reports = ah.layerwise_alignment(model, x_probe, y_probe, centering=("global", "per_output"))
share = 1 - (reports["per_output"].centered_norm / reports["global"].centered_norm) ** 2
print("peaks:", {centering: report.peak for centering, report in reports.items()})
print("share of the squared norm that means of outputs have after global centering:")
print(*(f"{part:.2f}" for part in share))

# %%
# What a kernel looks like
# ------------------------
# The kernel of a layer has a row for each sample and output. With the rows sorted by output, it consists of one block
# for each pair of outputs. Here is a layer in the middle of the network, for 40 of the samples.

n, o = 40, 10
kernel = ah.tangent_kernels(model, x_probe[:n], layers="fc10")["fc10"].to_dense()
blocks = kernel.reshape(n, o, n, o).permute(1, 0, 3, 2).reshape(o * n, o * n)

# %%
# The picture
# -----------

plt.style.use("seaborn-v0_8-colorblind")
fig, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
limit = float(blocks.abs().quantile(0.99))  # a few entries are far larger
image = left.imshow(blocks.numpy(), cmap="RdBu_r", vmin=-limit, vmax=limit)
left.set(title="kernel of fc10, a block for each pair of outputs", xlabel="output", ylabel="output")
for axis in (left.xaxis, left.yaxis):
    axis.set_ticks([n * (i + 0.5) for i in range(o)], range(o))
fig.colorbar(image, ax=left, extend="both")

index = range(1, depth + 1)
right.plot(index, reports["per_output"].cka, "o-", label="per output")
right.plot(index, reports["global"].cka, "s--", label="global")
right.set(xlabel="layer", ylabel="alignment with the labels (CKA)", ylim=(0, None))
right.set_xticks(range(2, depth + 1, 2))
right.legend()
plt.show()

# %%
# Each block of the kernel has a mean of its own. Global centering removes one mean from all of them. The others stay in
# the norm that the alignment is divided by, and make up most of it in the last layers. To ask how a kernel tells
# samples apart, center per output; a global alignment also counts how the outputs differ from one another.
