from __future__ import annotations

import json
import re
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn

from antibackdoor.data.samples import Samples
from antibackdoor.errors import RunError
from antibackdoor.protocols import ISOLATED, KEPT, NO_CRITERION, RELABELED, SCORE, Verdict
from antibackdoor.report import Gallery, load_gallery, save_gallery, write_comparison, write_report
from antibackdoor.report.figures import class_bars, loss_figure, score_figure, training_figures
from antibackdoor.report.svg import Rule, chart, count_axis, linear_axis, sparkline, step_axis, step_position
from antibackdoor.report.words import comparison_headline, duration, key_numbers, percent, printable, quoted, verdict
from antibackdoor.runs.artifacts import read_metrics, write_history
from antibackdoor.runs.model_file import ModelSpec, save_model
from antibackdoor.runs.run_folder import RunFolder
from antibackdoor.runs.samples_table import SamplesTable, write_samples_table
from antibackdoor.statistics.difference import difference
from antibackdoor.training.history import LossHistory

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
HOSTILE = [
    "<script>alert(1)</script>",
    "</script></style></svg><img src=x onerror=alert(1)>",
    "\"'><b onmouseover=alert(1)>",
    "\u202egnp.exe\u2066",
    "caf\udce9\x00\x1b[31m\n\r",
    "x" * 4000,
    "{{ 7*7 }}{% raw %}",
    "../../etc/passwd&lt;",
    "القط",
    "javascript:alert(1)",
]


def fake_samples(n: int, kind: str, class_names: list[str], is_poisoned: np.ndarray, seed: int = 0) -> Samples:
    """Blurred color patches with a bright corner, or waves with a spike."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, len(class_names), n)
    labels[is_poisoned] = 0
    inputs: Any
    if kind == "image":
        coarse = rng.integers(30, 220, (n, 3, 4, 4)).astype(np.uint8)
        inputs = coarse.repeat(8, axis=2).repeat(8, axis=3)
        inputs[is_poisoned, :, -4:-1, -4:-1] = np.array([[255, 0, 255], [0, 255, 0], [255, 0, 255]], dtype=np.uint8)
    else:
        time_axis = np.linspace(0, 12, 300)
        phase = rng.random((n, 2, 1)) * 6
        inputs = (np.sin(time_axis + phase) + 0.1 * rng.standard_normal((n, 2, 300))).astype(np.float32)
        inputs[is_poisoned, :, 40:46] += 3
    ids = np.array([f"train/{class_names[label % len(class_names)]}/{i:05d}.png" for i, label in enumerate(labels)])
    return Samples(inputs, labels, ids, np.array(class_names))


def fake_history(is_poisoned: np.ndarray, n_classes: int, moments: int = 30) -> LossHistory:
    """Poisoned samples are learned within an epoch or two, the others over all the training."""
    rng = np.random.default_rng(1)
    n = len(is_poisoned)
    speed = np.where(is_poisoned, 1.2, 0.09) * rng.lognormal(0, 0.6, n)
    epochs = np.arange(moments)[:, None]
    losses = np.log(n_classes) * np.exp(-speed * epochs) * rng.lognormal(0, 0.1, (moments, n)) + 0.004
    return LossHistory(losses.astype(np.float32), np.arange(moments, dtype=np.int64) * 391)


def judged(suspicion: np.ndarray, suggested: np.ndarray, isolated: np.ndarray, relabeled: np.ndarray) -> Verdict:
    """What a method with a score would say."""
    return Verdict(
        suspicion=suspicion,
        status=np.where(relabeled, RELABELED, np.where(isolated, ISOLATED, KEPT)).astype(np.uint8),
        suggested_label=suggested,
        criterion=np.where(isolated, SCORE, NO_CRITERION).astype(np.uint8),
    )


def fake_run(
    path: Path, *, n: int = 2000, kind: str = "image", class_names: list[str] = CLASSES, poisoned: bool = True
) -> Path:
    rng = np.random.default_rng(2)
    is_poisoned = rng.random(n) < (0.1 if poisoned else 0)
    small = fake_samples(min(n, 2000), kind, class_names, is_poisoned[:2000])
    labels = np.resize(small.labels, n)
    ids = np.resize(small.ids, n)
    suspicion = rng.normal(1, 0.4, n) + 3.2 * is_poisoned
    isolated = suspicion > 2.6
    history = fake_history(is_poisoned, len(class_names))
    suggested = np.where(isolated, (labels + 3) % len(class_names), labels)
    mean, std = (0.5,) * small.shape[0], (0.2,) * small.shape[0]
    spec = ModelSpec("resnet18", small.kind, small.shape, tuple(class_names), mean, std, None, "dual-head", "0.1.0")
    command = ["antibackdoor", "train", "data/my photos", "--defense", "dual-head", "--name", class_names[0]]
    settings = {
        "hyper_parameters": {"name": "dual-head", "warmup_epochs": 5, "rates": [0.05, 0.1]},
        "seed": 0,
        "device": None,
    }
    with RunFolder.create(path, settings, command=command) as run:
        for epoch in range(1, 31):
            phase = "warm-up" if epoch <= 5 else "two heads" if epoch <= 24 else "fine-tuning"
            loss = 2.3 * 0.9**epoch
            run.log(phase=phase, epoch=epoch, loss=loss, train_accuracy=1 - 0.9 * 0.9**epoch, seconds=12.5)
        save_model(path, nn.Linear(2, 2), spec)
        write_history(path, history)
        write_samples_table(
            path,
            SamplesTable(
                ids=ids,
                given_label=labels,
                class_names=np.array(class_names),
                verdict=judged(suspicion, suggested, isolated, isolated & (suspicion > 3)),
                prediction=suggested,
                confidence=np.full(n, 0.9),
            ),
        )
        save_gallery(path, small, np.argsort(-suspicion[: len(small)]), isolated[: len(small)])
        run.finish(
            {
                "n_samples": n,
                "n_isolated": int(isolated.sum()),
                "n_relabeled": int((isolated & (suspicion > 3)).sum()),
                "poisoned": poisoned,
                "target_labels": class_names[:1] if poisoned else [],
                "method": "dual-head",
                "epochs": 30,
                "clean_accuracy": 0.9312,
                "attack_success_rate": 0.0121,
                "isolation_precision": 0.981,
                "isolation_recall": 0.9996,
                "seconds": 4385.0,
                "seed": 0,
            }
        )
    return path


class Auditor(HTMLParser):
    """Collects what a browser would run or fetch, and checks that the tags are balanced."""

    VOID = frozenset({"meta", "img"})

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str]] = []
        self.open: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in self.VOID and not self.get_starttag_text().endswith("/>"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if not (self.get_starttag_text() or "").endswith("/>") or self.open[-1:] == [tag]:
            assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def audit(path: Path) -> Auditor:
    """The page must hold nothing that runs, fetches or breaks out of its place."""
    html = path.read_bytes().decode("utf-8")
    auditor = Auditor()
    auditor.feed(html)
    auditor.close()
    assert auditor.open == []
    assert auditor.tags.isdisjoint({"script", "link", "iframe", "object", "embed", "form", "a", "b", "base"})
    for name, value in auditor.attributes:
        assert not name.startswith("on")
        assert name not in ("href", "xlink:href", "srcset")
        assert name != "src" or value.startswith("data:image/png;base64,")
    assert re.search(r"url\(|@import|https?:", html) is None
    assert html.count("default-src 'none'") == 1
    return auditor


@pytest.mark.parametrize("kind", ["image", "series"])
def test_report_is_complete_and_self_contained(tmp_path: Path, kind: str) -> None:
    path = write_report(fake_run(tmp_path / "run", kind=kind))
    assert path == tmp_path / "run" / "report.html"
    text = " ".join(" ".join(audit(path).text).split())
    for phrase in (
        "This data set is very probably poisoned.",
        "carry a shortcut to the label ‘\u2068airplane\u2069’",
        "93.1%",
        "1 h 13 min",
        "How fast the samples are learned",
        "The 48 most suspicious samples",
        "Accuracy in training",
        "antibackdoor train 'data/my photos'",
        "hyper_parameters.warmup_epochs",
        "resnet18",
    ):
        assert phrase in text, phrase
    assert str(tmp_path) not in text
    assert path.stat().st_size < 400_000


def test_report_of_the_same_run_is_the_same(tmp_path: Path) -> None:
    run = fake_run(tmp_path / "run", n=300)
    first = write_report(run).read_bytes()
    assert write_report(run).read_bytes() == first
    moved = run.rename(tmp_path / "elsewhere")
    renamed = re.sub(rb"(<h1><bdi>|<title>|antibackdoor (?:review|export|predict) )run\b", rb"\1elsewhere", first)
    assert write_report(moved).read_bytes() == renamed


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    for number, first in enumerate(HOSTILE):
        names = [first, *(name for name in HOSTILE if name != first)]
        names = [name.replace("\x00", "") for name in names]
        run = fake_run(tmp_path / f"<img src=x>{number}", n=200, class_names=names)
        html = write_report(run).read_text(encoding="utf-8")
        audit(run / "report.html")
        assert "\u202e" not in html
        assert "x" * 2000 not in html
        assert "49" not in re.findall(r"‘\u2068(.*?)\u2069’", html)
        write_comparison(tmp_path / "both.html", [(first, run), (first, run)])
        audit(tmp_path / "both.html")


def test_a_million_samples_stay_small_and_quick(tmp_path: Path) -> None:
    n = 1_000_000
    run = tmp_path / "run"
    rng = np.random.default_rng(0)
    suspicion = rng.random(n)
    labels = rng.integers(0, 200, n)
    with RunFolder.create(run, {}):
        names = np.array([f"class {k}" for k in range(200)])
        flags = suspicion > 0.95
        ids = np.arange(n).astype(np.str_)
        verdict = judged(suspicion, labels, flags, flags)
        write_samples_table(run, SamplesTable(ids, labels, names, verdict, labels, suspicion))
        losses = rng.random((4, n), dtype=np.float32)
        write_history(run, LossHistory(losses, np.arange(4, dtype=np.int64)))
    start = time.perf_counter()
    path = write_report(run)
    assert time.perf_counter() - start < 5
    assert path.stat().st_size < 200_000
    assert "170 other classes" in path.read_text(encoding="utf-8")


def test_report_of_an_unfinished_or_empty_run(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path / "run", {"seed": 0}) as run:
        text = write_report(run.path).read_text(encoding="utf-8")
        assert "This run is not finished." in text
        run.log(phase="a", epoch=1, loss=2.0)
        write_report(run.path)
        run.finish({})
        assert "no verdict" in write_report(run.path).read_text(encoding="utf-8")
    audit(run.path / "report.html")
    with pytest.raises(RunError, match="holds no run"):
        write_report(tmp_path)


def test_history_of_other_samples_is_refused(tmp_path: Path) -> None:
    run = fake_run(tmp_path / "run", n=200)
    write_history(run, LossHistory.start(3, 10))
    with pytest.raises(RunError, match="its checksum is not the one"):
        write_report(run)
    (run / "checksums.json").unlink()
    with pytest.raises(RunError, match="losses of 3 samples, but"):
        write_report(run)


def test_comparison_puts_runs_side_by_side(tmp_path: Path) -> None:
    plain = tmp_path / "undefended"
    with RunFolder.create(plain, {}) as run:
        run.finish({"clean_accuracy": 0.94, "attack_success_rate": 0.9987})
    defended = fake_run(tmp_path / "defended", n=300)
    out = tmp_path / "comparison.html"
    write_comparison(out, [("Undefended", plain), ("DualHead", defended)])
    text = " ".join(" ".join(audit(out).text).split())
    assert "attack success rate is 99.9% with ‘\u2068Undefended\u2069’ and 1.2%" in text
    assert text.index("Undefended") < text.index("very probably poisoned")
    with pytest.raises(RunError, match="no run to compare"):
        write_comparison(out, [])


def test_gallery_comes_back_bounded(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)

    def samples_of(inputs: np.ndarray) -> Samples:
        n = len(inputs)
        return Samples(inputs, np.zeros(n, np.int64), np.arange(n).astype(np.str_), np.array(["a"]))

    rows = np.arange(60)[::-1].copy()
    for shape, dtype, expected in (
        ((60, 1, 28, 28), np.uint8, (48, 1, 28, 28)),
        ((60, 3, 300, 150), np.uint8, (48, 3, 128, 64)),
        ((60, 5, 8, 8), np.float32, (48, 3, 8, 8)),
        ((60, 7, 900), np.float32, (48, 4, 256)),
    ):
        inputs = (rng.random(shape) * (255 if dtype is np.uint8 else 1)).astype(dtype)
        save_gallery(tmp_path, samples_of(inputs), rows, np.zeros(60, dtype=bool))
        gallery = load_gallery(tmp_path)
        assert isinstance(gallery, Gallery)
        assert gallery.inputs.shape == expected
        assert gallery.rows.tolist() == rows[:48].tolist()
    assert load_gallery(tmp_path / "no") is None
    for damage in (b"", b"PK nonsense", b"\x80\x02K\x01."):
        (tmp_path / "gallery.npz").write_bytes(damage)
        with pytest.raises(RunError, match="damaged"):
            load_gallery(tmp_path)
    np.savez(tmp_path / "gallery.npz", inputs=np.array([{"evil": 1}], dtype=object), rows=np.zeros(1, np.int64))
    with pytest.raises(RunError, match="damaged"):
        load_gallery(tmp_path)


@pytest.mark.parametrize("kind", ["uint8", "float", "series"])
def test_what_isolated_samples_have_in_common(tmp_path: Path, kind: str) -> None:
    rng = np.random.default_rng(0)
    shape = (400, 3, 64) if kind == "series" else (400, 3, 16, 16)
    inputs = rng.random(shape) * 0.3 + np.repeat(rng.random((4, *shape[1:])), 100, axis=0) * 0.3
    isolated = rng.random(400) < 0.2
    inputs[isolated, ..., -3:] += 0.3
    inputs = (255 * inputs).astype(np.uint8) if kind == "uint8" else inputs.astype(np.float32)
    names, labels = np.array(["a", "b"]), np.arange(400, dtype=np.int64) % 2
    samples = Samples(inputs, labels, np.arange(400).astype(np.str_), names)
    change = difference(samples, isolated, ~isolated)
    assert change is not None
    found = change.mean
    assert found.shape == shape[1:]
    assert abs(found[..., -3:].mean() - 0.3) < 0.05 and abs(found[..., :-3].mean()) < 0.05
    assert difference(samples, isolated & (isolated.cumsum() < 5), ~isolated) is None
    save_gallery(tmp_path, samples, np.arange(400), isolated)
    gallery = load_gallery(tmp_path)
    assert gallery is not None and gallery.difference is not None
    np.testing.assert_allclose(gallery.difference, found)


def test_verdict_words() -> None:
    metrics = {"poisoned": True, "n_samples": 50_000, "n_isolated": 5003, "n_relabeled": 4000, "epochs": 20}
    metrics |= {"target_labels": ["airplane"]}
    found = verdict(metrics)
    assert found.status == "poisoned"
    assert found.sentences == (
        "5,003 of 50,000 samples (10.0%) carry a shortcut to the label ‘\u2068airplane\u2069’.",
        "They were kept out of training.",
        "4,000 of them returned under the label that the rest of the data suggests.",
    )
    cleaned = verdict({**metrics, "n_relabeled": 0, "n_cleaned": 1200}).sentences[-1]
    assert cleaned.startswith("1,200 of them fit their label")
    assert verdict({**metrics, "poisoned": False}).status == "quiet"
    assert "not prove that the data are clean" in verdict({"poisoned": False}).sentences[0]
    assert verdict({}).status == verdict(None).status == "open"
    many = verdict({"poisoned": True, "target_labels": list("abcdefg")}).sentences[0]
    assert many.startswith("Some samples carry a shortcut to the labels") and many.endswith("and 2 more.")
    assert verdict({"poisoned": True}).sentences == ("Some samples carry a shortcut.",)


def test_verdict_words_of_older_metrics(tmp_path: Path) -> None:
    """Files without a schema version name one label, or several, under other keys, and need not say `poisoned`."""
    facts = {"n_samples": 50_000, "n_isolated": 5003, "n_recovered": 4000, "n_returned": 0, "epochs": 20}
    for old, said in (
        ({"backdoor_label": "airplane"}, "carry a shortcut to the label ‘\u2068airplane\u2069’."),
        ({"backdoor_labels": ["a", "b"], "backdoor_label": "a"}, "to the labels ‘\u2068a\u2069’ and ‘\u2068b\u2069’."),
        ({"backdoor_label": None}, "not prove that the data are clean"),
    ):
        (tmp_path / "metrics.json").write_text(json.dumps({**facts, **old}))
        found = verdict(read_metrics(tmp_path))
        assert said in found.sentences[0]
    (tmp_path / "metrics.json").write_text(json.dumps({**facts, "backdoor_label": "airplane"}))
    assert "4,000 of them returned" in verdict(read_metrics(tmp_path)).sentences[-1]


def test_what_the_late_look_found_is_no_shortcut() -> None:
    facts = {"poisoned": True, "target_labels": ["cat"], "n_samples": 1000, "n_isolated": 50}
    late = " ".join(verdict({**facts, "n_found_late": 50}).sentences)
    assert late.startswith(
        "50 of 1,000 samples (5.0%) with the label ‘\u2068cat\u2069’ look like samples of other labels"
    )
    assert "shortcut" not in late and "mislabeled" in late
    both = " ".join(verdict({**facts, "n_found_late": 20}).sentences)
    out, late = both.split(". ")[:2]
    assert out == "50 of 1,000 samples (5.0%) stand out within the label ‘\u2068cat\u2069’"
    assert late.startswith("20 of them look like")
    assert "look like" not in " ".join(verdict({**facts, "n_found_late": 0}).sentences)


def test_the_verdict_tells_of_copies() -> None:
    facts = {"poisoned": False, "n_samples": 1000, "n_isolated": 0}
    assert "(1,150 here) get the same verdict" in verdict({**facts, "n_copies": 1150}).sentences[-1]
    assert "copies" not in " ".join(verdict({**facts, "n_copies": 0}).sentences)


@pytest.mark.parametrize("junk", ["text", None, True, [], [1]])
def test_words_survive_junk(junk: Any) -> None:
    names = ("n_samples", "n_isolated", "clean_accuracy", "target_labels", "poisoned", "n_planted_rates", "method")
    metrics = dict.fromkeys(names, junk)
    verdict(metrics)
    key_numbers(metrics)
    comparison_headline([("a", metrics), ("b", metrics)])


def test_numbers_in_words() -> None:
    assert [percent(x) for x in (0, 0.0004, 0.1, 0.9996, 1)] == ["0%", "<0.1%", "10.0%", ">99.9%", "100%"]
    assert [duration(x) for x in (1.26, 42, 725, 1200, 12_000)] == [
        "1.3 s",
        "42 s",
        "12 min 5 s",
        "20 min",
        "3 h 20 min",
    ]
    assert printable("a\u202eb\n\udce9") == "a\\u202eb\\n\\udce9"
    assert printable("a" * 100, 10) == "aaaaaa…aaa"
    assert quoted("x") == "‘\u2068x\u2069’"


def test_axes_have_round_ticks() -> None:
    assert [text for _, text in linear_axis("", 0, 1, as_percent=True).ticks] == [
        "0%",
        "20%",
        "40%",
        "60%",
        "80%",
        "100%",
    ]
    assert [text for _, text in linear_axis("", 0, 2.37).ticks] == ["0.0", "0.5", "1.0", "1.5", "2.0"]
    assert len(linear_axis("", 3, 3).ticks) > 1
    assert [text for _, text in count_axis("", 4321).ticks] == ["1", "10", "100", "1k", "10k"]
    steps = np.arange(100.0) * 391
    assert step_position(np.array([0.0]), steps) == 0
    texts = [text for _, text in step_axis("", steps).ticks]
    assert texts[0] == "0" and "10k" in texts


def test_figures_of_odd_data() -> None:
    nobody, everybody = np.zeros(5, dtype=np.bool_), np.ones(5, dtype=np.bool_)
    losses = np.array([1, 2, np.nan, np.inf, 3], dtype=np.float32)
    for mask in (nobody, everybody):
        figure = loss_figure([(0, losses), (10, losses)], mask)
        assert figure is not None and "nan" not in figure.svg and "inf" not in figure.svg.lower()
        assert loss_figure([(0, losses)], mask) is not None
        assert score_figure(np.zeros(5), mask, "suspicion") is not None
    assert loss_figure([], nobody) is None
    assert score_figure(np.full(5, np.nan), nobody, "margin") is None
    for value in (0.0, 1e17, -1e-300):
        close = np.array([value, np.nextafter(value, 2 * value + 1), value, value, value])
        assert score_figure(close, nobody, "margin")
    assert "nan" not in sparkline(np.full((1, 3), np.nan, dtype=np.float32))
    assert training_figures([]) == training_figures([{"epoch": 1, "loss": None}]) == []
    assert len(training_figures([{"phase": "x", "epoch": i, "loss": -1.0} for i in range(5000)])) == 1


def test_losses_of_the_isolated_stand_beside_those_of_their_label() -> None:
    isolated, suspected = np.arange(40) < 10, np.arange(40) < 20
    isolated_losses = np.array([2.0, 3.0, 0.1, 0.1])  # by moment; together, above, apart, apart
    moments = [
        (100 * i, np.where(isolated, loss, np.where(suspected, 1.0, 5.0)).astype(np.float32))
        for i, loss in enumerate(isolated_losses)
    ]
    figure = loss_figure(moments, isolated, suspected)
    assert figure is not None
    assert [name for _, name in figure.legend] == [
        "isolated (10)",
        "others of the suspected labels (10)",
        "others (20)",
    ]
    said = "From step 200 on, half of the isolated samples have a smaller loss than nine tenths of the others"
    assert f"{said} of their label." in figure.caption
    assert ">apart</text>" in figure.svg and "same label 1" in figure.svg
    without = loss_figure(moments, isolated)
    assert without is not None
    assert [name for _, name in without.legend] == ["isolated (10)", "others (30)"]
    assert f"{said}." in without.caption
    again_together = loss_figure([*moments, (400, moments[0][1])], isolated, suspected)
    assert again_together is not None
    assert ">apart</text>" not in again_together.svg and "nine tenths" not in again_together.caption


def test_the_text_of_a_rule_stays_inside() -> None:
    axis = linear_axis("x", 0, 1)
    left, right = (chart("c", axis, axis, [Rule(x, "here")]) for x in (0.0, 1.0))
    assert 'class="rule end"' in right and 'class="rule end"' not in left


def test_class_bars_count_by_hand() -> None:
    given = np.array([0, 0, 0, 0, 1, 1, 2, 7])
    isolated = np.array([1, 1, 0, 0, 0, 1, 0, 1], dtype=np.bool_)
    bars = class_bars(given, isolated, ["a", "b", "c", "empty"], ["a"])
    assert [(bar.name, bar.share, bar.numbers, bar.marked) for bar in bars] == [
        ("a", 0.5, "2 of 4 (50.0%)", True),
        ("b", 0.5, "1 of 2 (50.0%)", False),
        ("c", 0.0, "0 of 1 (0%)", False),
    ]


@pytest.mark.parametrize(("n_isolated", "note"), [(0, "suspected"), (5, "5.0% of the samples, suspected")])
def test_a_scan_keeps_nothing_from_a_model(n_isolated: int, note: str) -> None:
    metrics = {"method": "confusion", "poisoned": n_isolated > 0, "n_samples": 100, "n_isolated": n_isolated}
    numbers = key_numbers(metrics)
    assert next(number.note for number in numbers if number.name == "Isolated") == note
