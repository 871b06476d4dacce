"""gradclip.jax.per_sample beside PyTorch's own derivative of one sample at a time, in float64."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from torch import Tensor, nn

import sample_oracle
from gradclip import (
    PolicyError,
    agc,
    by_name,
    by_norm,
    normalise,
    online_quantile,
    spectral,
    with_feedback,
)
from gradclip.jax import per_sample
from gradclip.numpy import SampleResult
from gradclip.parts import Ramp

SIZE = 7


class Net(nn.Module):
    """Two layers, of which the second uses the first one's weight again."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(3, 3))
        self.b = nn.Parameter(torch.zeros(3))
        self.v = nn.Parameter(torch.zeros(3, 2))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(torch.tanh(x @ self.w + self.b) @ self.w) @ self.v


def net(params: Any, x: Any) -> Any:
    return jnp.tanh(jnp.tanh(x @ params["w"] + params["b"]) @ params["w"]) @ params["v"]


def loss(params: Any, x: Any, y: Any) -> Any:
    """The loss of one sample."""
    return jnp.sum((net(params, x) - y) ** 2)


def torch_loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return ((model(x) - y) ** 2).sum(1)


def drawn(dtype: Any = jnp.float32, size: int = SIZE) -> tuple[Any, Any, Any]:
    """Return parameters, inputs and targets; the samples' gradients differ a hundredfold."""
    rng = np.random.default_rng(0)
    shapes = {"b": (3,), "v": (3, 2), "w": (3, 3)}
    params = {name: jnp.asarray(rng.normal(size=s), dtype) for name, s in shapes.items()}
    x = rng.normal(size=(size, 3))
    y = rng.normal(size=(size, 2)) * np.geomspace(0.1, 10, size)[:, None]
    return params, jnp.asarray(x, dtype), jnp.asarray(y, dtype)


def expected(params: Any, x: Any, y: Any) -> list[sample_oracle.Grads]:
    """Return the gradient of each sample, by PyTorch in float64."""
    model = Net().double()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.tensor(np.asarray(params[name], np.float64)))
    wide = [torch.tensor(np.asarray(each, np.float64)) for each in (x, y)]
    return sample_oracle.sample_gradients(model, torch_loss, *wide)


def auto_s(grads: sample_oracle.Grads, limit: float) -> sample_oracle.Grads:
    factor = limit / (sample_oracle.norm(grads) + 0.01)
    return {name: grad * factor for name, grad in grads.items()}


POLICIES: dict[str, tuple[Any, Any]] = {
    "norm": (by_norm(1.5), sample_oracle.rescaled),
    "tensor": (by_norm(1.5, scope="tensor"), sample_oracle.rescaled_each),
    "auto-s": (normalise(1.5, eps=0.01), auto_s),
    "array": (by_norm(jnp.asarray(1.5)), sample_oracle.rescaled),
    "by name": (by_name({"w": by_norm(1.5, scope="tensor"), "*": None}), None),
}


def clipped_by_oracle(name: str, grads: sample_oracle.Grads) -> sample_oracle.Grads:
    rule = POLICIES[name][1]
    if rule is None:
        return {**grads, **sample_oracle.rescaled({"w": grads["w"]}, 1.5)}
    return rule(grads, 1.5)


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("microbatch", [None, 1, 2, 7, 100])
@pytest.mark.parametrize("jit", [True, False])
def test_as_one_sample_at_a_time(name: str, microbatch: int | None, jit: bool) -> None:
    data = drawn()
    function = per_sample(loss, POLICIES[name][0], reduction="sum", microbatch=microbatch)
    grads, result = (jax.jit(function) if jit else function)(*data)
    alone = expected(*data)
    after = [clipped_by_oracle(name, each) for each in alone]
    norms = [sample_oracle.norm(each) for each in alone]
    kept = [sample_oracle.norm(each) for each in after]
    assert_allclose(result.sample_norms, norms, rtol=1e-5)
    assert_allclose(result.sample_coef, np.divide(kept, norms), rtol=1e-5)
    assert_allclose(result.removed, 1 - sum(kept) / sum(norms), rtol=1e-5, atol=1e-6)
    changed = [not np.isclose(a, b, rtol=1e-9) for a, b in zip(kept, norms, strict=True)]
    assert int(result.clipped) == sum(changed) > 0
    assert not result.skipped.any()
    for key, total in sample_oracle.added(after).items():
        assert_allclose(grads[key], total.numpy(), rtol=1e-5, atol=1e-6)
        assert grads[key].dtype == jnp.float32


def test_the_mean_is_the_sum_over_the_samples() -> None:
    data = drawn()
    mean, _ = per_sample(loss)(*data)
    total, _ = per_sample(loss, reduction="sum")(*data)
    for key in mean:
        assert_allclose(mean[key] * SIZE, total[key], rtol=1e-6)


def test_without_a_limit_the_gradient_is_that_of_jax() -> None:
    params, x, y = drawn()
    whole = jax.grad(lambda p: jnp.mean(jax.vmap(loss, (None, 0, 0))(p, x, y)))(params)
    grads, result = per_sample(loss, by_norm(1e9))(params, x, y)
    assert_array_equal(result.sample_coef, np.ones(SIZE))
    assert int(result.clipped) == 0 == float(result.removed)
    for key in grads:
        assert_allclose(grads[key], whole[key], rtol=1e-5, atol=1e-6)


def test_an_array_as_limit_may_move_in_a_compiled_step() -> None:
    params, x, y = drawn()

    @jax.jit
    def step(limit: Any) -> Any:
        return per_sample(loss, by_norm(limit))(params, x, y)[1]

    for limit in (0.5, 2.0):
        result = step(jnp.asarray(limit))
        assert_allclose((result.sample_norms * result.sample_coef).max(), limit, rtol=1e-6)


@pytest.mark.parametrize("jit", [True, False])
def test_an_empty_batch_gives_zeros(jit: bool) -> None:
    params, x, y = drawn()
    function = per_sample(loss, microbatch=2)
    grads, result = (jax.jit(function) if jit else function)(params, x[:0], y[:0])
    assert all(np.all(np.asarray(g) == 0) for g in jax.tree.leaves(grads))
    assert [each.shape for each in result] == [(0,), (0,), (), (), (0,)]
    assert int(result.clipped) == 0 == float(result.removed)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("microbatch", [None, 2])
def test_a_sample_that_is_not_finite_is_left_out(bad: float, microbatch: int | None) -> None:
    params, x, y = drawn()
    function = per_sample(loss, reduction="sum", microbatch=microbatch)
    grads, result = function(params, x, y.at[3].set(bad))
    others = np.arange(SIZE) != 3
    want, without = function(params, x[others], y[others])
    assert_array_equal(result.skipped, ~others)
    assert float(result.sample_coef[3]) == 0
    assert not np.isfinite(result.sample_norms[3])
    assert_allclose(result.removed, without.removed, rtol=1e-6)
    assert int(result.clipped) == int(without.clipped)
    for key in grads:
        assert_allclose(grads[key], want[key], rtol=1e-6, atol=1e-7)


def test_no_float64_is_left_and_x64_gets_more_digits() -> None:
    grads, result = per_sample(loss)(*drawn())
    kinds = {leaf.dtype for leaf in jax.tree.leaves((grads, result))}
    assert kinds == {np.dtype("float32"), np.dtype("int32"), np.dtype("bool")}
    with jax.enable_x64(True):
        data = drawn(jnp.float64)
        grads, result = jax.jit(per_sample(loss, by_norm(1.5), reduction="sum"))(*data)
        alone = [sample_oracle.rescaled(each, 1.5) for each in expected(*data)]
        for key, total in sample_oracle.added(alone).items():
            assert_allclose(grads[key], total.numpy(), rtol=1e-12, atol=1e-13)
        assert result.sample_norms.dtype == jnp.float64


def test_values_whose_squares_leave_float64_are_measured() -> None:
    with jax.enable_x64(True):
        x = jnp.asarray([[3e200, 4e200], [3e-200, 4e-200]])
        grads, result = per_sample(jnp.dot, reduction="sum")(jnp.zeros(2), x)
        assert_allclose(result.sample_norms, [5e200, 5e-200], rtol=1e-14)
        assert_allclose(result.sample_coef, [2e-201, 1.0], rtol=1e-14)
        assert_allclose(grads, [0.6, 0.8], rtol=1e-14)
        assert not result.skipped.any()


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_narrow_parameters_keep_their_dtype(dtype: Any) -> None:
    data = drawn(dtype)
    grads, result = jax.jit(per_sample(loss, by_norm(1.5), reduction="sum"))(*data)
    alone = [sample_oracle.rescaled(each, 1.5) for each in expected(*data)]
    for key, total in sample_oracle.added(alone).items():
        assert grads[key].dtype == dtype
        assert_allclose(np.asarray(grads[key], float), total.numpy(), rtol=0.1, atol=0.1)
    product = result.sample_norms.astype(float) * result.sample_coef.astype(float)
    assert product.max() <= 1.5 * (1 + 1e-7)


def test_argnums_aux_shared_arguments_and_keywords() -> None:
    params, x, y = drawn()

    def fun(shift: Any, x: Any, params: Any, y: Any, *, power: int) -> Any:
        error = net(params, x) + shift - y
        return jnp.sum(error**power), {"error": error}

    function = per_sample(fun, argnums=(2, 0), batch_argnums=(1, 3), has_aux=True, microbatch=3)
    (grads, shift), result, aux = function(jnp.zeros(()), x, params, y, power=2)
    plain, same = per_sample(lambda p, x, y: loss(p["p"], x, y - p["s"]), by_norm(1.0))(
        {"p": params, "s": jnp.zeros(())}, x, y
    )
    assert_allclose(aux["error"], jax.vmap(net, (None, 0))(params, x) - y, rtol=1e-5, atol=1e-6)
    assert_allclose(result.sample_norms, same.sample_norms, rtol=1e-5)
    assert_allclose(shift, plain["s"], rtol=1e-5, atol=1e-6)
    for key in grads:
        assert_allclose(grads[key], plain["p"][key], rtol=1e-5, atol=1e-6)


def test_one_random_key_for_each_sample() -> None:
    def noisy(w: Any, x: Any, key: Any) -> Any:
        return jnp.dot(w, x * jax.random.bernoulli(key, 0.5, x.shape))

    keys = jax.random.split(jax.random.key(0), 4)
    x = jnp.ones((4, 50))
    whole = per_sample(noisy, by_norm(2.0))(jnp.zeros(50), x, keys)
    pieces = per_sample(noisy, by_norm(2.0), microbatch=2)(jnp.zeros(50), x, keys)
    assert len(set(whole[1].sample_norms.tolist())) > 1
    assert_allclose(whole[0], pieces[0], rtol=1e-6)
    assert_array_equal(whole[1].sample_norms, pieces[1].sample_norms)


@pytest.mark.parametrize("microbatch", [None, 3])
def test_under_vmap_and_in_a_scan(microbatch: int | None) -> None:
    params, x, y = drawn()
    function = per_sample(loss, microbatch=microbatch)
    alone = [function(params, x * scale, y) for scale in (1.0, 2.0)]
    both = jnp.stack([x, x * 2])
    mapped = jax.jit(jax.vmap(function, (None, 0, None)))(params, both, y)
    _, scanned = jax.lax.scan(lambda carry, x: (carry, function(params, x, y)), None, both)
    for i, one in enumerate(alone):
        for found in (mapped, scanned):
            mine = jax.tree.map(lambda leaf, i=i: leaf[i], found)
            for a, b in zip(jax.tree.leaves(mine), jax.tree.leaves(one), strict=True):
                assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_micro_batches_need_less_memory() -> None:
    wide = jnp.zeros((256, 256))
    x = jnp.ones((64, 256))

    def temporary(microbatch: int | None) -> int:
        function = per_sample(lambda w, x: jnp.sum((x @ w) ** 2), microbatch=microbatch)
        analysis = jax.jit(function).lower(wide, x).compile().memory_analysis()
        assert analysis is not None
        return analysis.temp_size_in_bytes

    assert temporary(4) < temporary(None) / 4


def test_the_result_is_a_tree() -> None:
    _, result = jax.jit(per_sample(loss))(*drawn())
    assert isinstance(result, SampleResult)
    assert len(jax.tree.leaves(result)) == 5


# ---- what is refused ---------------------------------------------------------------------------


MEMORY = "no call knows of earlier ones here: move the limit yourself"
REFUSED: dict[str, tuple[Any, str]] = {
    "quantile": (online_quantile(), MEMORY),
    "ramp": (by_norm(Ramp(1.0, 0.1, 10)), MEMORY),
    "function of the step": (by_norm(lambda step: 1.0 + step), MEMORY),
    "singular values": (spectral(1.0), "for samples, give the scope global, tensor, unit, element"),
    "unit ramp": (by_norm(Ramp(1.0, 0.1, 10), scope="unit"), MEMORY),
    "agc ramp": (agc(Ramp(1.0, 0.1, 10)), MEMORY),
    "wrapper": (with_feedback(by_norm(1.0)), "for samples, give one policy"),
    "order": (by_norm(1.0, order=1), "for samples, give order=2"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_policy_that_is_not_for_samples_is_refused(name: str) -> None:
    policy, message = REFUSED[name]
    with pytest.raises(PolicyError, match=message):
        per_sample(loss, policy)(*drawn())


def test_wrong_arguments_are_refused() -> None:
    params, x, y = drawn()
    wrong: list[tuple[dict[str, Any], tuple[Any, ...], str]] = [
        ({"argnums": 3}, (params, x, y), "argnums=.3,. is not usable: the call has 3"),
        ({"argnums": -1}, (params, x, y), "argnums=-1 is not usable: give a whole number"),
        ({"batch_argnums": (1, 1)}, (params, x, y), "and each once"),
        ({"batch_argnums": (0, 1)}, (params, x, y), "argnums=0 has it too"),
        ({"reduction": "max"}, (params, x, y), "reduction='max' is not usable"),
        ({"microbatch": 0}, (params, x, y), "microbatch=0 is not usable"),
        ({"has_aux": True}, (params, x, y), "return a pair of the loss and a tree"),
        ({}, (params, x, y[:3]), r"argument 2: shape=\(3, 2\) is not usable.*counts 7 samples"),
        ({}, (params, x, 1.0), r"argument 2: shape=\(\) .*batch_argnums without 2"),
        ({}, (params,), "these arguments hold no array"),
        ({}, ({"w": jnp.zeros(2, int)}, x), "a gradient is an array of floats"),
        ({}, ({"w": jnp.zeros(2, complex)}, x), "the gradient is complex"),
        ({}, ({}, x), "give parameters to differentiate"),
        ({"batch_argnums": 1}, (params, x, y), r"fun='a loss of shape \(7,\)"),
    ]

    def function(params: Any, x: Any, y: Any = 0.0) -> Any:
        return jnp.sum((net(params, x) - y) ** 2, axis=-1)

    for options, args, message in wrong:
        with pytest.raises(PolicyError, match=message):
            per_sample(function, **options)(*args)
    with pytest.raises(PolicyError, match="give the loss of one sample"):
        per_sample("loss")  # pyright: ignore[reportArgumentType]
