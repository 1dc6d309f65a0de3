"""Which folder names mean a split of the data and not a class."""

from __future__ import annotations

import re

_TRAIN = frozenset({"train", "training"})
_TEST = frozenset({"test", "testing"})
_VALIDATION = frozenset({"val", "valid", "validation"})
SPLITS = _TRAIN | _TEST | _VALIDATION

# Words within a name, as in `seg_train`, `imagesTr`, `testset2`.
_WORDS = {
    **dict.fromkeys(_TRAIN | {"trn", "tr"}, "train"),
    **dict.fromkeys(_TEST | {"tst", "ts", "te"}, "test"),
    **dict.fromkeys(_VALIDATION | {"dev", "eval", "validate"}, "val"),
}
_APPENDED = re.compile(r"(sets?|data|dataset|images?|imgs?|folder|dir|split|samples|files)$")
_FOLD = re.compile(r"(k?[_\- ]?folds?|cv|partitions?|splits?)[_\- ]?\d+", re.IGNORECASE)
_PART = re.compile(r"(parts?|batch(es)?|sets?|chunks?|shards?|subsets?|groups?)[_\- ]?\d+", re.IGNORECASE)


def role(folder: str) -> str:
    """ "train", "test" or "val" if the name is one of these or a long form, else "".

    >>> role("Train"), role("validation"), role("seg_train")
    ('train', 'val', '')
    """
    name = folder.lower()
    return "train" if name in _TRAIN else "test" if name in _TEST else "val" if name in _VALIDATION else ""


def role_within(folder: str) -> str:
    """The same where the word is only a part of the name; "" where there is none, or several that disagree.

    >>> [role_within(name) for name in ("seg_train", "training_set", "val2017", "testset", "imagesTr", "strain", "cat")]
    ['train', 'train', 'val', 'test', 'train', '', '']
    """
    apart = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", folder)
    words = [word.lower() for word in re.findall(r"[A-Za-z]+", apart)]
    found = {_WORDS.get(word) or _WORDS.get(_APPENDED.sub("", word), "") for word in words} - {""}
    return found.pop() if len(found) == 1 else ""


def are_folds(folders: set[str]) -> bool:
    """Whether folders are called like the folds of a cross-validation.

    >>> are_folds({"fold_0", "fold_1"}), are_folds({"fold_0", "cat"})
    (True, False)
    """
    return len(folders) > 1 and all(_FOLD.fullmatch(name) for name in folders)


def are_parts(folders: set[str]) -> bool:
    """Whether folders are called like numbered parts of something, as classes may be, too.

    >>> are_parts({"batch1", "batch2"}), are_parts({"1", "2"})
    (True, False)
    """
    return len(folders) > 1 and all(_PART.fullmatch(name) for name in folders)
