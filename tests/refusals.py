"""What a call is refused with."""

import pytest


def message(call, kind=ValueError):
    """The message of the error that a call raises."""
    with pytest.raises(kind) as caught:
        call()
    return str(caught.value)


def refusal(clf, data, **changes):
    """The message with which `fit` refuses the data with changes; the estimator has to stay unfitted."""
    X, y, d = data
    before = dict(vars(clf))
    text = message(lambda: clf.fit(**{"X": X, "y": y, "domains": d, **changes}))
    assert vars(clf) == before
    return text
