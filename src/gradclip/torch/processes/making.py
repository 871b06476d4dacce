"""The making of a clipper in many processes: all of them are there, and mean the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch.distributed as dist
from torch import Tensor

from .agree import Said, Value, agree, many_processes
from .alone import Note, leave_note, noticing
from .exchange import patterns, together
from .layout import GroupsLike
from .reduce import Group
from .written_out import written_out

__all__ = ["agree_to_call", "agree_to_make", "and_the_job", "listed", "value_of"]


def value_of(value: object) -> Value:
    """Return any value as something that is compared, and as something that is shown."""
    try:
        shown = repr(value)
    except Exception:  # A repr may be anybody's code.
        shown = f"<{type(value).__name__}>"
    return Value(written_out(value), shown)


def listed(names: Sequence[str], params: Sequence[Tensor]) -> Value:
    """Return a list of parameters, as text of a line each."""
    text = "\n".join(
        f"{name} {tuple(param.shape)} {param.dtype}"
        for name, param in zip(names, params, strict=True)
    )
    return Value(text + "\n", text + "\n")


def and_the_job(groups: Sequence[Group]) -> list[Group]:
    """Return the groups and, after them, all processes of the job."""
    if not many_processes() or dist.group.WORLD is None:
        return list(groups)
    world = Group(tuple(range(dist.get_world_size())), dist.group.WORLD)
    return [*groups] if world in groups else [*groups, world]


def agree_to_make(
    named: tuple[Sequence[str], Sequence[Tensor]],
    others: Sequence[Group],
    everyone: Sequence[Group],
    groups: GroupsLike | None,
    said: Said,
) -> Note | None:
    """Raise in all processes if their clippers differ; all of them call this.

    Args:
        named: the names and the parameters of this process.
        others: from `together`.
        everyone: these, or, with verify, those of `and_the_job`.
        groups: see `Clipper`. Without them all processes have the same list of parameters.
        said: what must be equal in all processes.

    Returns:
        The note that this clipper works alone; None if it does not, or in one process.

    Raises:
        PolicyError: names what differs, and what each process says.
        LayoutError: a process does not come.
    """
    if not many_processes():
        return None
    names, params = named
    if not everyone:
        return leave_note(names)
    lists = listed(names, params)

    def says(group: Group) -> Said:
        given = patterns(groups, group)
        found = {**said, "groups": Value(given, given)}
        return found if groups is not None or not others else {**found, "parameters": lists}

    with noticing(names) as absent:
        agree(others or everyone, says, absent)
        # Only then the rest of the job: who has no verify would not come.
        rest = [group for group in everyone if others and group not in others]
        agree(rest, lambda _: {"verify": said["verify"]}, absent)
    return None


def agree_to_call(
    function: str,
    tensors: Sequence[Tensor],
    groups: GroupsLike | None,
    asked: Mapping[str, object],
) -> None:
    """Raise in all processes if they call a function for different things; all of them call this.

    Args:
        function: the name of it.
        tensors: what it is called for. Without groups all processes give the same list.
        groups: see `clip_grad_norm_`.
        asked: its other arguments.

    Raises:
        PolicyError: names what differs, and what each process says.
        LayoutError: a process does not come.
    """
    if not many_processes():
        return
    others = together(tensors, groups) or and_the_job([])
    once = list({id(tensor): tensor for tensor in tensors}.values())
    said = {name: value_of(value) for name, value in {"function": function, **asked}.items()}

    def says(group: Group) -> Said:
        given = patterns(groups, group)
        found = {**said, "groups": Value(given, given)}
        names = [str(i) for i in range(len(once))]
        return found if groups is not None else {**found, "parameters": listed(names, once)}

    agree(others, says, topic="a call with verify")
