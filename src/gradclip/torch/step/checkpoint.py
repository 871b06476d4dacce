"""What a saved state says of itself, so that no other clipper goes on from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ...errors import PolicyError
from ...method.policy import AnyPolicy
from ...method.read import is_written

__all__ = ["describe_state", "refuse_other_state"]

_SCHEMA = 1


def describe_state(policy: AnyPolicy, names: Sequence[str]) -> dict[str, object]:
    """Return the keys that tell which policy, over which parameters, a state belongs to."""
    return {"schema": _SCHEMA, "policy": str(policy), "names": list(names)}


def refuse_other_state(
    state: Mapping[str, object], policy: AnyPolicy, names: Sequence[str]
) -> None:
    """Refuse a state of another schema, another policy or other parameters.

    Args:
        state: a saved state; not mutated.
        policy: the policy that would go on from it.
        names: the parameters' names, in their order.

    Raises:
        PolicyError: names the key that differs.
    """
    schema, saved = state.get("schema"), state.get("policy")
    if schema != _SCHEMA:
        raise PolicyError.of("schema", schema, f"this version reads schema {_SCHEMA}")
    if not is_written(policy, saved):
        remedy = f"this clipper's policy is {str(policy)!r}: make it with the saved one"
        raise PolicyError.of("policy", saved, remedy)
    given = state["names"]
    found = list(given) if isinstance(given, (list, tuple)) else []
    if found != list(names):
        changed = sorted(set(found) ^ set(names)) or ["the order of the names"]
        remedy = "the saved parameters are others than this clipper's: rebuild it with them"
        raise PolicyError.of("names", changed, remedy)
