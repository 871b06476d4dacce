"""`clipped`: a Keras optimizer class that clips what it is given, on every backend."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from importlib import import_module
from typing import Any, ClassVar

import keras  # pyright: ignore[reportMissingImports]

from ...arrays import Values
from ...checks import choice, integer
from ...engine.run import NonFinite
from ...errors import PolicyError
from ...method.policy import to_dict
from ...method.read import PolicyLike, as_policy, from_dict
from ...method.traits import traits_of
from .side import Optimizer, Settings, Side, Store, Variable, unique_names
from .stored import own_entries

__all__ = ["Clipped", "clipped"]

_SIDES = {"torch": ".on_torch", "jax": ".on_jax", "tensorflow": ".on_tensorflow"}
_OWN = ("clipnorm", "global_clipnorm", "clipvalue")


def clipped(
    optimizer: type[Optimizer],
    policy: PolicyLike = "auto",
    *,
    nonfinite: NonFinite = "skip",
    max_skips: int = 10,
) -> type[Optimizer]:
    """Return a subclass of a Keras optimizer that clips its gradients by a policy.

    The formula is the policy's; see `gradclip methods`. Gradients are clipped where Keras's own
    `clipnorm`, `global_clipnorm` and `clipvalue` are: after loss scaling is undone, once for the
    mean of accumulated gradients, before weight decay and before the optimizer's formula.

    Args:
        optimizer: a class, such as `keras.optimizers.Adam`, or your own; not mutated. For a
            `LossScaleOptimizer`, clip its inner optimizer.
        policy: a policy, its text form, or rules by name; a variable's name is its `path`, such as
            "dense/kernel". A policy that looks at the loss is refused: an optimizer of Keras
            never has the loss.
        nonfinite: "skip": a step with inf or NaN changes nothing: weights, the optimizer's
            variables, its counter and moving averages stay, and accumulated gradients are
            dropped; "zero": such values become 0 and the rest is clipped; "propagate":
            computed on; "raise": an error, not on JAX. What a `LossScaleOptimizer` skips by itself
            never arrives here.
        max_skips: more skips in a row than this stop the run.

    Returns:
        A class with the arguments of `optimizer`; see `Clipped` for what an instance has in
        addition. The same arguments return the same class.

    Raises:
        PolicyError: an argument is wrong; from the optimizer: Keras's own clipping is set as well,
            or, with TensorFlow, the step is compiled by XLA or has several replicas.
        NonFiniteError: from the optimizer, on torch and on TensorFlow run eagerly: max_skips was
            exceeded, or nonfinite="raise". In a compiled step JAX raises a `JaxRuntimeError` and
            TensorFlow an `UnknownError`, which end with the same text.

    Numerics: on torch those of `gradclip.torch.Clipper`: where the gradient is the variable's own
    `.grad`, that is clipped in place, and any other tensor is left as it is. On JAX those of
    `gradclip.jax.clip`; a missing gradient counts as zeros. On TensorFlow those of
    `gradclip.numpy.clip`: gradients are copied to the host and back at each step.

    Example:
        >>> import keras, numpy as np
        >>> optimizer = clipped(keras.optimizers.SGD, "norm:1.0")(1.0)
        >>> weight = keras.Variable(np.zeros(2, "float32"))
        >>> optimizer.apply([keras.ops.convert_to_tensor([3.0, 4.0])], [weight])
        >>> weight.numpy().round(4).tolist()
        [-0.6000000238418579, -0.800000011920929]
        >>> optimizer.clipping["clipped"], round(optimizer.clipping["total_norm"], 4)
        (1, 5.0)
    """
    known = isinstance(optimizer, type) and issubclass(optimizer, keras.optimizers.Optimizer)
    if not known or issubclass(optimizer, Clipped):
        remedy = "give the class of a Keras optimizer that is not clipped yet, not an instance"
        raise PolicyError.of("optimizer", optimizer, remedy)
    if issubclass(optimizer, keras.optimizers.LossScaleOptimizer):
        remedy = "clip the optimizer inside of it: LossScaleOptimizer(clipped(Adam, policy)(1e-3))"
        raise PolicyError.of("optimizer", optimizer.__name__, remedy)
    settings = Settings(as_policy(policy), nonfinite, integer("max_skips", max_skips, low=0))
    backend = keras.backend.backend()
    choice("keras.backend.backend()", backend, tuple(_SIDES))
    known_answers = ("skip", "zero", "raise", "propagate")
    choice(
        "nonfinite", nonfinite, tuple(a for a in known_answers if (a, backend) != ("raise", "jax"))
    )
    if traits_of(settings.policy).loss:
        remedy = "it looks at the loss, which a Keras optimizer never has: take one that does not"
        raise PolicyError.of("policy", str(settings.policy), remedy)
    return _made(_written(optimizer), settings)


@cache
def _made(plain: type[Optimizer], settings: Settings) -> type[Optimizer]:
    # On torch Keras makes an object of a faster class of the one that is written.
    fast: Any = plain
    if keras.backend.backend() == "torch":
        fast = _made_of(plain)
    fields: Any = {"plain": plain, "settings": settings, "__module__": __package__}
    bases: Any = (Clipped, fast)
    found: Any = type(f"Clipped{plain.__name__}", bases, fields)
    return keras.saving.register_keras_serializable("gradclip", "Clipped")(found)


def _made_of(kind: Any) -> type[Optimizer]:
    """Return the class of the objects that a class makes."""
    return type(kind.__new__(kind))


def _written(kind: type[Optimizer]) -> type[Optimizer]:
    """Return the class that one writes, for one that Keras makes of it on torch."""
    if keras.backend.backend() != "torch":
        return kind
    bases = [base for base in kind.__mro__[1:] if issubclass(base, keras.optimizers.Optimizer)]
    return next((base for base in bases if _made_of(base) is kind), kind)


@keras.saving.register_keras_serializable("gradclip", "Clipped")
class Clipped:
    """What the optimizers of `clipped` have in addition to those of Keras.

    `keras.saving.load_model` restores such an optimizer, with its policy, counters and memory, in
    a program that has imported `gradclip.integrations.keras`, on the backend that saved it.

    Args:
        args, kwargs: those of the optimizer.

    Attributes:
        plain: the class that is clipped.
        settings: the policy, and what happens to inf and NaN.
    """

    plain: ClassVar[type[Optimizer]]
    settings: ClassVar[Settings]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        _refuse_own(self)
        self._side: Side | None = None

    @property
    def clipping(self) -> Mapping[str, float]:
        """The counters `steps`, `clipped_steps`, `skipped_steps`, and the numbers of the last step.

        The numbers are those of `ClipResult`; `clipped` and `skipped` are 0 or 1. Reads the
        device. After a model was loaded on torch or TensorFlow the numbers are there from the next
        step on. On JAX `fit` keeps the values to itself until `model.jax_state_sync()`, which
        it calls at the end of an epoch.
        """
        if self._side is None:
            return {"steps": 0, "clipped_steps": 0, "skipped_steps": 0}
        counts = self._side.counts()
        return {**counts, **((self._side.last() or {}) if counts["steps"] else {})}

    @property
    def side(self) -> Side | None:
        """The work on the backend; on torch `side.clipper` is the `Clipper`. None until built."""
        return self._side

    def build(self, variables: Sequence[Variable]) -> None:
        """Make the optimizer's variables, and the clipper's memory."""
        super().build(variables)  # pyright: ignore[reportAttributeAccessIssue]
        variables = list(variables)
        module = import_module(_SIDES[keras.backend.backend()], __package__)
        self._side = module.make(self, self.settings, unique_names(variables), variables)

    def apply(self, grads: Sequence[Values], trainable_variables: Any = None) -> None:
        """Clip the gradients and apply them; see `keras.Optimizer.apply`."""
        given = None if trainable_variables is None else list(trainable_variables)
        if self._side is None and given and len(grads):
            self.build(given)
        call = partial(super().apply, grads, given)  # pyright: ignore[reportAttributeAccessIssue]
        if self._side is None:
            call()  # Says what is missing.
        else:
            self._side.step(call)

    def _backend_apply_gradients(self, grads: Any, trainable_variables: Any) -> None:
        assert self._side is not None
        place: Callable[[Variable], int] = self._get_variable_index  # pyright: ignore
        self._side.present = [place(variable) for variable in trainable_variables]
        super()._backend_apply_gradients(grads, trainable_variables)  # pyright: ignore

    def _clip_gradients(self, grads: Sequence[Values]) -> list[Values]:
        assert self._side is not None
        _refuse_own(self)
        return self._side.clip(grads)

    def save_own_variables(self, store: Store) -> None:
        """Save the variables, and the clipper's memory."""
        super().save_own_variables(store)  # pyright: ignore[reportAttributeAccessIssue]
        if self._side is not None:
            self._side.save(store)

    def load_own_variables(self, store: Store) -> None:
        """Load what `save_own_variables` saved."""
        plain, own = own_entries(store)
        super().load_own_variables(plain)  # pyright: ignore[reportAttributeAccessIssue]
        if self._side is not None:
            self._side.load(own)

    def get_config(self) -> dict[str, Any]:
        """Return how to make the optimizer again."""
        kind = type(self)
        plain = kind.plain.from_config(super().get_config())  # pyright: ignore
        inner = keras.saving.serialize_keras_object(plain)
        if type(plain) is not kind.plain:  # Named so that another backend finds it.
            inner |= {"module": "keras.optimizers", "class_name": kind.plain.__name__}
            inner["registered_name"] = None
        return {
            "name": self.name,  # pyright: ignore[reportAttributeAccessIssue]
            "optimizer": inner,
            "policy": to_dict(self.settings.policy),
            "nonfinite": self.settings.nonfinite,
            "max_skips": self.settings.max_skips,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Optimizer:
        """Make an optimizer from what `get_config` returned; not mutated."""
        inner = keras.saving.deserialize_keras_object(config["optimizer"], custom_objects)
        kind: Any = clipped(
            type(inner),
            from_dict(config["policy"]),
            nonfinite=config["nonfinite"],
            max_skips=config["max_skips"],
        )
        plain: Any = super(Clipped, kind)
        return plain.from_config(inner.get_config() | {"name": config["name"]})


def _refuse_own(optimizer: Optimizer) -> None:
    """Refuse an optimizer whose own clipping is set: the policy would replace it silently."""
    for name in _OWN:
        if getattr(optimizer, name) is not None:
            remedy = "the policy clips in its place: leave it out, or chain policies"
            raise PolicyError.of(name, getattr(optimizer, name), remedy)
