"""Estimators with the interface of scikit-learn: an outlier detector and a classifier.

    from antibackdoor.sklearn import PoisonDetector, RobustClassifier

    outliers = PoisonDetector().fit_predict(X, y) == -1
    classifier = RobustClassifier(defense="dual-head").fit(X, y)

`X` is `(N, T)`: N series of one variable, `(N, C, T)`: series of C variables (aeon's `numpy3D`), `(N, H, W, C)` or
`(N, C, H, W)`: images (uint8, or floats in [0, 1]), or a list of series `(T,)` or `(C, T)` of unequal lengths, which
are resampled to the longest. Needs scikit-learn 1.6 (`pip install 'antibackdoor[sklearn]'`).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin, OutlierMixin
from sklearn.neighbors import NearestNeighbors
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, column_or_1d

from antibackdoor.app.estimator_parts import Budget, FittedNetwork, duplicates, is_list_of_series, to_inputs
from antibackdoor.app.networks import NetworkChoice, builder, describe_model
from antibackdoor.app.python_words import in_python_words
from antibackdoor.app.settings import applied, chosen_method
from antibackdoor.data.samples import FloatArray, InputArray, IntArray, Samples
from antibackdoor.defenses import DEFENSES, Undefended
from antibackdoor.detectors import DETECTORS, ConfusionTraining, SpectralSignatures
from antibackdoor.errors import AntibackdoorError
from antibackdoor.protocols import Given, Trained, Verdict, check_given
from antibackdoor.search.evidence import unexamined_labels
from antibackdoor.training.recipe import Recipe

try:
    from sklearn.utils.validation import validate_data
except ImportError as error:
    raise ImportError("antibackdoor.sklearn needs scikit-learn 1.6: pip install 'antibackdoor[sklearn]'") from error

__all__ = ["PoisonDetector", "RobustClassifier"]

_NEIGHBORS = 5  # odd, so that the median is the majority's
_SMALL = 2_000  # samples; below, the smaller of the two networks of Wang et al. is as good, and much faster


class PoisonDetector(OutlierMixin, BaseEstimator):  # type: ignore[misc]
    """Says which training samples are poisoned, as an outlier detector of scikit-learn.

    A detector judges the training samples by their inputs and labels. A new sample, which has no label, gets the median
    of the five training samples whose features are most alike, in a network trained on the same data without a defense.
    A copy of a training sample gets that sample's own score.

    Parameters:
        detector: A key of `antibackdoor.DETECTORS` that needs no clean samples, or a detector with its settings.
        contamination: "auto": outliers are what the detector isolates, and it isolates nothing without evidence; a
            method that only ranks finds none. Else the share of the training samples, in (0, 0.5], that are outliers.
        epochs: Passes over the data; 0 chooses by their size, fewer for small data than the command line would.
        batch_size: Samples a step; 0 chooses.
        backbone: A key of `antibackdoor.BACKBONES`; empty chooses ("fcn" for small sets of series).
        model: A network of your own: a function that returns an untrained `torch.nn.Module`.
        device: `auto`, `cpu`, `cuda` or `mps`.
        random_state: Seed of everything random.

    Attributes:
        suspicion_: `(N,)` what the detector says of each training sample, higher is more suspicious.
        isolated_: `(N,)` bool, what the detector isolates by its own rule, whatever `contamination` is.
        poisoned_: Whether the data are poisoned; None where the detector does not judge.
        offset_: `decision_function` is `score_samples` minus this; negative values are outliers.
        classes_: The labels that were given; a single 0 without labels.
        n_features_in_: Size of the second axis of X; for a list of series their number of channels.

    Without labels (`fit(X)`) all samples are one class, and less is found. So is where no label has the 20 samples that
    a search needs: samples are then only ranked, by their spectral signatures.

    >>> X = np.sin(np.arange(40)[:, None] + np.arange(16))
    >>> PoisonDetector("spectral", contamination=0.1, epochs=1).fit_predict(X, np.arange(40) % 2).sum()
    np.int64(32)
    """

    def __init__(
        self,
        detector: Any = "confusion",
        *,
        contamination: float | str = "auto",
        epochs: int = 0,
        batch_size: int = 0,
        backbone: str = "",
        model: Any = None,
        device: str = "auto",
        random_state: Any = 0,
    ) -> None:
        self.detector = detector
        self.contamination = contamination
        self.epochs = epochs
        self.batch_size = batch_size
        self.backbone = backbone
        self.model = model
        self.device = device
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None) -> PoisonDetector:
        """Judge the training samples.

        Args:
            X: Series or images; see the module.
            y: One class a sample; without it all are one class.

        Raises:
            ValueError: If the data or a parameter cannot be used.
        """
        self._check_contamination()
        inputs = _checked(self, X, y, reset=True)
        labels = np.zeros(len(inputs), dtype=np.int64)
        if y is not None:
            labels = column_or_1d(y)
            check_classification_targets(labels)
        self.classes_, labels = np.unique(labels, return_inverse=True)
        samples = _samples(inputs, labels, self.classes_)
        try:
            self._judge(samples)
        except AntibackdoorError as error:
            raise ValueError(in_python_words(str(error))) from error
        return self

    def score_samples(self, X: Any) -> FloatArray:
        """How normal each sample is, `(N,)`: above -1 if it is kept, below if it is isolated; higher is more normal."""
        check_is_fitted(self)
        inputs = _checked(self, X, None, reset=False, like=self._one)
        rows = duplicates(self._contents, self._one, inputs)
        scores = self._scores[rows]
        new = rows < 0
        if new.any():
            features = self._network.features(inputs[new])
            scores[new] = np.median(self._scores[self._nearest(features)], axis=1)
        return scores

    def decision_function(self, X: Any) -> FloatArray:
        """`score_samples` minus `offset_`, `(N,)`: negative for outliers."""
        return np.asarray(self.score_samples(X) - self.offset_)

    def predict(self, X: Any) -> IntArray:
        """-1 for outliers and 1 for all others, `(N,)` int64."""
        return np.where(self.decision_function(X) < 0, -1, 1).astype(np.int64)

    def _check_contamination(self) -> None:
        share = self.contamination
        if share != "auto" and not (isinstance(share, int | float) and 0 < share <= 0.5):
            raise ValueError(f"contamination is {share!r}; give 'auto', or a number in (0, 0.5]")

    def _judge(self, samples: Samples) -> None:
        detector, recipe = _configured(self, samples, self.detector, DETECTORS, "detector")
        if isinstance(detector, ConfusionTraining) and _is_blind(samples, recipe):
            detector = SpectralSignatures()
        spec = describe_model(samples, _choice(self, samples), recipe, "")
        build = builder(spec, self.model)
        trained = Undefended().train(samples, build, recipe)
        known = {*detector.needs, *detector.takes}
        given = Given(
            build=build,
            input_shape=samples.shape,
            model=trained.model if "model" in known else None,
            history=trained.history if "history" in known else None,
        )
        verdict = detector.detect(samples, check_given(detector, given), recipe).verdict.ordered(samples.labels)
        self._network = FittedNetwork.of(trained.model, spec, self.model, self.device)
        self._features = self._network.features(samples.inputs)
        self._keep(samples, verdict)

    def _keep(self, samples: Samples, verdict: Verdict) -> None:
        self.suspicion_, self.isolated_, self.poisoned_ = verdict.suspicion, verdict.isolated, verdict.poisoned
        self._contents, self._one = samples.contents, samples.take(np.zeros(1, dtype=np.int64))
        # The place among all others, in (0, 1); what is isolated comes after all that is kept, in (1, 2).
        n = len(samples)
        places = np.searchsorted(np.sort(verdict.suspicion), verdict.suspicion, side="right")
        anomaly = places / (n + 1) + verdict.isolated
        copies = duplicates(
            self._contents, self._one, samples.inputs
        )  # of copies under several labels the most suspicious counts
        worst = np.zeros(n)
        np.maximum.at(worst, copies, anomaly)
        self._scores = -worst[copies]
        share = self.contamination
        self.offset_ = -1.0 if share == "auto" else float(np.percentile(self._scores, 100.0 * float(share)))

    def _nearest(self, features: FloatArray) -> IntArray:
        n = min(_NEIGHBORS, len(self._features))
        found = NearestNeighbors(n_neighbors=n, algorithm="brute").fit(self._features)
        return np.asarray(found.kneighbors(features, return_distance=False), dtype=np.int64)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        return tags


class RobustClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A classifier trained with a defense against poisoned samples, as a classifier of scikit-learn.

    Parameters:
        defense: A key of `antibackdoor.DEFENSES` that needs nothing but data, or a defense with its settings.
        epochs: Passes over the data; 0 chooses by their size, fewer for small data than the command line would.
        batch_size: Samples a step; 0 chooses.
        learning_rate: Largest learning rate, > 0; None leaves it to the defense.
        augment: As in `antibackdoor.Recipe`; None leaves it to the defense.
        backbone: A key of `antibackdoor.BACKBONES`; empty chooses ("fcn" for small sets of series).
        model: A network of your own: a function that returns an untrained `torch.nn.Module` with logits.
        device: `auto`, `cpu`, `cuda` or `mps`.
        random_state: Seed of everything random.

    Attributes:
        classes_: The labels in the order of the columns of `predict_proba`.
        isolated_: `(N,)` bool, the training samples that were kept from the model under their label.
        suspicion_: `(N,)` what the defense says of each training sample, higher is more suspicious.
        poisoned_: Whether the data are poisoned; None where the defense does not judge.
        n_features_in_: Size of the second axis of X; for a list of series their number of channels.

    >>> X = np.sin(np.arange(40)[:, None] % 2 * 2 + np.arange(16) * (1 + np.arange(40)[:, None] % 2))
    >>> RobustClassifier("none", epochs=10).fit(X, np.arange(40) % 2).score(X, np.arange(40) % 2)
    1.0
    """

    def __init__(
        self,
        defense: Any = "dual-head",
        *,
        epochs: int = 0,
        batch_size: int = 0,
        learning_rate: float | None = None,
        augment: str | None = None,
        backbone: str = "",
        model: Any = None,
        device: str = "auto",
        random_state: Any = 0,
    ) -> None:
        self.defense = defense
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.augment = augment
        self.backbone = backbone
        self.model = model
        self.device = device
        self.random_state = random_state

    def fit(self, X: Any, y: Any) -> RobustClassifier:
        """Train with the defense.

        Args:
            X: Series or images; see the module.
            y: One class a sample.

        Raises:
            ValueError: If the data or a parameter cannot be used.
        """
        if y is None:
            raise ValueError(
                "RobustClassifier requires y to be passed, but the target y is None: give one class per sample"
            )
        inputs = _checked(self, X, y, reset=True)
        given = column_or_1d(y, warn=True)
        check_classification_targets(given)
        self.classes_, labels = np.unique(given, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"y has only one class ({self.classes_[0]!r}); a classifier needs two classes or more")
        samples = _samples(inputs, labels, self.classes_)
        try:
            trained = self._train(samples)
        except AntibackdoorError as error:
            raise ValueError(in_python_words(str(error))) from error
        self.suspicion_, self.isolated_ = trained.verdict.suspicion, trained.verdict.isolated
        self.poisoned_ = trained.verdict.poisoned
        return self

    def predict_proba(self, X: Any) -> FloatArray:
        """The probability of each class, `(N, K)`, in the order of `classes_`."""
        check_is_fitted(self)
        return self._network.probabilities(_checked(self, X, None, reset=False, like=self._one))

    def predict(self, X: Any) -> NDArray[Any]:
        """The most probable class of each sample, `(N,)`."""
        chosen = self.predict_proba(X).argmax(axis=1)
        return np.asarray(self.classes_[chosen])

    def _train(self, samples: Samples) -> Trained:
        chosen = {"learning_rate": self.learning_rate, "augment": self.augment}
        defense, recipe = _configured(self, samples, self.defense, DEFENSES, "defense", **chosen)
        search = getattr(defense, "search", None)
        given = Given()
        if isinstance(search, ConfusionTraining) and _is_blind(samples, recipe):
            given = Given(verdict=Verdict.ranking(np.zeros(len(samples)), samples))  # nothing to search for
        spec = describe_model(samples, _choice(self, samples), recipe, "")
        trained: Trained = defense.train(samples, builder(spec, self.model), recipe, given=given)
        self._network = FittedNetwork.of(trained.model, spec, self.model, self.device)
        self._one = samples.take(np.zeros(1, dtype=np.int64))
        return trained

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        return tags


def _checked(estimator: Any, X: Any, y: Any, *, reset: bool, like: Samples | None = None) -> InputArray:
    """X as inputs of a network, after scikit-learn's own checks; `like` is a sample of those that were fitted."""
    shape = None if like is None else like.shape
    if not is_list_of_series(X):
        if reset and y is not None:
            X, _ = validate_data(estimator, X, y, allow_nd=True, ensure_min_samples=2, multi_output=True)
        else:
            X = validate_data(estimator, X, reset=reset, allow_nd=True, ensure_min_samples=2 if reset else 1)
    elif reset:
        estimator.n_features_in_ = 1 if X[0].ndim == 1 else X[0].shape[0]
    try:
        inputs = to_inputs(X, shape)
    except AntibackdoorError as error:
        raise ValueError(in_python_words(str(error))) from error
    if like is not None and like.inputs.dtype == np.float32 and inputs.dtype == np.uint8:
        inputs = (inputs / 255).astype(np.float32)
    return inputs


def _samples(inputs: InputArray, labels: IntArray, classes: NDArray[Any]) -> Samples:
    ids = np.arange(len(inputs)).astype(np.str_)
    names = np.array([str(name) for name in classes.tolist()])
    return Samples(inputs, labels.reshape(-1).astype(np.int64), ids, names)


def _configured(
    estimator: Any, samples: Samples, method: Any, table: dict[str, Any], argument: str, **settings: Any
) -> tuple[Any, Recipe]:
    """The method and the recipe, both within the budget: a field that the method owns goes there."""
    seed = estimator.random_state
    seed = seed if isinstance(seed, int) else int(check_random_state(seed).randint(2**31 - 1))
    recipe = Recipe(device=estimator.device, seed=seed, progress=False)
    budget = Budget.of(estimator.epochs, recipe, len(samples))
    chosen = budget.of_search(chosen_method(method, table, argument))
    is_own = not isinstance(method, str) and not estimator.epochs  # a method with settings keeps its own length
    given = {"epochs": None if is_own and hasattr(chosen, "epochs") else budget.epochs, **settings}
    used = {name: value for name, value in given.items() if name not in chosen.unused or hasattr(chosen, name)}
    chosen, recipe = applied(chosen, recipe, {**used, "batch_size": estimator.batch_size or None}, argument)
    return chosen, replace(recipe, epochs=recipe.epochs or budget.epochs)


def _choice(estimator: Any, samples: Samples) -> NetworkChoice:
    small = samples.kind == "series" and len(samples) < _SMALL and estimator.model is None
    return NetworkChoice(estimator.backbone or ("fcn" if small else ""), estimator.model or "")


def _is_blind(samples: Samples, recipe: Recipe) -> bool:
    """Whether no label has the samples that a search needs."""
    return len(unexamined_labels(samples, recipe.seed)) == len(np.unique(samples.labels))
