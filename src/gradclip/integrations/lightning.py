"""`GradClip`: one entry of a Lightning Trainer's callbacks, and every step is clipped.

For the package `lightning` and for `pytorch_lightning`: a Trainer of one refuses a callback of the
other, so `GradClip` becomes a callback of each of the two that is imported when one is made.
Importing this module imports neither.
"""

from __future__ import annotations

import importlib
import os
import sys
import warnings
from typing import Any, Literal, Self

try:
    import torch
    from torch import Tensor
except ModuleNotFoundError as _error:
    _remedy = "gradclip.integrations.lightning needs torch: pip install 'gradclip[lightning]'"
    raise ImportError(_remedy) from _error

from ..engine.result import ClipResult
from ..engine.run import NonFinite
from ..errors import GradclipError, GradclipWarning, PolicyError
from ..method.read import PolicyLike, as_policy
from ..record.place import IfExists
from ..torch.attaching import attach
from ..torch.clipper import Clipper
from ..torch.processes.layout import GroupsLike
from .files import RunFiles

__all__ = ["GradClip"]

_PACKAGES = ("lightning.pytorch", "pytorch_lightning")
_DIVIDED = "Lightning divided each by accumulate_grad_batches"


class _EitherCallback:
    """Stands for the class Callback of both packages, until it is known which one is in use."""

    def __new__(cls, *_args: object, **_named: object) -> Self:
        """Make the class below this one a callback of each package that is imported by now."""
        if not any(name in sys.modules for name in _PACKAGES):
            try:
                importlib.import_module("lightning.pytorch")
            except ImportError as error:
                raise GradclipError(
                    "gradclip.integrations.lightning needs lightning: "
                    "pip install 'gradclip[lightning]'"
                ) from error
        owner: Any = next(kind for kind in cls.__mro__ if _EitherCallback in kind.__bases__)
        for name in _PACKAGES:
            callback = getattr(sys.modules.get(name), "Callback", None)
            if callback is not None and callback not in owner.__mro__:
                owner.__bases__ = (*owner.__bases__, callback)
        return super().__new__(cls)


class GradClip(_EitherCallback):
    """Clip every step of a Lightning Trainer, log what was done, and keep it in the checkpoint.

    Attaches to the module's optimizers when a fit starts, in every process, and detaches when it
    ends, also by an error. A skipped step counts for Lightning as a step. Each fit begins with a
    memory of its own, as Lightning begins each with new optimizers; `ckpt_path` brings back the
    checkpoint's. Works with automatic and manual optimization, accumulation, closures, 16-bit and
    bf16 precision, and with strategies that `attach` knows (see docs/distributed.md).

    At each step that reaches the loggers (`log_every_n_steps`) it logs `grad_norm/pre`,
    `grad_norm/post`, `clip/coef` and `clip/rate`; the names of a second clipper end in "_1". They
    are then in `trainer.callback_metrics` too.

    Args:
        policy: see `attach`; by default `auto`, which finds its limit by itself.
        joint: whether all optimizers of the module share one norm; by default each has its own, as
            in a GAN, whose networks step in turn. One norm is for optimizers that all step after
            one backward.
        on: see `attach`.
        nonfinite: see `attach`.
        max_skips: see `attach`.
        groups: see `attach`.
        verify: see `attach`.
        record: where the record of the steps goes, which process 0 writes; None records nothing.
        report: where the page goes, made of the record when the training ends, also by an error;
            without `record` the record lies beside the page, with the suffix ".jsonl".
        if_exists: what to do with a record that exists, see `gradclip.torch.record`.

    Raises:
        PolicyError: an argument is wrong; when a fit starts, the Trainer clips by itself
            (`gradient_clip_val`), or the checkpoint is of another policy or other parameters.
        GradclipError: neither package is installed, or the page needs packages that are missing.

    Numerics: see `attach`.

    Example:
        >>> import lightning, torch
        >>> from gradclip.integrations.lightning import GradClip
        >>> class Model(lightning.LightningModule):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.layer = torch.nn.Linear(8, 1)
        ...     def training_step(self, batch, _index):
        ...         return self.layer(batch).square().mean() * 1000
        ...     def configure_optimizers(self):
        ...         return torch.optim.SGD(self.parameters(), lr=0.01)
        >>> clip = GradClip("norm:1.0")
        >>> off = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar"), False)
        >>> trainer = lightning.Trainer(
        ...     max_steps=3, callbacks=[clip], accelerator="cpu", enable_model_summary=False, **off
        ... )
        >>> trainer.fit(Model(), torch.utils.data.DataLoader(torch.ones(12, 8), batch_size=4))
        >>> clip.clippers[0].steps, clip.clippers[0].clipped
        (3, 3)

    Attributes:
        clippers: of the last fit, one for each optimizer, or one for all of them; empty before.

    Source: none; the place of a callback for the work of `attach`.
    """

    def __init__(
        self,
        policy: PolicyLike | None = "auto",
        *,
        joint: bool = False,
        on: Literal["gradient", "update"] = "gradient",
        nonfinite: NonFinite = "skip",
        max_skips: int = 10,
        groups: GroupsLike | None = None,
        verify: Literal["first-step"] | None = None,
        record: str | os.PathLike[str] | None = None,
        report: str | os.PathLike[str] | None = None,
        if_exists: IfExists = "part",
    ) -> None:
        super().__init__()
        self._policy = None if policy is None else as_policy(policy)
        self._joint = joint
        self._options: dict[str, Any] = {
            "on": on,
            "nonfinite": nonfinite,
            "max_skips": max_skips,
            "groups": groups,
            "verify": verify,
        }
        self._files = RunFiles(record, report, if_exists)
        self._saved: dict[str, Any] | None = None
        self._logged: list[ClipResult | None] = []
        self.clippers: list[Clipper] = []

    @property
    def state_key(self) -> str:
        """The key of the state among the checkpoint's "callbacks"."""
        return "gradclip"

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Refuse a Trainer that clips by itself.

        Raises:
            PolicyError: says what to leave out.
        """
        if stage != "fit":
            return
        self._saved = None  # What a validation has loaded is not for this fit.
        if trainer.gradient_clip_val:
            remedy = "the Trainer clips as well: leave gradient_clip_val out of its arguments"
            raise PolicyError.of("gradient_clip_val", trainer.gradient_clip_val, remedy)
        own = type(pl_module).configure_gradient_clipping
        if pl_module.automatic_optimization and not own.__module__.startswith(_PACKAGES):
            text = (
                f"{type(pl_module).__name__}.configure_gradient_clipping comes before each step: "
                "what it clips, GradClip clips a second time. Leave the method out of the module"
            )
            warnings.warn(text, GradclipWarning, stacklevel=2)

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Attach to the optimizers, which Lightning has just made.

        Raises:
            PolicyError: an optimizer, or the state of the checkpoint, does not fit.
            RecordError: the record cannot be written.
        """
        optimizers: list[torch.optim.Optimizer] = list(trainer.optimizers)
        shared = self._joint and len(optimizers) > 1
        if shared and getattr(trainer.precision_plugin, "scaler", None) is not None:
            remedy = (
                "with a GradScaler Lightning unscales the gradients of each optimizer at its own "
                "step: use joint=False, or bf16"
            )
            raise PolicyError.of("joint", True, remedy)
        together = [optimizers] if shared else [[each] for each in optimizers]
        self.clippers = []
        for each in together:
            self.clippers.append(attach(each, self._policy, model=pl_module, **self._options))
        self._logged = [None] * len(together)
        if self._saved is not None:
            self._load(self._saved)
        if trainer.is_global_zero:
            self._files.begin(list(zip(self.clippers, together, strict=True)))

    def on_before_zero_grad(self, _trainer: Any, _pl_module: Any, _optimizer: object) -> None:
        """Forget the losses of a step that a GradScaler has left out."""
        if self._files.losses is not None:
            self._files.losses.drop()

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Tensor) -> None:
        """Note the loss for the record; Lightning has scaled it already, if there is a scaler."""
        losses = self._files.losses
        if losses is None:
            return
        weights = losses.weights(loss)
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        if scaler is not None:
            loss = loss.detach() / scaler.scale(torch.ones((), device=loss.device))
        divided = _DIVIDED if pl_module.automatic_optimization else None
        losses.see(loss, weights, by_framework=divided)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_batch: object) -> None:
        """Log the last step, with its numbers on the device, if the loggers get this batch."""
        if trainer.barebones or not trainer._logger_connector.should_update_logs:
            return  # To log takes Lightning longer than to clip; barebones warns of each log.
        for i, clipper in enumerate(self.clippers):
            result = clipper.last
            if result is None or result is self._logged[i]:
                continue
            self._logged[i] = result
            values = {
                "grad_norm/pre": result.total_norm,
                "grad_norm/post": result.clipped_norm,
                "clip/coef": result.coef,
                "clip/rate": clipper.rate,
            }
            suffix = f"_{i}" if i else ""
            pl_module.log_dict({name + suffix: value for name, value in values.items()})

    def teardown(self, _trainer: Any, _pl_module: Any, stage: str) -> None:  # noqa: ARG002
        """Detach, and write the files."""
        self._finish("ok")

    def on_exception(self, _trainer: Any, _pl_module: Any, exception: BaseException) -> None:
        """Detach, and write the files of a training that an error has ended."""
        self._finish(f"error: {type(exception).__name__}: {exception}")

    def state_dict(self) -> dict[str, Any]:
        """Return what the clippers of the last fit remember, as plain tensors and primitives."""
        if self._saved is not None:
            return self._saved
        return {"clippers": [clipper.state_dict() for clipper in self.clippers]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint, as Lightning asks: at once, or when the fit starts.

        Args:
            state_dict: not mutated.

        Raises:
            PolicyError: it is of another policy or other parameters.
        """
        if not state_dict["clippers"]:  # Saved before a fit, as a search for a rate does.
            return
        if any(clipper.attachment is not None for clipper in self.clippers):
            self._load(state_dict)
        else:  # Most strategies load the callbacks before there are optimizers.
            self._saved = state_dict

    def on_load_checkpoint(self, _trainer: Any, _pl_module: Any, checkpoint: Any) -> None:
        """Say so if a checkpoint has nothing for the clippers."""
        if self.state_key not in checkpoint.get("callbacks", {}):
            text = (
                "the checkpoint was saved without GradClip: what the policy remembers, and the "
                "counts of steps, begin anew"
            )
            warnings.warn(text, GradclipWarning, stacklevel=2)

    def _load(self, state: dict[str, Any]) -> None:
        self._saved = None
        saved = state["clippers"]
        if len(saved) != len(self.clippers):
            remedy = (
                f"this fit has {len(self.clippers)} clippers: use the module and the joint= that "
                "the checkpoint was saved with"
            )
            raise PolicyError.of("clippers of the checkpoint", len(saved), remedy)
        for clipper, each in zip(self.clippers, saved, strict=True):
            clipper.load_state_dict(each)

    def _finish(self, status: str) -> None:
        for clipper in self.clippers:
            clipper.detach()
        self._files.end(status)
