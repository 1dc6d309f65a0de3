"""The report's sentences and numbers, as plain text; the template escapes them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from antibackdoor.errors import spelled_out

Facts = Mapping[str, Any]  # metrics.json; any key may be absent
MOST_COST = 0.05  # of accuracy that a purification may cost: fine-tuning and NAD lose up to 4.5 points in NAD's Table 1


@dataclass(frozen=True)
class Verdict:
    """The answer of a run, in words.

    Attributes:
        status: What the page's color says.
        title: One short sentence.
        sentences: What follows it.
    """

    status: Literal["poisoned", "quiet", "open"]
    title: str
    sentences: tuple[str, ...]


@dataclass(frozen=True)
class KeyNumber:
    """One number with its name and, where it needs one, an explanation."""

    name: str
    value: str
    note: str = ""


def printable(text: object, limit: int = 60) -> str:
    r"""A hostile name on one line of at most `limit` characters: invisible characters become visible codes.

    Right-to-left overrides, zero-width characters, line breaks and lone surrogates could make a name look
    like another one.

    >>> printable("a\u202egnp.exe")
    'a\\u202egnp.exe'
    """
    shown = spelled_out(str(text))
    if len(shown) <= limit:
        return shown
    tail = limit // 3  # the end of a path tells more than its middle
    return f"{shown[: limit - tail - 1]}…{shown[-tail:]}"


def quoted(name: object, limit: int = 60) -> str:
    """A name in quotation marks; invisible isolates keep an Arabic name from turning the sentence around."""
    return f"‘\u2068{printable(name, limit)}\u2069’"


def count(value: float) -> str:
    """A number of things: `50,000`."""
    return f"{round(value):,}"


def percent(share: float) -> str:
    """A fraction as percent, never rounded to a 0% or 100% that it is not: `<0.1%`."""
    if 0 < share < 0.001:
        return "<0.1%"
    if 0.999 < share < 1:
        return ">99.9%"
    return f"{100 * share:.1f}%".replace(".0%", "%") if share in (0, 1) else f"{100 * share:.1f}%"


def duration(seconds: float) -> str:
    """A time span: `42 s`, `12 min 5 s`, `3 h 20 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s".removesuffix(" 0 s")
    return f"{whole // 3600} h {whole % 3600 // 60} min".removesuffix(" 0 min")


def verdict(metrics: Facts | None) -> Verdict:
    """The answer in words; `metrics` is None while the run is unfinished."""
    if metrics is None:
        return Verdict("open", "This run is not finished.", ("Below is what it has written so far.",))
    labels = suspected_labels(metrics)
    poisoned = metrics.get("poisoned")
    if poisoned is None:
        is_blind = bool(metrics.get("n_unexamined_labels")) and _is_every_label_small(metrics)
        title = "No label could be examined." if is_blind else "This run gives no verdict on the data set."
        return Verdict("open", title, (*remarks(metrics), *_what_was_done(metrics)))
    if poisoned:
        return Verdict(
            "poisoned",
            "This data set is very probably poisoned.",
            (
                *_what_was_found(metrics, labels),
                *_what_it_is_worth(metrics),
                *_what_was_done(metrics, "They"),
                *remarks(metrics),
            ),
        )
    return Verdict(
        "quiet",
        "Nothing found.",
        (
            "This does not prove that the data are clean: poison in very few samples, or poison that the network "
            "learns no faster than the rest, leaves no trace that this method can see.",
            *remarks(metrics),
            *_what_it_is_worth(metrics),
            *_what_was_done(metrics),
        ),
    )


def remarks(metrics: Facts) -> list[str]:
    """What must be known to read the numbers of a run rightly; for the page and for the terminal."""
    return [
        *_about_small_labels(metrics),
        *_about_the_rate(metrics),
        *_about_copies(metrics),
        *_about_the_reading(metrics),
        *_about_the_cost(metrics),
        *_about_the_fallback(metrics),
    ]


def _about_the_reading(metrics: Facts) -> list[str]:
    notes = metrics.get("reading_notes")
    return [printable(note, 400) for note in notes if isinstance(note, str)] if isinstance(notes, list) else []


def _about_the_cost(metrics: Facts) -> list[str]:
    """Whether a purification spoiled the model: by test samples, or else by the clean ones that it was given."""
    tested = _number(metrics, "clean_accuracy_before"), _number(metrics, "clean_accuracy"), "test"
    given = _number(metrics, "accuracy_before"), _number(metrics, "accuracy_after"), "clean"
    before, after, which = given if tested[0] is None else tested
    if before is None or after is None or before - after <= MOST_COST:
        return []
    return [
        f"The purification was too strong: accuracy on the {which} samples fell from {percent(before)} to "
        f"{percent(after)}. Give more clean samples, lower --learning-rate if the method has one, or choose another "
        "method."
    ]


def _about_the_fallback(metrics: Facts) -> list[str]:
    """AdvrBD isolates samples in any case; here not those that it looks for."""
    if metrics.get("fell_back") is not True:
        return []
    share = _number(metrics, "flagged_share")
    still = "too many samples" if share is None else f"{percent(share)} of the samples"
    return [
        f"Poisoned samples could not be identified: the enhanced network still predicts the given label of {still}. "
        "Instead, the samples with the lowest loss were isolated, poisoned or not. Raise --short-epochs, --rounds or "
        "--round-learning-rate."
    ]


def _about_small_labels(metrics: Facts) -> list[str]:
    n_labels, n_samples = (int(_number(metrics, f"n_unexamined_{what}") or 0) for what in ("labels", "samples"))
    if not n_labels:
        return []
    names = metrics.get("unexamined_labels")
    listed = f": {_listing([str(name) for name in names])}" if isinstance(names, list) and names else ""
    who = f"{count(n_labels)} label{' was' if n_labels == 1 else 's were'} not examined"
    if _is_every_label_small(metrics):
        who = f"None of the {count(n_labels)} labels was examined"
    return [
        f"{who}, because fewer than 20 distinct samples are too few ({count(n_samples)} samples){listed}. "
        f"{'This label' if n_labels == 1 else 'These labels'} may still be poisoned."
    ]


def _is_every_label_small(metrics: Facts) -> bool:
    return _number(metrics, "n_samples") == _number(metrics, "n_unexamined_samples")


def _about_the_rate(metrics: Facts) -> list[str]:
    if _number(metrics, "estimated_poisoning_rate_high") is None:
        return []
    return [
        "The poisoning rate and its interval cover only the poison that was found. If another trigger was missed, the "
        "true rate may be above the interval."
    ]


def _about_copies(metrics: Facts) -> list[str]:
    sentences = []
    conflicting = _number(metrics, "n_conflicting_copies")
    if conflicting:
        sentences.append(
            f"{count(conflicting)} training samples are exact copies of samples with another label, so some of these "
            "labels are wrong."
        )
    n_test, copies = _number(metrics, "n_test"), _number(metrics, "n_test_copies") or 0
    both = _number(metrics, "n_test_conflicting") or 0
    if n_test is None or not copies + both:
        return sentences
    is_test = metrics.get("test_split", "test") in ("test", "held out")
    what = "test samples" if is_test else "measured samples"
    of = f"of {count(n_test)} {what}"
    if copies:
        sentences.append(f"{count(copies)} {of} are exact copies of samples that the model was trained on.")
    if both:
        sentences.append(f"{count(both)} {of} are exact copies of other {what} with another label.")
    clean, everything = _number(metrics, "clean_accuracy"), _number(metrics, "clean_accuracy_with_copies")
    known = "cannot be measured" if clean is None else f"is {percent(clean)}"
    with_them = "" if everything is None else f", and would be {percent(everything)} with them"
    sentences.append(f"They are not counted: accuracy {known} without them{with_them}.")
    return sentences


_OF_ISOLATION = ("n_isolated", "n_relabeled", "isolation_precision", "isolation_recall")


def _judges(metrics: Facts) -> bool:
    """Whether the method isolates at all: of plain training, or of a ranking, such numbers mean nothing."""
    return metrics.get("poisoned") is not None or bool(_number(metrics, "n_isolated"))


def key_numbers(metrics: Facts) -> list[KeyNumber]:
    """The numbers that stand below the verdict; absent ones are left out."""
    n_samples = _number(metrics, "n_samples")
    formats: list[tuple[str, str, Callable[[float], str], str]] = [
        ("n_samples", "Samples", count, ""),
        ("n_isolated", "Isolated", count, "not trained on under their given label"),
        ("n_relabeled", "Relabeled", count, "isolated, but used under another label"),
        ("estimated_poisoning_rate", "Poisoning rate", percent, ""),
        ("false_alarm_probability", "False alarm", percent, "probability of such evidence in clean data"),
        (
            "estimated_residual_attack_success_rate",
            "Attack success, estimated",
            percent,
            "of the delivered model, without knowing the trigger",
        ),
        ("smallest_visible_rate", "Smallest visible rate", percent, "planted patches were found from this rate up"),
        ("clean_accuracy", "Clean accuracy", percent, _tested_on(metrics)),
        ("clean_accuracy_with_copies", "With copies", percent, "accuracy with the copies counted"),
        ("balanced_accuracy", "Balanced accuracy", percent, "mean over the classes"),
        (
            "attack_success_rate",
            "Attack success rate",
            percent,
            "of the triggered test samples get the attacker's label; lower is better",
        ),
        ("isolation_precision", "Isolation precision", percent, "of the isolated samples are poisoned"),
        ("isolation_recall", "Isolation recall", percent, "of the poisoned samples are isolated"),
        ("recovered_label_precision", "Recovered labels", percent, "of the recovered labels are right"),
        ("seconds", "Time", duration, ""),
    ]
    numbers = []
    for key, name, show, note in formats:
        value = _number(metrics, key)
        if value is None or (key in _OF_ISOLATION and not _judges(metrics)):
            continue
        if key == "n_isolated":
            note = note if "clean_accuracy" in metrics or "epochs" in metrics else "suspected"
            note = f"{percent(value / n_samples)} of the samples, {note}" if value and n_samples else note
        if key == "estimated_poisoning_rate":
            low, high = (_number(metrics, f"{key}_{end}") for end in ("low", "high"))
            if low is None or high is None:
                continue
            note = f"95% interval {percent(low)} to {percent(high)}, if no poison was missed"
        if key == "false_alarm_probability" and not metrics.get("poisoned"):
            continue
        numbers.append(KeyNumber(name, show(value), note))
    labels = suspected_labels(metrics)
    if labels:
        name = "Target labels" if len(labels) > 1 else "Target label"
        shown = ", ".join(printable(label, 40) for label in labels[:3]) + (" …" if len(labels) > 3 else "")
        numbers.insert(min(3, len(numbers)), KeyNumber(name, shown, "what the suspected trigger leads to"))
    return numbers


def _tested_on(metrics: Facts) -> str:
    """On which samples the accuracy was measured."""
    split = metrics.get("test_split", "test")
    n_test = _number(metrics, "n_test")
    if split in ("train", "all") and _number(metrics, "n_test_copies") == 0:
        which = "the training split" if split == "train" else "all"
        return f"on {which} of the given data; the model may have been trained on them"
    left_out = sum(_number(metrics, key) or 0 for key in ("n_test_copies", "n_test_conflicting"))
    size = "" if n_test is None else f"{count(n_test - left_out)} "
    return f"on {size}test samples that the model was not trained on"


def comparison_headline(runs: Sequence[tuple[str, Facts]]) -> str:
    """What the last run changed against the first, in one sentence; empty if the numbers are not known."""
    if len(runs) < 2:
        return ""
    (first, before), (last, after) = runs[0], runs[-1]
    sentences = []
    for key, what in (("attack_success_rate", "The attack success rate"), ("clean_accuracy", "Clean accuracy")):
        old, new = _number(before, key), _number(after, key)
        if old is None or new is None:
            continue
        sentences.append(f"{what} is {percent(old)} with {quoted(first)} and {percent(new)} with {quoted(last)}.")
    return " ".join(sentences)


def suspected_labels(metrics: Facts) -> list[str]:
    """Names of the labels that the metrics of a run suspect."""
    labels = metrics.get("target_labels")
    return [str(label) for label in labels if label is not None] if isinstance(labels, list) else []


def _listing(names: Sequence[str], limit: int = 5) -> str:
    shown = [quoted(name) for name in names[:limit]]
    if len(names) > limit:
        shown.append(f"{len(names) - limit} more")
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"


def _how_many(metrics: Facts) -> str:
    """`5,003 of 50,000 samples (10.0%)`, or as much of it as is known."""
    isolated, total = _number(metrics, "n_isolated"), _number(metrics, "n_samples")
    if isolated is None:
        return "Some samples"
    if not total:
        return f"{count(isolated)} samples"
    return f"{count(isolated)} of {count(total)} samples ({percent(isolated / total)})"


def _what_was_found(metrics: Facts, labels: Sequence[str]) -> list[str]:
    """What the isolated samples have in common: a shortcut, or the content of other labels, seen late."""
    named = f" label{'s' if len(labels) > 1 else ''} {_listing(labels)}" if labels else ""
    late = int(_number(metrics, "n_found_late") or 0)
    if not late:
        return [f"{_how_many(metrics)} carry a shortcut{' to the' + named if named else ''}."]
    everyone = late >= (_number(metrics, "n_isolated") or 0)
    who = _how_many(metrics) if everyone else f"{count(late)} of them"
    found = [] if everyone else [f"{_how_many(metrics)} stand out{' within the' + named if named else ''}."]
    return [
        *found,
        f"{who}{' with the' + named if everyone and named else ''} look like samples of other labels to a network "
        "that knows the classes: poisoned with a trigger that is hard to see, or mislabeled. "
        "Training was restarted without them.",
    ]


def _what_it_is_worth(metrics: Facts) -> list[str]:
    """How rare such evidence is among clean data, what planted backdoors show of the method's sight, and copies."""
    sentences = []
    chance = _number(metrics, "false_alarm_probability")
    if chance is not None and metrics.get("poisoned"):
        sentences.append(f"The probability of evidence this strong in clean data is {percent(chance)}.")
    if _number(metrics, "n_planted_rates"):
        visible = _number(metrics, "smallest_visible_rate")
        sentences.append(
            "To test the scan itself, patches were planted in a copy of these data. Not even the most frequent one was "
            "found, so a scan without findings means nothing here."
            if visible is None
            else "To test the scan itself, patches were planted in a copy of these data. They were found from "
            f"{percent(visible)} of the samples up; rarer or softer triggers may have been missed."
        )
    copies = _number(metrics, "n_copies")
    if copies:
        sentences.append(
            f"Exact copies of other samples with the same label ({count(copies)} here) get the same verdict and add no "
            "evidence."
        )
    return sentences


def _what_was_done(metrics: Facts, who: str = "") -> list[str]:
    isolated, relabeled = _number(metrics, "n_isolated"), _number(metrics, "n_relabeled")
    if "epochs" not in metrics:
        return ["This scan delivers no model; train on these data to get one."] if isolated else []
    if not isolated:
        return []
    done = [
        f"{who} were kept out of training."
        if who
        else f"As a precaution, the most suspicious ones, {_how_many(metrics)}, were kept out of training."
    ]
    if relabeled:
        done.append(f"{count(relabeled)} of them returned under the label that the rest of the data suggests.")
    cleaned = _number(metrics, "n_cleaned")
    if cleaned:
        done.append(
            f"{count(cleaned)} of them fit their label, as far as the model can tell, and returned with the suspected "
            "trigger removed."
        )
    return done


def _number(metrics: Facts, key: str) -> float | None:
    value = metrics.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)
