"""The rules for recurrent modules: nn.RNN, nn.LSTM and nn.GRU, and the cells that take one step of them.

They call no module for a step, so that the recurrence is unrolled here, and the gradients at all outputs of a call are
taken back through it. A step computes its gates from W x + b and U h + c, with its input x and the state h before it. A
plain network and an LSTM take the sum of both: where g is its gradient, the weights have g x^T and g h^T, and both
biases have g, so that a step is one position with a = [x, 1, h, 1]. A GRU multiplies a part of U h + c by a gate first,
so that both have gradients of their own, and a step is two positions with [x, 1] and [h, 1]. Each layer and direction
has entries of a for itself, which are zero at the positions of all others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

from ahkernels.capture.guard import quietly_batched

# From the module, W x + b and U h + c [n, m], and the state before: the state after, whose first part is the output.
_Step: TypeAlias = Callable[[Any, Tensor, Tensor, Sequence[Tensor]], tuple[Tensor, ...]]


class RecurrentRule:
    """The recurrence is unrolled, with the gates of each step as the places where gradients arrive.

    Args:
        step: Takes one step.
        states: The number of tensors in the state.
        summed: Whether a step takes no more than the sum of W x + b and U h + c.
    """

    def __init__(self, step: _Step, *, states: int, summed: bool) -> None:
        self.step, self.states, self.summed = step, states, summed

    def parameters(self, module: Any) -> list[str]:
        """Lists the weights, and the biases where there are some; nothing for an LSTM with projections."""
        if getattr(module, "proj_size", 0):
            return []
        return [name for end in _ends(module) for name in _names(module, end)]

    def record(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, ...] | None:
        """Keeps the input [n, t, d], and the first state [n, layers and directions, h] if one is given.

        Nothing is kept, so that the rule does not apply, for packed sequences and for an input without samples.
        """
        given = dict(zip(("input", "hx"), args, strict=False)) | kwargs
        x, state = given["input"], given.get("hx")
        if not isinstance(x, Tensor) or x.dim() != 2 + _takes_sequences(module):
            return None
        states = () if state is None else state if isinstance(state, tuple) else (state,)
        if not _takes_sequences(module):
            return tuple(one.unsqueeze(1) for one in (x, *states))
        return x if module.batch_first else x.transpose(0, 1), *(one.transpose(0, 1) for one in states)

    def sample_dimensions(self, module: Any) -> tuple[int, ...]:
        """Lists them for the output and the state, or for the state alone, which is the output of a cell."""
        if not _takes_sequences(module):
            return (0,) * self.states
        return 0 if module.batch_first else 1, *(1,) * self.states

    def factors(self, module: Any, recorded: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """Forms a [n, p, d], with d entries for all layers and directions, and gradients at the gates [r, n, p, m]."""
        outputs, blocks = self._unrolled(module, *recorded)
        places = [place for block in blocks for place in block.places]
        with quietly_batched:
            found = iter(torch.autograd.grad(outputs, places, gradient, is_grads_batched=True))
        g = []
        for block in blocks:
            of_places = [next(found) for _ in block.places]
            g.append(of_places[0] if of_places[0].dim() == 4 else torch.stack(of_places, 2))
        return _side_by_side([block.a for block in blocks]), torch.cat(g, 2)

    def has_bias(self, module: Any) -> bool:
        """Returns False always, since both biases have entries of a."""
        return False

    def _unrolled(self, module: Any, x: Tensor, *given: Tensor) -> tuple[Tensor, list[_Block]]:
        """Runs all layers and directions with gradients on.

        Returns:
            The outputs of the module joined [n, numbers], and what its weights multiply.
        """
        ends, directions = _ends(module), 2 if getattr(module, "bidirectional", False) else 1
        states = given or [x.new_zeros(len(x), len(ends), module.hidden_size)] * self.states
        runs: list[_Run] = []
        with torch.enable_grad():
            for first in range(0, len(ends), directions):
                outputs = []
                for place in range(first, first + directions):
                    inputs = x.flip(1) if place > first else x
                    runs.append(self._run(module, ends[place], inputs, [one[:, place] for one in states]))
                    outputs.append(runs[-1].output.flip(1) if place > first else runs[-1].output)
                x = torch.cat(outputs, 2)
            last = [torch.stack(parts, 1) for parts in zip(*(run.state for run in runs), strict=True)]
            of_module = [x, *last] if _takes_sequences(module) else last
            joined = torch.cat([one.flatten(1) for one in of_module], 1)
        return joined, [block for run in runs for block in run.blocks]

    def _run(self, module: Any, end: str, x: Tensor, state: Sequence[Tensor]) -> _Run:
        """Runs one layer in one direction, from x [n, t, d] and a state of tensors [n, h]."""
        weight_ih, weight_hh, *biases = (getattr(module, name).detach() for name in _names(module, end))
        bias_ih, bias_hh = biases or (None, None)
        at_inputs = functional.linear(x, weight_ih, bias_ih).requires_grad_()  # [n, t, m]
        before, at_states, outputs = [], [], []
        for at_input in at_inputs.unbind(1):
            before.append(state[0])
            at_states.append(functional.linear(state[0], weight_hh, bias_hh).requires_grad_())
            state = self.step(module, at_input, at_states[-1], state)
            outputs.append(state[0])
        factors = [one.detach() for one in (x, torch.stack(before, 1))]
        of_inputs, of_states = (functional.pad(one, (0, 1), value=1.0) if module.bias else one for one in factors)
        if self.summed:
            blocks = [_Block(torch.cat((of_inputs, of_states), 2), [at_inputs])]
        else:
            blocks = [_Block(of_inputs, [at_inputs]), _Block(of_states, at_states)]
        return _Run(torch.stack(outputs, 1), state, blocks)


class _Block(NamedTuple):
    """Positions whose forward factors have the same entries.

    Attributes:
        a: Those entries [n, t, d].
        places: Where their gradients arrive: one tensor [n, t, m], or t tensors [n, m].
    """

    a: Tensor
    places: list[Tensor]


class _Run(NamedTuple):
    """One layer in one direction.

    Attributes:
        output: The first part of the state after each step [n, t, h], in the order of the steps.
        state: The last state.
        blocks: What the weights multiply.
    """

    output: Tensor
    state: Sequence[Tensor]
    blocks: list[_Block]


def _takes_sequences(module: nn.Module) -> bool:
    """Tells whether a module takes sequences, or is a cell, which takes one step."""
    return isinstance(module, nn.RNNBase)


def _ends(module: Any) -> list[str]:
    """Lists how the names of the parameters of each layer and direction end."""
    if not _takes_sequences(module):
        return [""]
    directions = ("", "_reverse") if module.bidirectional else ("",)
    return [f"_l{layer}{direction}" for layer in range(module.num_layers) for direction in directions]


def _names(module: Any, end: str) -> list[str]:
    """Lists the parameters of a layer in one direction."""
    kinds = ("weight_ih", "weight_hh", "bias_ih", "bias_hh") if module.bias else ("weight_ih", "weight_hh")
    return [kind + end for kind in kinds]


def _side_by_side(blocks: Sequence[Tensor]) -> Tensor:
    """Gives each block [n, t, d] positions and entries of its own, [n, sum of t, sum of d]."""
    if len(blocks) == 1:
        return blocks[0]
    found = blocks[0].new_zeros(len(blocks[0]), *(sum(block.shape[i] for block in blocks) for i in (1, 2)))
    position = entry = 0
    for block in blocks:
        t, d = block.shape[1:]
        found[:, position : position + t, entry : entry + d] = block
        position, entry = position + t, entry + d
    return found


def _plain_step(module: Any, at_input: Tensor, at_state: Tensor, state: Sequence[Tensor]) -> tuple[Tensor, ...]:
    z = at_input + at_state
    return (z.relu() if module.nonlinearity == "relu" else z.tanh(),)


def _lstm_step(module: Any, at_input: Tensor, at_state: Tensor, state: Sequence[Tensor]) -> tuple[Tensor, ...]:
    i, f, g, o = (at_input + at_state).chunk(4, 1)
    c = f.sigmoid() * state[1] + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def _gru_step(module: Any, at_input: Tensor, at_state: Tensor, state: Sequence[Tensor]) -> tuple[Tensor, ...]:
    (r, z, n), (r_of_state, z_of_state, n_of_state) = at_input.chunk(3, 1), at_state.chunk(3, 1)
    z = (z + z_of_state).sigmoid()
    n = (n + (r + r_of_state).sigmoid() * n_of_state).tanh()
    return ((1 - z) * n + z * state[0],)


_PLAIN = RecurrentRule(_plain_step, states=1, summed=True)
_LSTM = RecurrentRule(_lstm_step, states=2, summed=True)
_GRU = RecurrentRule(_gru_step, states=1, summed=False)
RULES: dict[type[nn.Module], RecurrentRule] = {
    nn.RNN: _PLAIN,
    nn.RNNCell: _PLAIN,
    nn.LSTM: _LSTM,
    nn.LSTMCell: _LSTM,
    nn.GRU: _GRU,
    nn.GRUCell: _GRU,
}
