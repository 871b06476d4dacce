"""gradclip for fastai: a callback that clips before each step of a `Learner`."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

try:
    from fastai.callback.core import (  # pyright: ignore[reportMissingImports]
        Callback,
        CancelStepException,
    )
    from fastai.learner import ValueMetric  # pyright: ignore[reportMissingImports]
except ImportError as _error:
    _remedy = "gradclip.integrations.fastai needs fastai: pip install 'gradclip[fastai]'"
    raise ImportError(f"{_remedy} ({_error})") from _error

from ..engine.run import NonFinite
from ..method.read import PolicyLike
from ..torch.clipper import Clipper
from ..torch.recorder import Recorder, record

__all__ = ["GradClip"]

_METRICS = ("grad_norm", "clipped_norm", "clip_rate", "skips")


# Type checkers know no type of fastai's.
_Callback = object if TYPE_CHECKING else Callback


class GradClip(_Callback):
    """Clips the gradients of a `Learner` by a policy before each step.

    The formula is the policy's; see `gradclip methods`. It runs where fastai's `GradientClip` does:
    after `MixedPrecision` has unscaled the gradients, and with `GradientAccumulation` once for
    each sum. A skipped step leaves weights and the optimizer's state as they are. The epochs' table
    has the columns grad_norm, clipped_norm (of the last step), clip_rate and skips (of all steps).
    What `lr_find` does to the policy's memory is undone when the search ends.

    Args:
        policy: a policy, its text form, or rules by name; the names are those of
            `learn.model.named_parameters()`.
        nonfinite: see `gradclip.torch.Clipper`.
        max_skips: more skips in a row than this raise an error that names the parameters.
        path: a record to write, for `gradclip report` and `read_run`; each fit writes a file.
        loss: whether the policy and the record get the loss of the batch.

    Attributes:
        clipper: the `Clipper`, from the first fit on; None before.

    Raises:
        PolicyError: an argument is wrong; when the fit begins.
        NonFiniteError: see `Clipper`.

    Numerics: see `Clipper`; nothing is read from an accelerator but whether a step may be skipped.

    Example:
        >>> from fastai.learner import Learner, synth_dbunch  # doctest: +SKIP
        >>> learn = Learner(dls, model, loss_func=loss, cbs=GradClip("norm:1.0"))  # doctest: +SKIP
        >>> learn.fit(1)  # doctest: +SKIP
        >>> learn.grad_clip.clipper.clipped  # doctest: +SKIP
        12

    Source: the engine; each policy names its own.
    """

    learn: Any
    order = 11  # Right after MixedPrecision, as fastai's own GradientClip.
    run_valid = False

    def __init__(
        self,
        policy: PolicyLike | None = "auto",
        *,
        nonfinite: NonFinite = "skip",
        max_skips: int = 10,
        path: str | os.PathLike[str] | None = None,
        loss: bool = True,
    ) -> None:
        super().__init__()
        self._asked = policy, nonfinite, max_skips
        self._path = path
        self._gives_loss = loss
        self._loaded: Mapping[str, Any] | None = None
        self._before_search: Mapping[str, Any] | None = None
        self._record: Recorder | None = None
        self.clipper: Clipper | None = None

    def before_fit(self) -> None:
        """Make the clipper, or take what is trained now, and open the record."""
        named = list(self.learn.model.named_parameters())
        if self.clipper is None:
            policy, nonfinite, max_skips = self._asked
            self.clipper = Clipper(named, policy, nonfinite=nonfinite, max_skips=max_skips)
            self.clipper.set_attachment(_InLearner(self.clipper))
        else:
            self.clipper.rebind(named)
        if self._loaded is not None:
            self.clipper.load_state_dict(dict(self._loaded))
            self._loaded = None
        if hasattr(self.learn, "lr_finder"):
            self._before_search = copy.deepcopy(self.clipper.state_dict())
        elif self._path is not None:
            opt: Any = self.learn.opt
            self._record = record(
                self.clipper, self._path, optimizer=opt, loss=lambda: self._loss()
            )
        ours = [ValueMetric(getattr(self, f"_{name}"), name) for name in _METRICS]
        self.learn.metrics = [*self._others(), *ours]

    def before_step(self) -> None:
        """Clip; a step that must not reach the weights is cancelled."""
        assert self.clipper is not None
        result = self.clipper.clip_(loss=self._loss())
        if self.clipper.may_skip and bool(result.skipped):
            raise CancelStepException

    def after_fit(self) -> None:
        """End the record, and undo what a search for a learning rate has taught."""
        if self._record is not None:
            self._record.close()
            self._record = None
        if self._before_search is not None and self.clipper is not None:
            self.clipper.load_state_dict(dict(self._before_search))
            self._before_search = None
        self.learn.metrics = self._others()

    def state_dict(self) -> dict[str, Any]:
        """Return what the clipper remembers, which `learn.save` does not save."""
        if self.clipper is None:
            return {}
        return self.clipper.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` returned; before the first fit, when that begins.

        Raises:
            PolicyError: see `Clipper.load_state_dict`; then, or when the fit begins.
        """
        if not state:
            return
        if self.clipper is None:
            self._loaded = state
        else:
            self.clipper.load_state_dict(dict(state))

    def _loss(self) -> Any:
        return self.learn.loss.detach().mean() if self._gives_loss else None

    def _others(self) -> list[Any]:
        return [each for each in self.learn.metrics if each.name not in _METRICS]

    def _number(self, name: str) -> float | None:
        last = None if self.clipper is None else self.clipper.last
        return None if last is None else float(getattr(last, name))

    def _grad_norm(self) -> float | None:
        return self._number("total_norm")

    def _clipped_norm(self) -> float | None:
        return self._number("clipped_norm")

    def _clip_rate(self) -> float | None:
        clipper = self.clipper
        return clipper.clipped / clipper.steps if clipper is not None and clipper.steps else None

    def _skips(self) -> int:
        return 0 if self.clipper is None else self.clipper.skipped


class _InLearner:
    """What keeps a skipped step from the weights: the callback."""

    scaled_because = "an optimizer of fastai takes no factor"
    in_step = False

    def __init__(self, clipper: Clipper) -> None:
        self._clipper = clipper

    def refuse_policy(self, policy: Any) -> None:
        """Accept every policy."""

    def remove(self) -> None:
        """Measure only, from now on."""
        self._clipper.attachment = None
        self._clipper.policy = None
