"""Find the loss, the gradient norm and the learning rate among the columns of a log."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from ...errors import RecordError

__all__ = ["NONE", "ROLES", "STEPS", "plain_name", "role_column", "step_column"]

NONE = "none"
"""The name that a user gives for a role that the log does not have."""

ROLES: dict[str, tuple[str, tuple[str, ...]]] = {
    "norm": (
        "the gradient norm",
        (
            "grad_norm", "gradient_norm", "total_grad_norm", "global_grad_norm", "grad_norm_total",
            "grad_2_norm_total", "grad_2_0_norm_total", "total_norm", "gradnorm", "gnorm", "norm",
            "grad_norm_step", "grad_total_norm",
        ),
    ),
    "loss": (
        "the loss",
        ("loss", "train_loss", "training_loss", "loss_train", "train_loss_step", "loss_step"),
    ),
    "lr": (
        "the learning rate",
        ("lr", "learning_rate", "lr_adam", "lr_adamw", "lr_sgd", "lr_step"),
    ),
}  # fmt: skip
"""What a role is called in a sentence, and the usual names of its column."""

STEPS = ("step", "global_step", "_step", "trainer_global_step", "iteration", "iter", "it")
"""The usual names of the column of the steps, the first choice first."""

_LISTED = 40
_FOLDER = re.compile(r"^(train|training|optim|optimizer|metrics)_(?=\w*(norm|lr|rate|loss))")


def plain_name(name: str) -> str:
    """Return a column's name without its case, its signs and the folder `train`.

    Example:
        >>> plain_name("train/Grad Norm"), plain_name("lr-AdamW"), plain_name("run 3 - loss")
        ('grad_norm', 'lr_adamw', 'loss')
    """
    name = name.rsplit(" - ", 1)[-1]  # W&B's table writes the name of the run before the column.
    plain = re.sub(r"[\W_]+", "_", name.strip().lower()).strip("_")
    return _FOLDER.sub("", plain)


def role_column(
    role: str, columns: Iterable[str], asked: str | None, usual: Mapping[str, str], path: object
) -> str | None:
    """Return the column of a role, or None for a log without it.

    Args:
        role: a key of `ROLES`.
        columns: the names of the columns.
        asked: the name that the user gave; `NONE` for no column, None for a search.
        usual: the names that the log's program itself gives, by role.
        path: the log, for messages.

    Raises:
        RecordError: the asked column is missing, several columns fit, or no column is the norm.
    """
    known = list(columns)
    meaning, names = ROLES[role]
    listed = ", ".join(map(repr, known[:_LISTED])) or "none"
    listed += f" and {len(known) - _LISTED:,} more" if len(known) > _LISTED else ""
    if asked is not None:
        if asked != NONE and asked not in known:
            raise RecordError(
                f"--{role}={asked!r} is not usable: {path} has no such column of numbers; there "
                f"are {listed}"
            )
        return None if asked == NONE else asked
    if usual.get(role) in known:
        return usual[role]
    found = [name for name in known if plain_name(name) in names]
    if len(found) > 1:
        raise RecordError(
            f"{path} has several columns that may be {meaning}: {', '.join(map(repr, found))}; "
            f"give --{role} COLUMN"
        )
    if not found and role == "norm":
        raise RecordError(
            f"{path} has no column with a usual name of {meaning}: give --norm COLUMN, or "
            f"--norm {NONE} for a record without norms; there are {listed}"
        )
    return found[0] if found else None


def step_column(columns: Iterable[str], asked: str | None, path: object) -> str | None:
    """Return the column of the steps, or None for a log whose rows are the steps.

    Raises:
        RecordError: the asked column is missing.
    """
    known = list(columns)
    if asked is not None:
        if asked not in known:
            listed = ", ".join(map(repr, known[:_LISTED])) or "none"
            raise RecordError(
                f"--step={asked!r} is not usable: {path} has no such column; there are {listed}"
            )
        return asked
    plain = {name.strip().lower().rsplit("/", 1)[-1]: name for name in reversed(known)}
    return next((plain[name] for name in STEPS if name in plain), None)
