"""The gradients of all samples of LSTM, GRU and RNN, from a second run of the recurrence.

The run takes all samples together, one step in time after the other, and keeps what the gates get
before their nonlinearity. Its derivative there, times the inputs of the step, is the gradient.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .call import Call
from .forms import Form, Outer, summed

__all__ = ["is_plain_recurrent", "recurrent"]


@dataclass(frozen=True)
class _Weights:
    """The parameters of one layer in one direction."""

    suffix: str
    w_ih: Tensor
    w_hh: Tensor
    b_ih: Tensor | None
    b_hh: Tensor | None
    w_hr: Tensor | None


@dataclass
class _Traced:
    """What one layer got in one direction, by time: lists of T tensors, shape (B, …)."""

    inputs: Tensor
    gates: list[Tensor]
    repeated: list[Tensor]
    before: list[Tensor]
    wide: list[Tensor]
    outputs: list[Tensor]


def is_plain_recurrent(module: nn.Module) -> bool:
    """Whether a module is an LSTM, a GRU or an RNN that `recurrent` can run again."""
    return (
        isinstance(module, nn.RNNBase)
        and type(module).forward in (nn.LSTM.forward, nn.GRU.forward, nn.RNN.forward)
        and {name for name, _ in module.named_parameters()} == set(module._flat_weights_names)
        and module.batch_first
        and not (module.dropout and module.num_layers > 1)
    )


def recurrent(module: nn.Module, call: Call) -> dict[str, Form]:
    """Return the forms of the trained parameters.

    Args:
        module: see `is_plain_recurrent`.
        call: not mutated.
    """
    assert isinstance(module, nn.RNNBase)
    with torch.enable_grad():
        outputs, traced = _run(module, call)
    wanted = [
        each for _, t in traced for each in (*t.gates, *t.repeated, *t.outputs[: len(t.wide)])
    ]
    pairs = [(out, g) for out, g in zip(outputs, call.grads, strict=True) if g is not None]
    tops, pulls = [out for out, _ in pairs], [g.to(out.dtype) for out, g in pairs]
    found = torch.autograd.grad(tops, wanted, pulls, allow_unused=True)
    grads = {id(key): value for key, value in zip(wanted, found, strict=True)}

    def by_time(values: list[Tensor]) -> Tensor:
        taken = [grads[id(each)] for each in values]
        return torch.stack(
            [torch.zeros_like(v) if g is None else g for v, g in zip(values, taken, strict=True)], 2
        )

    forms: dict[str, Form] = {}
    trained = {name for name, p in module.named_parameters() if p.requires_grad}
    for weights, t in traced:
        gates = by_time(t.gates)
        again = by_time(t.repeated) if t.repeated else gates
        uses = [("ih", gates, t.inputs.mT), ("hh", again, torch.stack(t.before, 2))]
        if t.wide:
            uses.append(("hr", by_time(t.outputs), torch.stack(t.wide, 2)))
        for kind, left, right in uses:
            name = f"weight_{kind}{weights.suffix}"
            if name in trained:
                shape = torch.Size((left.shape[1], right.shape[1]))
                forms[name] = Outer(left[:, None], right.detach()[:, None], shape)
            if f"bias_{kind}{weights.suffix}" in trained:
                forms[f"bias_{kind}{weights.suffix}"] = summed(left)
    return forms


def _run(module: nn.RNNBase, call: Call) -> tuple[list[Tensor], list[tuple[_Weights, _Traced]]]:
    """Run the module; return its outputs, and what each layer got in each direction."""
    x = call.first
    assert x is not None
    x = x.to(next(module.parameters()).dtype)
    states = _states(module, call, x)
    traced: list[tuple[_Weights, _Traced]] = []
    ends: list[tuple[Tensor, ...]] = []
    for layer in range(module.num_layers):
        ways: list[Tensor] = []
        for back in range(2 if module.bidirectional else 1):
            weights = _weights(module, f"_l{layer}" + ("_reverse" if back else ""))
            inputs = x.flip(1) if back else x
            t, end = _layer(module, weights, inputs, next(states))
            traced.append((weights, t))
            ends.append(end)
            out = torch.stack(t.outputs, 1)
            ways.append(out.flip(1) if back else out)
        x = torch.cat(ways, 2)
    return [x, *(torch.stack(each) for each in zip(*ends, strict=True))], traced


def _states(module: nn.RNNBase, call: Call, x: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Yield the first state of each layer and direction: (h,), and of an LSTM (h, c)."""
    given = call.kwargs.get("hx", call.args[1] if len(call.args) > 1 else None)
    count = module.num_layers * (2 if module.bidirectional else 1)
    widths = [module.proj_size or module.hidden_size, module.hidden_size]
    if given is None:
        lstm = isinstance(module, nn.LSTM)
        given = [x.new_zeros(count, len(x), each) for each in widths[: 2 if lstm else 1]]
    yield from zip(*([given] if isinstance(given, Tensor) else given), strict=True)


def _weights(module: nn.RNNBase, suffix: str) -> _Weights:
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")
    found = [getattr(module, name + suffix, None) for name in names]
    w_ih, w_hh, *others = [None if each is None else each.detach() for each in found]
    assert w_ih is not None
    assert w_hh is not None
    return _Weights(suffix, w_ih, w_hh, *others)


def _layer(
    module: nn.RNNBase, weights: _Weights, inputs: Tensor, state: tuple[Tensor, ...]
) -> tuple[_Traced, tuple[Tensor, ...]]:
    """Run one layer in one direction; return what it got, and its last state."""
    t = _Traced(inputs, [], [], [], [], [])
    state = tuple(each.to(inputs.dtype) for each in state)
    # One tensor a step, so that the derivative stops at each.
    for given in F.linear(inputs, weights.w_ih, weights.b_ih).unbind(1):
        t.before.append(state[0].detach())
        again = F.linear(state[0], weights.w_hh, weights.b_hh)
        if isinstance(module, nn.GRU):
            h = _gru(_noted(given, t.gates), _noted(again, t.repeated), state[0])
            state = (h,)
        elif isinstance(module, nn.LSTM):
            h, c = _lstm(_noted(given + again, t.gates), state[1])
            if weights.w_hr is not None:
                t.wide.append(h.detach())
                h = F.linear(h, weights.w_hr)
            state = (h, c)
        else:
            gate = _noted(given + again, t.gates)
            state = (torch.relu(gate) if module.mode == "RNN_RELU" else torch.tanh(gate),)
        t.outputs.append(state[0])
    return t, state


def _noted(values: Tensor, into: list[Tensor]) -> Tensor:
    """Append values to a list, as something that can be differentiated by."""
    values = values if values.requires_grad else values.detach().requires_grad_()
    into.append(values)
    return values


def _lstm(gates: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    i, f, g, o = gates.chunk(4, 1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


def _gru(given: Tensor, again: Tensor, h: Tensor) -> Tensor:
    (r, z, n), (r2, z2, n2) = given.chunk(3, 1), again.chunk(3, 1)
    z = torch.sigmoid(z + z2)
    return (1 - z) * torch.tanh(n + torch.sigmoid(r + r2) * n2) + z * h
