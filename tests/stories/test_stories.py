"""Stories of users: what they type, and what they get. The stories are the tables in the `.toml` files beside this.

A story has a `title`, and `python` (a snippet), or `run` (one command or several, as in a shell), or the one before the
other. Expected are `prints` (parts of what is printed, or of the error), `files`, `exit` (of the last command, 0 if not
given) or `error` (the exception). `clicks` are what a person does on the page of a review; `needs` is a package without
which the story is skipped. Each story has a folder of its own with all that `shared` makes. Searches and trainings are
short by default; else every command is what a user would type.
"""

from __future__ import annotations

import fcntl
import http.client
import json
import os
import shlex
import shutil
import threading
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from inspect import signature
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image

from antibackdoor.cli import main
from antibackdoor.detectors import ConfusionTraining
from antibackdoor.errors import AntibackdoorError
from antibackdoor.review.server import ReviewServer
from antibackdoor.training.recipe import Recipe

HERE = Path(__file__).parent
USERS = [path.stem for path in sorted(HERE.glob("*.toml"))]
STORIES = [(user, story) for user in USERS for story in tomllib.loads((HERE / f"{user}.toml").read_text())["story"]]
NAMES = [f"{user}: {story['title']}" for user, story in STORIES]
SHORT = {
    ConfusionTraining: {"power": False, "warmup_steps": 50, "confusion_steps": 8},
    Recipe: {"epochs": 2, "device": "cpu"},
}
MADE = [
    "poison photos --out poisoned --attack badnets --cell 2 --rate 0.1 --target-label circle",
    "scan poisoned --out scanned",
    "train poisoned --out run --verdict scanned --epochs 12",
    "train poisoned --out undefended --defense none --epochs 12 --augment none",
    "poison waves.npz --out poisoned_waves --attack powerline --rate 0.15 --target-label 0",
    "train poisoned_waves --out run_waves --defense none --epochs 8",
]


@contextmanager
def short_by_default() -> Iterator[None]:
    """Searches and trainings take a second or two where nothing else is said, in Python and in flags."""
    usual = {kind: kind.__init__.__defaults__ for kind in SHORT}
    parts = {(kind, part.name): part for kind in SHORT for part in fields(kind) if part.name in SHORT[kind]}
    before = {key: part.default for key, part in parts.items()}
    for kind, values in SHORT.items():
        names = [name for name, one in signature(kind).parameters.items() if one.default is not one.empty]
        known = dict(zip(names, usual[kind], strict=True))
        kind.__init__.__defaults__ = tuple((known | values).values())
    for (kind, name), part in parts.items():
        part.default = SHORT[kind][name]
    try:
        yield
    finally:
        for kind, defaults in usual.items():
            kind.__init__.__defaults__ = defaults
        for key, part in parts.items():
            part.default = before[key]


def draw(folder: Path, n: int, rng: np.random.Generator) -> None:
    """Circles, crosses, squares and stripes in random colors, places and sizes on noise; `n` of each."""
    y, x = np.mgrid[:16, :16]
    for name in ("circle", "cross", "square", "stripes"):
        (folder / name).mkdir(parents=True)
        for number in range(n):
            (a, b), size = rng.integers(6, 10, 2), rng.integers(3, 6)
            far = np.maximum(abs(x - a), abs(y - b))
            shape = {
                "circle": (x - a) ** 2 + (y - b) ** 2 <= size**2,
                "cross": (abs(x - a) <= 1) | (abs(y - b) <= 1),
                "square": (far <= size) & (far >= size - 1),
                "stripes": (x + a) // 2 % 2 == 0,
            }[name]
            pixels = rng.integers(0, 90, (16, 16, 3)) + shape[..., None] * rng.integers(110, 165, 3)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{number:03}.png")


def make(folder: Path) -> None:
    """What all stories share: photos and series, poisoned copies, a scan, and models with and without a defense."""
    rng = np.random.default_rng(0)
    draw(folder / "photos" / "train", 40, rng)
    draw(folder / "photos" / "test", 8, rng)
    shutil.copytree(folder / "photos" / "test" / "cross", folder / "new_photos")
    labels = np.arange(160) % 4
    waves = np.sin((1 + labels)[:, None, None] * np.linspace(0, 6.28, 32)) + 0.3 * rng.standard_normal((160, 1, 32))
    np.savez(folder / "waves.npz", x_train=waves.astype(np.float32), y_train=labels)
    os.chdir(folder)
    for line in MADE:
        assert run(line) == 0, line


def run(line: str) -> int:
    """Run a command; its exit code."""
    try:
        main(shlex.split(line))
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that `make` filled; one for all worker processes of pytest."""
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder, here = base / "stories", Path.cwd()
    with (base / "stories.lock").open("w") as lock, pytest.MonkeyPatch.context() as patch, short_by_default():
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (base / "stories.done").exists():
            folder.mkdir()
            patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
            try:
                make(folder)
            finally:
                os.chdir(here)
            (base / "stories.done").touch()
    return folder


@pytest.fixture
def place(shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with copies of the runs, which stories may change, and links to the data."""
    for path in shared.iterdir():
        if (path / "metrics.json").exists():
            shutil.copytree(path, tmp_path / path.name)
        else:
            (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def visiting(clicks: list[dict[str, Any]], usual: Callable[..., None]) -> Callable[[ReviewServer], None]:
    """`serve_forever` with somebody who opens the page and clicks."""

    def visit(server: ReviewServer) -> None:
        parts = urlsplit(server.url)
        for click in clicks:
            connection = http.client.HTTPConnection(parts.netloc, timeout=10)
            body = {name: value for name, value in click.items() if name != "path"}
            connection.request(
                "POST", parts.path + click["path"], json.dumps(body), {"Content-Type": "application/json"}
            )
            assert connection.getresponse().status == 200, click
            connection.close()

    def serve(server: ReviewServer) -> None:
        threading.Thread(target=visit, args=(server,), daemon=True).start()
        usual(server)

    return serve


@pytest.mark.parametrize(("user", "story"), STORIES, ids=NAMES)
def test_story(
    user: str,
    story: dict[str, Any],
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if "needs" in story:
        pytest.importorskip(story["needs"])
    if "clicks" in story:
        monkeypatch.setattr(ReviewServer, "serve_forever", visiting(story["clicks"], ReviewServer.serve_forever))
    capsys.readouterr()
    told, raised, code = "", "", 0
    with short_by_default():
        try:
            exec(story.get("python", ""), {})  # our own words, from the files beside this
        except (AntibackdoorError, ValueError, TypeError) as error:
            raised, told = type(error).__name__, str(error)
        assert raised == story.get("error", ""), told
        for line in story.get("run", "").strip().splitlines():
            assert code == 0, capsys.readouterr()
            code = run(line.removeprefix("antibackdoor "))
    printed = capsys.readouterr()
    told += printed.out + printed.err
    assert code == story.get("exit", 0), told
    assert [words for words in story.get("prints", []) if words not in told] == [], told
    assert [name for name in story.get("files", []) if not (place / name).exists()] == []
    assert set(story) <= {"title", "run", "python", "prints", "files", "exit", "error", "clicks", "needs"}


def test_every_command_has_a_story() -> None:
    from antibackdoor.cli.app import build_app

    told = " ".join(story.get("run", "") for _, story in STORIES)
    commands = {name for name in build_app([]) if not name.startswith("-")} - {"demo"}  # which takes a minute
    assert {name for name in commands if f"antibackdoor {name}" not in told} == set()
    assert len(STORIES) >= 60 and len(set(NAMES)) == len(NAMES)
