"""
Estimates with error bars
=========================

*I have too many samples for an exact measurement. How far can I trust an estimate?*

The exact norm of a kernel takes a time that grows with the square of the number of samples. An estimate takes a few
products with the kernel, and comes with a standard error.
"""

# %%
# A kernel that is small enough for the exact answer
# --------------------------------------------------

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import nn

import ahkernels as ah

torch.manual_seed(0)
images, digits = load_digits(return_X_y=True)
x, y = torch.tensor(images / 16, dtype=torch.float32)[:1000], torch.tensor(digits)[:1000]
hidden = nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU()
model = nn.Sequential(*hidden, nn.Linear(64, 10))

kernel = ah.tangent_kernels(model, x)["2"]
exact = ah.cka(kernel, y, centering="per_output")
print(kernel, f"alignment: {exact:.5f}")

# %%
# Estimates
# ---------
# ``products=`` says how many products to take. Each estimate has an interval that holds the exact value with the
# probability that you ask for, here 95%. Another seed gives another estimate.

counts, seeds = [12, 24, 48, 96], range(10)
estimates = {
    count: [ah.estimate_cka(kernel, y, centering="per_output", products=count, seed=seed) for seed in seeds]
    for count in counts
}
intervals = [one.interval(0.95) for row in estimates.values() for one in row]
inside = sum(low <= exact <= high for low, high in intervals)
print(f"intervals that hold the exact value: {inside} of {len(intervals)}")

# %%
# With ``tolerance=``, as many products are taken as the relative standard error needs. Whole reports take both
# keywords, too: ``ah.layerwise_alignment(model, x, y, tolerance=1e-2)``.

tolerances = (3e-2, 1e-2, 3e-3, 1e-3)
reached = [ah.estimate_cka(kernel, y, centering="per_output", tolerance=t) for t in tolerances]
for one in reached:
    print(f"{one.products} products: {one}, relative standard error {one.relative_error:.1e}")

# %%
# The picture
# -----------

plt.style.use("seaborn-v0_8-colorblind")
fig, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
for position, row in enumerate(estimates.values()):
    for seed, one in zip(seeds, row, strict=True):
        low, high = one.interval(0.95)
        place = position + (seed - 4.5) / 15
        left.plot([place, place], [low, high], color="C5", linewidth=2)
        left.plot(place, one.value, "o", color="C0", markersize=3)
left.axhline(exact, color="black", linestyle="--", label="exact")
left.set_xticks(range(len(counts)), counts)
left.set(xlabel="products", ylabel="alignment with the labels (CKA)")
left.set_title("ten estimates each, with 95% intervals")
left.legend()

products = [one.products for one in reached]
right.plot(products, [one.relative_error for one in reached], "o-", label="standard error reached")
right.plot(products, [abs(one.value / exact - 1) for one in reached], "s", label="actual error")
right.set(xlabel="products", ylabel="relative error", yscale="log", title="with a tolerance")
right.legend()
plt.show()

# %%
# The intervals hold the exact value about as often as they promise, also those that come from few products. Here 96
# products give a standard error below one percent, for a kernel with 10,000 rows; how many it takes depends on how fast
# the eigenvalues fall.
