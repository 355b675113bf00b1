"""Docstrings say what signatures say, in numpydoc's form; so does what scikit-learn shows of an estimator."""

import importlib
import inspect
import itertools
import re

import pytest
from numpydoc.docscrape import NumpyDocString
from numpydoc.validate import validate
from sklearn.base import clone

from skmft import MetaFineTunedClassifier

MODULES = [
    "skmft",
    "skmft.baselines",
    "skmft.datasets",
    "skmft.inspection",
    "skmft.metrics",
    "skmft.model_selection",
    "skmft.recipes",
]
# What numpydoc is asked. Left out is what this project does in its own way: where the quotes stand (GL01, GL02), summaries
# that are phrases (SS05, SS06), entries whose type says all, such as `y : array-like, shape (n_samples,)` (PR07, RT03),
# groups that are out of order for it (PR03; see test_parameters), `self : object` (RT02), and sections that not every
# docstring has (ES01, EX01, SA01).
CODES = {
    "GL03",  # double blank lines
    "GL05",  # tabs
    "GL06",  # unknown sections
    "GL07",  # order of sections
    "GL08",  # no docstring
    "GL10",  # directives without colons
    "SS01",  # no summary
    "SS02",  # a summary without a capital letter
    "SS03",  # a summary without a full stop
    "SS04",  # a summary that is indented
    "PR01",  # parameters that are not documented
    "PR02",  # parameters that do not exist
    "PR05",  # a type with a full stop
    "PR06",  # integer, boolean or string for int, bool or str
    "PR10",  # no space before the colon
    "RT01",  # no section Returns
    "YD01",  # no section Yields
}


def public_names():
    """Public classes and functions, and the public methods that the classes have from skmft."""
    for module in map(importlib.import_module, MODULES):
        for name in module.__all__:
            thing = getattr(module, name)
            if inspect.isclass(thing) or inspect.isroutine(thing):
                yield f"{module.__name__}.{name}"
            if inspect.isclass(thing):
                for method in sorted(dir(thing)):
                    member = getattr(thing, method, None)
                    ours = inspect.isroutine(member) and (getattr(member, "__module__", None) or "").startswith("skmft")
                    if ours and (method == "__call__" or not method.startswith("_")):
                        yield f"{module.__name__}.{name}.{method}"


def is_an_answer(name):
    """Whether it is a question of `Recipe`, whose docstring describes the arguments of all, or a recipe's answer to it."""
    recipes = importlib.import_module("skmft.recipes")
    kind, _, method = name.removeprefix("skmft.recipes.").partition(".")
    thing = getattr(recipes, kind, None)
    return inspect.isclass(thing) and issubclass(thing, recipes.Recipe) and hasattr(recipes.Recipe, method)


ANSWERS = [name for name in public_names() if is_an_answer(name)]
NAMES = [name for name in public_names() if name not in ANSWERS]


def load(name):
    """The object, its docstring in sections, and the parameters of its signature, with their stars."""
    module = max((m for m in MODULES if name.startswith(m + ".")), key=len)
    thing = importlib.import_module(module)
    for part in name.removeprefix(module + ".").split("."):
        thing = getattr(thing, part)
    stars = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
    parameters = []
    if not (inspect.isclass(thing) and issubclass(thing, Exception)):  # those take a message, as all do
        parameters = [stars.get(p.kind, "") + p.name for p in inspect.signature(thing).parameters.values()]
    of_class = name.count(".") > module.count(".") + 1
    if of_class and parameters[:1] == ["self"]:
        parameters = parameters[1:]
    return thing, NumpyDocString(inspect.cleandoc(thing.__doc__ or "")), parameters


def test_something_is_checked():
    assert len(NAMES) > 60
    assert {"skmft.MetaFineTunedClassifier.fit", "skmft.metrics.make_domain_scorer"} < set(NAMES)
    assert {"skmft.baselines.MixedDomainClassifier.predict", "skmft.datasets.fetch_fdu_mtl"} < set(NAMES)
    assert {"skmft.inspection.TypicalityDisplay.from_estimator", "skmft.recipes.Stage.train"} < set(NAMES)
    assert {"skmft.recipes.MetaFineTuning.terms", "skmft.recipes.Recipe.columns"} < set(ANSWERS)


@pytest.mark.parametrize("name", NAMES)
def test_parameters(name):
    """Names as in the signature and in its order; an entry of several, such as "X, domains", stands where its first does."""
    _, doc, parameters = load(name)
    entries = [entry.name.split(", ") for entry in doc["Parameters"]]
    assert sorted(itertools.chain(*entries)) == sorted(parameters)
    for names in ([entry[0] for entry in entries], *entries):
        assert names == sorted(names, key=parameters.index)
    for entry in doc["Parameters"]:
        assert entry.name.startswith("**") or entry.type or entry.desc, f"nothing is said of {entry.name}"


@pytest.mark.parametrize("name", NAMES)
def test_numpydoc(name):
    assert [error for error in validate(name)["errors"] if error[0] in CODES] == []


@pytest.mark.parametrize("name", NAMES)
def test_returns(name):
    """Where something is returned a section says what; numpydoc does not look at class methods."""
    thing, doc, _ = load(name)
    if not inspect.isclass(thing):
        returned = inspect.signature(thing).return_annotation
        assert bool(doc["Returns"] or doc["Yields"]) == (returned not in (None, "None"))


@pytest.mark.parametrize("name", ANSWERS)
def test_answers_of_recipes(name):
    """They say what the answer is; parameters are those of the question."""
    _, doc, parameters = load(name)
    question, _, asked = load(f"skmft.recipes.Recipe.{name.rpartition('.')[2]}")
    assert doc["Summary"] and doc["Summary"][0][-1] in ".?" and question.__doc__
    assert parameters == asked
    notes = " ".join(load("skmft.recipes.Recipe")[1]["Notes"])
    assert all(f"``{parameter}``" in notes for parameter in parameters)


def shown_as_changed(html):
    rows = re.findall(r'<tr class="user-set">.*?<td class="param">(.*?)</td>', html, re.DOTALL)
    return [re.sub(r"<.*?>|&nbsp;", "", row).strip() for row in rows]


def test_what_scikit_learn_shows_of_an_estimator(fitted):
    clf = MetaFineTunedClassifier(corruption_weight=0.3, random_state=0)
    assert repr(clf) == "MetaFineTunedClassifier(corruption_weight=0.3, random_state=0)"
    assert shown_as_changed(clf._repr_html_()) == ["corruption_weight", "random_state"]
    assert repr(MetaFineTunedClassifier()) == "MetaFineTunedClassifier()"
    assert shown_as_changed(MetaFineTunedClassifier()._repr_html_()) == []
    changed = [
        *("model", "meta_epochs", "adaptation_epochs", "adaptation_learning_rate", "learning_rate", "batch_size"),
        *("device", "precision", "random_state"),
    ]
    for one, state in ((clone(fitted), "Not fitted"), (fitted, "Fitted")):
        text, html = repr(one), one._repr_html_()
        assert set(re.findall(r"(\w+)=", text)) == set(shown_as_changed(html)) == set(changed)
        assert f"<span>{state}</span>" in html
