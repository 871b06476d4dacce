"""In each process: what goes wrong in distributed runs, each as one function that asserts."""

from __future__ import annotations

import math
import re
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard, distribute_tensor

from distributed.launch import Collectives, begin, tell
from distributed.spread import Model, draw, meshes
from gradclip import Measure, NonFiniteError, Policy, PolicyError
from gradclip.errors import LayoutError
from gradclip.parts import Fixed, Skip
from gradclip.torch import (
    Clipper,
    attach,
    clip_grad_norm_,
    clip_grad_value_,
    clip_grads_with_norm_,
    get_total_norm,
)
from grads import grad_of

CASES: dict[str, Callable[[], None]] = {}


def case(function: Callable[[], None]) -> Callable[[], None]:
    CASES[function.__name__] = function
    return function


def close(a: Any, b: Any, rel: float = 1e-12) -> None:
    assert math.isclose(float(a), float(b), rel_tol=rel), (float(a), float(b))


def ready(seed: int = 1, experts: bool = False, dtype: Any = torch.float64) -> Model:
    model = Model(dtype, experts)
    model.give({**draw(seed, dtype)})
    return model


def whole_norm(model: Model, order: float = 2.0) -> float:
    grads = [p.grad.double().reshape(-1) for p in model.whole.values() if p.grad is not None]
    return float(torch.linalg.vector_norm(torch.cat(grads), order))


# ---- the drop-ins


@case
def drop_ins_take_any_mix() -> None:
    for order in (1.0, 2.0, 7.0, math.inf):
        model = ready()
        with Collectives() as seen:
            norm = clip_grad_norm_(model.params.values(), 0.5, order)
        assert type(norm) is torch.Tensor
        close(norm, whole_norm(model, order), 1e-12)
        # `partial` is added up first, in a collective of its own.
        groups = 1 if dist.get_world_size() == 2 else 3
        assert seen.total == groups + 1, (seen.calls, seen.functional)
        torch.nn.utils.clip_grad_norm_(model.whole.values(), 0.5, order)
        assert model.gap() < 2e-6  # torch adds 1e-6 to the norm.


@case
def the_parts_of_the_drop_in_do_the_same() -> None:
    one, two = ready(), ready()
    clip_grad_norm_(one.params.values(), 0.5)
    total = get_total_norm([grad_of(p) for p in two.params.values()])
    clip_grads_with_norm_(two.params.values(), 0.5, total)
    for a, b in zip(one.params.values(), two.params.values(), strict=True):
        assert torch.equal(local(grad_of(a)), local(grad_of(b)))


@case
def values_are_clamped_where_they_are() -> None:
    model = ready()
    clip_grad_value_(model.params.values(), 0.3)
    torch.nn.utils.clip_grad_value_(model.whole.values(), 0.3)
    assert model.gap() == 0


@case
def a_drop_in_takes_groups() -> None:
    rank, world = dist.get_rank(), dist.get_world_size()
    stage = torch.nn.Parameter(torch.zeros(3 + rank, dtype=torch.float64))
    stage.grad = torch.full_like(stage, 2.0)
    alone = math.sqrt(sum(4.0 * (3 + r) for r in range(world)))
    line, square = meshes()
    for groups in (dist.group.WORLD, line, [square["dp"], square["tp"]]):
        with Collectives() as seen:
            close(get_total_norm([stage.grad], groups=groups), alone)
        assert seen.total == (2 if isinstance(groups, list) and world == 4 else 1) or world == 2
    close(clip_grad_norm_([stage], 1.0, groups=dist.group.WORLD), alone)
    close(torch.linalg.vector_norm(stage.grad) ** 2, (3 + rank) * 4 / alone**2, 1e-9)


@case
def stages_may_hold_dtensors_of_their_own_mesh() -> None:
    """Two stages, each sharded over its own pair: only in four processes."""
    if dist.get_world_size() < 4:
        return
    _, square = meshes()
    inside, across = square["tp"], square["dp"]
    stage = across.get_local_rank()
    whole = torch.arange(1.0, 7.0, dtype=torch.float64).reshape(6, 1) * (1 + stage)
    weight = torch.nn.Parameter(distribute_tensor(torch.zeros_like(whole), inside, [Shard(0)]))
    weight.grad = distribute_tensor(whole, inside, [Shard(0)])
    names = [f"stages.{stage}.weight"]
    params = [weight]
    if stage == 1:  # Lists differ in length and in placements.
        bias = torch.nn.Parameter(torch.zeros(2, dtype=torch.float64))
        bias.grad = torch.full_like(bias, 3.0)
        params.append(bias)
        names.append("stages.1.bias")
    alone = math.sqrt(91 + 4 * 91 + 18)
    close(get_total_norm([grad_of(p) for p in params], groups=across), alone)
    clipper = Clipper(zip(names, params, strict=True), "norm:1", groups={"stages.*": across})
    result = clipper.clip_()
    close(result.total_norm, alone)
    assert result.names == ("stages.0.weight", "stages.1.weight", "stages.1.bias")
    np.testing.assert_allclose(result.norms, [91**0.5, 2 * 91**0.5, 18**0.5])
    close(clipper.clip_().total_norm, 1.0)


# ---- what is not finite


def spoil(model: Model, name: str, only: int) -> None:
    """Put a NaN into one process's part of one gradient."""
    if dist.get_rank() == only:
        grad: Any = model.params[name].grad
        here = grad.to_local() if isinstance(grad, DTensor) else grad
        here.view(-1)[0] = torch.nan


@case
def nan_in_one_process_skips_in_all() -> None:
    for name in ("rows", "both", "plain", "copy", "experts.w"):
        model = ready(experts=True)
        before = {n: local(p.grad).clone() for n, p in model.params.items()}
        clipper = Clipper(model.params.items(), "norm:0.5", groups=model.groups)
        spoil(model, name, only=1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = clipper.clip_()
        assert bool(result.skipped)
        assert result.nonfinite == (name,)
        for n, p in model.params.items():
            if n != name:
                assert torch.equal(local(p.grad), before[n])


@case
def nan_in_one_process_raises_in_all() -> None:
    model = ready(experts=True)
    clipper = Clipper(model.params.items(), "norm:0.5", nonfinite="raise", groups=model.groups)
    spoil(model, "uneven", only=0)
    with pytest.raises(NonFiniteError, match="the gradient of uneven holds inf or NaN"):
        clipper.clip_()


@case
def nan_in_one_process_is_zeroed_and_all_agree() -> None:
    model = ready(experts=True)
    clipper = Clipper(model.params.items(), "norm:0.5", nonfinite="zero", groups=model.groups)
    spoil(model, "columns", only=0)
    result = clipper.clip_()
    close(result.clipped_norm, 0.5)
    both: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(both, float(result.total_norm))
    assert len(set(both)) == 1


@case
def nan_in_one_process_spoils_the_drop_in_in_all() -> None:
    for name, order in (("rows", 2.0), ("plain", 2.0), ("vector", math.inf), ("plain", math.inf)):
        model = ready()
        spoil(model, name, only=1)
        with pytest.raises(RuntimeError, match="nothing was changed"):
            clip_grad_norm_(model.params.values(), 0.5, order, error_if_nonfinite=True)


@case
def nan_stays_nan_where_the_largest_counts() -> None:
    model = ready()
    spoil(model, "rows", only=0)
    assert math.isnan(float(get_total_norm([grad_of(p) for p in model.params.values()], math.inf)))


@case
def attach_steps_in_no_process_when_one_has_nan() -> None:
    model = ready(experts=True)
    optimizer = torch.optim.SGD(list(model.params.values()), lr=0.1, momentum=0.9)
    names = list(model.params)
    optimizer.param_groups[0]["param_names"] = names
    clipper = attach(optimizer, "norm:0.5", groups=model.groups)
    before = [local(p).clone() for p in model.params.values()]
    spoil(model, "both", only=1)
    optimizer.step()
    assert all(torch.equal(local(p), b) for p, b in zip(model.params.values(), before, strict=True))
    model.give(draw(2, torch.float64))
    optimizer.step()
    assert not any(
        torch.equal(local(p), b) and p.numel()
        for p, b in zip(model.params.values(), before, strict=True)
        if local(p).numel()
    )
    assert (clipper.skipped, clipper.clipped) == (1, 1)


def local(tensor: Any) -> torch.Tensor:
    return (tensor.to_local() if isinstance(tensor, DTensor) else tensor).detach()


# ---- numbers at the edges


@case
def no_finite_norm_is_lost_on_the_way() -> None:
    line, _ = meshes()
    world = dist.get_world_size()
    for size, dtype in ((1e200, torch.float64), (1e-200, torch.float64), (1e25, torch.float32)):
        whole = torch.full((4 * world,), size, dtype=dtype)
        grad = distribute_tensor(whole, line, [Shard(0)], src_data_rank=None)
        exact = float(whole[0].double()) * math.sqrt(4 * world)
        close(Clipper([with_grad(grad)], None).clip_().total_norm, exact)
        close(get_total_norm([grad]).double(), exact, 1e-7)
        for order in (1.0, 3.0, 12.0):
            power = float(whole[0].double()) * (4 * world) ** (1 / order)
            close(Clipper([with_grad(grad)], f"norm:1,order={order}").clip_().total_norm, power)
    mixed = torch.cat(
        [torch.full((4,), 10.0 ** (-150 + 250 * r), dtype=torch.float64) for r in range(2)]
        + [torch.zeros(4 * (world - 2), dtype=torch.float64)]
    )
    grad = distribute_tensor(mixed, line, [Shard(0)], src_data_rank=None)
    close(get_total_norm([grad]), 2e100)
    zero = distribute_tensor(torch.zeros(4, dtype=torch.float64), line, [Shard(0)])
    assert float(get_total_norm([zero])) == 0


def with_grad(grad: Any) -> torch.nn.Parameter:
    param = torch.nn.Parameter(torch.zeros_like(grad))
    param.grad = grad.clone()
    return param


def placements_of(param: torch.nn.Parameter) -> tuple[Placement, ...]:
    grad = grad_of(param)
    assert isinstance(grad, DTensor)
    return grad.placements


@case
def at_the_limit_no_bit_changes() -> None:
    model = ready(experts=True)
    norm = float(Clipper(model.params.items(), None, groups=model.groups).clip_().total_norm)
    before = [local(p.grad).clone() for p in model.params.values()]
    placements = placements_of(model.params["partial"])
    result = Clipper(model.params.items(), f"norm:{norm!r}", groups=model.groups).clip_()
    assert not bool(result.clipped)
    assert all(
        torch.equal(local(p.grad), b) for p, b in zip(model.params.values(), before, strict=True)
    )
    # Measuring does not add up what was partial; clipping does.
    assert placements_of(model.params["partial"]) == placements
    Clipper(model.params.items(), "norm:0.5", groups=model.groups).clip_()
    assert placements_of(model.params["partial"]) == (Replicate(),)


@case
def float32_partial_sums_are_good_to_1e_12() -> None:
    line, _ = meshes()
    whole = torch.randn(40_000, generator=torch.Generator().manual_seed(0))
    grad = distribute_tensor(whole, line, [Shard(0)], src_data_rank=None)
    result = Clipper([with_grad(grad)], None).clip_()
    close(result.total_norm, torch.linalg.vector_norm(whole.double()), 1e-12)


# ---- which processes have what


@case
def hsdp_counts_a_replica_once() -> None:
    if dist.get_world_size() < 4:
        return
    _, square = meshes()
    whole = draw(1, torch.float64)["rows"]
    grad = distribute_tensor(whole, square, [Replicate(), Shard(0)], src_data_rank=None)
    param = with_grad(grad)
    with Collectives() as seen:
        close(clip_grad_norm_([param], 1.0), torch.linalg.vector_norm(whole))
    assert seen.total == 1, "the replicas need not talk"


@case
def experts_by_name_are_parameters_of_their_own() -> None:
    rank, world = dist.get_rank(), dist.get_world_size()
    dense, mine = torch.zeros(2), torch.zeros(3)
    params = {"dense": torch.nn.Parameter(dense), f"experts.{rank}": torch.nn.Parameter(mine)}
    params["dense"].grad = torch.full((2,), 5.0)
    params[f"experts.{rank}"].grad = torch.full((3,), 1.0 + rank)
    groups = {"experts.*": dist.group.WORLD}
    clipper = Clipper(params.items(), "norm:0.5,scope=tensor", groups=groups)
    result = clipper.clip_()
    assert result.names == ("dense", *(f"experts.{r}" for r in range(world)))
    expected = [5 * 2**0.5, *((1 + r) * 3**0.5 for r in range(world))]
    np.testing.assert_allclose(result.norms, expected)
    close(result.clipped_norm, 0.5 * math.sqrt(1 + world), 1e-7)
    close(torch.linalg.vector_norm(params["dense"].grad), 0.5, 1e-6)
    state = clipper.state_dict()
    assert state["names"] == list(result.names)


@case
def an_expert_without_a_token_changes_no_memory() -> None:
    rank, world = dist.get_rank(), dist.get_world_size()
    param = torch.nn.Parameter(torch.zeros(3))
    policy = "autoclip:percentile=50,window=4,scope=tensor"
    clipper = Clipper([(f"experts.{rank}", param)], policy, groups=dist.group.WORLD)
    for step in range(4):
        param.grad = None if step % world == rank else torch.full((3,), 1.0 + step)
        clipper.clip_()
    counts = clipper.state_dict()["memory"][0][0]["count"]
    expected = [4.0 - sum(s % world == r for s in range(4)) for r in range(world)]
    assert counts.tolist() == expected


@case
def tied_weights_of_two_stages_count_once() -> None:
    rank = dist.get_rank()
    world = dist.get_world_size()
    tied = torch.nn.Parameter(torch.zeros(4))
    own = torch.nn.Parameter(torch.zeros(2))
    tied.grad, own.grad = torch.ones(4), torch.ones(2)
    params = [(f"layers.{rank}", own)]
    if rank in (0, world - 1):
        params.append(("embed", tied))
    clipper = Clipper(params, None, groups={"embed": None, "*": dist.group.WORLD})
    # A None pattern needs a group to learn of it: it is a copy there, and counts once.
    close(clipper.clip_().total_norm, math.sqrt(4 + 2 * world), 1e-9)


@case
def a_parameter_listed_twice_counts_once() -> None:
    model = ready()
    twice = [*model.params.values(), model.params["rows"]]
    close(clip_grad_norm_(twice, 1e9), whole_norm(model))


@case
def lists_that_differ_are_refused() -> None:
    line, _ = meshes()
    params = [with_grad(distribute_tensor(torch.ones(8), line, [Shard(0)])) for _ in range(3)]
    mine = params if dist.get_rank() else params[:2]
    with pytest.raises(PolicyError, match="give different lists of parameters"):
        Clipper(mine, "norm:1").clip_()


@case
def what_makes_no_sense_is_refused() -> None:
    line, square = meshes()
    params = {"w": torch.nn.Parameter(torch.zeros(2, 2))}
    wrong: list[tuple[Any, str]] = [
        (square, "give one dimension of it, as in mesh['dp']"),
        (3, "give a torch.distributed.ProcessGroup"),
        ({"experts.*": line}, "it matches no parameter of any process"),
    ]
    for groups, text in wrong:
        with pytest.raises(PolicyError, match=re.escape(text)):
            Clipper(params.items(), "norm:1", groups=groups)
    with pytest.raises(PolicyError, match="have no names"):
        clip_grad_norm_(params.values(), 1.0, groups={"w": line})
    pieces = Clipper(params.items(), "spectral:0.5", groups=line)
    params["w"].grad = torch.ones(2, 2)
    with pytest.raises(PolicyError, match="singular values need the whole matrix"):
        pieces.clip_()


@case
def different_parameters_of_one_name_are_refused() -> None:
    shape = (2, 3 + dist.get_rank())
    with pytest.raises(PolicyError, match="give names that tell them apart"):
        Clipper([torch.nn.Parameter(torch.zeros(shape))], "norm:1", groups=dist.group.WORLD)


@case
def a_rule_on_the_loss_sees_the_mean_of_all() -> None:
    rank, world = dist.get_rank(), dist.get_world_size()
    policy = Policy(Measure("loss"), Fixed(high=1.0), Skip())
    warnings.simplefilter("ignore")
    for mean, skipped in ((1.5, True), (0.5, False)):
        model = ready(experts=True)
        clipper = Clipper(model.params.items(), policy, groups=model.groups)
        loss = mean * world if rank == world - 1 else 0.0
        assert bool(clipper.clip_(loss=loss).skipped) == skipped
        # The last stage of a pipeline alone has one.
        clipper = Clipper([(f"{rank}", with_grad(torch.ones(2)))], policy, groups=dist.group.WORLD)
        assert bool(clipper.clip_(loss=mean if rank == 1 else None).skipped) == skipped


@case
def a_fused_optimizer_applies_the_factor_to_dtensors() -> None:
    line, _ = meshes()
    whole = torch.arange(8.0)
    weights = []
    for fused in (True, False):
        param = with_grad(distribute_tensor(whole, line, [Shard(0)], src_data_rank=None))
        optimizer = torch.optim.AdamW([param], lr=0.1, fused=fused)
        clipper = attach(optimizer, "norm:0.5")
        optimizer.step()
        assert clipper.last is not None
        assert clipper.last.ran.endswith("+fold") == fused
        close(clip_grad_norm_([param], 9.0), 0.5, 1e-6)  # The kernel wrote clipped ones back.
        weights.append(local(param))
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-6, atol=1e-7)


# ---- the self-check


@case
def the_self_check_passes_what_is_right() -> None:
    model = ready(experts=True)
    params = model.params.items()
    clipper = Clipper(params, "norm:0.5", groups=model.groups, verify="first-step")
    close(clipper.clip_().clipped_norm, 0.5)
    with Collectives() as seen:
        clipper.clip_()
    assert "all_gather_object" not in seen.calls
    rank = dist.get_rank()
    params = [(f"stages.{rank}", torch.nn.Parameter(torch.ones(2)))]
    params[0][1].grad = torch.full((2,), 1.0 + rank)
    Clipper(params, "norm:0.5", groups=dist.group.WORLD, verify="first-step").clip_()


@case
def the_self_check_names_replicated_weights_that_count_several_times() -> None:
    world = dist.get_world_size()
    line, _ = meshes()
    same = torch.nn.Parameter(DTensor.from_local(torch.ones(3), line, [Shard(0)]))
    same.grad = DTensor.from_local(torch.ones(3), line, [Shard(0)])
    good = with_grad(distribute_tensor(torch.arange(8.0), line, [Shard(0)]))
    params = {"norm.weight": same, "good": good}
    text = f"norm.weight is counted {world} times: the processes"
    with pytest.raises(LayoutError, match=text) as caught:
        Clipper(params.items(), "norm:1", verify="first-step").clip_()
    assert "good" not in str(caught.value)
    plain = torch.nn.Parameter(torch.ones(3))
    plain.grad = torch.ones(3)
    clipper = Clipper([("w", plain)], "norm:1", groups=dist.group.WORLD, verify="first-step")
    with pytest.raises(LayoutError, match=f"w is counted {world} times"):
        clipper.clip_()


@case
def the_self_check_names_shards_that_nobody_told_of() -> None:
    rank = dist.get_rank()
    shard, copy = (torch.nn.Parameter(torch.ones(3)) for _ in range(2))
    shard.data += rank
    shard.grad, copy.grad = torch.full((3,), 1.0 + rank), torch.ones(3)
    clipper = Clipper([("cut", shard), ("copy", copy)], "norm:1", verify="first-step")
    with pytest.raises(LayoutError) as caught:
        clipper.clip_()
    assert "cut is counted once, and its weights differ" in str(caught.value)
    assert "copy" not in str(caught.value)
    assert "clip by different coefficients, " in str(caught.value)


@case
def the_self_check_names_stages_that_nobody_told_of() -> None:
    rank = dist.get_rank()
    stage = torch.nn.Parameter(torch.ones(3))
    stage.grad = torch.full((3,), 1.0 + rank)
    clipper = Clipper([(f"stages.{rank}", stage)], "norm:1", verify="first-step")
    text = r"stages.1 of the processes \[1\] is missing from the norm in the processes \[0"
    with pytest.raises(LayoutError, match=text):
        clipper.clip_()


@case
def the_self_check_stops_the_optimizer() -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    weight.grad = torch.full((3,), 1.0 + dist.get_rank())
    optimizer = torch.optim.SGD([weight], lr=1.0)
    attach(optimizer, "norm:1", verify="first-step")
    with pytest.raises(LayoutError, match="its gradients differ between the processes"):
        optimizer.step()
    assert torch.equal(weight.detach(), torch.ones(3))


# ---- the device's path, updates, cost


@case
def the_path_of_an_accelerator_does_the_same() -> None:
    for policy in ("norm:0.5", "norm:0.5,scope=unit", "value:0.1", "zclip:z=0.5,warmup=2"):
        model = Model(torch.float32)
        ours = Clipper(model.params.items(), policy, groups=model.groups)
        alone = Clipper(model.whole.items(), policy)
        for step in range(4):
            model.give({**draw(step, torch.float32, 1 + step)})
            with mock.patch("torch.compiler.is_compiling", return_value=True):
                here = ours.clip_()
            assert not ours.host
            close(here.total_norm, alone.clip_().total_norm)
            assert model.gap() < 1e-6, (policy, model.gap())


@case
def an_update_is_clipped_as_a_whole() -> None:
    model = Model(torch.float64, experts=False)
    both = []
    for params in (model.params, model.whole):
        optimizer = torch.optim.SGD(list(params.values()), lr=0.5)
        clipper = attach(optimizer, "update-rms:0.1", on="update")
        both.append((optimizer, clipper))
    for step in range(3):
        model.give({**draw(step, torch.float64)})
        for optimizer, _ in both:
            optimizer.step()
        close(both[0][1].last.total_norm, both[1][1].last.total_norm)
    for name, param in model.params.items():
        part = local(model.part(name, model.whole[name].detach()))
        torch.testing.assert_close(local(param), part, rtol=1e-12, atol=1e-12)


@case
def a_tensor_costs_the_same_among_twenty_thousand() -> None:
    line, _ = meshes()

    def seconds(count: int) -> float:
        local_grad = torch.ones(8)
        params = []
        for _ in range(count):
            param = torch.nn.Parameter(DTensor.from_local(torch.zeros(8), line, [Shard(0)]))
            param.grad = DTensor.from_local(local_grad.clone(), line, [Shard(0)])
            params.append(param)
        clipper = Clipper(params, "norm:1e9")
        clipper.clip_()
        best = math.inf
        for _ in range(3):
            with Collectives() as seen:
                dist.barrier()
                start = time.perf_counter()
                clipper.clip_()
                best = min(best, time.perf_counter() - start)
            assert seen.calls["all_reduce"] == 1
        return best / count

    few, many = seconds(100), seconds(20_000)
    assert many < 1.5 * few, (few, many)


def main(folder: str, only: str = "") -> None:
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", category=UserWarning, module="torch")
    begin(30)
    found: dict[str, Any] = {}
    for name, function in CASES.items():
        if only in name:
            try:
                with warnings.catch_warnings():
                    function()
                found[name] = "ok"
            except Exception:
                print(name, traceback.format_exc(), file=sys.stderr, flush=True)
                found[name] = traceback.format_exc()[-2000:]
    tell(folder, found)


if __name__ == "__main__":
    main(*sys.argv[1:])
