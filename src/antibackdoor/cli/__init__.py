"""The command line."""

from __future__ import annotations

from collections.abc import Sequence

from antibackdoor.cli.signals import end, listening, was_stopped

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command: the user's mistakes end in one line and status 2, signals in one line and 128 + their number."""
    with listening(afterwards=arguments is None):
        try:
            from antibackdoor.cli.app import main as run  # slow to import, and a signal may arrive meanwhile

            run(arguments)
        except KeyboardInterrupt:
            end()
        except Exception:
            if not was_stopped():
                raise
            end()
