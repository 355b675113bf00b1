"""Class weights, and the product of all weights of a row."""

import numpy as np
import pytest
from refusals import refusal

from skmft._inputs.weights import normalized_weights


@pytest.mark.parametrize(
    ("class_weight", "expected"),
    [
        ({"pos": 1, "other": 2}, "class_weight has keys ['other']; expected classes of y: ['neg', 'pos']"),
        ({"pos": -1}, "expected finite weights of 0 or more"),
        ({"pos": 0}, "leaves fewer than two of the classes ['neg', 'pos'] a weight above 0"),
    ],
    ids=["no class", "negative", "one class left"],
)
def test_class_weights_that_are_refused(make, data, class_weight, expected):
    assert expected in refusal(make(class_weight=class_weight), data)


def test_normalized_weights():
    w = normalized_weights([0.5, -0.2, 1.0], [1.0, 1.0, 2.0])
    np.testing.assert_allclose(w, np.array([0.5, 0, 2]) / (2.5 / 3))
    np.testing.assert_array_equal(normalized_weights([-1.0, -1.0]), [1.0, 1.0])
