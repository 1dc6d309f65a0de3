"""How samples are written to Arrow tables: the library `datasets` reads them with images and names of classes."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pyarrow as pa

from antibackdoor.data.samples import Samples, StrArray
from antibackdoor.errors import DataError

AXES = "antibackdoor_axes"  # key of the metadata that tell the order of the axes of a series


def row_names(samples: Samples, split: str) -> StrArray:
    """What the rows are called when they are read again, `(N,)` str."""
    if samples.kind == "image":
        return np.array([f"{split}-{row:06d}.png" for row in range(len(samples))], dtype=np.str_)
    return np.array([f"{split}/{row}" for row in range(len(samples))], dtype=np.str_)


def schema_of(samples: Samples) -> pa.Schema:
    """Columns `image` or `series`, and `label`.

    Raises:
        DataError: If these are images of floats, which a table of encoded images cannot hold.
    """
    if samples.kind == "image" and samples.inputs.dtype != np.uint8:
        raise DataError("images of floats would lose precision as PNG; write them as .npz")
    names = [str(name) for name in samples.class_names]
    kind: pa.DataType = pa.list_(pa.list_(pa.float32()))
    feature: dict[str, Any] = {"feature": {"feature": {"dtype": "float32", "_type": "Value"}, "_type": "Sequence"}}
    if samples.kind == "image":
        kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    first = {"_type": "Image"} if samples.kind == "image" else {**feature, "_type": "Sequence"}
    title = "image" if samples.kind == "image" else "series"
    features = {title: first, "label": {"names": names, "_type": "ClassLabel"}}
    about = {"huggingface": json.dumps({"info": {"features": features}}), AXES: "NCT"}
    return pa.schema([(title, kind), ("label", pa.int64())], metadata=about)
