"""One small transformer, laid out on processes in all common ways.

Every process makes the same whole model from the same seed; a layout cuts it up. Used by
`benchmarks.distributed` and by the tests.
"""

from __future__ import annotations

import pydoc_data.topics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["LAYOUTS", "Laid", "alone", "batch", "ddp", "fsdp", "model", "ways"]

VOCABULARY, WIDTH, HEADS, LENGTH, ROWS, EXPERTS = 64, 32, 4, 16, 8, 4


class Attention(nn.Module):
    """Causal self-attention; the projections give the number of heads in this process."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        """Attend."""
        size = WIDTH // HEADS
        q, k, v = (p(x).unflatten(-1, (-1, size)).transpose(1, 2) for p in (self.q, self.k, self.v))
        # In single operations: the fused kernels of some types have no backward on a CPU.
        scores = (q @ k.transpose(-1, -2)) / size**0.5
        mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).tril()
        y = torch.softmax(scores.masked_fill(~mask, -1e4), -1) @ v
        return self.o(y.transpose(1, 2).flatten(-2))


class Mlp(nn.Module):
    """Two layers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Apply."""
        return self.down(F.gelu(self.up(x)))


class Experts(nn.Module):
    """A mixture of experts, one for each token; `exchange` may bring tokens from others."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.router = nn.Linear(width, EXPERTS)
        up = nn.Parameter(torch.randn(EXPERTS, width, 2 * width) / width**0.5)
        down = nn.Parameter(torch.randn(EXPERTS, 2 * width, width) / width**0.5)
        self.experts = nn.ParameterDict({"up": up, "down": down})
        self.first = 0
        self.exchange: tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Send each token to its best expert, weighted by its probability."""
        out, back = self.exchange or (lambda t: t, lambda t: t)
        shares = out(torch.softmax(self.router(x), -1))
        tokens = out(x)
        best, which = shares.max(-1)
        total = torch.zeros_like(tokens)
        for i, (up, down) in enumerate(zip(self.experts["up"], self.experts["down"], strict=True)):
            chosen = (which == self.first + i)[..., None]
            total = total + torch.where(chosen, F.gelu(tokens @ up) @ down, 0.0)
        return back(total * best[..., None])


class Block(nn.Module):
    """One layer of the transformer."""

    def __init__(self, width: int, experts: bool) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width)
        self.mlp = Experts(width) if experts else Mlp(width)

    def forward(self, x: Tensor) -> Tensor:
        """Apply."""
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Transformer(nn.Module):
    """A model that predicts the next character."""

    def __init__(self, experts: bool = False) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.blocks = nn.ModuleList([Block(WIDTH, experts) for _ in range(2)])
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, VOCABULARY)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the loss of the next characters."""
        x = self.embed(tokens[:, :-1])
        for block in self.blocks:
            x = block(x)
        return loss_of(self.head(self.norm(x)), tokens)


def loss_of(logits: Tensor, tokens: Tensor) -> Tensor:
    """Return the mean loss, large enough that clipping binds."""
    return 10 * F.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten())


def batch(step: int) -> Tensor:
    """Return rows of real text, the same in all processes."""
    text = pydoc_data.topics.topics["assignment"]
    codes = [ord(c) % VOCABULARY for c in text]
    starts = [(step * ROWS + row) * 37 % (len(codes) - LENGTH - 1) for row in range(ROWS)]
    return torch.tensor([codes[s : s + LENGTH + 1] for s in starts])


@dataclass
class Laid:
    """A model in one layout on the processes.

    Attributes:
        params: names and parameters of this process.
        groups: for `Clipper`.
        backward: takes a whole batch, leaves gradients, returns the loss of the whole batch.
        module: what was laid out.
    """

    params: list[tuple[str, nn.Parameter]]
    groups: Any
    backward: Callable[[Tensor], float]
    module: nn.Module


def model(experts: bool = False) -> Transformer:
    """Return the whole model."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Transformer(experts)


def share(tokens: Tensor, rank: int, world: int) -> Tensor:
    """Return the rows of one process."""
    return tokens.chunk(world)[rank]


def mean(value: Tensor) -> float:
    """Return the mean over all processes."""
    both = value.detach().double().clone()
    dist.all_reduce(both)
    return float(both) / dist.get_world_size()


def alone(experts: bool = False) -> Laid:
    """One process has the whole model."""
    whole = model(experts)

    def backward(tokens: Tensor) -> float:
        loss = whole(tokens)
        loss.backward()
        return float(loss.detach())

    return Laid(list(whole.named_parameters()), None, backward, whole)


def ddp(micro: int = 1) -> Laid:
    """Copies, whose gradients torch averages; of `micro` parts only the last communicates."""
    whole = model()
    copy = nn.parallel.DistributedDataParallel(whole)

    def backward(tokens: Tensor) -> float:
        mine = share(tokens, dist.get_rank(), dist.get_world_size())
        total = torch.zeros(())
        for i, part in enumerate(mine.chunk(micro)):
            with copy.no_sync() if i + 1 < micro else torch.enable_grad():
                loss = copy(part) / micro
                loss.backward()
            total += loss.detach()
        return mean(total)

    return Laid(list(whole.named_parameters()), None, backward, copy)


def fsdp(mesh: Any = None, whole: Transformer | None = None, micro: int = 1, **how: Any) -> Laid:
    """All parameters are sharded by rows; `how` goes to `fully_shard`."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    whole = model() if whole is None else whole
    mesh = init_device_mesh("cpu", (dist.get_world_size(),)) if mesh is None else mesh
    for block in whole.blocks:
        fully_shard(block, mesh=mesh, **how)
    sharded: Any = fully_shard(whole, mesh=mesh, **how)

    def backward(tokens: Tensor) -> float:
        rank = mesh.get_local_rank(0) if mesh.ndim == 1 else dist.get_rank()
        mine = share(tokens, rank, mesh.size())
        total = torch.zeros(())
        for i, part in enumerate(mine.chunk(micro)):
            sharded.set_requires_gradient_sync(i + 1 == micro)
            loss = sharded(part) / micro
            loss.backward()
            total += loss.detach()
        return mean(total)

    return Laid(list(whole.named_parameters()), None, backward, whole)


def hsdp() -> Laid:
    """Shards over pairs of processes, and copies of the pairs."""
    from torch.distributed.device_mesh import init_device_mesh

    names = ("replicate", "shard")
    return fsdp(init_device_mesh("cpu", (dist.get_world_size() // 2, 2), mesh_dim_names=names))


def cut(whole: Transformer, mesh: Any) -> Transformer:
    """Shard the attention and the layers after it, as tensor parallelism does."""
    from torch.distributed.tensor.parallel import (
        ColwiseParallel,
        RowwiseParallel,
        parallelize_module,
    )

    for block in whole.blocks:
        plan: Any = {f"attention.{name}": ColwiseParallel() for name in "qkv"}
        plan |= {"attention.o": RowwiseParallel(), "mlp.up": ColwiseParallel()}
        parallelize_module(block, mesh, plan | {"mlp.down": RowwiseParallel()})
    return whole


def tensor_parallel() -> Laid:
    """Linear layers are sharded over the processes; the other layers are plain copies."""
    from torch.distributed.device_mesh import init_device_mesh

    whole = cut(model(), init_device_mesh("cpu", (dist.get_world_size(),)))

    def backward(tokens: Tensor) -> float:
        loss = whole(tokens)
        loss.backward()
        return float(loss.detach())

    return Laid(list(whole.named_parameters()), None, backward, whole)


def fsdp_tensor_parallel() -> Laid:
    """Tensor parallelism over pairs, with its shards sharded again."""
    from torch.distributed.device_mesh import init_device_mesh

    names = ("dp", "tp")
    mesh = init_device_mesh("cpu", (dist.get_world_size() // 2, 2), mesh_dim_names=names)
    return fsdp(mesh["dp"], cut(model(), mesh["tp"]))


def pipeline() -> Laid:
    """Two stages by torch's GPipe; with four processes each stage is sharded over two."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.pipelining import PipelineStage, ScheduleGPipe

    world = dist.get_world_size()
    mesh = init_device_mesh("cpu", (2, world // 2), mesh_dim_names=("pp", "dp"))
    stage = mesh["pp"].get_local_rank()
    whole = model()

    class First(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.blocks = whole.embed, nn.ModuleDict({"0": whole.blocks[0]})

        def forward(self, tokens: Tensor) -> Tensor:
            return self.blocks["0"](self.embed(tokens[:, :-1]))

    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleDict({"1": whole.blocks[1]})
            self.norm, self.head = whole.norm, whole.head

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.norm(self.blocks["1"](x)))

    part: Any = First() if stage == 0 else Last()
    if world > 2:
        fully_shard(part, mesh=mesh["dp"])
    group = mesh["pp"].get_group()
    running = PipelineStage(part, stage, 2, torch.device("cpu"), group=group)
    schedule = ScheduleGPipe(running, n_microbatches=2, loss_fn=loss_of)

    def backward(tokens: Tensor) -> float:
        mine = share(tokens, mesh["dp"].get_local_rank(), world // 2)
        losses: list[Tensor] = []
        if stage == 0:
            schedule.step(mine)
        else:
            schedule.step(target=mine, losses=losses)
        last = torch.stack(losses).mean().detach() if losses else torch.zeros(())
        return 2 * mean(last)  # Half of the processes have no loss.

    return Laid(list(part.named_parameters()), mesh["pp"], backward, part)


def expert_parallel() -> Laid:
    """Each process has some of the experts, and a copy of the other layers."""
    from torch.distributed.nn.functional import all_gather, reduce_scatter

    rank, world = dist.get_rank(), dist.get_world_size()
    whole = model(experts=True)

    def collect(x: Tensor) -> Tensor:
        return torch.cat(all_gather(x.contiguous()))

    def give_back(x: Tensor) -> Tensor:
        parts = [part.contiguous() for part in x.chunk(world)]
        return reduce_scatter(torch.empty_like(parts[rank]), parts)

    for module in whole.modules():
        if isinstance(module, Experts):
            for name, value in list(module.experts.items()):
                setattr(
                    module.experts, name, nn.Parameter(value.detach().chunk(world)[rank].clone())
                )
            module.first, module.exchange = rank * EXPERTS // world, (collect, give_back)

    def backward(tokens: Tensor) -> float:
        loss = whole(share(tokens, rank, world))
        loss.backward()
        for name, param in whole.named_parameters():
            assert param.grad is not None
            if ".experts." not in name:
                dist.all_reduce(param.grad)
            param.grad /= world
        return mean(loss)

    groups = {"*.experts.*": dist.group.WORLD}
    return Laid(list(whole.named_parameters()), groups, backward, whole)


def ways() -> dict[str, Callable[[], Laid]]:
    """Return the layouts that this number of processes can make."""
    four = {"HSDP": hsdp, "FSDP2 × tensor parallel": fsdp_tensor_parallel}
    return LAYOUTS | (four if dist.get_world_size() == 4 else {})


LAYOUTS: dict[str, Callable[[], Laid]] = {
    "DDP": ddp,
    "FSDP2": fsdp,
    "tensor parallel": tensor_parallel,
    "pipeline": pipeline,
    "expert parallel": expert_parallel,
}
