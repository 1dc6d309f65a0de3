"""Whether data are the same as before: a hash of every sample, for runs that resume and measurements that compare."""

from __future__ import annotations

import hashlib

import numpy as np

from antibackdoor.data.samples import IntArray, Samples

_DIGEST_BYTES = 16
_FIRST_DIGITS = 16  # of the fingerprints of earlier versions, which looked at 256 rows


def fingerprint(samples: Samples, rows: IntArray | None = None) -> str:
    """A hash of ids, labels, names of classes and every value of all samples, or of the given rows, in their order.

    The rows of a data set that is larger than memory are hashed one by one, and only once (`Samples.contents`).
    """
    rows = np.arange(len(samples)) if rows is None else rows
    about = f"{samples.inputs.dtype.str} {samples.shape} {len(rows)}"
    digest = hashlib.blake2b(about.encode("ascii"), digest_size=_DIGEST_BYTES)
    digest.update(samples.labels[rows].tobytes())
    digest.update(samples.contents[rows].tobytes())
    for names in (samples.class_names, samples.ids[rows]):
        # No name holds a zero, so that none of them can run over into the next.
        digest.update("\0".join([*names.tolist(), ""]).encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def is_same(known: object, samples: Samples, rows: IntArray | None = None) -> bool:
    """Whether a fingerprint, which may be of an earlier version, is the one of these samples."""
    if isinstance(known, str) and len(known) == _FIRST_DIGITS:
        return known == _first_fingerprint(samples, rows)
    return known == fingerprint(samples, rows)


def _first_fingerprint(samples: Samples, rows: IntArray | None) -> str:
    """As earlier versions made it, of labels and 256 inputs."""
    rows = np.arange(len(samples)) if rows is None else rows
    digest = hashlib.blake2b(samples.labels[rows].tobytes(), digest_size=_FIRST_DIGITS // 2)
    rows = rows[np.unique(np.linspace(0, len(rows) - 1, min(len(rows), 256)).astype(np.int64))]
    digest.update("\n".join(samples.ids[rows].tolist()).encode("utf-8", "surrogateescape"))
    digest.update(np.ascontiguousarray(samples.inputs[rows]).tobytes())
    return digest.hexdigest()
