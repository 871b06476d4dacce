"""What each kind of finding means: the one text behind `gradclip explain` and docs/findings.md."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from difflib import get_close_matches

from ..errors import PolicyError
from . import (
    depth,
    exploding,
    nonfinite,
    piles,
    plateau,
    samples,
    spikes,
    thresholds,
    unscaled,
    vanishing,
)
from .finding import Kind
from .links import PAGES, docs_of, online
from .window import WINDOW

__all__ = ["HEADINGS", "KINDS", "Explanation", "explanation_of"]

HEADINGS = {"signs": "Signs", "cause": "Cause", "remedy": "What to do", "docs": "Docs"}
"""The parts of an explanation after its meaning, with their headings."""


@dataclass(frozen=True)
class Explanation:
    """The essence of one kind of finding; each text is plain Markdown without links.

    Attributes:
        kind: the kind, as findings name it.
        title: the fault in a few words.
        meaning: what a run with such a finding does.
        signs: how the rule recognises the fault, with its numbers.
        cause: what usually causes the fault.
        remedy: what to do.
    """

    kind: Kind
    title: str
    meaning: str
    signs: str
    cause: str
    remedy: str

    @property
    def docs(self) -> str:
        """The address of the kind's section in the online docs."""
        return docs_of(self.kind)

    def sections(self) -> list[tuple[str, str]]:
        """Return the heading and the text of the signs, the cause and the remedy."""
        texts = {"signs": self.signs, "cause": self.cause, "remedy": self.remedy}
        return [(HEADINGS[name], text) for name, text in texts.items()]

    def to_dict(self) -> dict[str, str]:
        """Return the texts, and the addresses of the section and of the page behind it."""
        return {**asdict(self), "docs": self.docs, "background": online(PAGES[self.kind])}


def explanation_of(kind: str) -> Explanation:
    """Return the explanation of a kind of finding.

    Args:
        kind: the kind's name; `_` works for `-`.

    Raises:
        PolicyError: there is no such kind; the message names the nearest and all kinds.

    Example:
        >>> explanation_of("norm-spike").title
        'The norm spiked, and the loss did not'
    """
    plain = kind.replace("_", "-").lower()
    for known, explanation in KINDS.items():
        if plain == known:
            return explanation
    close = get_close_matches(plain, KINDS, 2)
    meant = f"did you mean {' or '.join(map(repr, close))}? " if close else ""
    raise PolicyError.of("KIND", kind, f"{meant}the kinds are {', '.join(KINDS)}")


_TEXTS = (
    Explanation(
        "exploding",
        "The gradient explodes",
        "The gradient's norm grows by orders of magnitude and does not come back, so each step "
        "throws the weights further away. Or the norms of the layers grow geometrically from the "
        "output towards the input.",
        f"The norm exceeds {exploding.GROWTH:g} times the lowest level of the last "
        f"{WINDOW} steps, stays over {exploding.LASTING:g} times that level for "
        f"{exploding.AFTER} steps, and the loss does not fall; or a norm far over the norms "
        "before, or huge from the first step on, is followed by inf or NaN until the end. Over "
        "depth: the first quarter of the layers has "
        f"{depth.STEEP:g} times the norm of the last quarter.",
        "A learning rate that is too high, weights that are too large at the start, or a recurrent "
        "or deep model whose Jacobians stretch: one large step leaves the region in which the "
        "gradient describes the loss.",
        "Clip from the first step on (`gradclip advise` proposes a policy), or lower the learning "
        "rate or warm it up. If the growth is over depth: scale the initialisation down, add "
        "residual connections or normalisation, or clip each layer by itself (`agc`, `adagc`).",
    ),
    Explanation(
        "vanishing",
        "The gradient vanishes",
        "The first layers get next to no gradient and learn nothing, or the gradient of the whole "
        "model has fallen to nothing while the loss has not.",
        f"The norm of the first quarter of the layers is under 1/{depth.STEEP:g} of the last "
        f"quarter's, and falls from layer to layer (rank correlation of {depth.MONOTONE:g} or "
        f"more). Or the norm ends under {vanishing.GONE:g} of the first norm and the loss fell by "
        f"less than {vanishing.LEARNED:.0%}.",
        "Activations that saturate (sigmoid, tanh) or weights that are too small: each layer "
        "shrinks the gradient on its way back. For the whole model: one step that was too large "
        "has saturated it.",
        "Clipping cannot help here. Use ReLU or GELU, an initialisation that matches them, "
        "residual connections, or normalisation. If one large step has saturated the model, use a "
        "smaller learning rate and clip from the first step on.",
    ),
    Explanation(
        "dead-layers",
        "Some parameters get a gradient of exactly zero",
        "These parameters do not learn from some step on until the end of the run.",
        f"The norm of the parameter's gradient is exactly zero in the last {vanishing.DEAD_STEPS} "
        "steps with norms, or in more.",
        "ReLU units that are off for every input, an output that does not reach the loss, frozen "
        "parts that are still given to the optimizer, or a gradient that underflowed.",
        "Check that the layer is used. A smaller learning rate, another activation, or "
        "normalisation keeps units alive; a loss scale prevents underflow.",
    ),
    Explanation(
        "loss-spike",
        "The loss spiked",
        "The loss jumped far over its usual value. A spike that stays is harm; a spike of one step "
        "may be a hard batch, and is a note.",
        f"A loss over the median of the {WINDOW} losses before it plus "
        f"{spikes.DEVIATIONS:g} robust deviations, also on a logarithmic scale, that rises by "
        f"{spikes.RISE:.0%} of the first loss or more; among the first {spikes.FIRST}, a loss over "
        f"all before by {spikes.EARLY:g} times their range. It is a warning if the loss was not "
        f"finite, or if it stayed high by {spikes.HARMFUL:.0%} of the first loss after a spike of "
        "the norm or above the loss without training.",
        "A batch that is unlike the others, or a learning rate that is too high. If the norm "
        f"spiked in the {spikes.LEAD} steps before, a large gradient threw the weights.",
        "If the norm spiked first: clip (`gradclip advise` finds a limit that catches such "
        "spikes). If not: look at the batches of these steps and at the learning rate.",
    ),
    Explanation(
        "norm-spike",
        "The norm spiked, and the loss did not",
        "Single gradients were far larger than usual and did no harm that the loss shows.",
        f"A norm over the median of the {WINDOW} norms before it plus "
        f"{spikes.DEVIATIONS:g} robust deviations, and over {spikes.RATIO:g} times this median.",
        "Hard batches. The optimizer, or a limit, has taken them well.",
        "Nothing must be done. A limit between the usual norm and these spikes is a safety net.",
    ),
    Explanation(
        "spike-sample",
        "Single samples made a spike of the norm",
        "At a spike of the norm one sample, or a few, were most of the gradient. The others of the "
        "batch were as usual.",
        "The record names samples (`samples=5`). At a spike of the norm, a sample's norm is "
        f"{samples.SHARE:g} or more of the root of the sum of all squared norms, and "
        f"{samples.OVER:g} times the usual largest norm or more; or only some of the largest are "
        "inf or NaN.",
        "A broken file, a wrong label, a value of another scale; or a sample that is merely rare.",
        "Look at the sample. If such samples stay, clip each sample by itself "
        "(`gradclip.torch.per_sample`), or the whole gradient.",
    ),
    Explanation(
        "recurring-samples",
        "The same samples are far larger each time",
        "A sample adds far more to the gradient than any other, each time that it is seen: the "
        "model does not learn it.",
        f"The record names samples and their ids (`samples=5`). A sample's norm was "
        f"{samples.BROKEN:g} times the usual largest norm of a sample or more, "
        f"{samples.BROKEN_VISITS} times or more.",
        "A broken file, a value of another scale, a wrong label. Samples that are only often among "
        "the largest are no finding, since hard samples are so too: the report ranks them.",
        "Look at the sample. Correct or remove what is wrong, and train again; or clip each sample "
        "by itself (`gradclip.torch.per_sample`).",
    ),
    Explanation(
        "never-binds",
        "The limit never acted",
        "No gradient reached the limit, so the run was trained as without clipping.",
        f"A fixed limit, {thresholds.ENOUGH} steps or more, and no clipped step.",
        "The limit is far above the norms of this model, batch size and loss.",
        "It may stay as a safety net. For a limit that acts, ask `gradclip advise`.",
    ),
    Explanation(
        "always-binds",
        "The limit acts at every step",
        "Every gradient is scaled to the same norm. Under SGD the limit has become part of the "
        "learning rate; under an optimizer like Adam it hardly matters, and the finding is a note.",
        f"{thresholds.ALWAYS:.0%} of the steps or more are clipped, of {thresholds.ENOUGH} steps "
        "or more.",
        "The limit is under the usual norm of the run.",
        "Raise the limit (`gradclip advise` proposes one). If every step should have the same "
        "norm, use the policy `normalise`, which says so.",
    ),
    Explanation(
        "removes-most",
        "Clipping removes most of the gradient",
        "What is left of the usual gradient is a small part, so the run trains as with a learning "
        "rate many times smaller.",
        f"At the median step {thresholds.MOST:.0%} of the norm or more is removed, of "
        f"{thresholds.ENOUGH} steps or more.",
        "A limit from another model or another batch size, or a gradient that is still multiplied "
        "by a loss scale.",
        "Raise the limit (`gradclip advise` proposes one). With a `GradScaler`, clip after "
        "`unscale_`.",
    ),
    Explanation(
        "found-limit",
        "The limit that `auto` found",
        "The policy `auto` sets its limit from the norms. The finding says where the limit is and "
        "why it moved; it is a note.",
        "The policy is `auto`; a move is a change of the limit by a factor of two.",
        "Limits follow the run: norms over the limit raise it, lower norms lower it.",
        "Nothing must be done. A fixed limit near the present one does the same from now on.",
    ),
    Explanation(
        "double-clipping",
        "The gradient is clipped twice",
        "Something else clips too, so the limit is not what it seems; or the norms of the record "
        "were cut before they were measured.",
        "`gradclip run --clip` saw the script call a clipping function; or "
        f"{piles.MIN_STEPS} norms before clipping or more, and {piles.SHARE:.0%} of all, are equal "
        f"to {piles.WIDTH:g}.",
        "The script calls `clip_grad_norm_` or has a trainer that clips, and gradclip clips in "
        "addition.",
        "Keep one of the two: `gradclip run --take-over` leaves out the script's own. For an "
        "advice, record the run without that clipping.",
    ),
    Explanation(
        "clip-before-unscale",
        "Gradients are clipped while they are scaled",
        "Mixed precision multiplies the loss by a scale. A limit that is compared with scaled "
        "gradients cuts nearly everything away.",
        f"The median norm is steadily {unscaled.SCALED:g} times the limit or more; or the norms "
        f"jump by a power of two as a loss scale does; or many norms are exactly the script's "
        f"limit divided by a power of two from 2^{unscaled.MIN_POWER} to 2^{unscaled.MAX_POWER}.",
        "The script clips before `scaler.unscale_(optimizer)`, or scales the loss by hand.",
        "Call `scaler.unscale_(optimizer)` before clipping. `attach` and `gradclip run --clip` do "
        "so by themselves.",
    ),
    Explanation(
        "non-finite",
        "Gradients hold inf or NaN",
        "A step with such a gradient makes the weights inf or NaN, unless the step is skipped; all "
        "later steps are lost then.",
        "A norm that is inf or NaN. The source is the bad parameter that is nearest to the output. "
        "If no later step is finite, the finding names the cause: a bad batch, a bad gradient, a "
        "jump of the learning rate, an explosion, or data and weights that never were finite. It "
        f"is a note if all these steps were skipped and are at most {nonfinite.RARE:.0%}.",
        "NaN or inf in the inputs, the logarithm of 0, a division by 0, or overflow in half "
        "precision.",
        "Skip such steps: `nonfinite='skip'` is the default of `attach` and of `gradclip run "
        "--clip`; without a limit, `gradclip run --clip none --nonfinite skip`. Then look for the "
        "source: the batch of the first step, its loss, and the layer that the finding names.",
    ),
    Explanation(
        "skipped",
        "Steps were skipped",
        "The weights did not move at these steps. A few are normal with a loss scale; many hide a "
        "fault.",
        f"An error from {nonfinite.OFTEN:.0%} of the steps or {nonfinite.ROW} in a row on, a note "
        f"up to {nonfinite.RARE:.0%}.",
        "Gradients with inf or NaN, or a policy that skips what is over its limit.",
        "Find the source of the inf or NaN, or raise the limit that skips.",
    ),
    Explanation(
        "plateau",
        "The loss stopped falling",
        "The last part of the run made no progress. It is a note: a run that has converged looks "
        "the same.",
        f"No progress over the last {plateau.STILL:.0%} of {plateau.MIN_LOSSES} losses or more, "
        f"beyond the noise and {plateau.PROGRESS:.0%} of the whole fall, and the loss is not under "
        f"{plateau.LEARNT:.0%} of the first loss.",
        "The run has converged; or the learning rate is too high or too low, gradients vanish, or "
        "clipping removes them. The loss of a game (GAN), of reinforcement learning or of a model "
        "that is trained already need not fall.",
        "If the loss should be lower: change the learning rate, and check for the findings "
        "`vanishing`, `always-binds` and `removes-most`.",
    ),
    Explanation(
        "ended-early",
        "The run did not end by itself",
        "The script raised an error, was killed or was interrupted, so the record may be short.",
        "The last row of the record has an error or a signal.",
        "The script's own error, a time limit of the cluster, too little memory, or Ctrl-C.",
        "Correct the script's error and run again. The other findings say whether the training "
        "went wrong before it.",
    ),
    Explanation(
        "no-steps",
        "The record has no optimizer step",
        "There is nothing to judge.",
        "The run ended well, and the record has no row of a step.",
        "The script does not train, trains in another process, or uses an optimizer that is not a "
        "`torch.optim.Optimizer`.",
        "Read what `gradclip run` says at its end: it names the framework that it saw. Start other "
        "processes with `torchrun -m gradclip run`. For other frameworks see their guide.",
    ),
)

KINDS: dict[Kind, Explanation] = {text.kind: text for text in _TEXTS}
"""The explanation of each kind of finding, in the order of the docs' page."""
