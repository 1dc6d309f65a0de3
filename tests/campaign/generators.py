"""All generators."""

from __future__ import annotations

from .case import Table

GENERATORS = Table({}, {})
