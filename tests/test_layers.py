"""The architecture, held by the code itself: imports point one way, tables know every method, nothing is pickled."""

from __future__ import annotations

import ast
import importlib
import pkgutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import antibackdoor
from antibackdoor.attacks import ATTACKS
from antibackdoor.backbones import BACKBONES
from antibackdoor.defenses import DEFENSES
from antibackdoor.readers import FORMATS

ROOT = Path(antibackdoor.__file__).parent

# Each part may import only parts of the layers above it. A new module goes into the first layer that allows its
# imports; if none does, the imports are wrong. docs/architecture.md tells what the layers are.
LAYERS = (
    ("errors",),
    ("samples", "atomic", "ranges", "augmentation", "batch_norm", "cores", "splitting"),
    ("history", "models", "metrics", "readers", "recipe", "difference", "own_network", "caught"),
    ("isolation", "session", "backbones", "artifacts", "model_file", "removal"),
    ("mixtures", "parts", "planting", "training", "run_folder"),
    ("populations", "carriers", "protocols", "warm_up", "confusion"),
    ("second_head", "witnesses", "verdict", "residual", "attacks", "report"),
    ("search",),
    ("trap",),
    ("defenses", "red_team"),
    ("pipeline",),
    ("evaluation", "scanning"),
    ("demo",),
    ("__init__", "commands"),
    ("cli",),
    ("__main__",),
)
FOLDERS = tuple(path.parent.name for path in sorted(ROOT.glob("*/__init__.py")))
FILES = sorted(ROOT.rglob("*.py"))
NAMES = [str(path.relative_to(ROOT)) for path in FILES]


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def part_of(path: Path) -> str:
    """The module or folder right below the package."""
    return path.relative_to(ROOT).with_suffix("").parts[0]


def imports(path: Path) -> Iterator[str]:
    """Parts of the package that a file imports, wherever in the file it does."""
    own = part_of(path)
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: write imports in full"
            names = [node.module or ""]
            if node.module == "antibackdoor":
                names = [f"antibackdoor.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            if name.startswith("antibackdoor.") and name.split(".")[1] != own:
                yield name.split(".")[1]


def calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    """Name of what is called (the last part of a dotted one) and the call."""
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            yield name, node


def test_every_part_has_a_layer() -> None:
    known = [part for layer in LAYERS for part in layer]
    assert len(known) == len(set(known))
    assert set(known) == {part_of(path) for path in FILES}


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_imports_point_to_higher_layers_only(path: Path) -> None:
    layer = {part: number for number, parts in enumerate(LAYERS) for part in parts}
    wrong = [part for part in imports(path) if layer[part] >= layer[part_of(path)]]
    assert not wrong, f"{path.name} imports {wrong}"


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_folders_do_not_import_each_other(path: Path) -> None:
    if part_of(path) in FOLDERS:
        assert not set(imports(path)) & set(FOLDERS)


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_isolation_knows_no_torch_and_methods_see_no_metrics(path: Path) -> None:
    if part_of(path) in ("isolation", "history", "metrics"):
        assert "import torch" not in path.read_text() and "from torch" not in path.read_text()
    if part_of(path) in ("defenses", "trap", "search", "isolation"):
        assert not {"metrics", "attacks"} & set(imports(path)), "a defense may not know the truth"


# --------------------------------------------------------------------------- tables


def classes_with(folder: str, *methods: str) -> set[str]:
    """Public classes in a folder that define all of the methods."""
    found = set()
    for path in (ROOT / folder).glob("*.py"):
        for node in parsed(path).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                defined = {part.name for part in node.body if isinstance(part, ast.FunctionDef)}
                if set(methods) <= defined:
                    found.add(node.name)
    return found


def test_attacks_are_in_the_table() -> None:
    assert classes_with("attacks", "trigger", "plan") == {attack.__name__ for attack in ATTACKS.values()}


def test_defenses_are_in_the_table() -> None:
    assert classes_with("defenses", "train") == {defense.__name__ for defense in DEFENSES.values()}


def test_formats_are_in_the_table() -> None:
    written = {path.stem for path in (ROOT / "readers").glob("*.py") if "\ndef open_source(" in path.read_text()}
    assert {module.__name__.rsplit(".", 1)[1] for module in FORMATS.values()} == written


def test_backbone_files_are_in_the_table() -> None:
    builders = {getattr(entry.build, "func", entry.build).__module__ for entry in BACKBONES.values()}
    files = {f"antibackdoor.backbones.{path.stem}" for path in (ROOT / "backbones").glob("*.py")}
    assert builders == files - {"antibackdoor.backbones.__init__"}


# --------------------------------------------------------------------------- public names


def modules() -> list[str]:
    found = [info.name for info in pkgutil.walk_packages([str(ROOT)], "antibackdoor.")]
    return ["antibackdoor", *(name for name in found if not name.endswith("__main__"))]


@pytest.mark.parametrize("name", modules())
def test_public_names_exist_once_and_in_full(name: str) -> None:
    module = importlib.import_module(name)
    public = getattr(module, "__all__", None)
    if public is None:
        return
    assert len(public) == len(set(public))
    assert [entry for entry in public if not hasattr(module, entry)] == []
    own = [
        node.name
        for node in parsed(Path(str(module.__file__))).body
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
    ]
    assert [entry for entry in own if entry not in public] == []


@pytest.mark.parametrize("folder", [name for name in FOLDERS if name != "readers"])
def test_folders_say_what_is_public(folder: str) -> None:
    assert getattr(importlib.import_module(f"antibackdoor.{folder}"), "__all__", None)


@pytest.mark.parametrize(("folder", "table"), [("attacks", ATTACKS), ("defenses", DEFENSES)])
def test_methods_are_public(folder: str, table: dict[str, type]) -> None:
    public = importlib.import_module(f"antibackdoor.{folder}").__all__
    assert {kind.__name__ for kind in table.values()} <= set(public)


# --------------------------------------------------------------------------- what is never done

UNSAFE_MODULES = {"pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "torchvision"}


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_nothing_is_unpickled_or_evaluated(path: Path) -> None:
    for node in ast.walk(parsed(path)):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        assert not UNSAFE_MODULES & {name.split(".")[0] for name in names}
    for name, call in calls(path):
        keywords = {keyword.arg: getattr(keyword.value, "value", None) for keyword in call.keywords}
        assert keywords.get("allow_pickle") is not True
        assert keywords.get("weights_only") is not False
        assert name != "cuda" and not (isinstance(call.func, ast.Name) and name in ("eval", "exec"))
        if ast.unparse(call.func) == "torch.load":
            assert keywords.get("weights_only") is True
        if ast.unparse(call.func) == "np.load":
            assert keywords.get("allow_pickle", False) is False


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_no_base_classes_beyond_those_of_the_libraries(path: Path) -> None:
    """Protocols, not base classes: a class derives from another library's class, or from a protocol or tuple."""
    own = {node.name for node in ast.walk(parsed(path)) if isinstance(node, ast.ClassDef)}
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.ClassDef):
            bases = {ast.unparse(base) for base in node.bases}
            assert not {base for base in bases & own if not base.endswith("Error")}
