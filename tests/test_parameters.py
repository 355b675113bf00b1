"""Parameters that are out of range are named before anything else happens."""

import copy

import pytest
from refusals import message, refusal

from skmft.recipes import MetaFineTuning


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({"corruption_weight": -0.1}, "'corruption_weight' parameter of MetaFineTunedClassifier must be a float"),
        ({"typicality_balance": 1.1}, "'typicality_balance' parameter of MetaFineTunedClassifier must be a float"),
        ({"recipe": MetaFineTuning(corruption_layers=(3,))}, "layer 3 does not exist; the model has 3 layers"),
        ({"recipe": MetaFineTuning(corruption_layers=(-4,))}, "layer -4 does not exist"),
        (
            {"recipe": MetaFineTuning(corruption_layers=())},
            "corruption_layers=(); expected layer numbers",
        ),
        (
            {"recipe": MetaFineTuning(corruption_layers=(0.5,))},
            "corruption_layers=(0.5,); expected layer numbers",
        ),
        ({"meta_epochs": 0}, "'meta_epochs' parameter"),
        ({"pooling": "max"}, "'pooling' parameter"),
        ({"adaptation": "lots"}, "'adaptation' parameter"),
        ({"callbacks": ["print"]}, "callbacks has 'print'; expected skorch.callbacks.Callback"),
        ({"max_length": 4096}, "max_length=4096 is more than the 128 tokens"),
        ({"device": "abacus"}, "device='abacus' cannot be used here"),
        ({"optimizer_params": {"momentum": 0.9}}, "optimizer_params has the key 'momentum'; expected some of"),
        ({"optimizer_params": {"warmup_ratio": 2}}, "'warmup_ratio' parameter of optimizer_params must be a float in"),
        ({"optimizer_params": {"max_grad_norm": 0}}, "or None"),
    ],
    ids=str,
)
def test_bad_parameters_are_named(make, data, params, expected):
    assert expected in refusal(make(**params), data)


def test_a_bad_parameter_that_was_set_after_fit(fitted, data):
    clf = copy.copy(fitted).set_params(precision="fp16")
    assert "The 'precision' parameter" in message(lambda: clf.predict(data[0]))
