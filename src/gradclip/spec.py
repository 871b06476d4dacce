"""The written forms of a policy: a line of text for command lines, a dictionary for files.

    norm:1.0                        a recipe and its arguments
    value:-1,1|norm:1.0             a chain
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

from . import response as responses
from . import threshold as thresholds
from .catalogue import lookup
from .errors import PolicyError
from .measure import Measure
from .policy import AnyPolicy, ByName, Chain, Policy, by_name

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
    if text.startswith(("{", "[")):
        return _parse_json(text)
    if text == "none":
        return Chain()
    rules = [part.partition("=") for part in text.split(";") if part.strip()]
    if ";" in text or (rules[0][1] and ":" not in rules[0][0]):
        return by_name(_rules(text, rules))
    links = [_parse_call(part) for part in text.split("|")]
    return links[0] if len(links) == 1 else Chain(tuple(links))


def to_text(policy: AnyPolicy) -> str:
    """Return the text form of a policy, which `parse` reads back.

    Example:
        >>> from gradclip import by_norm, by_value
        >>> to_text(by_value(-1, 1) | by_norm(1.0))
        'value:-1,1|norm:1.0'
    """
    if isinstance(policy, Policy):
        return policy.call.text() if policy.call else json.dumps(to_dict(policy))
    if isinstance(policy, ByName):
        texts = {p: "none" if rule is None else to_text(rule) for p, rule in policy.rules}
        if any(text.startswith(("{", "[")) for text in texts.values()):
            return json.dumps(to_dict(policy))
        return ";".join(f"{pattern}={text}" for pattern, text in texts.items())
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
    if isinstance(policy, Chain):
        return {"chain": [to_dict(link) for link in policy.policies]}
    if isinstance(policy, ByName):
        rules = {p: None if rule is None else to_dict(rule) for p, rule in policy.rules}
        return {"by_name": rules}
    if policy.call is not None:
        args = {"args": [_plain(a) for a in policy.call.args]} if policy.call.args else {}
        named = {key: _plain(value) for key, value in policy.call.kwargs}
        return {"method": policy.call.recipe, **args, **named}
    return {
        "measure": _axis(policy.measure),
        "threshold": {"kind": type(policy.threshold).__name__, **_axis(policy.threshold)},
        "response": {"kind": type(policy.response).__name__, **_axis(policy.response)},
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
        named = {str(k): _number(v) for k, v in data.items() if k not in ("method", "args")}
        return lookup(data["method"])(tuple(map(_number, data.get("args", ()))), named)
    if set(data) == {"chain"}:
        links = [from_dict(link) for link in data["chain"]]
        return Chain(tuple(flat for link in links for flat in link.links))
    if set(data) == {"by_name"}:
        rules = data["by_name"]
        return by_name({p: None if rule is None else from_dict(rule) for p, rule in rules.items()})
    if set(data) == {"measure", "threshold", "response"}:
        return Policy(
            Measure(**{k: _number(v) for k, v in data["measure"].items()}),
            _build(thresholds, "threshold", data["threshold"]),
            _build(responses, "response", data["response"]),
        )
    remedy = "its keys are 'method', 'chain', 'by_name', or measure, threshold and response"
    raise PolicyError.of("policy", dict(data), remedy)


def _parse_json(text: str) -> AnyPolicy:
    try:
        return from_dict(json.loads(text))
    except json.JSONDecodeError as error:
        raise PolicyError.of("policy", text, f"it is no JSON: {error}") from None


def _rules(text: str, parts: list[tuple[str, str, str]]) -> dict[str, object]:
    rules: dict[str, object] = {}
    for pattern, equals, rule in parts:
        if not equals:
            raise PolicyError.of("policy", text, f"{pattern!r} needs '=' and a policy")
        if pattern.strip() in rules:
            raise PolicyError.of("pattern", pattern, "it stands twice")
        rules[pattern.strip()] = None if rule.strip() == "none" else parse(rule)
    return rules


def _parse_call(text: str) -> Policy:
    name, _, rest = text.strip().partition(":")
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    for part in filter(None, (p.strip() for p in rest.split(","))):
        key, equals, value = part.partition("=")
        if equals:
            kwargs[key.strip()] = _value(value.strip())
        elif kwargs:
            raise PolicyError.of("policy", text, "arguments without a name come first")
        else:
            args.append(_value(part))
    return lookup(name)(tuple(args), kwargs)


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
    """JSON knows no inf: it is written as the word."""
    return str(value) if isinstance(value, float) and math.isinf(value) else value


def _number(value: Any) -> Any:
    return float(value) if isinstance(value, str) and value in ("inf", "-inf") else value


def _axis(axis: Any) -> dict[str, Any]:
    """Return the fields of one axis that differ from their defaults."""
    return {
        f.name: _plain(getattr(axis, f.name))
        for f in dataclasses.fields(axis)
        if getattr(axis, f.name) != f.default
    }


def _build(module: Any, argument: str, data: Mapping[str, Any]) -> Any:
    kinds = [n for n in module.__all__ if dataclasses.is_dataclass(getattr(module, n, None))]
    fields = {k: _number(v) for k, v in data.items() if k != "kind"}
    if data.get("kind") not in kinds:
        raise PolicyError.of(argument, dict(data), f"its kind is one of {', '.join(kinds)}")
    try:
        return getattr(module, data["kind"])(**fields)
    except TypeError as error:
        raise PolicyError.of(argument, dict(data), str(error)) from None
