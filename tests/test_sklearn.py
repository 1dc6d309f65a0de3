"""Estimators of scikit-learn: its own checks, its tools around them, and what they find."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_outliers_fit_predict, check_outliers_train, parametrize_with_checks

from antibackdoor.sklearn import PoisonDetector, RobustClassifier

AUTO = "the default isolates nothing without evidence, and this data set is clean; with a contamination it passes"


def expected_failures(estimator: Any) -> dict[str, str]:
    """Checks that must fail, each with its reason."""
    if isinstance(estimator, PoisonDetector) and estimator.contamination == "auto":
        return {"check_outliers_train": AUTO, "check_outliers_fit_predict": AUTO}
    return {}


@parametrize_with_checks(
    [RobustClassifier(epochs=3), PoisonDetector(epochs=3)],
    expected_failed_checks=expected_failures,
)
def test_checks_of_scikit_learn(estimator: Any, check: Any) -> None:
    check(estimator)


def test_a_contamination_passes_what_the_default_cannot() -> None:
    detector = PoisonDetector("spectral", contamination=0.1, epochs=2)
    check_outliers_train("PoisonDetector", detector)
    check_outliers_fit_predict("PoisonDetector", detector)


def waves(n: int = 60, length: int = 24, *, channels: int = 1, seed: int = 0) -> tuple[Any, Any]:
    """Sines of two frequencies, `(N, C, T)`, and their labels."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 2
    time = np.linspace(0, 2 * np.pi, length)
    X = np.sin((1 + 2 * y)[:, None, None] * time + rng.uniform(0, 6, (n, channels, 1)))
    return X + 0.1 * rng.standard_normal(X.shape), y


def plain(value: Any) -> bool:
    """Whether a value holds nothing but numbers, texts and arrays."""
    if isinstance(value, dict):
        return all(plain(part) for part in value.values())
    if isinstance(value, list | tuple):
        return all(plain(part) for part in value)
    if hasattr(value, "__dataclass_fields__"):
        return all(plain(getattr(value, name)) for name in value.__dataclass_fields__)
    return value is None or isinstance(value, bool | int | float | str | np.ndarray)


@pytest.mark.parametrize("estimator", [RobustClassifier("none", epochs=2), PoisonDetector("spectral", epochs=2)])
def test_what_is_pickled_is_plain_and_answers_the_same(estimator: Any) -> None:
    X, y = waves()
    fitted = clone(estimator).fit(X[:, 0], y)
    assert plain(vars(fitted))
    again = pickle.loads(pickle.dumps(fitted))  # noqa: S301
    assert (again.predict(X[:, 0]) == fitted.predict(X[:, 0])).all()


def test_a_classifier_in_a_pipeline_a_grid_and_a_cross_validation() -> None:
    X, y = waves(80)
    names = np.array(["slow", "fast"])[y]
    pipeline = make_pipeline(StandardScaler(), RobustClassifier("none", epochs=12))
    grid = GridSearchCV(pipeline, {"robustclassifier__learning_rate": [1e-6, 0.1]}, cv=2).fit(X[:, 0], names)
    assert grid.best_params_ == {"robustclassifier__learning_rate": 0.1}
    assert set(grid.predict(X[:3, 0])) <= {"slow", "fast"}
    assert cross_val_score(RobustClassifier("none", epochs=12), X[:, 0], names, cv=2).mean() > 0.8


def test_three_axes_are_series_with_channels_and_lists_may_be_unequal() -> None:
    X, y = waves(40, channels=3)
    fitted = RobustClassifier("none", epochs=1).fit(X, y)
    assert fitted.n_features_in_ == 3 and fitted.predict_proba(X).shape == (40, 2)
    assert fitted.predict([one[:, : 10 + row] for row, one in enumerate(X[:9])]).shape == (9,)
    fitted = RobustClassifier("none", epochs=1).fit([one[:, : 10 + row % 14] for row, one in enumerate(X)], y)
    assert fitted.predict(list(X[:4])).shape == (4,)
    with pytest.raises(ValueError, match="X has 1 channels"):
        fitted.predict([one[:1] for one in X])


def test_images_of_bytes_and_of_floats_are_one() -> None:
    rng = np.random.default_rng(0)
    X, y = rng.integers(0, 255, (24, 8, 8, 3)).astype(np.uint8), np.arange(24) % 2
    floats = (X / 255).astype(np.float32)
    for seen, asked in ((X, floats), (floats, X)):
        fitted = RobustClassifier("none", epochs=1).fit(seen, y)
        assert np.allclose(fitted.predict_proba(seen), fitted.predict_proba(asked), atol=1e-5)


def test_outliers_are_what_carries_the_trigger() -> None:
    X, y = waves(200)
    poisoned = np.flatnonzero(y == 0)[:10]
    X[poisoned, :, :4], y[poisoned] = 3.0, 1
    detector = PoisonDetector("spectral", contamination=0.05, epochs=20).fit(X[:, 0], y)
    found = np.flatnonzero(detector.predict(X[:, 0]) == -1)
    assert len({*found} & {*poisoned}) >= 8
    new, _ = waves(20, seed=1)
    new[:10, :, :4] = 3.0
    assert (detector.score_samples(new[:10, 0]).mean()) < detector.score_samples(new[10:, 0]).mean()


@pytest.mark.parametrize(
    ("estimator", "message"),
    [
        (RobustClassifier("abc"), "defense is .abc.; give one of abl"),
        (PoisonDetector("scan"), "SCAn needs clean"),
        (PoisonDetector(contamination=0.7), "contamination is 0.7; give 'auto', or a number in"),
        (RobustClassifier(backbone="resnet18"), "is for image data"),
    ],
)
def test_mistakes_in_one_sentence(estimator: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        estimator.fit(*waves(20)[:1], np.arange(20) % 2)
