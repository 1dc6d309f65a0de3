"""Flags of the command line, and calls from Python, with odd values."""

from __future__ import annotations

import typing
from collections.abc import Callable, Mapping
from typing import Any, get_type_hints

import numpy as np

from .case import PLAIN, TRAIN, Box, Case, Table, Wrong
from .material import waves

_NUMBERS = ("-1", "0", "1", "-0", "0.5", "-0.5", "1.5", "1e308", "-1e308", "1e-320", "nan", "inf", "-inf", "1e400",
"10" * 20, str(2**31),
            str(2**63), str(2**64), "0x10", "١", "1_000", "", " ", "x", "1,2", "None", "true", "1e3", "-" * 50,
            "9" * 5000)  # fmt: skip
_WORDS = ("", " ", "x", "None", "-1", "../x", "/", "a" * 5000, "é", "\x1b[2J", "a\nb", "none", "auto", "auto,auto",
",", "os:system", "$(id)",
          "subprocess:call", "builtins:eval", "0", "*", "%s", "cuda:99", "meta", "nan")  # fmt: skip
# A large number here only makes a long run, which is what was asked for.
_LASTING = (
    "epoch",
    "step",
    "pass",
    "round",
    "iteration",
    "quer",
    "generation",
    "devices",
    "restart",
    "warmup",
    "n_models",
    "population",
)
_QUICK = {
    "poison": ("badnets", "blend", "sig", "wanet", "refool", "tact", "adaptive_blend", "static", "powerline",
    "physical", "feature_collision"),
    "train": ("none", "retrain"),
    "scan": ("spectral", "activation-clustering", "scan"),
    "purify": ("clp", "fine-tune", "fine-prune", "nad"),
}  # fmt: skip


def _kind(command: str, name: str) -> type[Any]:
    from antibackdoor.attacks import ATTACKS
    from antibackdoor.defenses import DEFENSES
    from antibackdoor.detectors import DETECTORS
    from antibackdoor.purifiers import PURIFIERS

    table: Mapping[str, Any] = {"poison": ATTACKS, "train": DEFENSES, "scan": DETECTORS, "purify": PURIFIERS}[command]
    return typing.cast(type[Any], table[name])


def _base(box: Box, command: str, name: str) -> list[object]:
    """A command that works, before one flag is changed."""
    pics = box.copy("pics")
    if command == "poison":
        from antibackdoor.attacks import ATTACKS

        data = pics if "image" in ATTACKS[name].kinds else box.copy("waves.npz")
        return ["poison", data, "--out", "new", "--attack", name, "--rate", "0.2"]
    if command == "train":
        return ["train", pics, "--out", "new", "--defense", name, *TRAIN]
    if command == "scan":
        return [
            "scan",
            pics,
            "--out",
            "new",
            "--detector",
            name,
            "--checkpoint",
            box.copy("run", writable=True),
            *TRAIN[2:],
        ]
    words = TRAIN[2:] if name == "clp" else TRAIN
    return ["purify", box.copy("run", writable=True), "--clean", pics, "--out", "new", "--method", name, *words]


def _fields(kind: type[Any]) -> list[tuple[str, Any]]:
    from antibackdoor.cli.flags import flat_fields

    return [(name, get_type_hints(owner)[name]) for name, (owner, _) in flat_fields(kind).items()]


def _lasts(name: str) -> bool:
    return any(part in name for part in _LASTING)


def _value(box: Box, name: str, hint: Any) -> str:
    if hint in (int, float) or "int" in str(hint) or "float" in str(hint):
        return str(box.pick("-1", "0", "-0.5", "nan", "x", "", "0.5") if _lasts(name) else box.pick(*_NUMBERS))
    return str(box.pick(*_WORDS))


def flag_of_a_method(box: Box) -> Case:
    """One flag of a method has an odd value."""
    command = box.pick("poison", "poison", "train", "scan", "purify")
    name = box.pick(*_QUICK[command])
    fields = _fields(_kind(command, name))
    words = _base(box, command, name)
    if fields:
        flag, hint = fields[int(box.rng.integers(len(fields)))]
        words.append(f"--{flag.replace('_', '-')}={_value(box, flag, hint)}")
    return Case(words, may_run_out=True, about=str(words[-1])[:80])


def flag_of_the_recipe(box: Box) -> Case:
    """One flag of the recipe has an odd value."""
    from antibackdoor.training.recipe import Recipe

    words = _base(box, "train", "none")
    flag, hint = box.pick(*_fields(Recipe))
    value = _value(box, flag, hint)
    words.append(f"--{flag.replace('_', '-')}={value}")
    return Case(words, may_run_out=True, about=f"{flag}={value[:50]!a}")


_COMMON = {
    "poison": ("rate", "cover-rate", "target-label", "source-label", "seed", "test-fraction", "attack"),
    "train": ("test-fraction", "image-size", "backbone", "model", "defense", "verdict", "test", "seed"),
    "scan": ("image-size", "detector", "clean", "seed"),
    "purify": ("mean", "std", "method", "test", "teacher", "seed", "classes"),
    "evaluate": ("split", "device", "truth", "trigger", "on-error", "model"),
    "predict": ("device", "on-error", "out"),
    "compare": ("methods", "seeds", "test-fraction", "truth", "trigger", "image-size"),
}  # fmt: skip


def flag_of_a_command(box: Box) -> Case:
    """One flag of a command has an odd value."""
    command = box.pick(*sorted(_COMMON))
    flag = box.pick(*_COMMON[command])
    if command == "evaluate":
        words: list[object] = ["evaluate", box.copy("run", writable=True), "--data", box.copy("pics"), "--split", "all"]
    elif command == "predict":
        words = ["predict", box.copy("run", writable=True), box.copy("pics")] + (
            [] if flag == "out" else ["--out", "said.csv"]
        )
    elif command == "compare":
        words = ["compare", box.copy("pics"), "--out", "new", "--backbone", "wrn-10-1", *TRAIN]
        words += [] if flag == "methods" else ["--methods", "none"]
    else:
        words = _base(box, command, _QUICK[command][0])
    value = (
        box.pick("-1", "0", "x", "", "1e9", "none,none")
        if flag in ("seeds", "methods")
        else box.pick(*_NUMBERS[:24], *_WORDS)
    )
    return Case([*words, f"--{flag}={value}"], about=f"{flag}={value[:50]!a}")


def words_of_a_command(box: Box) -> Case:
    """One word of a command is missing, doubled, unknown, or in another place."""
    command = box.pick(*sorted(_QUICK))
    words = _base(box, command, _QUICK[command][0])
    kind, place = int(box.rng.integers(6)), int(box.rng.integers(len(words)))
    if kind == 0:
        del words[place]
    elif kind == 1:
        words.insert(place, words[place])
    elif kind == 2:
        words.insert(
            place,
            box.pick(
                "--",
                "-x",
                "--unknown",
                "--help",
                "--version",
                "",
                "-",
                "--no-resume",
                "@file",
                "--out",
                "--resume=x",
                "\x00x",
            ),
        )
    elif kind == 3:
        words = words[:place]
    elif kind == 4:
        words = words[::-1]
    else:
        words[place] = box.pick(*_WORDS)
    if "\0" in "".join(map(str, words)):
        words = ["train"]
    return Case(words, about=f"kind {kind}")


def paths_of_a_command(box: Box) -> Case:
    """Paths that exist already, lie in each other, or cannot be."""
    pics, run = box.copy("pics"), box.copy("run", writable=True)
    (box.work / "file").write_text("x")
    (box.work / "folder").mkdir()
    (box.work / "folder" / "mine.txt").write_text("x")
    path = box.pick(
        "file", "folder", "run", pics, pics / "class0", pics / "new", "a" * 300, "file/x", "/dev/null", "", ".", "..",
        "new/a/b/c", box.outside / "precious.txt", "a\nb", "\x1b[2J", "é", "-x", "~", "run/model.safetensors",
    )  # fmt: skip
    command: tuple[object, ...] = box.pick(
        ("train", pics, "--out", path, *PLAIN), ("poison", pics, "--out", path, "--rate", "0.2"),
        ("predict", run, pics, "--out", path),
        ("predict", run, path, "--out", "said.csv"), ("report", path), ("evaluate", path, "--data", pics),
        ("evaluate", run, "--data", path),
        ("train", path, "--out", "new", *PLAIN), ("compare", pics, "--methods", "none", "--out", path, *TRAIN),
        ("demo", "--out", path, "--epochs", "-1"),
        ("train", pics, "--out", "new", "--cache", path, *PLAIN),
        ("scan", pics, "--out", "new", "--detector", "spectral", "--checkpoint", path, *TRAIN[2:]),
        ("train", pics, "--out", "new", "--defense", "retrain", "--verdict", path, *TRAIN),
        ("train", pics, "--out", "new", "--test", path, *PLAIN),
    )  # fmt: skip
    return Case(
        command,
        keep=("file", "folder/mine.txt", *(f"run/{name}" for name in ("model.safetensors", "config.json"))),
        about=ascii(path)[:60],
    )


def backbones_that_run_code(box: Box) -> Case:
    """`--backbone module:factory`, and a factory for a run of a built-in network: no code is run."""
    (box.work / "canary.py").write_text("open('../outside/new.txt', 'w')\n")
    run, pics = box.copy("run", writable=True), box.copy("pics")
    name = box.pick("os:system", "os:abort", "builtins:exec", "canary:factory", "subprocess:run")
    if box.chance(0.3):
        model = (run / "model.json").read_text().replace('"wrn-10-1"', f'"{name}"')
        (run / "model.json").write_text(model)
    built_in = "wrn-10-1" in (run / "model.json").read_text()
    command: tuple[object, ...] = box.pick(
        ("train", pics, "--out", "new", "--backbone", name, *PLAIN),
        ("evaluate", run, "--data", pics, "--split", "all"),
        ("predict", run, pics, "--out", "said.csv"), ("report", run),
        ("purify", run, "--clean", pics, "--out", "new", *TRAIN),
        ("purify", box.copy("weights.pt"), "--clean", pics, "--out", "new", "--backbone", name, *TRAIN),
    )  # fmt: skip
    if built_in and box.chance(0.5) and command[0] in ("evaluate", "predict"):
        command = (*command, "--model", box.pick("os:system", "os:abort", "os:getpid", "builtins:print"))
        return Case(command, expect="refused", about=name)
    return Case(command, expect="refused" if name in command else "either", about=name)


def _call(function: Callable[[], object], about: str) -> Case:
    return Case(call=function, about=about)


def samples(box: Box) -> Case:
    """`Samples` of arrays that do not fit, written and poisoned."""
    x, y = waves()
    arrays = [x, y.astype(np.int64), np.array([f"train/{k}" for k in range(24)]), np.array(["a", "b"])]
    place, kind = int(box.rng.integers(4)), int(box.rng.integers(7))
    old: Any = arrays[place]
    arrays[place] = (
        old[:-1], old[:0], old[None], old.astype("U9") if place != 2 else np.array(["same"] * 24),
        -old if place < 2 else old[::-1],
        old * 5 if place < 2 else np.char.add(old, "\0"), np.where(old == old[0], np.nan, old) if place == 0 else old,
    )[kind]  # fmt: skip

    def call() -> None:
        from antibackdoor.attacks import ATTACKS, poison
        from antibackdoor.data.reading import write
        from antibackdoor.data.samples import Samples

        made = Samples(*arrays)
        write("data.npz", made, format="npz")
        poison(made, ATTACKS["powerline"](), seed=0, rate=0.2)

    return _call(call, f"place {place} kind {kind}")


def settings(box: Box) -> Case:
    """A method or the recipe made with an odd number."""
    from antibackdoor.training.recipe import Recipe

    command = box.pick(*sorted(_QUICK))
    kind: type[Any] = Recipe if box.chance(0.3) else _kind(command, box.pick(*_QUICK[command]))
    fields = [(name, hint) for name, hint in _fields(kind) if hint in (int, float)]
    if not fields:
        return _call(kind, kind.__name__)
    name, hint = fields[int(box.rng.integers(len(fields)))]
    value = box.pick(0, -1, 10**12) if hint is int else box.pick(0.0, -1.0, 1e308, float("nan"), float("inf"), 5e-324)
    return _call(lambda: kind(**{name: value}), f"{kind.__name__}({name}={value})")


def reading(box: Box) -> Case:
    """`read` with odd arguments."""
    from antibackdoor.data.reading import read, read_inputs, read_samples

    path = box.copy(box.pick("pics", "waves.npz", "waves.csv", "pics.zip"))
    fraction = box.pick(-0.1, 0.0, 1.0, 0.999, float("nan"), 0.5, 1e-9)
    size = box.pick(None, 0, -1, 8, 7, 1025, 10**9, (8, 0), (8, 16))
    calls: tuple[Callable[[], object], ...] = (
        lambda: read(path, test_fraction=fraction), lambda: read(path, image_size=size),
        lambda: read(path, seed=int(box.pick(0, -1, 2**40))),
        lambda: read(str(path)), lambda: read(path, test=path), lambda: read(box.pick("", ".", "nowhere")),
        lambda: read_samples(path, class_names=box.pick((), ("x",), ("class0", "class1", "z"), ("class1", "class0")),
        shape=(1, 8, 8)),
        lambda: read_inputs(path, shape=box.pick((1, 8, 8), (3, 16, 16), (1, 16), (1, 0), (2, 7), (1,))),
    )  # fmt: skip
    place = int(box.rng.integers(len(calls)))
    return _call(calls[place], f"call {place} {path.name} {fraction} {size}")


def poisoning(box: Box) -> Case:
    """`poison` with odd numbers: refused, or so many samples as it says."""
    x, y = waves()
    rate = box.pick(-0.1, 0.0, 0.04, 0.5, 1.0, 1.1, float("nan"), 1e-9)
    target, seed = box.pick(None, -1, 0, 1, 2, 10**9), box.pick(0, -1, 2**31, 2**63)

    def call() -> None:
        from antibackdoor.attacks import ATTACKS, poison
        from antibackdoor.data.samples import Samples

        made = Samples(x, y.astype(np.int64), np.arange(24).astype(str), np.array(["a", "b"]))
        before = x.copy()
        found = poison(made, ATTACKS["powerline"](), seed=seed, rate=rate, target_label=target)
        if not np.array_equal(before, x):
            raise Wrong("poison changed its inputs")
        if found.truth.is_poisoned.sum() > np.ceil(max(rate, 0) * 24):
            raise Wrong("poison changed more samples than it was asked for")

    return _call(call, f"rate {rate} target {target} seed {seed}")


def formats(box: Box) -> Case:
    """`write` in a format that cannot hold the samples, or over something."""
    from antibackdoor.data.reading import read, write

    source = box.copy(box.pick("pics", "waves.npz"))
    (box.work / "there.npz").write_text("x")
    name = box.pick("new.npz", "new.csv", "new.ts", "new.zip", "new", "there.npz", "nowhere/new.npz", "a" * 300, "")
    format_ = box.pick("npz", "csv", "ts", "zip", "folder", "x", "")
    names = box.pick(
        ("a", "b"),
        ("a/b", "c"),
        ("", "x"),
        ("=1", "@x"),
        ("a,b", 'c"'),
        ("a\nb", "c"),
        ("train", "test"),
        (".", ".."),
        ("x" * 300, "y"),
        ("a:b", "#"),
    )

    def call() -> None:
        from dataclasses import replace

        made = replace(read(source, test_fraction=0).train, class_names=np.array(names))
        written = write(name, made, format=format_)
        again = read(written.path, test_fraction=0).train
        if sorted(again.class_names.tolist()) != sorted(names):
            raise Wrong(f"classes were written and read as others: {again.class_names.tolist()} for {names}")

    return Case(call=call, keep=("there.npz",), about=f"{name[:20]} {format_} {names[0][:20]!a}")


CALLS = Table(
    {
        "method flag": flag_of_a_method, "method flag again": flag_of_a_method, "recipe flag": flag_of_the_recipe,
        "command flag": flag_of_a_command, "call samples": samples, "call settings": settings, "call read": reading,
        "call poison": poisoning, "call write": formats,
    },
    {"command words": words_of_a_command, "command paths": paths_of_a_command, "backbones": backbones_that_run_code},
)  # fmt: skip
