"""The data set itself."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from antibackdoor.app.demo import digits


def test_a_copy_is_the_same_input_under_the_same_label() -> None:
    one = digits(0).train.take(np.arange(6))
    samples = one.take(np.array([3, 0, 3, 1, 0, 3]))
    np.testing.assert_array_equal(samples.firsts, [0, 1, 0, 3, 1, 0])
    np.testing.assert_array_equal(samples.originals, [0, 1, 3])
    assert samples.n_copies == 3 and one.n_copies == 0
    other_label = replace(samples, labels=np.array([0, 1, 2, 3, 1, 0]))
    np.testing.assert_array_equal(other_label.firsts, [0, 1, 2, 3, 1, 0])
