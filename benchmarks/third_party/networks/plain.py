"""Networks of torch itself, and of libraries that change how a network of torch is written or trained."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmarks.third_party.problem import OUTPUTS, SAMPLES, Network, Problem, images


class Recurrent(nn.Module):
    """A recurrent network whose last state is read."""

    def __init__(self, recurrent: nn.RNNBase) -> None:
        super().__init__()
        self.recurrent = recurrent
        self.head = nn.Linear(recurrent.hidden_size * (1 + recurrent.bidirectional), OUTPUTS)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.recurrent(x)[0][:, -1])


class Encoder(nn.Module):
    """The transformer encoder of torch, with outputs from the mean over positions."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(width, nhead=2, dim_feedforward=32, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, num_layers=2, enable_nested_tensor=False)
        self.head = nn.Linear(width, OUTPUTS)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x).mean(1))


def perceptron() -> Problem:
    model = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 16), nn.GELU(), nn.Linear(16, OUTPUTS))
    return Problem(model, torch.randn(SAMPLES, 12))


def convolutional() -> Problem:
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.PReLU(), nn.MaxPool2d(2)]
    layers += [nn.Conv2d(8, 8, 3, padding=1, groups=2), nn.GroupNorm(2, 8), nn.SiLU(), nn.AdaptiveAvgPool2d(1)]
    return Problem(nn.Sequential(*layers, nn.Flatten(), nn.Linear(8, OUTPUTS)), images(12))


def lstm() -> Problem:
    return Problem(Recurrent(nn.LSTM(6, 12, num_layers=2, batch_first=True)), torch.randn(SAMPLES, 7, 6))


def gru() -> Problem:
    return Problem(Recurrent(nn.GRU(6, 12, batch_first=True, bidirectional=True)), torch.randn(SAMPLES, 7, 6))


def encoder() -> Problem:
    return Problem(Encoder(), torch.randn(SAMPLES, 7, 16))


def weight_normalised() -> Problem:
    normalised = nn.utils.parametrizations.weight_norm(nn.Linear(12, 16))
    spectral = nn.utils.parametrizations.spectral_norm(nn.Linear(16, 16))
    model = nn.Sequential(normalised, nn.Tanh(), spectral, nn.Tanh(), nn.Linear(16, OUTPUTS))
    return Problem(model, torch.randn(SAMPLES, 12))


def lightning_module() -> Problem:
    import lightning

    class Classifier(lightning.LightningModule):
        """A module with a training step, as in the tutorials."""

        def __init__(self) -> None:
            super().__init__()
            self.save_hyperparameters()
            self.features = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten())
            self.classifier = nn.Linear(8 * 25, OUTPUTS)

        def forward(self, x: Tensor) -> Tensor:
            return self.classifier(self.features(x))

        def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
            loss = nn.functional.cross_entropy(self(batch[0]), batch[1])
            self.log("loss", loss)
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(self.parameters())

    return Problem(Classifier(), images(12, channels=1))


def closed_form_continuous() -> Problem:
    from ncps.torch import CfC

    model = CfC(input_size=5, units=12, proj_size=OUTPUTS)
    return Problem(model, torch.randn(SAMPLES, 6, 5), lambda found: found[0][:, -1])


def liquid_time_constant() -> Problem:
    from ncps.torch import LTC
    from ncps.wirings import AutoNCP

    model = LTC(5, AutoNCP(12, OUTPUTS), ode_unfolds=3)
    return Problem(model, torch.randn(SAMPLES, 4, 5), lambda found: found[0][:, -1])


def spiking() -> Problem:
    import snntorch

    class Spiking(nn.Module):
        """Two layers of leaky neurons over some steps; the outputs are the last potentials."""

        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(12, 16), nn.Linear(16, OUTPUTS)
            self.neurons = snntorch.Leaky(beta=0.9, learn_beta=True)
            self.readout = snntorch.Leaky(beta=0.8, reset_mechanism="none")

        def forward(self, x: Tensor) -> Tensor:
            hidden, potential = self.neurons.reset_mem(), self.readout.reset_mem()
            for _ in range(4):
                spikes, hidden = self.neurons(self.first(x), hidden)
                _, potential = self.readout(self.second(spikes), potential)
            return potential

    return Problem(Spiking(), 2 * torch.randn(SAMPLES, 12))


NETWORKS = [
    Network("torch", "perceptron", perceptron),
    Network("torch", "convolutions", convolutional),
    Network("torch", "LSTM", lstm),
    Network("torch", "GRU", gru),
    Network("torch", "transformer encoder", encoder),
    Network("torch", "weight and spectral norm", weight_normalised),
    Network("lightning", "LightningModule", lightning_module),
    Network("ncps", "CfC", closed_form_continuous),
    Network("ncps", "LTC", liquid_time_constant),
    Network("snntorch", "leaky neurons", spiking),
]
