"""scikit-learn's own checks of an estimator, as far as an estimator of text can be checked by them.

`check_estimator` gives every estimator tables of numbers and leaves out one whose tags say that it takes none. Here
an embedder of its chains of carbon stands between: the sum of a row says how long the chain is.
"""

from __future__ import annotations

import warnings
from functools import partial

import numpy as np
import pytest
from sklearn.utils import Tags
from sklearn.utils.estimator_checks import check_estimator, estimator_checks_generator
from sklearn.utils.validation import check_array

from mmsa_dist.embed import Embedder
from tests.fixtures.embedders import random_embedder

#: Besides, scikit-learn itself leaves out what asks that bad numbers are refused: the tag `no_validation` says so.
LEFT_OUT = {
    "check_estimator_sparse_tag": "a sparse table is refused by `transform`, not by `fit`, which reads nothing",
    "check_array_api_input": "for estimators that compute on other arrays than numpy's",
    "check_dict_unchanged": "`transform` leaves `report_` and `kept_`, which tell what became of its rows",
}


class OfChains(Embedder):
    """Takes a table of numbers for the SMILES of chains of carbon."""

    def transform(self, X: object) -> np.ndarray:
        table = check_array(X, dtype=float, ensure_all_finite=False)
        return super().transform(["C" * (1 + int(abs(np.nansum(row))) % 12) for row in table])

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array, tags.input_tags.one_d_array, tags.input_tags.string = True, False, False
        return tags


def checks() -> list[object]:
    estimator = OfChains(random_embedder().model, view="unified", pictures=False)
    made = []
    for instance, check in estimator_checks_generator(estimator, legacy=True):
        name = check.func.__name__ if isinstance(check, partial) else check.__name__
        made.append(pytest.param(instance, check, id=name))
    return made


CHECKS = checks()


@pytest.mark.parametrize(("estimator", "check"), [c for c in CHECKS if c.id not in LEFT_OUT])
def test_check(estimator, check):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check(estimator)


def test_those_left_out_are_known():
    assert set(LEFT_OUT) - {c.id for c in CHECKS} == set()
    assert len(CHECKS) > 3 * len(LEFT_OUT)


@pytest.mark.filterwarnings("ignore:Can't test estimator")
def test_check_estimator_itself_takes_the_embedder():
    check_estimator(random_embedder(), on_skip=None)
