"""Attention and recurrent layers sample by sample, in float64, against one pass a sample."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import sample_oracle as oracle
from gradclip import by_norm
from gradclip.torch import per_sample

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections")  # torch is slow there.
B = 4
Forward = Callable[[nn.Module, Tensor], list[Tensor]]


class Read(nn.Module):
    """One layer, and how it is called."""

    def __init__(self, layer: nn.Module, call: Forward) -> None:
        super().__init__()
        self.layer, self.call = layer, call

    def forward(self, x: Tensor) -> Tensor:
        outputs = self.call(self.layer, x)
        return torch.cat([out.reshape(len(x), -1) for out in outputs], 1)


def ends(layer: nn.Module, x: Tensor) -> list[Tensor]:
    """Use the outputs, and the last states, whose batch is the second axis."""
    out, last = layer(x)
    last = last if isinstance(last, tuple) else (last,)
    return [out, *(each.transpose(0, 1) for each in last)]


def last_only(layer: nn.Module, x: Tensor) -> list[Tensor]:
    return ends(layer, x)[1:2]


def begun(layer: nn.Module, x: Tensor) -> list[Tensor]:
    """Begin with a state that depends on the sample."""
    assert isinstance(layer, nn.RNNBase)
    count = layer.num_layers * (2 if layer.bidirectional else 1)
    h = x[:, 0, :1].expand(-1, layer.proj_size or layer.hidden_size).sin()
    c = x[:, 1, :1].expand(-1, layer.hidden_size)
    h, c = (each.expand(count, *each.shape).contiguous() for each in (h, c))
    return [layer(x, (h, c) if isinstance(layer, nn.LSTM) else h)[0]]


RECURRENT: dict[str, tuple[Callable[[], nn.Module], Forward]] = {
    "lstm": (lambda: nn.LSTM(3, 4, batch_first=True), ends),
    "lstm deep both ways": (lambda: nn.LSTM(3, 4, 2, batch_first=True, bidirectional=True), ends),
    "lstm projected": (lambda: nn.LSTM(3, 4, 2, batch_first=True, proj_size=2), ends),
    "lstm no bias": (lambda: nn.LSTM(3, 4, batch_first=True, bias=False), last_only),
    "lstm begun": (lambda: nn.LSTM(3, 4, batch_first=True, bidirectional=True), begun),
    "lstm projected begun": (lambda: nn.LSTM(3, 4, batch_first=True, proj_size=2), begun),
    "gru": (lambda: nn.GRU(3, 4, batch_first=True), ends),
    "gru deep both ways": (lambda: nn.GRU(3, 4, 2, batch_first=True, bidirectional=True), ends),
    "gru begun": (lambda: nn.GRU(3, 4, batch_first=True), begun),
    "rnn": (lambda: nn.RNN(3, 4, 2, batch_first=True), last_only),
    "rnn relu": (lambda: nn.RNN(3, 4, batch_first=True, nonlinearity="relu"), begun),
}


def attends(layer: nn.Module, x: Tensor) -> list[Tensor]:
    return [layer(x, x, x, need_weights=False)[0]]


def with_weights(layer: nn.Module, x: Tensor) -> list[Tensor]:
    return list(layer(x, x, x))


def weights_only(layer: nn.Module, x: Tensor) -> list[Tensor]:
    return [layer(x, x, x, average_attn_weights=False)[1].square()]


def crossed(layer: nn.Module, x: Tensor) -> list[Tensor]:
    return [layer(x[:, :2], x.flip(2), x.flip(2))[0]]


def other_widths(layer: nn.Module, x: Tensor) -> list[Tensor]:
    return [layer(x, x[..., :3], x[..., :2].sin())[0]]


def masked(layer: nn.Module, x: Tensor) -> list[Tensor]:
    times = x.shape[1]
    padding = torch.arange(times).expand(len(x), -1) >= times - 1
    padding = padding & (x[:, :1, 0] > 0)
    causal = nn.Transformer.generate_square_subsequent_mask(times).to(x.dtype)
    padded = torch.zeros_like(padding, dtype=x.dtype).masked_fill(padding, -torch.inf)
    return [layer(x, x, x, key_padding_mask=padded, attn_mask=causal, is_causal=True)[0]]


def attention(**options: object) -> Callable[[], nn.Module]:
    return lambda: nn.MultiheadAttention(4, 2, batch_first=True, **options)  # pyright: ignore[reportArgumentType]


ATTENTION: dict[str, tuple[Callable[[], nn.Module], Forward]] = {
    "attention": (attention(), attends),
    "attention no bias": (attention(bias=False), with_weights),
    "attention weights": (attention(), weights_only),
    "attention crossed": (attention(), crossed),
    "attention widths": (attention(kdim=3, vdim=2), other_widths),
    "attention masked": (attention(add_zero_attn=True), masked),
}
CASES = {
    **{name: (*pair, (6, 3)) for name, pair in RECURRENT.items()},
    **{name: (*pair, (5, 4)) for name, pair in ATTENTION.items()},
}


def loss_of(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return (y[:, None] * (model(x) - 0.5) ** 2).sum(1)


def made(case: str, dtype: torch.dtype) -> tuple[Read, Tensor, Tensor]:
    torch.manual_seed(0)
    make, call, shape = CASES[case]
    model = Read(make(), call).to(dtype)
    for p in model.parameters():
        p.data += 0.1 * torch.randn_like(p)
    return model, torch.randn(B, *shape, dtype=dtype), torch.rand(B, dtype=dtype) * 3


@pytest.mark.parametrize(("dtype", "near"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize("case", CASES)
def test_a_layer_run_again_gives_what_one_pass_a_sample_gives(
    case: str, dtype: torch.dtype, near: float
) -> None:
    model, x, y = made(case, dtype)
    samples = oracle.sample_gradients(model, loss_of, x, y)
    norms = [oracle.norm(grads) for grads in samples]
    limit = sorted(norms)[B // 2] * 0.9
    clipper = per_sample(model, by_norm(limit), "sum")
    loss_of(model, x, y).sum().backward()
    result = clipper.clip_()
    assert result.ran == {"ghost": ("layer",)}
    found = result.sample_norms.tolist()
    assert found == pytest.approx(norms, rel=near)
    assert result.sample_coef.tolist() == pytest.approx(
        [min(1.0, limit / norm) for norm in norms], rel=near
    )
    total = oracle.added([oracle.rescaled(grads, limit) for grads in samples])
    for name, p in model.named_parameters():
        assert (p.grad is None) == (name not in total)
        if p.grad is None:
            continue
        expected = total[name]
        torch.testing.assert_close(
            p.grad.double(), expected, rtol=near, atol=near * limit, msg=f"{case}: {name}"
        )


@pytest.mark.parametrize("case", ["lstm", "gru", "attention", "attention crossed"])
def test_frozen_parameters_of_a_layer_take_no_part(case: str) -> None:
    model, x, y = made(case, torch.float64)
    for name, p in model.named_parameters():
        p.requires_grad_(name.endswith(("bias_hh_l0", "weight_ih_l0", "out_proj.weight")))
    samples = oracle.sample_gradients(model, loss_of, x, y)
    clipper = per_sample(model, "norm:1e-3", "sum")
    loss_of(model, x, y).sum().backward()
    result = clipper.clip_()
    assert result.sample_norms.tolist() == pytest.approx([*map(oracle.norm, samples)], rel=1e-10)
    assert set(clipper.names) == set(samples[0])


@pytest.mark.parametrize("weights", [True, False])
def test_attention_with_dropout_draws_the_same_numbers_again(weights: bool) -> None:
    torch.manual_seed(0)
    layer = nn.MultiheadAttention(4, 2, dropout=0.4, batch_first=True)
    model = nn.Sequential(nn.Linear(3, 4), Read(layer, with_weights if weights else attends))
    x, clipper = torch.randn(B, 5, 3), per_sample(model, "norm:1e6", "sum")
    for _ in range(3):  # The first step compares its sums with .grad by itself.
        model.zero_grad()
        model(x).square().sum().backward()
        expected = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        state = torch.get_rng_state()
        result = clipper.clip_()
        assert torch.equal(torch.get_rng_state(), state), "the next step draws what it would have"
        assert result.ran["ghost"] == ("0", "1.layer")
        for p, grad in zip(model.parameters(), expected, strict=True):
            assert p.grad is not None
            torch.testing.assert_close(p.grad, grad, rtol=1e-5, atol=1e-6)


def test_a_transformer_layer_needs_no_other_dropout_than_its_own() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(4, 2, 6, dropout=0.3, batch_first=True)
    clipper = per_sample(layer, "norm:1e6", "sum")
    layer(torch.randn(B, 5, 4)).square().sum().backward()
    expected = [p.grad.clone() for p in layer.parameters() if p.grad is not None]
    assert clipper.clip_().ran.keys() == {"ghost"}
    for p, grad in zip(layer.parameters(), expected, strict=True):
        assert p.grad is not None
        torch.testing.assert_close(p.grad, grad, rtol=1e-5, atol=1e-6)


def test_a_tied_table_counts_the_cross_term() -> None:
    torch.manual_seed(0)

    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.head = nn.Embedding(7, 4, padding_idx=2), nn.Linear(4, 7, bias=False)
            self.head.weight = self.table.weight

        def forward(self, words: Tensor) -> Tensor:
            return self.head(self.table(words).sin() + self.table(words.flip(1))).flatten(1)

    model, words, y = Tied().double(), torch.randint(0, 7, (B, 5)), torch.rand(B).double()
    samples = oracle.sample_gradients(model, loss_of, words, y)
    clipper = per_sample(model, "norm:0.1", "sum")
    loss_of(model, words, y).sum().backward()
    result = clipper.clip_()
    assert result.ran == {"ghost": ("table", "head")}
    assert result.sample_norms.tolist() == pytest.approx([*map(oracle.norm, samples)], rel=1e-12)
    total = oracle.added([oracle.rescaled(grads, 0.1) for grads in samples])
    assert model.table.weight.grad is not None
    torch.testing.assert_close(model.table.weight.grad, total["table.weight"])
