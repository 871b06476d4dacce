"""A saved memory is somebody's data: each entry is looked at before anything goes on from it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from ..arrays import Array, Memory, Namespace, State
from ..errors import PolicyError
from ..method.plan import Plan, Stage, WrappedStage
from ..method.threshold import Threshold
from ..method.threshold.ranges import fault, history_fault, inside
from ..method.written import THRESHOLDS

__all__ = ["Convert", "refuse_other_keys", "sound_memory"]

Convert = Callable[[str, object, Array, "int | None"], Array]
"""Returns an entry as an array of its like's shape and dtype, or raises a PolicyError.

Its arguments: the entry's name, the entry, its like, and of which gradient it holds the values.
"""


def sound_memory(
    plan: Plan,
    saved: object,
    like: Memory,
    xp: Namespace,
    convert: Convert,
    where: str = "memory",
) -> Memory:
    """Return a copy of a saved memory in which each entry is what the plan could have left there.

    Args:
        plan: the layers of stages.
        saved: whatever was saved; not mutated.
        like: what `init` returns for all gradients; only shapes and dtypes count.
        xp: the array namespace of what `convert` returns.
        convert: see `Convert`.
        where: the name of the memory in the saved state.

    Raises:
        PolicyError: names the first entry that is wrong.
    """
    return _Check(xp, convert).layers(where, plan, saved, like)


def refuse_other_keys(
    where: str, saved: object, keys: Iterable[str], *, some: bool = False
) -> None:
    """Refuse anything but a dictionary with these keys, or with some of these.

    Raises:
        PolicyError: names the keys that are missing, and those that nobody knows.
    """
    known = list(keys)
    if not isinstance(saved, Mapping):
        raise PolicyError.of(where, saved, "give a dictionary, as it was saved")
    unknown = [key for key in saved if key not in known]
    missing = [] if some else [key for key in known if key not in saved]
    if unknown:
        raise PolicyError.of(where, unknown, f"these keys are unknown: the keys are {known}")
    if missing:
        raise PolicyError.of(where, list(saved), f"these keys are missing: {missing}")


@dataclass(frozen=True)
class _Check:
    xp: Namespace
    convert: Convert

    def layers(self, where: str, plan: Plan, saved: object, like: Memory) -> Memory:
        _refuse_other_length(where, saved, len(plan))
        assert isinstance(saved, list)
        found = []
        for depth, layer in enumerate(plan):
            place = f"{where}[{depth}]"
            _refuse_other_length(place, saved[depth], len(layer))
            pairs = zip(layer, saved[depth], like[depth], strict=True)
            found.append([self._stage(f"{place}[{i}]", *pair) for i, pair in enumerate(pairs)])
        return found

    def _stage(self, where: str, stage: Stage | WrappedStage, saved: object, like: State) -> State:
        if isinstance(stage, WrappedStage):
            refuse_other_keys(where, saved, ("source", "inner"))
            assert isinstance(saved, Mapping)
            source = saved["source"]
            return {
                "source": self._members(f"{where}['source']", source, like["source"], None, stage),
                "inner": self.layers(
                    f"{where}['inner']", stage.inner, saved["inner"], like["inner"]
                ),
            }
        threshold, scope = stage.policy.threshold, stage.policy.measure.scope
        if scope in ("element", "singular"):
            return self._members(where, saved, like, threshold, stage)
        return self._threshold(where, threshold, saved, like, None, signed=scope == "loss")

    def _members(
        self,
        where: str,
        saved: object,
        like: State,
        threshold: Threshold | None,
        stage: Stage | WrappedStage,
    ) -> State:
        """Check a dictionary by members; those that never had a gradient are not in it."""
        refuse_other_keys(where, saved, [str(m) for m in stage.members], some=True)
        assert isinstance(saved, Mapping)
        found = {}
        for key, value in saved.items():
            place, member = f"{where}[{key!r}]", int(key)
            if key not in like:  # Its shape is not known now: the engine meets it when it is.
                found[key] = value
            elif threshold is None:
                found[key] = self._source(place, value, like[key], member)
            else:
                found[key] = self._threshold(place, threshold, value, like[key], member)
        return found

    def _source(self, where: str, saved: object, like: State, member: int) -> State:
        refuse_other_keys(where, saved, like)
        assert isinstance(saved, Mapping)
        found = {n: self.convert(f"{where}[{n!r}]", saved[n], like[n], member) for n in like}
        for name, value in found.items():
            if not bool(self.xp.all(self.xp.isfinite(value))):
                raise PolicyError.of(f"{where}[{name!r}]", value, "it never holds inf or NaN")
        return found

    def _threshold(
        self,
        where: str,
        threshold: Threshold,
        saved: object,
        like: State,
        member: int | None,
        *,
        signed: bool = False,
    ) -> State:
        """Check the memory of one threshold, and of those inside of it."""
        if isinstance(saved, Mapping) and not saved and not like:
            return {}
        empty = threshold.init(self.xp.zeros((1,), dtype=self.xp.float64), self.xp)
        return self._state(where, threshold, saved, like, empty, member, signed=signed)

    def _state(
        self,
        where: str,
        threshold: Threshold,
        saved: object,
        like: State,
        empty: State,
        member: int | None,
        *,
        signed: bool,
    ) -> State:
        refuse_other_keys(where, saved, like)
        assert isinstance(saved, Mapping)
        own = THRESHOLDS.get(type(threshold).__name__) is type(threshold)
        found: State = {}
        for name in like:
            place = f"{where}[{name!r}]"
            if isinstance(like[name], dict):
                inner = inside(threshold, name), saved[name], like[name], empty[name], member
                found[name] = self._state(place, *inner, signed=signed)
                continue
            value = self.convert(place, saved[name], like[name], member)
            wrong = fault(name, value, empty[name], self.xp, own=own, signed=signed)
            if wrong is not None:
                raise PolicyError.of(place, value, wrong)
            found[name] = value
        if own and {"history", "count"} <= found.keys():
            wrong = history_fault(found, empty, self.xp)
            if wrong is not None:
                raise PolicyError.of(f"{where}['history']", found["history"], wrong)
        return found


def _refuse_other_length(where: str, saved: object, count: int) -> None:
    if not isinstance(saved, list) or len(saved) != count:
        raise PolicyError.of(where, saved, f"give a list of {count}, as it was saved")
