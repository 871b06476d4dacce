"""The making of a clipper in many processes: all of them are there, and mean the same."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager

import torch.distributed as dist
from torch import Tensor

from .agree import Said, Value, agree, many_processes, refusing
from .alone import Note, leave_note, noticing
from .exchange import patterns, together
from .layout import GroupsLike
from .reduce import Group
from .written_out import written_out

__all__ = ["Making", "agree_to_call", "and_the_job", "listed", "value_of"]

_NAMES = "the exchange of names"


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


class Making:
    """The making of one clipper, at the same time in all processes that have a part in it.

    First the arguments are looked at, then the processes agree, then they exchange names: one that
    refuses tells the others each time.

    Args:
        given: what was given for parameters in this process.
        groups: see `Clipper`. Without them all processes have the same list of parameters.
        verify: whether all processes of the job have a part in it.

    Raises:
        PolicyError: a group is none; the processes of the meshes hear of it.
    """

    def __init__(self, given: Sequence[object], groups: GroupsLike | None, *, verify: bool) -> None:
        self._groups = groups
        self._others = together(given, groups)
        self._everyone = and_the_job(self._others) if verify else self._others

    def arguments(self) -> AbstractContextManager[None]:
        """Return the block in which the arguments are looked at."""
        return refusing(self._others or self._everyone)

    def agree(self, named: tuple[Sequence[str], Sequence[Tensor]], said: Said) -> Note | None:
        """Raise in all processes if their clippers differ; all of them call this.

        Args:
            named: the names and the parameters of this process.
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
        others, everyone, groups = self._others, self._everyone, self._groups
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

    @contextmanager
    def names(self) -> Iterator[None]:
        """Return the block in which names are exchanged; after it all processes go on."""
        with refusing(self._others, _NAMES):
            yield
        if self._groups is not None:
            agree(self._others, lambda _: {}, topic=_NAMES)


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
