"""Read policies: all text and all plain data enter here, once, when a policy is made.

    norm:1.0                        a recipe and its arguments
    value:-1,1|norm:1.0             a chain
    feedback(norm:1.0)              a wrapper and its inner policy
    norm:1.0->0.1@1000              a limit that goes from 1.0 to 0.1 in 1,000 steps
    agc:axis=0+1                    an argument of several numbers, such as axes
    embed.*=norm:0.5;*.bias=none;*=norm:1.0     rules by name; the first match wins
    none                            the empty chain, which measures and changes nothing
    none|norm:1.0                   a chain of one policy

The text of a policy that no recipe makes is its dictionary in JSON. For any text and any data, the
readers return a policy or raise a PolicyError.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TypeVar

from .._publish import publish
from ..errors import PolicyError
from .catalogue import lookup
from .measure import Measure
from .policy import AnyPolicy, ByName, Chain, Policy, Wrapped
from .threshold.limit import Ramp
from .written import MOST_BRACKETS, PARTS, RESPONSES, SOURCES, THRESHOLDS

__all__ = ["PolicyLike", "as_policy", "by_name", "from_dict", "is_written", "parse"]

PolicyLike = AnyPolicy | str | Mapping[str, AnyPolicy | str | None]
"""A policy, its text form, or rules by name: the values that `as_policy` accepts."""

_EXAMPLE = "write it as 'norm:1.0', 'value:-1,1' or 'value:1|norm:1'"
# A name and a number, in the ways in which people write them.
_LIMIT = re.compile(
    r"(?:([a-z][\w-]*)\s*[:=( ]\s*)?([-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?|inf)\s*\)?", re.I
)
_MOST_CHARACTERS_OF_A_LIMIT = 100
_NORMS = (
    "clip clip_norm clipnorm clip_grad clip_grad_norm grad_clip grad_norm gradient_clip "
    "gradient_clip_val gradient_clipping global_clipnorm global_norm clip_by_global_norm "
    "clip_by_norm l2 l2_norm max max_norm max_grad_norm threshold by_global_norm"
)
_VALUES = "clip_value clipvalue clip_grad_value clip_by_value max_value"
_SYNONYMS = {
    **dict.fromkeys(_NORMS.split(), "norm"),
    **dict.fromkeys(_VALUES.split(), "value"),
}
# Several numbers, as in `axis=0+1`.
_NUMBER = r"-?(?:inf|(?:\d{1,400}(?:\.\d{0,400})?|\.\d{1,400})(?:e[-+]?\d{1,5})?)"
_SEVERAL = re.compile(rf"{_NUMBER}(?:\+{_NUMBER})+", re.ASCII)
_MOST_LEVELS = 100
_MOST_CHARACTERS = 10_000_000


def as_policy(value: object) -> AnyPolicy:
    """Return the policy that a user meant.

    Args:
        value: a policy, its text form, or rules by name (see `by_name`); not mutated.

    Returns:
        The policy; the value itself if the value is a policy.

    Raises:
        PolicyError: the value is of another type, or is not a policy in text.

    Example:
        >>> as_policy("norm:1.0")
        by_norm(1.0)
    """
    if isinstance(value, AnyPolicy):
        return value
    if isinstance(value, str):
        return parse(value)
    if isinstance(value, Mapping):
        return by_name(value)
    raise PolicyError.of("policy", value, "give by_norm(1.0), 'norm:1.0' or {'*': by_norm(1.0)}")


def by_name(rules: Mapping[str, AnyPolicy | str | None]) -> ByName:
    """Return the policy that applies its own rule to each group of parameter names.

    Args:
        rules: from a glob pattern over parameter names to a policy, its text form, or None for
            gradients that stay unchanged. The first match wins; each group has its own norm and
            its own memory. Not mutated.

    Returns:
        The policy.

    Raises:
        PolicyError: there are no rules, the text form cannot hold a pattern, or a rule is not a
            policy.

    Example:
        >>> str(by_name({"embed.*": "norm:0.5", "*": None}))
        'embed.*=norm:0.5;*=none'
    """
    if not isinstance(rules, Mapping) or not rules:
        remedy = "give at least one pattern, such as {'*': by_norm(1.0)}"
        raise PolicyError.of("rules", rules, remedy)
    return ByName(tuple((p, _rule(p, rule)) for p, rule in rules.items()))


def _rule(pattern: str, rule: object) -> Policy | Chain | Wrapped | None:
    """Return the policy of one rule; `ByName` refuses a wrong pattern."""
    policy = None if rule is None else as_policy(rule)
    if isinstance(policy, ByName):
        raise PolicyError.of(str(pattern), rule, "a rule by name cannot hold rules by name")
    return policy


def is_written(policy: AnyPolicy, written: object) -> bool:
    """Return whether a saved state names this policy.

    Args:
        policy: the policy in use.
        written: the text form in the state, which an earlier version may have written. A text
            that nobody can read names no policy but the one that writes the same.
    """
    try:
        return written == str(policy) or as_policy(written) == policy
    except PolicyError:
        return False


# ---- text ----------------------------------------------------------------------------------


def parse(text: str) -> AnyPolicy:
    """Return the policy that a text describes.

    Args:
        text: a recipe's name, then `:` and arguments separated by commas. `|` chains policies;
            `pattern=policy` separated by `;` gives rules by name; `none` changes nothing. The name
            of the recipe's function (`by_norm:1`) and `-` for `_` in names work too.

    Returns:
        The policy; `parse(str(policy)) == policy`.

    Raises:
        PolicyError: the method is unknown, an argument is wrong, or the text has another form.

    Example:
        >>> parse("norm:1.0")
        by_norm(1.0)
        >>> parse("embed.*=norm:0.5;*=value:-1,1|norm:1.0")
        by_name({'embed.*': by_norm(0.5), '*': by_value(-1, 1) | by_norm(1.0)})
    """
    if not isinstance(text, str) or not text.strip():
        raise PolicyError.of("policy", text, _EXAMPLE)
    if len(text) > _MOST_CHARACTERS:
        raise PolicyError.of("policy", text, f"it has more than {_MOST_CHARACTERS} characters")
    try:
        return _policy(text.strip())
    except RecursionError:
        raise PolicyError.of("policy", text, "it is nested too deeply") from None
    except PolicyError:
        _say_what_was_meant(text)
        raise


def _policy(text: str) -> AnyPolicy:
    if _is_json(text):
        return _json(text)
    parts = [part for part in _split(text, ";") if part]
    if len(parts) == 1 and not _has_pattern(parts[0]):
        return _chain(parts[0])
    rules: dict[str, AnyPolicy | None] = {}
    for part in parts:
        pattern, equals, rule = (piece.strip() for piece in part.partition("="))
        if not equals or not pattern or not rule:
            raise PolicyError.of("policy", text, f"{part!r} needs '=' between pattern and policy")
        if pattern in rules:
            raise PolicyError.of("pattern", pattern, "it stands twice")
        if _has_pattern(rule):
            raise PolicyError.of(pattern, rule, "a rule by name cannot hold rules by name")
        rules[pattern] = _json(rule) if _is_json(rule) else _chain(rule)
    return by_name(rules)


def _is_json(text: str) -> bool:
    """Return whether a text is JSON; a glob that begins with a brace has '=' before any ':'."""
    return text.startswith("{") and "=" not in text.partition(":")[0]


def _has_pattern(text: str) -> bool:
    """Return whether a text begins with a pattern and '='."""
    pattern, equals, _ = text.partition("=")
    return bool(equals) and not set(pattern) & set(":(|")


def _chain(text: str) -> AnyPolicy:
    """Return the policy of a text, or the chain of the policies that bars separate."""
    links = [Chain() if part == "none" else _call(part) for part in _split(text, "|")]
    return links[0] if len(links) == 1 else Chain(tuple(p for link in links for p in link.links))


def _say_what_was_meant(text: str) -> None:
    """Raise an error that says what to write, if a wrong text is a limit in another tool's words.

    Raises:
        PolicyError: the text is a number, or a method's name and a number.
    """
    found = _LIMIT.fullmatch(text.strip()) if len(text) < _MOST_CHARACTERS_OF_A_LIMIT else None
    if found is None:
        return
    word, limit = found.groups()
    plain = (word or "norm").lower().replace("-", "_").strip("_")
    name = _SYNONYMS.get(plain, plain)
    meant = f"{name}:{limit}"
    try:
        _called(meant)
    except PolicyError:
        return
    raise PolicyError.of("policy", text, f"write {meant!r}") from None


def _call(text: str) -> AnyPolicy:
    """Return the policy of one call; of a wrong one say what was meant."""
    try:
        return _called(text)
    except PolicyError:
        _say_what_was_meant(text)
        raise


def _called(text: str) -> AnyPolicy:
    """Return the policy of one call, as in `norm:1.0` or `clip21:beta1=0.5(norm:1.0)`."""
    head, bracket, inner = text.partition("(")
    if bracket and not inner.endswith(")"):
        raise PolicyError.of("policy", text, "nothing may follow the closing bracket")
    name, _, rest = head.partition(":")
    args: list[object] = [parse(inner[:-1])] if bracket else []
    kwargs: dict[str, object] = {}
    for part in filter(None, (p.strip() for p in rest.split(","))):
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals and kwargs:
            raise PolicyError.of("policy", text, "arguments without a name come first")
        if not equals:
            args.append(_value(part))
        elif key in kwargs:
            raise PolicyError.of(key, value, f"it stands twice in {text!r}")
        else:
            kwargs[key] = _value(value)
    return _made(name.strip(), args, kwargs)


def _made(name: str, args: Sequence[object], kwargs: dict[str, object]) -> AnyPolicy:
    """Call a recipe; any exception that its code raises becomes a PolicyError."""
    found = lookup(name)
    try:
        return found(tuple(args), kwargs)
    except PolicyError:
        raise
    except Exception as error:
        raise PolicyError.of(name, [*args, kwargs], str(error)) from error


def _split(text: str, mark: str) -> list[str]:
    """Split a text at each mark that stands outside all brackets."""
    parts, depth, start = [], 0, 0
    for found in re.finditer(rf"[][(){{}}]|{re.escape(mark)}", text):
        char = found.group()
        depth += (char in "([{") - (char in ")]}")
        if depth > MOST_BRACKETS:
            raise PolicyError.of("policy", text, f"it has over {MOST_BRACKETS} brackets in others")
        if char == mark and depth == 0:
            parts.append(text[start : found.start()])
            start = found.end()
    if depth:
        raise PolicyError.of("policy", text, "a bracket is not closed")
    return [part.strip() for part in (*parts, text[start:])]


def _value(text: str) -> object:
    """Read an argument: none, true, false, a number, a ramp, several numbers, or a word."""
    start, arrow, rest = text.partition("->")
    end, at, steps = rest.partition("@")
    if arrow and not at:
        raise PolicyError.of("limit", text, "say in how many steps, as in 1.0->0.1@1000")
    if arrow:
        return Ramp(*(_value(part.strip()) for part in (start, end, steps)))  # type: ignore[arg-type] - Ramp checks
    words = {"none": None, "true": True, "false": False}
    if text.lower() in words:
        return words[text.lower()]
    for kind in (int, float):
        try:
            value = kind(text)
        except ValueError:
            continue
        if value in (math.inf, -math.inf) and "inf" not in text.lower():
            raise PolicyError.of("number", text, "it is beyond the largest float")
        return value
    if _SEVERAL.fullmatch(text):
        return tuple(map(_value, re.findall(_NUMBER, text)))
    return text


# ---- plain data ----------------------------------------------------------------------------


def from_dict(data: Mapping[str, object]) -> AnyPolicy:
    """Return the policy that plain data describes: the inverse of `to_dict`.

    Args:
        data: `{"method": name, argument: value, …}`, `{"chain": […]}`,
            `{"by_name": {pattern: …}}`, `{"source": …, "inner": …}`, or a dictionary with the
            keys "measure", "threshold" and "response"; not mutated.

    Returns:
        The policy; `from_dict(to_dict(policy)) == policy`, also through JSON.

    Raises:
        PolicyError: the data has none of these forms, or a value in it is wrong.

    Example:
        >>> from_dict({"method": "norm", "max_norm": 1.0})
        by_norm(max_norm=1.0)
    """
    _refuse_deep(data)
    try:
        return _from_data(data)
    except RecursionError:
        raise PolicyError.of("policy", "data", "it is nested too deeply") from None


def _refuse_deep(data: object) -> None:
    level = [data]
    for _ in range(_MOST_LEVELS):
        level = [inner for value in level for inner in _inside(value)]
        if not level:
            return
    raise PolicyError.of("policy", "data", f"it is nested over {_MOST_LEVELS} levels deep")


def _inside(value: object) -> Sequence[object]:
    if isinstance(value, Mapping):
        return list(value.values())
    return value if isinstance(value, (list, tuple)) else ()


def _from_data(data: object) -> AnyPolicy:
    if not isinstance(data, Mapping):
        raise PolicyError.of("policy", data, "give a dictionary such as {'method': 'norm', …}")
    keys = set(data)
    if "method" in keys:
        named = {str(k): _read(v) for k, v in data.items() if k not in ("method", "args")}
        if not isinstance(name := data["method"], str):
            raise PolicyError.of("method", name, "give a name")
        return _made(name, [_read(arg) for arg in _list("args", data.get("args", ()))], named)
    if keys == {"chain"}:
        links = map(_from_data, _list("chain", data["chain"]))
        return Chain(tuple(flat for link in links for flat in link.links))
    if keys == {"by_name"}:
        rules = _mapping("by_name", data["by_name"])
        return by_name({p: None if r is None else _from_data(r) for p, r in rules.items()})
    if keys == {"measure", "threshold", "response"}:
        return Policy(
            _filled("measure", Measure, _mapping("measure", data["measure"])),
            _part("threshold", data["threshold"], THRESHOLDS),
            _part("response", data["response"], RESPONSES),
        )
    if keys == {"source", "inner"}:
        inner = _from_data(data["inner"])
        if not isinstance(inner, (Policy, Chain)):
            raise PolicyError.of("inner", data["inner"], "a wrapper holds a policy or a chain")
        return Wrapped(_part("source", data["source"], SOURCES), inner)
    remedy = "its keys are 'method', 'chain', 'by_name', or measure, threshold and response"
    raise PolicyError.of("policy", dict(data), remedy)


def _json(text: str) -> AnyPolicy:
    try:
        data = json.loads(text, object_pairs_hook=_unique)
    except PolicyError:
        raise
    except ValueError as error:
        raise PolicyError.of("policy", text, f"it is not JSON: {error}") from None
    return from_dict(data)


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Return a dictionary of JSON; refuse a key that stands twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise PolicyError.of("policy", twice, "this key stands twice in the JSON")
    return found


def _list(argument: str, value: object) -> Sequence[object]:
    if not isinstance(value, (list, tuple)):
        raise PolicyError.of(argument, value, "give a list")
    return value


def _mapping(argument: str, value: object) -> Mapping[str, object]:
    if not isinstance(value, Mapping):
        raise PolicyError.of(argument, value, "give a dictionary")
    return value


def _read(value: object) -> object:
    """Return the value that plain data stands for."""
    if isinstance(value, Mapping):
        return _part("part", value, PARTS) if "kind" in value else _from_data(value)
    if isinstance(value, (list, tuple)):
        return tuple(map(_read, value))
    return float(value) if value in ("inf", "-inf") and isinstance(value, str) else value


_Part = TypeVar("_Part")


def _part(argument: str, data: object, kinds: Mapping[str, type[_Part]]) -> _Part:
    """Return the threshold, the response or the source that plain data describes."""
    fields = _mapping(argument, data)
    kind = fields.get("kind")
    if not isinstance(kind, str) or kind not in kinds:
        raise PolicyError.of(argument, dict(fields), f"its kind is one of {', '.join(kinds)}")
    return _filled(argument, kinds[kind], {k: v for k, v in fields.items() if k != "kind"})


def _filled(argument: str, kind: type[_Part], fields: Mapping[str, object]) -> _Part:
    """Return a part with these fields; the part itself checks their values."""
    given = {str(name): _read(value) for name, value in fields.items()}
    try:
        return kind(**given)
    except TypeError as error:
        raise PolicyError.of(argument, dict(fields), str(error)) from None


publish("gradclip", ("as_policy", "by_name", "from_dict", "parse"), globals())
