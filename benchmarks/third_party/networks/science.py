"""Networks of the sciences, and for tables: graphs, symmetries, equations, flows, splines."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.third_party.problem import OUTPUTS, SAMPLES, Network, Problem, images, mean_over_pixels

NODES = 6


def adjacency() -> Tensor:
    """A random graph without direction for each sample, [n, nodes, nodes]."""
    upper = (torch.rand(SAMPLES, NODES, NODES) < 0.5).float().triu(1)
    return upper + upper.mT


def dense_gcn() -> Problem:
    from torch_geometric.nn import DenseGCNConv

    class DenseGCN(nn.Module):
        """Two graph convolutions and a mean over nodes."""

        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = DenseGCNConv(5, 12), DenseGCNConv(12, 12)
            self.head = nn.Linear(12, OUTPUTS)

        def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
            x = self.first(x, adjacency).relu()
            return self.head(self.second(x, adjacency).mean(1))

    return Problem(DenseGCN(), (torch.randn(SAMPLES, NODES, 5), adjacency()))


def sparse_gnn(kind: str) -> Problem:
    """A network of torch_geometric on one graph of all samples' nodes, each with the same ring of edges."""
    from torch_geometric.nn import global_mean_pool, models

    class OverSamples(nn.Module):
        """Puts the nodes of all samples into one graph."""

        def __init__(self) -> None:
            super().__init__()
            self.network = getattr(models, kind)(5, 12, num_layers=2, out_channels=OUTPUTS)
            ring = torch.arange(NODES)
            self.register_buffer("edges", torch.stack([ring, ring.roll(1)]))

        def forward(self, x: Tensor) -> Tensor:
            n, nodes, features = x.shape
            first_nodes = nodes * torch.arange(n)
            edges = (self.edges[:, None] + first_nodes[:, None]).flatten(1)
            found = self.network(x.reshape(n * nodes, features), edges)
            return global_mean_pool(found, torch.arange(n).repeat_interleave(nodes), n)

    return Problem(OverSamples(), torch.randn(SAMPLES, NODES, 5))


def tensor_products() -> Problem:
    """A network with the symmetry of rotations, whose outputs are scalars."""
    from e3nn import nn as equivariant
    from e3nn import o3

    class Equivariant(nn.Module):
        """Two tensor products with a gate between them."""

        def __init__(self) -> None:
            super().__init__()
            vectors = o3.Irreps("4x0e + 3x1o")
            scalars, gates, gated = o3.Irreps("6x0e"), o3.Irreps("4x0e"), o3.Irreps("4x1o")
            self.gate = equivariant.Gate(scalars, [torch.tanh], gates, [torch.sigmoid], gated)
            self.first = o3.FullyConnectedTensorProduct(vectors, vectors, self.gate.irreps_in)
            self.second = o3.Linear(self.gate.irreps_out, "4x0e + 2x1o")
            self.third = o3.FullyConnectedTensorProduct("4x0e + 2x1o", vectors, f"{OUTPUTS}x0e")

        def forward(self, x: Tensor) -> Tensor:
            return self.third(self.second(self.gate(self.first(x, x))), x)

    return Problem(Equivariant(), torch.randn(SAMPLES, 13))


def neural_ode(adjoint: bool) -> Problem:
    import torchdiffeq

    class Field(nn.Module):
        """The derivative of the state."""

        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(9, 16), nn.Tanh(), nn.Linear(16, 8))

        def forward(self, time: Tensor, state: Tensor) -> Tensor:
            return self.layers(torch.cat([state, time.expand(len(state), 1)], 1))

    class NeuralODE(nn.Module):
        """A flow along the field, by fixed steps, between two linear layers."""

        def __init__(self) -> None:
            super().__init__()
            self.inside, self.field, self.outside = nn.Linear(5, 8), Field(), nn.Linear(8, OUTPUTS)

        def forward(self, x: Tensor) -> Tensor:
            solve = torchdiffeq.odeint_adjoint if adjoint else torchdiffeq.odeint
            times = torch.linspace(0, 1, 4, dtype=x.dtype)
            return self.outside(solve(self.field, self.inside(x), times, method="rk4")[-1])

    return Problem(NeuralODE(), torch.randn(SAMPLES, 5))


def fourier_operator() -> Problem:
    from neuralop.models import FNO

    model = FNO(n_modes=(4, 4), in_channels=1, out_channels=OUTPUTS, hidden_channels=8, n_layers=2)
    return Problem(model, images(12, channels=1), mean_over_pixels)


def nflows_flow() -> Problem:
    from nflows.transforms import (
        CompositeTransform,
        MaskedAffineAutoregressiveTransform,
        MaskedPiecewiseRationalQuadraticAutoregressiveTransform,
        ReversePermutation,
    )

    affine = MaskedAffineAutoregressiveTransform(6, 12)
    splines = MaskedPiecewiseRationalQuadraticAutoregressiveTransform(6, 12, tails="linear", tail_bound=3.0)
    model = CompositeTransform([affine, ReversePermutation(6), splines])
    return Problem(model, torch.randn(SAMPLES, 6), lambda found: found[0][:, :OUTPUTS])


def normflows_flow() -> Problem:
    import normflows

    halves = [normflows.nets.MLP([3, 12, 6], init_zeros=False) for _ in range(2)]
    flows: list[nn.Module] = []
    for half in halves:
        flows += [normflows.flows.AffineCouplingBlock(half), normflows.flows.Permute(6, mode="swap")]
    model = normflows.NormalizingFlow(normflows.distributions.DiagGaussian(6, trainable=False), flows)
    return Problem(model, torch.randn(SAMPLES, 6), lambda found: found[:, :OUTPUTS])


def ft_transformer() -> Problem:
    from rtdl_revisiting_models import FTTransformer

    sizes = {"d_block": 16, "n_blocks": 2, "attention_n_heads": 2, "ffn_d_hidden": 24, "ffn_d_hidden_multiplier": None}
    chances = {"attention_dropout": 0.2, "ffn_dropout": 0.1, "residual_dropout": 0.0}
    model = FTTransformer(n_cont_features=4, cat_cardinalities=[3, 5], d_out=OUTPUTS, **sizes, **chances)
    categories = torch.stack([torch.randint(3, (SAMPLES,)), torch.randint(5, (SAMPLES,))], 1)
    return Problem(model, (torch.randn(SAMPLES, 4), categories))


def numerical_embeddings() -> Problem:
    from rtdl_num_embeddings import PeriodicEmbeddings

    embeddings = PeriodicEmbeddings(4, 8, n_frequencies=6, lite=False)
    model = nn.Sequential(embeddings, nn.Flatten(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, OUTPUTS))
    return Problem(model, torch.randn(SAMPLES, 4))


def tabnet() -> Problem:
    from pytorch_tabnet.tab_network import TabNet

    model = TabNet(6, OUTPUTS, n_d=4, n_a=4, n_steps=2, group_attention_matrix=torch.eye(6))
    return Problem(model, torch.randn(SAMPLES, 6), lambda found: found[0])


def kan() -> Problem:
    from kan import KAN

    return Problem(KAN(width=[4, 5, OUTPUTS], grid=3, k=3, auto_save=False, seed=0), torch.rand(SAMPLES, 4) - 0.5)


NETWORKS = [
    Network("torch-geometric", "GCN, dense", dense_gcn),
    Network("torch-geometric", "GCN", partial(sparse_gnn, "GCN")),
    Network("torch-geometric", "GAT", partial(sparse_gnn, "GAT")),
    Network("torch-geometric", "GIN", partial(sparse_gnn, "GIN")),
    Network("e3nn", "tensor products", tensor_products),
    Network("torchdiffeq", "neural ODE", partial(neural_ode, adjoint=False)),
    Network("torchdiffeq", "neural ODE, adjoint", partial(neural_ode, adjoint=True)),
    Network("neuraloperator", "FNO", fourier_operator),
    Network("nflows", "autoregressive flow", nflows_flow),
    Network("normflows", "Real NVP", normflows_flow),
    Network("rtdl_revisiting_models", "FT-Transformer", ft_transformer),
    Network("rtdl_num_embeddings", "periodic embeddings", numerical_embeddings),
    Network("pytorch-tabnet", "TabNet", tabnet),
    Network("pykan", "KAN", kan),
]
