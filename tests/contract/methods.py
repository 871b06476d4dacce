"""The table of methods: at least one row for each recipe of the catalogue."""

from __future__ import annotations

from dataclasses import dataclass

from gradclip import (
    Chain,
    Policy,
    Wrapped,
    acclip,
    adaclip,
    adagc,
    adagn,
    adamw_clip,
    adaptive_spectral,
    agc,
    aggc,
    auto,
    auto_s,
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
    per_layer,
    psac,
    quantile,
    rolling_mean,
    skip_above,
    skip_outliers,
    smooth,
    spam,
    spamp,
    spectral,
    stable_spam,
    tanh,
    update_rms,
    with_feedback,
    zclip,
)
from gradclip.method.traits import Traits, traits_of

__all__ = ["ROWS", "Row"]

_FAR = 1e30  # A limit that no gradient of these tests reaches.


@dataclass(frozen=True)
class Row:
    """A method at work; what the contract says of it follows from the traits of the policy.

    Attributes:
        policy: a call that does something to ordinary gradients within a few steps.
        loose: a call whose limit a gradient does not reach that follows one four times as large;
            None if the method has none, since it changes every gradient.
    """

    policy: Policy | Chain | Wrapped
    loose: Policy | Chain | Wrapped | None = None

    @property
    def recipe(self) -> str:
        """The method's name in the catalogue."""
        assert self.policy.call is not None, "write the row's policy as a call of its recipe"
        return self.policy.call.recipe

    @property
    def traits(self) -> Traits:
        """What the policy looks at, remembers and may do."""
        return traits_of(self.policy)


ROWS = (
    Row(by_norm(0.5), by_norm(_FAR)),
    Row(by_value(0.5), by_value(_FAR)),
    Row(floor(100.0), floor(5e-324)),
    Row(band(2.0, 3.0), band(5e-324, _FAR)),
    Row(block_rms(0.1), block_rms(_FAR)),
    Row(average_norm(0.1), average_norm(_FAR)),
    Row(agc(), agc(_FAR)),
    Row(smooth(0.5)),
    Row(tanh(0.5)),
    Row(normalise(0.5)),
    Row(per_layer(0.5), per_layer(_FAR)),
    Row(auto_s(0.5)),
    Row(psac(0.5)),
    Row(spectral(0.5), spectral(_FAR)),
    Row(auto(1000.0)),
    Row(autoclip(25, window=7), autoclip(100)),
    Row(quantile(0.5, window=5), quantile(1.0)),
    Row(online_quantile(), online_quantile(start=1e30)),
    Row(zclip(0.5, warmup=2, max_norm=30.0), zclip()),
    Row(zclip(0.5, warmup=2, mode="percentile", skip_update_on_spike=True), zclip()),
    Row(zclip(0.5, warmup=2, clip_option="mean"), zclip(clip_factor=0.5)),
    Row(rolling_mean(0.5, 5, start=2), rolling_mean(start=1)),
    Row(adaptive_spectral(factor=0.5, decay=0.9, rank=2), adaptive_spectral()),
    Row(adaptive_spectral("quantile", q=0.3, window=5), adaptive_spectral("quantile")),
    Row(adagc(warmup=2), adagc(start=_FAR)),
    Row(aggc(0.5, 0.8), aggc(0.0, 10.0)),
    Row(mean_std(0.1, warmup=2), mean_std()),
    Row(moving_average(0.5, warmup=1), moving_average()),
    Row(spam(0.5, warmup=1), spam()),
    Row(spamp()),
    # With a decay of 0.5 the average of the first norm is that norm, exactly, in every library.
    Row(spamp(1.0, 0.5)),
    Row(adamw_clip(0.5, 0.9), adamw_clip()),
    Row(adaclip(), adaclip()),
    Row(adagn()),
    Row(stable_spam()),
    Row(acclip()),
    Row(clippy(), clippy(0.0, _FAR)),
    Row(update_rms(0.1), update_rms(_FAR)),
    Row(skip_above(0.5), skip_above(_FAR)),
    Row(skip_outliers(0.1, 4, 3), skip_outliers()),
    Row(with_feedback(by_norm(0.5)), with_feedback(by_norm(_FAR))),
    Row(clip21(by_norm(0.5))),
    Row(centered(by_norm(0.5))),
    Row(skip_outliers(0.1, 4, 3, of="loss")),
)
