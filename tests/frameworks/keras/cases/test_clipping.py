"""A clipped optimizer clips what Keras's own clipping clips, where Keras does."""

# pyright: reportMissingImports=false
from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import gradclip.numpy
from gradclip import GradclipError, NonFiniteError, PolicyError, by_norm, parse, skip_outliers
from gradclip.integrations.keras import Clipped, clipped
from gradclip.integrations.keras.units import units_last

from .training import BACKEND, apply, arrays, data, fit, inner, keras, model, variable, weights

pytestmark = [
    pytest.mark.filterwarnings("ignore:Gradients do not exist:UserWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
RATE = 0.5

OWN: dict[str, tuple[dict[str, float], str]] = {
    "global_clipnorm": ({"global_clipnorm": 0.01}, "norm:0.01"),
    "clipnorm": ({"clipnorm": 0.005}, "norm:0.005,scope=tensor"),
    "clipvalue": ({"clipvalue": 0.002}, "value:0.002"),
}
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "accumulation": {"gradient_accumulation_steps": 4},
    "static-scale": {"loss_scale_factor": 64.0},
    "moving-average": {"use_ema": True, "ema_momentum": 0.5, "ema_overwrite_frequency": 3},
    "weight-decay": {"weight_decay": 0.1},
    "scaled-accumulation": {"gradient_accumulation_steps": 2, "loss_scale_factor": 8.0},
}


def _policy(text: str) -> Any:
    if text.endswith("scope=tensor"):
        return by_norm(0.005, scope="tensor")
    return parse(text)


@pytest.fixture(autouse=True)
def float32() -> Any:
    yield
    keras.config.set_dtype_policy("float32")


@pytest.mark.parametrize(
    ("own", "setting"),
    [*((own, "plain") for own in OWN), *(("global_clipnorm", s) for s in SETTINGS if s != "plain")],
)
def test_it_is_keras_own_clipping(own: str, setting: str) -> None:
    argument, text = OWN[own]
    policy = _policy(text)
    ours = model(clipped(keras.optimizers.SGD, policy)(RATE, **SETTINGS[setting]))
    theirs = model(keras.optimizers.SGD(RATE, **argument, **SETTINGS[setting]))
    before = weights(ours)
    fit(ours)
    fit(theirs)
    for one, other in zip(weights(ours), weights(theirs), strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-6, atol=1e-9)
    assert not np.array_equal(weights(ours)[0], before[0])
    assert ours.optimizer.clipping["clipped_steps"] > 0


@pytest.mark.parametrize("name", ["Adam", "Lion"] if BACKEND == "torch" else ["Adam"])
def test_every_optimizer_takes_it(name: str) -> None:
    kind = getattr(keras.optimizers, name)
    ours = model(clipped(kind, "norm:0.01")(0.01))
    theirs = model(kind(0.01, global_clipnorm=0.01))
    fit(ours)
    fit(theirs)
    for one, other in zip(weights(ours), weights(theirs), strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-5, atol=1e-7)


@pytest.mark.parametrize("auto", [False, True])
def test_under_loss_scaling_the_unscaled_gradients_are_clipped(auto: bool) -> None:
    keras.config.set_dtype_policy("mixed_float16")

    def scaled(optimizer: Any) -> Any:
        if auto:  # Keras adds a scaler by itself.
            return optimizer
        return keras.optimizers.LossScaleOptimizer(optimizer, initial_scale=8.0)

    ours = model(scaled(clipped(keras.optimizers.SGD, "norm:0.001")(1.0)))
    theirs = model(scaled(keras.optimizers.SGD(1.0, global_clipnorm=0.001)))
    before = weights(ours)
    fit(ours)
    fit(theirs)
    moved = np.sqrt(sum(((a - b) ** 2).sum() for a, b in zip(weights(ours), before, strict=True)))
    assert 0 < moved <= 0.008
    for one, other in zip(weights(ours), weights(theirs), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-6)
    clipping = inner(ours).clipping
    assert clipping["steps"] == clipping["clipped_steps"] == int(inner(ours).iterations)
    assert clipping["skipped_steps"] == 0, "what the scaler skips is no skip of the clipper"
    assert clipping["clipped_norm"] == pytest.approx(0.001, rel=1e-6)


def test_keras_clips_after_scaling_and_accumulation_once_an_update() -> None:
    """`_clip_gradients` is private: this says that Keras still calls it as the docs say."""
    seen: list[float] = []

    class Looks(keras.optimizers.SGD):
        def _clip_gradients(self, grads: Any) -> Any:
            seen.append(float(grads[0][0]))
            return super()._clip_gradients(grads)

    optimizer = Looks(1.0, gradient_accumulation_steps=2, loss_scale_factor=4.0)
    apply(optimizer, [variable([0.0], "w")], [[8.0]], [[16.0]])
    per_batch = [2.0] if BACKEND == "jax" else []  # JAX clips at each batch and drops the result.
    assert seen == [*per_batch, 3.0]


@pytest.mark.parametrize("policy", ["agc:0.01", "value:0.1|norm:0.05", "zclip"])
def test_it_is_the_policy_of_numpy(policy: str) -> None:
    rng = np.random.default_rng(1)
    start = {n: rng.normal(size=s).astype("float32") for n, s in (("b", (3,)), ("a", (4, 3)))}
    variables = [variable(value, name) for name, value in start.items()]
    optimizer = clipped(keras.optimizers.SGD, policy)(1.0)
    state, now = None, dict(start)
    for _ in range(6):
        grads = {n: rng.normal(size=v.shape).astype("float32") for n, v in start.items()}
        done, state, _ = gradclip.numpy.clip(grads, units_last(parse(policy)), state, weights=now)
        now = {n: now[n] - done[n] for n in now}
        apply(optimizer, variables, list(grads.values()))
    for got, wanted in zip(arrays(variables), now.values(), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("policy", ["agc:0.5,1.0", {"*": "agc:0.5,1.0"}, "value:9|agc:0.5,1.0"])
def test_a_unit_is_an_output_of_a_layer(policy: Any) -> None:
    """The kernel of a Keras layer is (inputs, outputs), on every backend."""
    weight = variable([[0.0, 0.0], [0.0, 0.0]], "kernel")
    apply(clipped(keras.optimizers.SGD, policy)(1.0), [weight], [[[3.0, 0.1], [4.0, 0.1]]])
    np.testing.assert_allclose(arrays([weight])[0], [[-0.3, -0.1], [-0.4, -0.1]], rtol=1e-6)


def test_rules_by_name_see_the_paths() -> None:
    rules = {"net/a/*": "value:0.001", "net/b/kernel": "norm:0.5", "*": None}
    made = model(clipped(keras.optimizers.SGD, rules)(1.0))
    assert made.trainable_variables[0].path in ("net/a/kernel", "a/kernel")
    rules = {v.path: "value:0.001" for v in made.trainable_variables[:2]} | {"*": None}
    made = model(clipped(keras.optimizers.SGD, rules)(1.0))
    before = weights(made)
    fit(made, batches=1)
    moves = [np.abs(a - b).max() for a, b in zip(weights(made), before, strict=True)]
    assert max(moves[:2]) <= 0.001 + 1e-6
    assert moves[2] > 0.01


def test_under_the_limit_no_bit_changes() -> None:
    ours = model(clipped(keras.optimizers.Adam, "norm:1e9")(0.01))
    theirs = model(keras.optimizers.Adam(0.01))
    fit(ours)
    fit(theirs)
    assert ours.optimizer.clipping["clipped_steps"] == 0
    for one, other in zip(weights(ours), weights(theirs), strict=True):
        if BACKEND == "torch":
            np.testing.assert_array_equal(one, other)
        else:  # Another compiled program may round otherwise.
            np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-8)


def test_a_missing_gradient_is_left_out() -> None:
    variables = [variable([1.0, 1.0], "a"), variable([1.0], "b")]
    optimizer = clipped(keras.optimizers.SGD, "norm:1.0")(1.0)
    apply(optimizer, variables, [[3.0, 4.0], None], [None, [0.5]])
    a, b = arrays(variables)
    np.testing.assert_allclose(a, [0.4, 0.2], rtol=1e-6)
    np.testing.assert_allclose(b, [0.5])
    assert optimizer.clipping["total_norm"] == 0.5


def test_a_layer_that_is_used_twice_counts_once() -> None:
    keras.utils.set_random_seed(0)
    shared = keras.layers.Dense(3, use_bias=False, name="shared")
    x = keras.Input((3,))
    made = keras.Model(x, shared(shared(x)))
    made.compile(clipped(keras.optimizers.SGD, "norm:0.01")(1.0), loss="mse")
    (before,) = weights(made)
    made.fit(np.ones((4, 3)), np.full((4, 3), 9.0), verbose=0, batch_size=4)
    assert len(made.optimizer.side.names) == 1
    assert np.sqrt(((weights(made)[0] - before) ** 2).sum()) == pytest.approx(0.01, rel=1e-4)


def test_two_variables_of_one_name_are_two() -> None:
    variables = [variable([0.0], "w"), variable([0.0], "w")]
    optimizer = clipped(keras.optimizers.SGD, "norm:1.0")(1.0)
    apply(optimizer, variables, [[3.0], [4.0]])
    np.testing.assert_allclose(np.ravel(arrays(variables)), [-0.6, -0.8], rtol=1e-6)


def test_the_lists_and_tensors_that_were_given_stay() -> None:
    grads = [keras.ops.convert_to_tensor([3.0, 4.0])]
    optimizer = clipped(keras.optimizers.SGD, "norm:1.0")(1.0)
    optimizer.apply(grads, [variable([0.0, 0.0], "w")])
    assert keras.ops.convert_to_numpy(grads[0]).tolist() == [3.0, 4.0]
    assert optimizer.clipping["clipped"] == 1


def test_bfloat16_weights_are_clipped() -> None:
    keras.config.set_dtype_policy("bfloat16")
    made = model(clipped(keras.optimizers.SGD, "norm:0.01")(1.0))
    fit(made)
    assert made.optimizer.clipping["clipped_steps"] == 8
    # The numbers are of what is stored: bfloat16 rounds a value by up to 2^-9.
    assert made.optimizer.clipping["clipped_norm"] <= 0.01 * (1 + 2**-8)


# ---- refusals ---------------------------------------------------------------------------------


@pytest.mark.parametrize("own", ["clipnorm", "global_clipnorm", "clipvalue"])
def test_keras_own_clipping_besides_is_refused(own: str) -> None:
    with pytest.raises(
        PolicyError, match=f"{own}=1.0 is not usable: the policy clips in its place"
    ):
        clipped(keras.optimizers.SGD, "norm:1.0")(1.0, **{own: 1.0})
    later = clipped(keras.optimizers.SGD, "norm:1.0")(1.0)
    setattr(later, own, 2.0)
    with pytest.raises(PolicyError, match=own):
        apply(later, [variable([0.0], "w")], [[1.0]])


def test_what_is_no_class_of_an_unclipped_optimizer_is_refused() -> None:
    once = clipped(keras.optimizers.SGD, "norm:1.0")
    wrong: list[Any] = [keras.optimizers.SGD(1.0), once, keras.layers.Dense, "adam"]
    for each in wrong:
        with pytest.raises(PolicyError, match="give the class of a Keras optimizer"):
            clipped(each, "norm:1.0")
    with pytest.raises(PolicyError, match="clip the optimizer inside of it"):
        clipped(keras.optimizers.LossScaleOptimizer, "norm:1.0")


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(PolicyError, match="max_skips=-1"):
        clipped(keras.optimizers.SGD, "norm:1.0", max_skips=-1)
    with pytest.raises(PolicyError, match="nonfinite='never'"):
        clipped(keras.optimizers.SGD, "norm:1.0", nonfinite="never")  # pyright: ignore
    with pytest.raises(PolicyError, match="max_norm=-1"):
        clipped(keras.optimizers.SGD, "norm:-1")
    if BACKEND == "jax":
        with pytest.raises(PolicyError, match="nonfinite='raise'"):
            clipped(keras.optimizers.SGD, "norm:1.0", nonfinite="raise")


def test_a_policy_that_looks_at_the_loss_is_refused() -> None:
    with pytest.raises(PolicyError, match="looks at the loss"):
        clipped(keras.optimizers.SGD, skip_outliers(of="loss"))


def test_the_same_arguments_are_the_same_class() -> None:
    kind = clipped(keras.optimizers.SGD, "norm:1.0")
    assert kind is clipped(keras.optimizers.SGD, "norm:1.0")
    assert issubclass(kind, (Clipped, keras.optimizers.SGD))
    assert kind.__name__ == "ClippedSGD"
    assert kind(1.0).clipping == {"steps": 0, "clipped_steps": 0, "skipped_steps": 0}


# ---- inf and NaN ------------------------------------------------------------------------------

STATEFUL = {
    "SGD": {"momentum": 0.9},
    "Adam": {},
    "AdamW": {"weight_decay": 0.1},
    "moving-average": {"use_ema": True, "ema_overwrite_frequency": 2},
}


def _own_variables(optimizer: Any) -> list[np.ndarray]:
    """Return the optimizer's variables, without those of gradclip."""
    return arrays(v for v in optimizer.variables if "gradclip" not in v.name)


@pytest.mark.parametrize("name", STATEFUL)
def test_a_skipped_step_changes_nothing(name: str) -> None:
    kind = getattr(keras.optimizers, name, keras.optimizers.Adam)
    optimizer = clipped(kind, "norm:1.0")(0.1, **STATEFUL[name])
    variables = [variable([1.0, 2.0], "a"), variable([3.0], "b")]
    apply(optimizer, variables, [[1.0, 1.0], [1.0]], [[2.0, 0.0], [1.0]])
    before = arrays(variables), _own_variables(optimizer)
    apply(optimizer, variables, [[np.nan, 1.0], [1.0]], [[1.0, 1.0], [np.inf]])
    after = arrays(variables), _own_variables(optimizer)
    for old, new in zip(before, after, strict=True):
        for one, other in zip(old, new, strict=True):
            np.testing.assert_array_equal(one, other)
    assert optimizer.clipping["skipped_steps"] == 2
    assert int(optimizer.iterations) == 2
    apply(optimizer, variables, [[1.0, 1.0], [1.0]])
    assert not np.array_equal(arrays(variables)[0], before[0][0])


def test_keras_alone_ruins_the_weights_there() -> None:
    """The two tests above and below would pass if NaN did no harm."""
    weight = variable([1.0], "a")
    apply(keras.optimizers.SGD(1.0, global_clipnorm=1.0), [weight], [[np.nan]])
    assert np.isnan(arrays([weight])[0]).all()


def test_a_skip_in_fit_is_as_if_the_batch_was_not_there() -> None:
    ours = model(clipped(keras.optimizers.Adam, "norm:0.5")(0.01))
    theirs = model(clipped(keras.optimizers.Adam, "norm:0.5")(0.01))
    fit(ours, nan_at=(7,))
    fit(theirs, batches=8, nan_at=())
    assert ours.optimizer.clipping["skipped_steps"] == 1
    assert int(ours.optimizer.iterations) == 7
    assert all(np.isfinite(w).all() for w in weights(ours))
    again = model(clipped(keras.optimizers.Adam, "norm:0.5")(0.01))
    x, y = data()
    again.fit(x[:56], y[:56], batch_size=8, verbose=0, shuffle=False)
    for one, other in zip(weights(ours), weights(again), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_skip_drops_the_accumulation_and_begins_the_next_one() -> None:
    optimizer = clipped(keras.optimizers.SGD, "norm:1e9")(1.0, gradient_accumulation_steps=2)
    weight = variable([0.0], "w")
    apply(optimizer, [weight], [[np.inf]], [[1.0]])
    assert arrays([weight])[0].tolist() == [0.0]
    assert optimizer.clipping["skipped_steps"] == 1
    assert int(optimizer.iterations) == 0
    apply(optimizer, [weight], [[2.0]])
    assert arrays([weight])[0].tolist() == [0.0], "one batch of two"
    assert optimizer.clipping["steps"] == 1
    apply(optimizer, [weight], [[4.0]])
    assert arrays([weight])[0].tolist() == [-3.0]
    assert int(optimizer.iterations) == 1
    assert (optimizer.clipping["steps"], optimizer.clipping["skipped_steps"]) == (2, 1)


def test_a_loss_scaler_skips_before_the_clipper() -> None:
    keras.config.set_dtype_policy("mixed_float16")
    made = model(
        keras.optimizers.LossScaleOptimizer(
            clipped(keras.optimizers.SGD, "norm:0.1")(1.0), initial_scale=8.0
        )
    )
    fit(made, nan_at=(3,))
    assert inner(made).clipping["steps"] == 7
    assert inner(made).clipping["skipped_steps"] == 0
    assert float(keras.ops.convert_to_numpy(made.optimizer.dynamic_scale)) == 4.0


@pytest.mark.parametrize(
    ("nonfinite", "wanted"), [("zero", [-1.0, 0.0]), ("propagate", [np.nan] * 2)]
)
def test_what_inf_and_nan_do_can_be_chosen(nonfinite: Any, wanted: list[float]) -> None:
    optimizer = clipped(keras.optimizers.SGD, "norm:1.0", nonfinite=nonfinite)(1.0)
    weight = variable([0.0, 0.0], "w")
    apply(optimizer, [weight], [[5.0, np.nan]])
    np.testing.assert_allclose(arrays([weight])[0], wanted, rtol=1e-6)


def test_too_many_skips_stop_the_run() -> None:
    optimizer = clipped(keras.optimizers.SGD, "norm:1.0", max_skips=2)(1.0)
    weight = variable([0.0], "w")
    apply(optimizer, [weight], [[np.nan]], [[np.nan]])
    with pytest.raises(Exception, match=r"3 (steps|updates) in a row were skipped") as caught:
        apply(optimizer, [weight], [[np.nan]])
    if BACKEND == "torch":
        assert isinstance(caught.value, GradclipError)
    assert arrays([weight])[0].tolist() == [0.0]


@pytest.mark.skipif(BACKEND == "jax", reason="refused there: see above")
def test_raise_names_the_variable() -> None:
    optimizer = clipped(keras.optimizers.SGD, "norm:1.0", nonfinite="raise")(1.0)
    variables = [variable([0.0], "good"), variable([0.0], "bad")]
    with pytest.raises(Exception, match="bad") as caught:
        apply(optimizer, variables, [[1.0], [np.nan]])
    if BACKEND == "torch":
        assert isinstance(caught.value, NonFiniteError)
    assert [a.tolist() for a in arrays(variables)] == [[0.0], [0.0]]


def test_the_weights_of_a_policy_that_skips_stay() -> None:
    optimizer = clipped(keras.optimizers.SGD, "skip_above:5.0")(1.0)
    weight = variable([0.0], "w")
    apply(optimizer, [weight], [[3.0]], [[7.0]])
    assert arrays([weight])[0].tolist() == [-3.0]
    assert optimizer.clipping["skipped"] == 1
