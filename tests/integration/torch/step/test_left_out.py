"""A skip is a step that did not happen, whatever the optimizer is; and closures are left alone."""

from __future__ import annotations

import copy
import importlib.util
import inspect
import pickle
import sys
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from gradclip.torch import attach
from integration.training import owned, same

NAN, INF = float("nan"), float("inf")
PACKAGES = ("torch.optim", "pytorch_optimizer", "schedulefree", "dadaptation", "timm.optim")
PACKAGES += ("bitsandbytes.optim",)
Factory = Callable[[list[nn.Parameter]], torch.optim.Optimizer]


def everything(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return a copy of the weights, the groups, the state and the numbers of an optimizer."""
    numbers = {
        name: value
        for name, value in vars(optimizer).items()
        if isinstance(value, (int, float, str, bool, Tensor, list, deque))
    }
    return plain(
        {
            "weights": [p.detach().clone() for p in owned(optimizer)],
            "groups": [
                {k: v for k, v in group.items() if k != "params"}
                for group in optimizer.param_groups
            ],
            "state": [dict(optimizer.state.get(p, {})) for p in owned(optimizer)],
            "numbers": {k: v for k, v in numbers.items() if k not in ("param_groups", "_params")},
        }
    )


def plain(value: Any) -> Any:
    """Return a copy of nested values, of tensors, numbers and texts; of other objects the type."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, deque)):
        return [plain(item) for item in value]
    return value if isinstance(value, (int, float, str, bool)) else type(value).__name__


def parameters() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(3)
    return [nn.Parameter(torch.randn(s, generator=generator)) for s in ((4, 3), (3, 5))]


def grads(params: list[nn.Parameter], step: int, bad: float | None = None) -> Tensor:
    """Give the parameters a gradient, and return a loss."""
    generator = torch.Generator().manual_seed(step)
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator)
    if bad is not None:
        params[0].grad[0, 0] = bad  # type: ignore[index]
    return torch.tensor(1.0 + step)


def make_step(
    optimizer: torch.optim.Optimizer, params: list[nn.Parameter], step: int, bad: float | None
) -> None:
    if inspect.signature(optimizer.step).parameters["closure"].default is inspect.Parameter.empty:
        optimizer.step(lambda: grads(params, step, bad))  # type: ignore[arg-type]
        return
    loss = grads(params, step, bad)
    try:
        optimizer.step()
    except (TypeError, ValueError, RuntimeError):
        optimizer.step(lambda: loss)  # type: ignore[arg-type]


def left_out(make: Factory) -> bool:
    """Whether skips leave no trace, against a loop that leaves the steps out."""
    ends = []
    for attached in (True, False):
        torch.manual_seed(0)
        params = parameters()
        optimizer = make(params)
        getattr(optimizer, "train", lambda: None)()
        if attached:
            attach(optimizer, "norm:1e9", max_skips=100)
        for step, bad in enumerate((NAN, None, None, INF, NAN, None, -INF, None)):
            torch.manual_seed(step)
            if bad is None:
                make_step(optimizer, params, step, None)
            elif attached:
                make_step(optimizer, params, step, bad)
        ends.append(everything(optimizer))
        ends[-1]["numbers"].pop("step", None)
    return same(ends[0], ends[1])


class Anything(type):
    """Classes with any attribute."""

    def __getattr__(cls, name: str) -> str:
        if name.startswith("__"):
            raise AttributeError(name)
        return name


class Torchvision(MetaPathFinder, Loader):
    """Gives modules with any name in them: timm's optimizers need nothing of torchvision."""

    def find_spec(self, name: str, *_: object) -> ModuleSpec | None:
        is_it = name.partition(".")[0] == "torchvision"
        return ModuleSpec(name, self, is_package=True) if is_it else None

    def exec_module(self, module: ModuleType) -> None:
        def any_class(name: str) -> type:
            if name.startswith("__"):
                raise AttributeError(name)
            return Anything(name, (), {})

        vars(module)["__getattr__"] = any_class


@pytest.fixture
def without_torchvision(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    if importlib.util.find_spec("torchvision") is None:
        monkeypatch.setattr(sys, "meta_path", [*sys.meta_path, Torchvision()])
        yield
        for name in [n for n in sys.modules if n.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
    else:
        yield


def factories(package: str) -> Iterator[tuple[str, Factory]]:
    """Return how to make each optimizer of a package that works on plain parameters."""
    module = importlib.import_module(package)
    for name, kind in sorted(vars(module).items()):
        is_kind = inspect.isclass(kind) and issubclass(kind, torch.optim.Optimizer)
        if is_kind and kind is not torch.optim.Optimizer and not name.startswith("_"):
            yield name, cast(Factory, kind)
    if package == "torch.optim":
        for name in ("SGD", "Adam", "AdamW", "Adagrad"):
            for way in ("foreach", "fused"):
                kind = getattr(module, name)
                yield f"{name}-{way}", lambda p, kind=kind, way=way: kind(p, lr=0.1, **{way: True})


def trains(make: Factory) -> bool:
    """Whether an optimizer can be made of parameters alone, and steps twice in the same way."""
    ends = []
    for _ in range(2):
        torch.manual_seed(0)
        params = parameters()
        try:
            optimizer = make(params)
            getattr(optimizer, "train", lambda: None)()
            for step in (1, 2):
                torch.manual_seed(step)
                make_step(optimizer, params, step, None)
            ends.append(everything(optimizer))
        except Exception:  # Anybody's code, which wants a model, matrices, or a closure of its own.
            return False
    return same(ends[0], ends[1])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("without_torchvision")
@pytest.mark.parametrize("package", PACKAGES)
def test_every_optimizer_is_as_if_the_step_were_left_out(package: str) -> None:
    pytest.importorskip(package, reason=f"{package} is not installed", exc_type=ImportError)
    tried, differ = [], []
    for name, make in factories(package):
        if trains(make):
            tried.append(name)
            try:
                if not left_out(make):
                    differ.append(name)
            except Exception as error:
                differ.append(f"{name}: {error!r}")
    print(f"{package}: {len(tried)} tried, {len(tried) - len(differ)} equal")
    assert tried
    assert not differ


@pytest.mark.parametrize("name", ["SGD", "Adam", "LBFGS", "Rprop"])
def test_some_optimizers_are_as_if_the_step_were_left_out(name: str) -> None:
    assert left_out(getattr(torch.optim, name))


class Counts(torch.optim.Optimizer):
    """Counts its steps wherever an optimizer may."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {"lr": 0.1, "k": 0})
        self.total = 0

    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        self.total += 1
        for group in self.param_groups:
            group["k"] += 1
            for p in group["params"]:
                self.state[p].setdefault("seen", []).append(1)
        loss = None if closure is None else closure()
        for p in owned(self):
            if p.grad is not None:
                p.data.sub_(p.grad)
        return loss


@pytest.mark.parametrize("with_closure", [False, True])
def test_counters_of_any_kind_stay(with_closure: bool) -> None:
    params = parameters()
    optimizer = Counts(params)
    clipper = attach(optimizer, "norm:1.0")
    for step, bad in enumerate((None, NAN, None, INF)):
        before = everything(optimizer)
        loss = grads(params, step, bad)
        closure = (lambda loss=loss: loss) if with_closure else None
        assert optimizer.step(closure) is (loss if with_closure else None)
        assert same(everything(optimizer), before) == (bad is not None)
    assert (optimizer.total, clipper.skipped) == (2, 2)


def test_hooks_of_others_are_not_run_for_a_skip() -> None:
    params, ran = parameters(), []
    optimizer = torch.optim.Adam(params)
    optimizer.register_step_pre_hook(lambda *_: ran.append("before"))
    attach(optimizer, "norm:1.0")
    optimizer.register_step_post_hook(lambda *_: ran.append("after"))
    for step, bad in enumerate((NAN, None)):
        grads(params, step, bad)
        optimizer.step()
    assert ran == ["before", "after"]


def test_a_hook_of_another_may_change_the_gradients_first() -> None:
    params = parameters()
    optimizer = torch.optim.SGD(params, lr=1.0)

    def enlarge(*_: object) -> None:
        for p in params:
            p.grad.mul_(1e3)  # type: ignore[union-attr]

    optimizer.register_step_pre_hook(enlarge)
    attach(optimizer, "norm:1.0")
    before = [p.detach().clone() for p in params]
    grads(params, 0)
    optimizer.step()
    moved = [(p - b).detach().square().sum() for p, b in zip(params, before, strict=True)]
    assert float(torch.stack(moved).sum()) == pytest.approx(1.0, rel=1e-5)


@pytest.mark.parametrize("attach_first", [True, False])
def test_a_scheduler_in_either_order(attach_first: bool) -> None:
    params = parameters()
    optimizer = torch.optim.SGD(params, lr=1.0)
    clipper = attach(optimizer, "norm:1.0")
    if not attach_first:
        clipper.detach()
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    if not attach_first:
        clipper = attach(optimizer, "norm:1.0")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for step, bad in enumerate((NAN, None)):
            grads(params, step, bad)
            optimizer.step()
            scheduler.step()
    assert (clipper.steps, clipper.skipped) == (2, 1)
    clipper.detach()
    grads(params, 2, NAN)
    optimizer.step()
    assert clipper.steps == 2
    assert bool(params[0].isnan().any())


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
def test_a_copy_has_a_step_of_its_own(duplicate: Callable[[Any], Any]) -> None:
    optimizer = torch.optim.SGD(parameters(), lr=1.0)
    clipper = attach(optimizer, "norm:1.0")
    other = duplicate(optimizer)
    before = [p.detach().clone() for p in owned(optimizer)]
    grads(owned(other), 0)  # type: ignore[arg-type]
    other.step()
    assert clipper.steps == 0
    assert same(before, [p.detach() for p in owned(optimizer)])
    assert not same(before, [p.detach() for p in owned(other)])


def test_a_skipped_update_is_no_step_either() -> None:
    params = parameters()
    optimizer = Counts(params)
    clipper = attach(optimizer, "norm:1.0", on="update")
    grads(params, 0)
    optimizer.step()
    before = everything(optimizer)
    grads(params, 1, NAN)
    optimizer.step()
    assert same(everything(optimizer), before)
    assert (clipper.steps, clipper.skipped) == (2, 1)


# ---- closures ------------------------------------------------------------------------------


def steep(policy: Any, **options: Any) -> list[float]:
    """Return where LBFGS goes on a function that overflows on the way."""
    x = nn.Parameter(torch.tensor([-3.0]))
    optimizer = torch.optim.LBFGS([x], line_search_fn="strong_wolfe")
    if policy != "plain":
        attach(optimizer, policy, max_skips=0, **options)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (torch.exp(torch.exp(x)) - 20 * x).sum()
        loss.backward()
        return loss

    path = []
    for _ in range(4):
        optimizer.step(closure)  # type: ignore[arg-type]
        path.append(float(x.detach()))
    return path


@pytest.mark.parametrize("policy", [None, "norm:1e9", "value:1e9"])
def test_a_line_search_steps_back_by_itself(policy: str | None) -> None:
    expected = steep("plain")
    assert steep(policy) == expected
    if policy != "value:1e9":  # That makes a finite slope of an infinite one, and propagates it.
        assert steep(policy, nonfinite="propagate") == expected
    assert abs(expected[-1] - 0.79) < 0.01


class Searches(torch.optim.SGD):
    """Evaluates its closure twice, and takes the second gradient, good or bad."""

    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        closure()
        for p in owned(self):
            self.state[p]["tries"] = self.state[p].get("tries", 0) + 1
            p.data.add_(1.0)
        loss = closure()
        for p in owned(self):
            p.data.sub_(p.grad)  # type: ignore[arg-type]
        return loss


@pytest.mark.parametrize("policy", ["norm:1e9", "skip-above:100"])
def test_a_step_spoilt_at_a_later_evaluation_is_undone(policy: str) -> None:
    params = parameters()
    optimizer = Searches(params, lr=1.0)
    clipper = attach(optimizer, policy)
    values = iter([None, None, None, NAN if policy == "norm:1e9" else 1e3])
    steps = []
    for _ in range(2):
        before = everything(optimizer)
        optimizer.step(lambda: grads(params, 0, next(values)))
        steps.append(same(everything(optimizer), before))
    assert steps == [False, True]
    assert clipper.skipped == 1
