"""In each process: clippers and drop-ins that are not the same in all of them.

Each case must end, in every process, within seconds: with an error that names what differs, or
without one where nothing is wrong.
"""

from __future__ import annotations

import copy
import dataclasses
import io
import math
import pickle
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from distributed.launch import begin, tell
from distributed.spread import meshes
from gradclip import GradclipError, Measure, Policy, PolicyError
from gradclip.parts import Fixed, Rescale
from gradclip.torch import Clipper, attach, clip_grad_norm_, get_total_norm
from grads import grad_of

CASES: dict[str, Callable[[], None]] = {}
LONGEST = 12.0
"""Seconds for a case: less than the time-out of a collective, more than a busy machine needs."""


def case(function: Callable[[], None]) -> Callable[[], None]:
    CASES[function.__name__] = function
    return function


def part(whole: torch.Tensor, mesh: Any, placements: Any) -> DTensor:
    """Return this process's part, with no collective."""
    return distribute_tensor(whole, mesh, placements, src_data_rank=None)


def sharded(rows: int = 8) -> torch.nn.Parameter:
    line, _ = meshes()
    param = torch.nn.Parameter(part(torch.zeros(rows, 2), line, [Shard(0)]))
    param.grad = part(torch.ones(rows, 2), line, [Shard(0)])
    return param


def plain(value: float = 1.0) -> torch.nn.Parameter:
    param = torch.nn.Parameter(torch.zeros(3))
    param.grad = torch.full((3,), value)
    return param


def last() -> bool:
    """Whether this is the process that does otherwise."""
    return dist.get_rank() == dist.get_world_size() - 1


def kinds() -> dict[str, tuple[Callable[[], list[tuple[str, Any]]], dict[str, Any]]]:
    """Return what makes a clipper need the others: DTensors, groups, and the self-check."""
    rank = dist.get_rank()
    _, square = meshes()
    both = [square["dp"], square["tp"]]
    return {
        "dtensors": (lambda: [("w", sharded())], {}),
        "a mesh of two dimensions": (lambda: [("w", of_square())], {}),
        "one group": (lambda: [(f"stages.{rank}", plain())], {"groups": dist.group.WORLD}),
        "two groups": (lambda: [(f"stages.{rank}", plain())], {"groups": both}),
        "verify": (lambda: [("w", plain())], {"verify": "first-step"}),
    }


def of_square() -> torch.nn.Parameter:
    _, square = meshes()
    param = torch.nn.Parameter(part(torch.zeros(8, 4), square, [Shard(0), Shard(1)]))
    param.grad = part(torch.ones(8, 4), square, [Shard(0), Shard(1)])
    return param


@contextmanager
def refused(text: str, kind: type[Exception] = GradclipError) -> Iterator[None]:
    with pytest.raises(kind, match=text):
        yield


class Plain:
    """A threshold of a user's own, which says nothing of itself."""

    def __init__(self, limit: Callable[[], float]) -> None:
        self.limit = limit

    def init(self, *_: Any) -> dict[str, Any]:
        return {}

    def update(self, *given: Any) -> Any:
        return Fixed(high=self.limit()).update(*given)


@dataclasses.dataclass(frozen=True)
class Frozen(Fixed):
    """One that is data."""

    extra: float = 0.0


def own(threshold: Any) -> Policy:
    return Policy(Measure("global"), threshold, Rescale())


# ---- when the clipper is made


SETTINGS: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "policy": ({"policy": "norm:1"}, {"policy": "norm:2"}, "policy is .*norm.* and .*norm"),
    "order": ({}, {"policy": "norm:1,order=inf"}, "policy is "),
    "order with bands": ({}, {"policy": "norm:1,order=12"}, "policy is "),
    "scope": ({}, {"policy": "norm:1,scope=unit"}, "policy is "),
    "none": ({}, {"policy": None}, "policy is "),
    "by name": ({"policy": {"*": "norm:1"}}, {"policy": {"*": "value:1"}}, "policy is "),
    "chain": ({}, {"policy": "value:1|norm:1"}, "policy is "),
    "nonfinite": ({}, {"nonfinite": "raise"}, "nonfinite is 'skip' in .* and 'raise' in "),
    "max_skips": ({}, {"max_skips": 3}, "max_skips is 10 in .* and 3 in "),
    "bad policy": ({}, {"policy": "norm:-1"}, "norm:-1|-1"),
    "bad nonfinite": ({}, {"nonfinite": "never"}, "never"),
    "bad max_skips": ({}, {"max_skips": -1}, "max_skips=-1"),
    "not a policy": ({}, {"policy": 3.5}, "3.5"),
}


@case
def settings_that_differ_are_refused_when_the_clipper_is_made() -> None:
    for kind, (params, more) in kinds().items():
        for name, (usual, other, text) in SETTINGS.items():
            given = {"policy": "norm:1", **usual, **(other if last() else {}), **more}
            start = time.monotonic()
            with refused(text):
                Clipper(params(), **given)
            assert time.monotonic() - start < LONGEST, (kind, name)
        # The next one is made as if nothing had been.
        Clipper(params(), "norm:1", **more).clip_()


@case
def verify_on_one_process_alone_is_refused() -> None:
    for kind, (params, more) in kinds().items():
        given = {**more, "verify": "first-step" if last() else None}
        if kind != "verify":
            with refused("verify is None in .* and 'first-step' in "):
                Clipper(params(), "norm:1", **given)


@case
def verify_of_plain_tensors_on_one_process_alone_is_refused() -> None:
    for early in (True, False):
        if last() != early:
            time.sleep(0.5)
        with refused("waits? for "):
            clipper = Clipper([("w", plain())], "norm:1", verify="first-step" if last() else None)
            time.sleep(1)
            clipper.clip_()
        dist.barrier()
    Clipper([("w", plain())], "norm:1", verify="first-step").clip_()


@case
def groups_on_one_process_alone_are_refused() -> None:
    with refused("waits? for "):
        clipper = Clipper([("w", plain())], "norm:1", groups=dist.group.WORLD if last() else None)
        time.sleep(1)
        clipper.clip_()


@case
def groups_that_differ_are_refused() -> None:
    world = dist.group.WORLD
    groups: Any = {"w": world, "*": None} if last() else {"*": world}
    with refused("groups is .* and "):
        Clipper([("w", sharded()), ("v", plain())], "norm:1", groups=groups)
    with refused("groups is .* and "):
        Clipper([("w", sharded())], "norm:1", groups=world if last() else None)


@case
def groups_that_are_none_are_refused_in_all() -> None:
    with refused("groups"):
        Clipper([("w", sharded())], "norm:1", groups=3 if last() else None)  # type: ignore[arg-type]


@case
def lists_that_differ_are_named() -> None:
    both = [("w", sharded()), ("v", sharded(4))]
    with refused(r"give different lists of parameters; .*v \(4, 2\)", PolicyError):
        Clipper(both[:1] if last() else both, "norm:1")
    with refused("different lists of parameters"):
        Clipper(both[::-1] if last() else both, "norm:1")
    with refused("different lists of parameters"):
        Clipper([("w", sharded(4 if last() else 8))], "norm:1")
    with refused("it is empty"):
        Clipper([] if last() else both, "norm:1", groups=dist.group.WORLD)


@case
def names_that_match_no_rule_are_refused_in_all() -> None:
    rank = dist.get_rank()
    for groups in (dist.group.WORLD, kinds()["two groups"][1]["groups"]):
        with refused("stages|layers"):
            Clipper([(f"stages.{rank}", plain())], {"layers.*": "norm:1"}, groups=groups)
        with refused("names that tell them apart"):
            shape = (2, 3 + last())
            Clipper([("w", torch.nn.Parameter(torch.zeros(shape)))], "norm:1", groups=groups)
    with refused("matches no parameter"):
        Clipper([("w", plain())], "norm:1", groups={"v": dist.group.WORLD})


@case
def thresholds_of_ones_own_are_compared() -> None:
    def closed(limit: float) -> Callable[[], float]:
        return lambda: limit

    pairs = [
        (Plain(closed(1.0)), Plain(closed(2.0))),
        (Plain(lambda: 1.0), Plain(lambda: 2.0)),
        (Frozen(high=1.0, extra=1.0), Frozen(high=1.0, extra=2.0)),
        (Fixed(high=1.0), Frozen(high=1.0)),
    ]
    for one, other in pairs:
        with refused("policy is "):
            Clipper([("w", sharded())], own(other if last() else one))
        Clipper([("w", sharded())], own(copy.copy(one)))


@case
def equal_policies_that_are_written_otherwise_are_equal() -> None:
    parts = Policy(Measure("global"), Fixed(high=1), Rescale())
    clipper = Clipper([("w", sharded())], parts if last() else "norm:1.0")
    assert float(clipper.clip_().total_norm) == 4.0


# ---- from step to step


def change_policy(clipper: Clipper) -> None:
    clipper.policy = "norm:1,order=12"


def change_scope(clipper: Clipper) -> None:
    clipper.policy = "norm:2,scope=unit"


def change_nonfinite(clipper: Clipper) -> None:
    clipper.nonfinite = "zero"


def change_max_skips(clipper: Clipper) -> None:
    clipper.max_skips = 2


def load(clipper: Clipper) -> None:
    clipper.load_state_dict({**clipper.state_dict(), "steps": 7})


def add_parameter(clipper: Clipper) -> None:
    names = [(n, p) for n, p in zip(clipper.names, clipper.params, strict=True) if not p.is_meta]
    clipper.rebind([*names, ("more", plain())])


CHANGES = [change_policy, change_scope, change_nonfinite, change_max_skips, load, add_parameter]


POLICIES = ("norm:1", "norm:1,scope=unit", "norm:1,order=inf", "zclip")


def combinations() -> Iterator[tuple[str, Callable[[], Any], dict[str, Any], str, Any]]:
    """Return each kind with each change, and with each of them another policy."""
    for k, (kind, (params, more)) in enumerate(kinds().items()):
        for c, change in enumerate(CHANGES):
            if kind != "verify":
                yield kind, params, more, POLICIES[(k + c) % len(POLICIES)], change


@case
def a_change_in_one_process_alone_is_refused_in_all() -> None:
    for kind, params, more, policy, change in combinations():
        for steps in (0, 1, 2):
            if "group" in kind and change is add_parameter and not steps:
                continue  # Names are exchanged, and the others are not there.
            clipper = Clipper(params(), policy, **more)
            for _ in range(steps):
                clipper.clip_()
            before = grads_of(clipper)
            start = time.monotonic()
            with refused("changed|do not do the same"):
                if last():
                    change(clipper)
                clipper.clip_()
            assert time.monotonic() - start < LONGEST, (kind, policy, change)
            assert all(map(torch.equal, before, grads_of(clipper)))
            assert int(clipper.state_dict()["steps"]) in (steps, 7)


@case
def a_change_in_all_processes_is_taken() -> None:
    for kind, params, more, policy, change in combinations():
        for steps in (0, 1, 2):
            clipper = Clipper(params(), policy, **more)
            for _ in range(steps):
                clipper.clip_()
            if change is not add_parameter or "group" not in kind:
                change(clipper)
            clipper.clip_()
            clipper.clip_()
            assert clipper.steps == (steps, 7)[change is load] + 2


@case
def another_change_in_each_process_is_refused() -> None:
    clipper = Clipper([("w", sharded())], "norm:1")
    clipper.clip_()
    clipper.policy = f"norm:{2 + dist.get_rank()}"
    with refused("policy is .*norm.* and "):
        clipper.clip_()


def grads_of(clipper: Clipper) -> list[torch.Tensor]:
    return [local(p.grad).clone() for p in clipper.params if p.grad is not None]


def local(tensor: Any) -> torch.Tensor:
    return (tensor.to_local() if isinstance(tensor, DTensor) else tensor).detach()


@case
def states_that_differ_are_refused() -> None:
    first = Clipper([("w", sharded())], "zclip")
    states = []
    for _ in range(3):
        first.clip_()
        states.append(copy.deepcopy(first.state_dict()))
    for steps in (0, 1):
        clipper = Clipper([("w", sharded())], "zclip")
        for _ in range(steps):
            clipper.clip_()
        clipper.load_state_dict(states[1 if last() else 2])
        with refused("state is "):
            clipper.clip_()
        clipper.load_state_dict(states[2])
        clipper.clip_()
        assert clipper.steps == 4


@case
def what_is_clipped_must_be_the_same() -> None:
    param = sharded()
    optimizer = torch.optim.SGD([param], lr=0.1)
    clipper = attach(optimizer, "norm:1", on="update" if last() else "gradient")
    with refused("on is 'gradient' in .* and 'update' in "):
        optimizer.step()
    clipper.detach()


@case
def an_observer_in_one_process_alone_is_nobodys_business() -> None:
    clipper = Clipper([("w", sharded())], "norm:1")
    seen: list[float] = []
    if last():
        clipper.observers.append(lambda result: seen.append(float(result.clipped_norm)))
    clipper.clip_()
    assert len(seen) == last()


@case
def an_error_in_one_process_does_not_end_the_others() -> None:
    """An observer's error comes after the step's collectives: the others go on."""
    clipper = Clipper([("w", sharded())], "norm:1")

    def fails(_: Any) -> None:
        raise OSError("the disk is full")

    if last():
        clipper.observers.append(fails)
        with pytest.raises(OSError, match="disk"):
            clipper.clip_()
        clipper.observers.clear()
    else:
        clipper.clip_()
    assert clipper.clip_().total_norm is not None


@case
def other_clippers_meanwhile_disturb_nothing() -> None:
    """A process may make clippers that work alone, as many as it likes."""
    for _ in range(3 if last() else 0):
        Clipper([("w", plain())], "norm:1").clip_()
    Clipper([("v", plain())], "norm:1", groups=dist.group.WORLD).clip_()
    clipper = Clipper([("w", plain())], "norm:2" if last() else "norm:1")
    assert not bool(clipper.clip_().skipped)


# ---- the drop-ins


@case
def drop_ins_that_differ_are_refused_with_verify() -> None:
    makers: list[tuple[Callable[[], torch.nn.Parameter], Any]] = [
        (sharded, None),
        (plain, None),
        (of_square, None),
        (plain, dist.group.WORLD),
    ]
    for make, groups in makers:
        more = {"groups": groups, "verify": True}
        params = [make(), make()]
        before = [local(p.grad).clone() for p in params]
        if groups is None:
            with refused(r"different lists of parameters; .*1 \("):
                clip_grad_norm_(params[: 2 - last()], 1.0, **more)
            with refused("different lists of parameters"):
                get_total_norm([grad_of(p) for p in params[: 2 - last()]], **more)
        with refused("max_norm is 1.0 in .* and 2.0 in "):
            clip_grad_norm_(params, 1.0 + last(), **more)
        with refused("norm_type is 2.0 in .* and inf in "):
            clip_grad_norm_(params, 1.0, math.inf if last() else 2.0, **more)
        with refused("error_if_nonfinite is False in .* and True in "):
            clip_grad_norm_(params, 1.0, error_if_nonfinite=last(), **more)
        with refused("norm_type is 2.0 in .* and 12.0 in "):
            get_total_norm([grad_of(p) for p in params], 12.0 if last() else 2.0, **more)
        with refused("function is .*clip_grad_norm_.* and .*get_total_norm"):
            if last():
                get_total_norm(params, **more)
            else:
                clip_grad_norm_(params, 1.0, **more)
        with refused("max_norm"):
            clip_grad_norm_(params, -1.0 if last() else 1.0, **more)
        assert all(map(torch.equal, before, [local(p.grad) for p in params]))
        total = get_total_norm([grad_of(p) for p in params], **more)
        assert float(clip_grad_norm_(iter(params), 1.0, **more)) == float(total)


# ---- copies


@case
def a_deep_copy_works_with_the_same_processes() -> None:
    for _, (params, more) in kinds().items():
        clipper = Clipper(params(), "zclip", **more)
        clipper.clip_()
        copied = copy.deepcopy(clipper)
        assert copied.params[0] is not clipper.params[0]
        for one in (copied, clipper):
            give(one)
            one.clip_()
        assert copied.steps == clipper.steps == 2
        holder = torch.nn.Module()
        holder.clipper = clipper  # type: ignore[assignment]
        assert copy.deepcopy(holder).clipper.steps == 2  # type: ignore[union-attr]


@case
def a_pickle_holds_no_groups_and_says_so() -> None:
    for kind, (params, more) in kinds().items():
        clipper = Clipper(params(), "zclip", **more)
        clipper.clip_()
        for way in (through_pickle, through_torch):
            copied = way(clipper)
            assert copied.steps == 1
            assert copied.names == clipper.names
            give(copied)
            if kind == "verify":
                copied.clip_()
                continue
            with refused("a pickle holds no groups of processes"):
                copied.clip_()
            with refused("a pickle holds no groups of processes"):
                copied.rebind(params())
            with refused("a pickle holds no groups of processes"):
                copy.deepcopy(copied).clip_()
            again = Clipper(params(), "zclip", **more)
            again.load_state_dict(copied.state_dict())
            again.clip_()
            assert again.steps == 2


def give(clipper: Clipper) -> None:
    """Set gradients: a copied parameter has none."""
    for param in clipper.params:
        if not param.is_meta:
            param.grad = torch.ones_like(param)


def through_pickle(value: Any) -> Any:
    return pickle.loads(pickle.dumps(value))


def through_torch(value: Any) -> Any:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@case
def an_attached_clipper_of_dtensors_is_copied_detached() -> None:
    param = sharded()
    optimizer = torch.optim.SGD([param], lr=0.1)
    clipper = attach(optimizer, "norm:1")
    optimizer.step()
    for way in (copy.deepcopy, through_pickle):
        copied = way(clipper)
        assert copied.attachment is None
        with pytest.warns(UserWarning, match="a copy of an attached one"):
            assert copied.last is None
    optimizer.step()
    assert clipper.steps == 2


def main(folder: str, only: str = "") -> None:
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", category=UserWarning, module="torch")
    begin(40)
    found: dict[str, Any] = {}
    for name, function in CASES.items():
        if only in name:
            try:
                with warnings.catch_warnings():
                    function()
                found[name] = "ok"
            except (Exception, pytest.fail.Exception):
                print(name, traceback.format_exc(), file=sys.stderr, flush=True)
                found[name] = traceback.format_exc()[-2000:]
    tell(folder, found)


if __name__ == "__main__":
    main(*sys.argv[1:])
