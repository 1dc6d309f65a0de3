"""The command line."""

from antibackdoor.cli.app import build_app, main

__all__ = ["build_app", "main"]
