"""The method that a command line names, and the flags that follow from it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cyclopts import Group, Parameter

from antibackdoor.cli.compare import shared_recipe
from antibackdoor.cli.flags import METHOD, TRAINING, made, parsed, recipe_without, refuse_unused, settings_type

_NOTHING = parsed("Nothing", [])


class Chosen:
    """The method that the arguments name, and the flags that follow from it; empty for other commands."""

    def __init__(self, arguments: Sequence[str]) -> None:
        self.name = ""
        self.kind: Any = None
        self.recipe: Any = _NOTHING
        self.method: Any = _NOTHING
        self.preset: Any = None
        command = arguments[0] if arguments else ""
        if command == "poison":
            from antibackdoor.app.methods import look_up
            from antibackdoor.attacks import ATTACKS

            name = _named(arguments, "--attack", "badnets")
            self.kind = look_up(name, ATTACKS, "--attack")
            self.method = settings_type(self.kind, METHOD)
        elif command in ("train", "scan", "purify"):
            self._of_a_method(command, arguments)
        elif command == "compare":
            self.recipe = shared_recipe(_named(arguments, "--recipe", "practical"))

    def _of_a_method(self, command: str, arguments: Sequence[str]) -> None:
        # Only the command that is called needs its settings, and torch, which they import, is slow to load.
        from antibackdoor.app.methods import look_up
        from antibackdoor.defenses import DEFENSES
        from antibackdoor.detectors import DETECTORS
        from antibackdoor.purifiers import PURIFIERS
        from antibackdoor.training.recipe import Recipe, named_recipe

        of_command: dict[str, tuple[str, dict[str, Any], str]] = {
            "train": ("--defense", DEFENSES, "dual-head"),
            "scan": ("--detector", DETECTORS, "confusion"),
            "purify": ("--method", PURIFIERS, _usual_purifier(arguments)),
        }
        flag, table, default = of_command[command]
        self.name = _named(arguments, flag, default)
        self.kind = look_up(self.name, table, flag)
        refuse_unused(list(arguments), self.kind, f"{flag} {self.name}")
        self.method = settings_type(self.kind, METHOD)
        self.preset = named_recipe(_named(arguments, "--recipe", "practical"))
        self.recipe = settings_type(Recipe, TRAINING, without=recipe_without(self.kind), defaults=self.preset)

    def uses(self, *names: str, group: Group = METHOD) -> Parameter:
        """A flag for something that a method may be given: shown only if this one can use it."""
        usable = {*getattr(self.kind, "needs", ()), *getattr(self.kind, "takes", ())}
        return Parameter(group=group, show=bool(usable & {*names}))

    def made(self, settings: Any) -> Any:
        """The method with the values of its flags."""
        return made(self.kind, settings)

    def recipe_of(self, settings: Any) -> Any:
        """The recipe with the values of its flags."""
        from antibackdoor.training.recipe import Recipe

        return made(Recipe, settings, self.preset)


def _named(arguments: Sequence[str], flag: str, default: str) -> str:
    """The name that `--flag NAME` or `--flag=NAME` gives."""
    name = default
    for place, argument in enumerate(arguments):
        if argument == flag and place + 1 < len(arguments):
            name = arguments[place + 1]
        elif argument.startswith(flag + "="):
            name = argument.split("=", 1)[1]
    return name


def _usual_purifier(arguments: Sequence[str]) -> str:
    """The purifier that is taken where none is named."""
    from antibackdoor.app.methods import usual_purifier

    given = {argument.partition("=")[0] for argument in arguments}
    return usual_purifier(has_clean="--clean" in given, has_suspicious="--suspicious" in given)
