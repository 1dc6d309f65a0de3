"""Where a number comes from: what it is worth nothing without."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import antibackdoor

ROOT = Path(antibackdoor.__file__).parent
PACKAGES = ("antibackdoor", "torch", "numpy", "scipy", "scikit-learn")


def provenance(packages: Sequence[str] = PACKAGES) -> dict[str, Any]:
    """Versions of Python and these packages, the commit of this one, and the machine, in JSON's types."""
    versions = {"python": platform.python_version()}
    for package in packages:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {"versions": versions, "commit": _commit(), "machine": _machine()}


def command() -> list[str]:
    """The command line of this process, without the folders of this machine."""
    script = "/".join(Path(sys.argv[0]).resolve().parts[-2:])
    return ["python", script, *map(_without_folder, sys.argv[1:])]


def _without_folder(word: str) -> str:
    option, sign, value = word.partition("=") if word.startswith("-") else ("", "", word)
    return option + sign + (Path(value).name if Path(value).is_absolute() else value)


def _commit() -> str:
    """The commit of the package's source, with `-dirty` if the files differ from it."""

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False)
        except OSError:  # no git here
            return None
        return None if done.returncode else done.stdout.strip()

    # An installed copy may lie in a folder of somebody else's repository, whose commit says nothing.
    if git("ls-files", "--error-unmatch", "--", "__init__.py") is None:
        return "unknown"
    head = git("rev-parse", "--short=12", "HEAD")
    return (head or "unknown") + ("-dirty" if git("status", "--porcelain", "--", ".") else "")


def _machine() -> str:
    parts = [_processor(), f"{os.cpu_count()} cores"]
    if torch.cuda.is_available():
        parts.append(torch.cuda.get_device_name())
    return ", ".join(parts)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
