"""The written forms of a policy: a line of text for command lines, a dictionary for files.

    norm:1.0                        a recipe and its arguments
    value:-1,1|norm:1.0             a chain
    feedback(norm:1.0)              a wrapper and what it wraps
    embed.*=norm:0.5;*.bias=none;*=norm:1.0     rules by name, first match wins
    none                            measures, changes nothing

A policy that no recipe makes is written as its dictionary, in JSON.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any

from ..errors import PolicyError
from . import response as responses
from . import threshold as thresholds
from . import wrapper as sources
from .catalogue import lookup
from .measure import Measure
from .policy import AnyPolicy, ByName, Chain, Policy, Wrapped, by_name

__all__ = ["from_dict", "parse", "to_dict", "to_text"]

_EXAMPLE = "write it as 'norm:1.0', 'value:-1,1' or 'value:1|norm:1'"


def parse(text: str) -> AnyPolicy:
    """Return the policy that `text` describes.

    Args:
        text: a recipe's name, then `:` and arguments separated by commas; `|` chains;
            `pattern=policy` separated by `;` gives rules by name; `none` changes nothing.

    Returns:
        The policy; `parse(str(policy)) == policy`.

    Raises:
        PolicyError: the method is unknown or an argument is wrong.

    Example:
        >>> parse("norm:1.0")
        by_norm(1.0)
        >>> parse("embed.*=norm:0.5;*=value:-1,1|norm:1.0")
        by_name({'embed.*': by_norm(0.5), '*': by_value(-1, 1) | by_norm(1.0)})
    """
    if not isinstance(text, str) or not text.strip():
        raise PolicyError.of("policy", text, _EXAMPLE)
    text = text.strip()
    # A glob may begin with a bracket, too: then '=' stands before the first ':'.
    if text.startswith("{") and "=" not in text.partition(":")[0]:
        return _parse_json(text)
    if text == "none":
        return Chain()
    rules = [rule for rule in _split(text, ";") if rule]
    name, equals, _ = rules[0].partition("=")
    if len(rules) > 1 or (equals and not set(name) & set(":(|")):
        return by_name(_rules(text, rules))
    parts = [_parse_call(part) for part in _split(text, "|")]
    return parts[0] if len(parts) == 1 else Chain(tuple(p for part in parts for p in part.links))


def to_text(policy: AnyPolicy) -> str:
    """Return the text form of a policy, which `parse` reads back.

    Example:
        >>> from gradclip import by_norm, by_value
        >>> to_text(by_value(-1, 1) | by_norm(1.0))
        'value:-1,1|norm:1.0'
    """
    if isinstance(policy, ByName):
        texts = {p: "none" if rule is None else to_text(rule) for p, rule in policy.rules}
        if any(text.startswith("{") for text in texts.values()):
            return json.dumps(to_dict(policy))
        return ";".join(f"{pattern}={text}" for pattern, text in texts.items())
    if policy.call is not None:
        return policy.call.text()
    if not isinstance(policy, Chain):
        return json.dumps(to_dict(policy))
    if any(isinstance(link, ByName) or not link.call for link in policy.policies):
        return json.dumps(to_dict(policy))
    return "|".join(map(to_text, policy.policies)) or "none"


def to_dict(policy: AnyPolicy) -> dict[str, Any]:
    """Return plain data for a config file, which `from_dict` reads back.

    Example:
        >>> from gradclip import by_norm
        >>> to_dict(by_norm(1.0, scope="tensor"))
        {'method': 'norm', 'args': [1.0], 'scope': 'tensor'}
    """
    if isinstance(policy, ByName):
        rules = {p: None if rule is None else to_dict(rule) for p, rule in policy.rules}
        return {"by_name": rules}
    if policy.call is not None:
        args = {"args": [_plain(a) for a in policy.call.args]} if policy.call.args else {}
        named = {key: _plain(value) for key, value in policy.call.kwargs}
        return {"method": policy.call.recipe, **args, **named}
    if isinstance(policy, Chain):
        return {"chain": [to_dict(link) for link in policy.policies]}
    if isinstance(policy, Wrapped):
        return {"source": _axis(policy.source, kind=True), "inner": to_dict(policy.inner)}
    return {
        "measure": _axis(policy.measure),
        "threshold": _axis(policy.threshold, kind=True),
        "response": _axis(policy.response, kind=True),
    }


def from_dict(data: Mapping[str, Any]) -> AnyPolicy:
    """Return the policy that plain data describes: the inverse of `to_dict`.

    Args:
        data: `{"method": name, argument: value, …}`, `{"chain": […]}`,
            `{"by_name": {pattern: …}}`, or the three axes by name; not mutated.

    Raises:
        PolicyError: the data has none of these forms, or a value in it is wrong.

    Example:
        >>> from_dict({"method": "norm", "max_norm": 1.0})
        by_norm(max_norm=1.0)
    """
    if not isinstance(data, Mapping):
        raise PolicyError.of("policy", data, "give a dictionary such as {'method': 'norm', …}")
    if "method" in data:
        named = {str(k): _read(v) for k, v in data.items() if k not in ("method", "args")}
        args = _of_kind("args", data.get("args", ()), (list, tuple))
        name = _of_kind("method", data["method"], str)
        return lookup(name)(tuple(map(_read, args)), named)
    if set(data) == {"chain"}:
        links = [from_dict(link) for link in _of_kind("chain", data["chain"], (list, tuple))]
        return Chain(tuple(flat for link in links for flat in link.links))
    if set(data) == {"by_name"}:
        rules = _of_kind("by_name", data["by_name"], Mapping)
        return by_name({p: None if rule is None else from_dict(rule) for p, rule in rules.items()})
    if set(data) == {"measure", "threshold", "response"}:
        return Policy(
            _measure(data["measure"]),
            _build(thresholds, "threshold", data["threshold"]),
            _build(responses, "response", data["response"]),
        )
    if set(data) == {"source", "inner"}:
        inner = from_dict(data["inner"])
        if not isinstance(inner, (Policy, Chain)):
            raise PolicyError.of("inner", data["inner"], "a wrapper holds a policy or a chain")
        return Wrapped(_build(sources, "source", data["source"]), inner)
    remedy = "its keys are 'method', 'chain', 'by_name', or measure, threshold and response"
    raise PolicyError.of("policy", dict(data), remedy)


def _of_kind(argument: str, value: Any, kinds: type | tuple[type, ...]) -> Any:
    """Return the value, or say that it is data of another shape."""
    if not isinstance(value, kinds):
        wanted = "a name" if kinds is str else "a dictionary" if kinds is Mapping else "a list"
        raise PolicyError.of(argument, value, f"give {wanted}")
    return value


def _parse_json(text: str) -> AnyPolicy:
    try:
        return from_dict(json.loads(text))
    except json.JSONDecodeError as error:
        raise PolicyError.of("policy", text, f"it is no JSON: {error}") from None


def _split(text: str, mark: str) -> list[str]:
    """Split at a mark that stands outside all brackets."""
    parts, depth, start = [], 0, 0
    for place, char in enumerate(text):
        depth += (char in "([{") - (char in ")]}")
        if char == mark and depth == 0:
            parts.append(text[start:place])
            start = place + 1
    if depth:
        raise PolicyError.of("policy", text, "a bracket is not closed")
    return [part.strip() for part in (*parts, text[start:])]


def _rules(text: str, parts: list[str]) -> dict[str, object]:
    rules: dict[str, object] = {}
    for part in parts:
        pattern, equals, rule = (piece.strip() for piece in part.partition("="))
        if not equals or not pattern or not rule:
            raise PolicyError.of("policy", text, f"{part!r} needs '=' between pattern and policy")
        if pattern in rules:
            raise PolicyError.of("pattern", pattern, "it stands twice")
        rules[pattern] = None if rule == "none" else parse(rule)
    return rules


def _parse_call(text: str) -> AnyPolicy:
    head, bracket, inner = text.partition("(")
    if bracket and not inner.endswith(")"):
        raise PolicyError.of("policy", text, "nothing may follow the closing bracket")
    name, _, rest = head.strip().partition(":")
    args: list[Any] = [parse(inner[:-1])] if bracket else []
    kwargs: dict[str, Any] = {}
    for part in filter(None, (p.strip() for p in rest.split(","))):
        key, equals, value = part.partition("=")
        if equals:
            kwargs[key.strip()] = _value(value.strip())
        elif kwargs:
            raise PolicyError.of("policy", text, "arguments without a name come first")
        else:
            args.append(_value(part))
    return lookup(name.strip())(tuple(args), kwargs)


def _value(text: str) -> Any:
    """Read an argument: none, true, false, a whole number, a number, or a word."""
    words = {"none": None, "true": True, "false": False}
    if text.lower() in words:
        return words[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _plain(value: Any) -> Any:
    """Return plain data: JSON knows no inf, which is written as the word."""
    if isinstance(value, AnyPolicy):
        return to_dict(value)
    if isinstance(value, tuple):
        return [_plain(part) for part in value]
    if dataclasses.is_dataclass(value):
        return _axis(value, kind=True)
    return str(value) if isinstance(value, float) and math.isinf(value) else value


def _read(value: Any) -> Any:
    """Return what `_plain` was given."""
    if isinstance(value, Mapping):
        return _build(thresholds, "threshold", value) if "kind" in value else from_dict(value)
    if isinstance(value, list):
        return tuple(map(_read, value))
    return float(value) if isinstance(value, str) and value in ("inf", "-inf") else value


def _axis(axis: Any, *, kind: bool = False) -> dict[str, Any]:
    """Return the fields of one axis that differ from their defaults."""
    fields = {
        f.name: _plain(getattr(axis, f.name))
        for f in dataclasses.fields(axis)
        if getattr(axis, f.name) != f.default
    }
    return {"kind": type(axis).__name__, **fields} if kind else fields


def _measure(data: Any) -> Measure:
    _of_kind("measure", data, Mapping)
    try:
        return Measure(**{name: _read(value) for name, value in data.items()})
    except TypeError as error:
        raise PolicyError.of("measure", dict(data), str(error)) from None


def _build(module: Any, argument: str, data: Any) -> Any:
    _of_kind(argument, data, Mapping)
    kinds = [n for n in module.__all__ if dataclasses.is_dataclass(getattr(module, n, None))]
    fields = {name: _read(value) for name, value in data.items() if name != "kind"}
    if data.get("kind") not in kinds:
        raise PolicyError.of(argument, dict(data), f"its kind is one of {', '.join(kinds)}")
    try:
        return getattr(module, data["kind"])(**fields)
    except TypeError as error:
        raise PolicyError.of(argument, dict(data), str(error)) from None
