"""The documents say what is so: every command of the README parses, most are run, links lead somewhere."""

from __future__ import annotations

import io
import re
import shlex
import subprocess
import sys
import tomllib
from contextlib import redirect_stdout
from dataclasses import fields
from functools import cache, partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import antibackdoor
from antibackdoor.cli import main
from antibackdoor.cli.app import build_app
from antibackdoor.cli.lists import with_lists
from antibackdoor.defenses import DEFENSES, E2ABL, DualHead
from antibackdoor.detectors import DETECTORS
from antibackdoor.purifiers import PURIFIERS
from antibackdoor.training.recipe import PRESETS, Recipe

REPOSITORY = Path(__file__).parents[1]
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
OWN_NETWORK = (REPOSITORY / "docs" / "howto" / "own-network.md").read_text(encoding="utf-8")
DOCUMENTS = [REPOSITORY / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
DOCUMENTS += sorted((REPOSITORY / "docs").rglob("*.md"))
NAMES = [path.name for path in DOCUMENTS]


def call(words: list[str]) -> None:
    """Run a command; it ends with exit code 0."""
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code in (0, None), words


def blocks(text: str, language: str) -> list[str]:
    """The contents of the fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


def commands(text: str) -> list[list[str]]:
    """The arguments of each `antibackdoor ...` in shell blocks, also at the end of a chain."""
    lines = [line for block in blocks(text, "sh") for line in block.splitlines()]
    parts = [part.split("#")[0].strip() for line in lines for part in line.split("&&")]
    called = [shlex.split(part) for part in parts]
    return [words[1:] for words in called if words and words[0].rsplit("/", 1)[-1] == "antibackdoor"]


def inline_commands(text: str) -> list[list[str]]:
    """The same for `antibackdoor ...` in running text."""
    return [shlex.split(found) for found in re.findall(r"`antibackdoor ([a-z][^`]*)`", text)]


@pytest.mark.parametrize("path", DOCUMENTS, ids=NAMES)
def test_commands_parse(path: Path) -> None:
    for words in commands(path.read_text(encoding="utf-8")):
        words = with_lists(words)
        build_app(words).parse_args(words, exit_on_error=False, print_error=False)


TABLES = (("train", "--defense", DEFENSES), ("scan", "--detector", DETECTORS), ("purify", "--method", PURIFIERS))
OF_METHODS = {name: (command, flag, name) for command, flag, table in TABLES for name in table}
CARDS = [path for path in DOCUMENTS if path.parent.name == "methods" and path.stem in OF_METHODS]


@cache
def flags_of(*words: str) -> set[str]:
    """The flags that the help of a command shows."""
    shown = io.StringIO()
    with redirect_stdout(shown):
        call([*words, "--help"])
    return set(re.findall(r"--[a-z][a-z0-9-]*", shown.getvalue())) | {"--help", "--memory"}


@cache
def known_flags() -> set[str]:
    """Every flag that a command has, with any method."""
    others = [(name,) for name in ("poison", "evaluate", "predict", "compare", "review", "export")]
    return set[str]().union(*(flags_of(*words) for words in [*OF_METHODS.values(), *others]))


def test_every_method_has_a_card_of_at_most_80_lines() -> None:
    """What the benchmarks write into it aside."""
    assert {path.stem for path in CARDS} == set(OF_METHODS)
    written = r"<!-- measured -->.*<!-- end of measured -->\n*"
    texts = {path.name: re.sub(written, "", path.read_text(encoding="utf-8"), flags=re.DOTALL) for path in CARDS}
    assert {name: length for name, text in texts.items() if (length := len(text.rstrip().splitlines())) > 80} == {}


def test_the_recipes_are_those_of_the_table() -> None:
    text = (REPOSITORY / "docs" / "methods" / "index.md").read_text(encoding="utf-8")
    table = text.partition("## Training recipes")[2]
    columns = re.findall(r"`(\w+)`", next(line for line in table.splitlines() if line.startswith("| recipe |")))
    lines = re.findall(r"^\| `(\w+)` \| (.*) \| [^|]* \|$", table, flags=re.MULTILINE)
    rows = {name: cells.split(" | ") for name, cells in lines}
    assert rows == {name: [str(getattr(recipe, column)) for column in columns] for name, recipe in PRESETS.items()}
    usual, alike = Recipe(), {part.name for part in fields(Recipe)} - {*columns}
    assert all(getattr(recipe, name) == getattr(usual, name) for recipe in PRESETS.values() for name in alike)


@pytest.mark.parametrize("path", DOCUMENTS, ids=NAMES)
def test_commands_and_flags_in_the_text_exist(path: Path) -> None:
    """On the card of a method, those of its own command; a flag of another one is written with its command."""
    text = path.read_text(encoding="utf-8")
    known = flags_of(*OF_METHODS[path.stem]) if path in CARDS else known_flags()
    for flag in re.findall(r"`(--[a-z][a-z0-9-]*)", text):
        assert flag in known, f"{path.name} names {flag}"
    names = {name for name in build_app([]) if not name.startswith("-")}
    for words in inline_commands(text):
        assert words[0] in names, f"{path.name} names the command {words[0]}"


def test_the_readme_has_the_two_commands() -> None:
    lines = [line for block in blocks(README, "sh") for line in block.splitlines()]
    assert "python3 -m venv .venv && .venv/bin/pip install -q . && .venv/bin/antibackdoor demo --out demo" in lines
    assert [line for line in lines if line.startswith("python3 -m venv") and line.endswith("&& .venv/bin/pytest")]


def test_readme_commands_run_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On 60 tiny pictures, for one epoch and a short search each; the demo and several devices have their own tests."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    draw_photos(tmp_path)
    network = next(block for block in blocks(OWN_NETWORK, "python") if block.startswith("# networks.py"))
    (tmp_path / "networks.py").write_text(network, encoding="utf-8")
    for words in [*commands(README), *commands(OWN_NETWORK)]:
        if words[0] == "demo" or "--devices" in words:
            continue
        short = ["--epochs", "1", "--device", "cpu"] if words[0] in ("train", "compare") else []
        searches = words[0] == "scan" or (words[0] == "train" and "--defense" not in words)
        call([*words, *short, *(["--warmup-steps", "50", "--confusion-steps", "8"] if searches else [])])
    made = "run/report.html run/samples.parquet predictions.csv own_run/model.json poisoned/truth.parquet"
    assert [name for name in made.split() if not (tmp_path / name).exists()] == []
    assert "attack_success_rate" in capsys.readouterr().out


def test_readme_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    draw_photos(tmp_path)
    snippet = next(block for block in blocks(README, "python") if "antibackdoor" in block)
    documented = (antibackdoor.__doc__ or "").replace('out="run"', 'out="python_run"')
    assert [line for line in snippet.splitlines() if line not in documented] == []
    search = antibackdoor.ConfusionTraining(power=False, warmup_steps=50, confusion_steps=8)
    job = antibackdoor.Job(DualHead(search), antibackdoor.Recipe(epochs=1, device="cpu"))
    monkeypatch.setattr(antibackdoor, "train", partial(antibackdoor.train, job=job))
    # The test names the lines of this repository's own README; nothing foreign is run.
    exec(snippet, {})
    assert (tmp_path / "python_run" / "report.html").exists()


def draw_photos(folder: Path) -> None:
    """`photos` with two classes in train and test, and `new_photos` without labels: bright and dark noise."""
    rng = np.random.default_rng(0)
    counts = {
        "photos/train/cat": 24,
        "photos/train/dog": 24,
        "photos/test/cat": 4,
        "photos/test/dog": 4,
        "new_photos": 3,
    }
    for name, count in counts.items():
        (folder / name).mkdir(parents=True)
        low = 128 if name.endswith("cat") else 0
        for number in range(count):
            pixels = rng.integers(low, low + 128, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number:03}.png")


@pytest.mark.parametrize("path", DOCUMENTS, ids=NAMES)
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text(encoding="utf-8")):
        if target.startswith("https://"):
            continue
        name, _, anchor = target.partition("#")
        file = path.parent / name if name else path
        assert file.exists(), f"{path.name} links to {target}"
        if anchor:
            assert anchor in anchors(file), f"{path.name} links to {target}"


def anchors(path: Path) -> set[str]:
    """The anchors that a Markdown file's headings have."""
    titles = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("path", DOCUMENTS, ids=NAMES)
def test_files_and_modules_named_in_the_documents_exist(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for name in re.findall(r"`((?:benchmarks|tests|docs|report|defenses|attacks|readers)/[\w/.]+\.(?:py|md))`", text):
        places = (REPOSITORY, REPOSITORY / "src" / "antibackdoor")
        assert any((place / name).exists() for place in places), f"{path.name} names {name}"


def test_the_architecture_names_every_part() -> None:
    text = (REPOSITORY / "docs" / "architecture.md").read_text(encoding="utf-8")
    for path in (REPOSITORY / "src" / "antibackdoor").iterdir():
        if path.suffix == ".py" or (path / "__init__.py").exists():
            name = f"`{path.stem}`" if path.suffix == ".py" else f"`{path.name}/`"
            assert name in text, f"docs/architecture.md does not name {name}"


def test_the_method_card_names_every_reading() -> None:
    text = (REPOSITORY / "docs" / "methods" / "e2abl.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| (A\d+) \|", text, flags=re.MULTILINE) == [f"A{n}" for n in range(1, 26)]
    assert [field.name for field in fields(E2ABL) if f"`{field.name}`" not in text] == []


def test_doctests_of_the_source_are_collected() -> None:
    options = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["pytest"][
        "ini_options"
    ]
    assert "src" in options["testpaths"] and "--doctest-modules" in options["addopts"]


def test_the_tables_are_those_of_the_results() -> None:
    words = [sys.executable, str(REPOSITORY / "benchmarks" / "tables.py"), "--check"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stderr}run `python benchmarks/tables.py`"
