"""Every error that a user can fix, in one tree.

The command line prints the message of an `AntibackdoorError` as one line and exits with code 2. A message
names what is wrong, where, and what to do about it.
"""


class AntibackdoorError(Exception):
    """Root of all errors that this package raises on purpose."""


class DataError(AntibackdoorError):
    """The data set cannot be used as it stands: a corrupt file, one class only, a label out of range."""


class ModelError(AntibackdoorError):
    """The network cannot be built, split at a layer, or loaded."""


class ConfigError(AntibackdoorError):
    """A setting is out of its range or does not fit the data."""


class RunError(AntibackdoorError):
    """A run folder cannot be written, resumed or read."""


def spelled_out(text: str) -> str:
    """The text with escapes for all that is not printable: names of files and classes must not steer a terminal."""
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode("ascii") for sign in text)
