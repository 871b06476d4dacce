"""The tasks, by name: each returns its problem for a seed."""

from collections.abc import Callable

from ..problem import Problem
from .digits import digits
from .gated import gated
from .mnist import mnist
from .quadratic import quadratic
from .recurrent import adding, order
from .regression import regression
from .shakespeare import char_lm, transformer
from .sunspots import sunspots

__all__ = ["TASKS"]

TASKS: dict[str, Callable[..., Problem]] = {
    "adding": adding,
    "order": order,
    "char_lm": char_lm,
    "transformer": transformer,
    "mnist": mnist,
    "digits": digits,
    "sunspots": sunspots,
    "gated": gated,
    "regression": regression,
    "quadratic": quadratic,
}
