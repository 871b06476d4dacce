"""The catalogue: a recipe is entered once, and all lists of recipes follow or say what to do."""

from __future__ import annotations

import importlib
import pkgutil

import pytest

import gradclip
from gradclip import Policy, PolicyError, adagn, by_norm, from_dict, parse, stable_spam
from gradclip.method import recipes
from gradclip.method.catalogue import CATALOGUE, PURPOSES, grouped, lookup, recipe
from gradclip.method.traits import Traits, traits_of


def _functions() -> set[str]:
    return {row.function.__name__ for row in CATALOGUE.values()}


def test_the_recipes_package_has_every_recipe() -> None:
    for info in pkgutil.iter_modules(recipes.__path__):
        module = importlib.import_module(f"{recipes.__name__}.{info.name}")
        made = _functions() & vars(module).keys()
        listed = set(module.__all__)
        assert made <= listed, f"add {made - listed} to __all__ of recipes/{info.name}.py"
        missing = listed - set(recipes.__all__)
        assert not missing, f"add the module {info.name} to recipes/__init__.py"
    assert set(recipes.__all__) == _functions()


def test_gradclip_has_every_recipe() -> None:
    missing = _functions() - set(gradclip.__all__)
    assert not missing, f"add {sorted(missing)} to the imports and __all__ of gradclip/__init__.py"


@pytest.mark.parametrize("name", CATALOGUE)
def test_a_row_is_complete(name: str) -> None:
    row = CATALOGUE[name]
    assert row.purpose in PURPOSES
    assert row.summary, f"{row.function.__name__} needs a docstring"
    assert row.summary.endswith("."), "the first line of the docstring is a sentence"
    assert row.paper
    assert parse(row.example) == row.policy
    assert row.policy.call is not None
    assert row.policy.call.recipe == name == row.name


def test_a_call_is_shown_as_it_is_typed() -> None:
    shown = "gradclip.agc(clipping: Limit = 0.01, eps: float = 0.001, axis: Axis = None) -> Policy"
    assert lookup("agc").signature == shown


def test_a_name_is_entered_once() -> None:
    before = dict(CATALOGUE)
    with pytest.raises(PolicyError, match="has this name already"):

        @recipe(purpose="fixed", paper="nobody")
        def with_norm() -> Policy:
            return CATALOGUE["norm"].function(1.0)  # type: ignore[return-value]

    assert before == CATALOGUE


def test_a_purpose_that_nobody_lists_is_refused() -> None:
    with pytest.raises(PolicyError, match="purpose='fixd' is not usable: give one of fixed, ad"):
        recipe(purpose="fixd", paper="nobody")  # type: ignore[arg-type]


def test_the_groups_have_each_method_once() -> None:
    groups = grouped()
    assert [*groups] == [*PURPOSES]
    assert all(groups.values()), "a purpose without a method"
    assert sorted(row.name for rows in groups.values() for row in rows) == sorted(CATALOGUE)
    assert {row.purpose for row in groups["adaptive"]} == {"adaptive"}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("adagn:mean=0.5,square=0.8", adagn(mean_decay=0.5, square_decay=0.8)),
        ("stable-spam:mean=0.5", stable_spam(mean_decay=0.5)),
        ("online-quantile:0.5", parse("online_quantile:0.5")),
        ("by_norm:1.0", by_norm(1.0)),
    ],
)
def test_old_names_are_read(old: str, new: Policy) -> None:
    assert parse(old) == new
    assert "mean=" not in str(parse(old))


def test_old_names_of_arguments_are_read_everywhere() -> None:
    new = adagn(mean_decay=0.5)
    assert adagn(mean=0.5) == new  # type: ignore[call-arg]
    assert from_dict({"method": "adagn", "mean": 0.5}) == new
    with pytest.raises(PolicyError, match="it is the old name of mean_decay"):
        from_dict({"method": "adagn", "mean": 0.5, "mean_decay": 0.5})


def test_an_unknown_method_is_refused_with_the_nearest() -> None:
    with pytest.raises(PolicyError, match="did you mean 'norm'"):
        lookup("nrm")
    with pytest.raises(PolicyError, match=r"qqq' is not usable: the methods are .*zclip") as none:
        lookup("qqq")
    assert "did you mean" not in str(none.value)


@pytest.mark.parametrize(
    ("asked", "meant"),
    [
        ("clipnorm", "norm"),
        ("u-clip", "feedback"),
        ("Clip21-SGD2M", "clip21"),
        ("AdaGC2", "adagc"),
        ("ada_clip", "adaclip"),
        ("dp-psac", "psac"),
        ("ZClip", "zclip"),
    ],
)
def test_the_name_in_a_paper_leads_to_the_method(asked: str, meant: str) -> None:
    with pytest.raises(PolicyError, match=f"did you mean {meant!r}"):
        lookup(asked)


@pytest.mark.parametrize(
    ("text", "traits"),
    [
        ("norm:1.0", Traits()),
        ("value:1.0", Traits(real=True, elementwise=True)),
        ("value:1.0,2.0", Traits(real=True, elementwise=True, enlarges=True)),
        ("skip_outliers:of=loss", Traits(memory=True, loss=True, skips=True)),
        ("agc|zclip", Traits(weights=True, memory=True)),
        ("a=none;*=normalise", Traits(enlarges=True)),
        ("feedback(agc)", Traits(True, True, real=True, enlarges=True, carries=True)),
    ],
)
def test_the_traits_of_a_policy(text: str, traits: Traits) -> None:
    assert traits_of(parse(text)) == traits
