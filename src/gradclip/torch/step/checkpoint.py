"""What a saved state says of itself, so that no other clipper goes on from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ...engine.saved import refuse_other_keys
from ...errors import PolicyError
from ...method.policy import AnyPolicy
from ...method.read import is_written

__all__ = ["describe_state", "refuse_other_state"]

_SCHEMA = 1


def describe_state(policy: AnyPolicy, names: Sequence[str]) -> dict[str, object]:
    """Return the keys that tell which policy, over which parameters, a state belongs to."""
    return {"schema": _SCHEMA, "policy": str(policy), "names": list(names)}


def refuse_other_state(
    state: object, policy: AnyPolicy, names: Sequence[str], keys: Sequence[str]
) -> None:
    """Refuse a state of another schema, another policy or other parameters.

    Args:
        state: whatever was saved; not mutated.
        policy: the policy that would go on from it.
        names: the parameters' names, in their order.
        keys: the keys of the state that tell what is remembered.

    Raises:
        PolicyError: names the key that differs.
    """
    schema = state.get("schema") if isinstance(state, Mapping) else _SCHEMA
    if type(schema) is not int or schema != _SCHEMA:
        raise PolicyError.of("schema", schema, f"this version reads schema {_SCHEMA}")
    refuse_other_keys("state", state, (*describe_state(policy, names), *keys))
    assert isinstance(state, Mapping)
    saved, given = state["policy"], state["names"]
    if not isinstance(saved, str) or not is_written(policy, saved):
        remedy = f"this clipper's policy is {str(policy)!r}: make it with the saved one"
        raise PolicyError.of("policy", saved, remedy)
    found = list(given) if isinstance(given, (list, tuple)) else [given]
    if not all(isinstance(name, str) for name in found):
        raise PolicyError.of("names", given, "give a list of names, as it was saved")
    if found != list(names):
        changed = sorted(set(found) ^ set(names)) or ["the order of the names"]
        remedy = "the saved parameters are others than this clipper's: rebuild it with them"
        raise PolicyError.of("names", changed, remedy)
