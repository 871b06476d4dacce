"""The table of methods: one row for each recipe of the catalogue, and what is promised of it."""

from __future__ import annotations

from dataclasses import dataclass

from gradclip import (
    acclip,
    adaclip,
    adagc,
    adagn,
    agc,
    aggc,
    autoclip,
    average_norm,
    band,
    block_rms,
    by_norm,
    by_value,
    centered,
    clip21,
    clippy,
    floor,
    mean_std,
    moving_average,
    normalise,
    online_quantile,
    quantile,
    skip_above,
    skip_outliers,
    smooth,
    spam,
    spectral,
    stable_spam,
    tanh,
    update_rms,
    with_feedback,
    zclip,
)
from gradclip.method.policy import AnyPolicy

__all__ = ["ROWS", "Row"]

_FAR = 1e30  # A limit that no gradient of these tests reaches.


@dataclass(frozen=True)
class Row:
    """A method, and what the contract says of it.

    Attributes:
        recipe: its name in the catalogue.
        policy: a call that does something to ordinary gradients within a few steps.
        loose: a call whose limit a gradient does not reach that follows one four times as large;
            None if there is none, since the method changes every gradient.
        enlarges: it may return more than it was given.
        memory: it remembers something from step to step.
        weights, loss: it looks at them.
        real: it refuses complex gradients.
        elementwise: it looks at single values, singular ones included.
        carries: what comes out is more than this step's gradient: a momentum, a carry.
    """

    recipe: str
    policy: AnyPolicy
    loose: AnyPolicy | None = None
    enlarges: bool = False
    memory: bool = False
    weights: bool = False
    loss: bool = False
    real: bool = False
    elementwise: bool = False
    carries: bool = False


ROWS = (
    Row("norm", by_norm(0.5), by_norm(_FAR)),
    Row("value", by_value(0.5), by_value(_FAR), real=True, elementwise=True),
    Row("floor", floor(100.0), floor(5e-324), enlarges=True),
    Row("band", band(2.0, 3.0), band(5e-324, _FAR), enlarges=True),
    Row("block_rms", block_rms(0.1), block_rms(_FAR)),
    Row("average_norm", average_norm(0.1), average_norm(_FAR)),
    Row("agc", agc(), agc(_FAR), weights=True),
    Row("smooth", smooth(0.5)),
    Row("tanh", tanh(0.5), real=True, elementwise=True),
    Row("normalise", normalise(0.5), enlarges=True),
    Row("spectral", spectral(0.5), spectral(_FAR), real=True, elementwise=True),
    Row("autoclip", autoclip(25, window=7), autoclip(100), memory=True),
    Row("quantile", quantile(0.5, window=5), quantile(1.0), memory=True),
    Row("online_quantile", online_quantile(), online_quantile(start=1e30), memory=True),
    Row("zclip", zclip(0.5, warmup=2, max_norm=30.0), zclip(), memory=True),
    Row("adagc", adagc(warmup=2), adagc(start=_FAR), memory=True),
    Row("aggc", aggc(0.5, 0.8), aggc(0.0, 10.0), enlarges=True, memory=True),
    Row("mean_std", mean_std(0.1, warmup=2), mean_std(), memory=True),
    Row("moving_average", moving_average(0.5, warmup=1), moving_average(), memory=True),
    Row("spam", spam(0.5, warmup=1), spam(), memory=True, real=True, elementwise=True),
    Row("adaclip", adaclip(), adaclip(), memory=True, real=True),
    Row("adagn", adagn(), enlarges=True, memory=True),
    Row("stable_spam", stable_spam(), enlarges=True, memory=True, real=True),
    Row(
        "acclip",
        acclip(),
        enlarges=True,
        memory=True,
        real=True,
        elementwise=True,
        carries=True,
    ),
    Row("clippy", clippy(), clippy(0.0, _FAR), weights=True),
    Row("update_rms", update_rms(0.1), update_rms(_FAR)),
    Row("skip_above", skip_above(0.5), skip_above(_FAR)),
    Row("skip_outliers", skip_outliers(0.1, 4, 3), skip_outliers(), memory=True),
    Row(
        "feedback",
        with_feedback(by_norm(0.5)),
        with_feedback(by_norm(_FAR)),
        enlarges=True,
        memory=True,
        real=True,
        carries=True,
    ),
    Row("clip21", clip21(by_norm(0.5)), enlarges=True, memory=True, real=True, carries=True),
    Row("centered", centered(by_norm(0.5)), enlarges=True, memory=True, real=True, carries=True),
    Row("skip_outliers", skip_outliers(0.1, 4, 3, of="loss"), memory=True, loss=True),
)
