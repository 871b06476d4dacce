"""The script to tune, and its arguments with a multiple of the learning rate."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import GradclipError

__all__ = ["Script"]


@dataclass(frozen=True)
class Script:
    """The script to tune.

    Attributes:
        target: the path of the script, or the name of the module.
        args: the arguments of the script.
        module: whether the target is a module, as for `python -m`.
        lr_flag: the script's argument for the learning rate, such as "--lr"; None multiplies the
            rates of the optimizers.
    """

    target: str
    args: tuple[str, ...] = ()
    module: bool = False
    lr_flag: str | None = None

    def args_for(self, factor: float) -> tuple[str, ...]:
        """Return the arguments with a multiple of the learning rate.

        Args:
            factor: the factor of the learning rate, > 0.

        Raises:
            GradclipError: the arguments do not have the flag once, or its value is not a number.
        """
        flag = self.lr_flag
        if flag is None:
            return self.args
        args, places = list(self.args), []
        for index, text in enumerate(args):
            if text == flag and index + 1 < len(args):
                places.append((index + 1, "", args[index + 1]))
            elif text.startswith(f"{flag}="):
                places.append((index, f"{flag}=", text[len(flag) + 1 :]))
        if len(places) != 1:
            raise GradclipError(
                f"--lr-flag {flag} is not usable: the script's arguments have it {len(places)} "
                f"times; give it once with the present learning rate, such as {flag} 0.1"
            )
        index, before, value = places[0]
        try:
            rate = float(value)
        except ValueError:
            raise GradclipError(
                f"--lr-flag {flag} is not usable: its value {value!r} is not a number"
            ) from None
        if factor != 1:
            args[index] = f"{before}{rate * factor:.6g}"
        return tuple(args)
