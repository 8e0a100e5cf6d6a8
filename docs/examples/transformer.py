"""
A transformer with a dict of inputs
===================================

*My model takes a dict of token ids and a mask. Which of its parts learn the task: attention, feed-forward layers or
embeddings?*

The batch is passed as it is, and parameters are measured in groups, here by block and part.
"""

# %%
# Sentences and their topics
# --------------------------
# Each of four topics has ten words of its own. A word of a sentence comes from its topic with probability 0.3, and
# otherwise from anywhere. Sentences have different lengths, with zeros behind them.

import matplotlib.pyplot as plt
import torch
from torch import nn

import ahkernels as ah

TOPICS, WORDS, LENGTH = 4, 40, 16


def sentences(n):
    topics = torch.randint(TOPICS, (n,))
    of_topic = 1 + 10 * topics[:, None] + torch.randint(10, (n, LENGTH))
    of_any = torch.randint(1, WORDS + 1, (n, LENGTH))
    words = torch.where(torch.rand(n, LENGTH) < 0.3, of_topic, of_any)
    mask = (torch.arange(LENGTH) < torch.randint(LENGTH // 2, LENGTH + 1, (n, 1))).long()
    return {"input_ids": words * mask, "attention_mask": mask}, topics


# %%
# The model returns a dict; its ``logits`` are the outputs that are measured.


class Reader(nn.Module):
    def __init__(self, width=32, blocks=3):
        super().__init__()
        self.words = nn.Embedding(WORDS + 1, width)
        self.positions = nn.Embedding(LENGTH, width)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(width, nhead=4, dim_feedforward=64, dropout=0.0, batch_first=True)
            for _ in range(blocks)
        )
        self.head = nn.Linear(width, TOPICS)

    def forward(self, input_ids, attention_mask):
        hidden = self.words(input_ids) + self.positions(torch.arange(LENGTH).expand_as(input_ids))
        for block in self.blocks:
            hidden = block(hidden, src_key_padding_mask=attention_mask == 0)
        mask = attention_mask.unsqueeze(2)
        pooled = (hidden * mask).sum(1) / mask.sum(1)
        return {"logits": self.head(pooled), "pooled": pooled}


torch.manual_seed(0)
model = Reader()
x_probe, y_probe = sentences(200)

# %%
# Measure by groups
# -----------------
# The kernel of a group is the sum of the kernels of its layers. Groups are named here, with patterns for what belongs
# to them. The layer norms are in no group, and are not measured.

groups = {"embeddings": ["words", "positions"]}
for i in range(3):
    groups[f"attention {i + 1}"] = f"blocks.{i}.self_attn*"
    groups[f"feed-forward {i + 1}"] = f"blocks.{i}.linear*"
groups["head"] = "head"


def measure():
    with ah.evaluating(model):
        return ah.layerwise_alignment(model, x_probe, y_probe, layers=groups, centering="per_output")


before = measure()
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
for _ in range(200):
    inputs, labels = sentences(64)
    loss = nn.functional.cross_entropy(model(**inputs)["logits"], labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
after = measure()
print(after)
predicted = model(**x_probe)["logits"].argmax(1)
print(f"accuracy on the probe: {(predicted == y_probe).float().mean():.2f}")

# %%
# The picture
# -----------

plt.style.use("seaborn-v0_8-colorblind")
fig, ax = plt.subplots(figsize=(8, 4), layout="constrained")
rows = range(len(after))
ax.barh([row - 0.2 for row in rows], before.values(), 0.4, color="C5", label="before training")
ax.barh([row + 0.2 for row in rows], after.values(), 0.4, color="C0", label="after training")
ax.set_yticks(rows, after.layers)
ax.invert_yaxis()
ax.set(xlabel="alignment with the labels (CKA)")
ax.legend()
plt.show()

# %%
# The alignment of the head has grown by far the most, and in this run that of every attention and feed-forward part has
# grown, too. A topic can be told from single words here; a task that needs their order may give another picture.
