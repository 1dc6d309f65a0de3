"""Tables and text: `.csv`, `.tsv`, `.ts`, and parquet given as data."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from .case import Box, Case, Table, Wrong, mutated
from .generators_pictures import reading
from .material import waves

_CELLS = ("", " ", "x", "nan", "NaN", "inf", "-Infinity", "1e999", "0x10", "1_000", "١", "1,5", '"', '"1"', "1" * 5000,
"=1+1", "None",
          "?", "true", "1e-400", "\x00", "\ufeff1", "1;2", "--1", "1 2", "é", "2147483648", "-0", "1\t2",
          "\x1b[2J")  # fmt: skip


def _rows(box: Box, name: str) -> tuple[list[list[str]], str]:
    separator = "\t" if name.endswith("tsv") else ","
    text = (box.material / name).read_text()
    return [line.split(separator) for line in text.splitlines()], separator


def cell_of_a_table(box: Box) -> Case:
    """One cell is changed."""
    name = box.pick("waves.csv", "waves.tsv")
    rows, separator = _rows(box, name)
    row = int(box.rng.integers(len(rows)))
    place = int(box.rng.integers(len(rows[row]))) if box.chance(0.7) else 0
    rows[row][place] = box.pick(*_CELLS)
    path = box.inputs / name
    path.write_text("".join(separator.join(cells) + "\n" for cells in rows), encoding="utf-8", errors="replace")
    return reading(box, path, f"row {row} cell {place} = {rows[row][place][:30]!a}")


def form_of_a_table(box: Box) -> Case:
    """The table has another form: ends of lines, marks, encodings, separators, a header, ragged rows."""
    name = box.pick("waves.csv", "waves.tsv")
    rows, separator = _rows(box, name)
    text = "".join(separator.join(cells) + "\n" for cells in rows)
    kind = int(box.rng.integers(14))
    n_columns = len(rows[0])
    head = separator.join(["label", *(f"t{k}" for k in range(n_columns - 1))])
    changed = {
        0: text.replace("\n", "\r\n"), 1: "\ufeff" + text, 2: f"{head}\n{text}", 3: text.replace(separator, ";"),
        4: text.replace("\n", "\n\n"), 5: text.rstrip("\n"), 6: f"# comment\n{text}",
        7: text.replace("\n", f"{separator}\n"),
        8: "\n".join(line[: len(line) // 2] if k % 3 else line for k, line in enumerate(text.splitlines())),
        9: text.splitlines()[0] + "\n", 10: "", 11: text + '"', 12: text.replace(separator, separator + " "),
    }.get(kind)  # fmt: skip
    path = box.inputs / name
    path.write_bytes(text.encode("utf-16") if changed is None else changed.encode())
    return reading(box, path, f"form {kind}")


def label_elsewhere(box: Box) -> Case:
    """The label stands in the last column, under a header, or beside an id: never read as other classes."""
    x, y = waves(n=60, classes=2, length=9)
    kind = int(box.rng.integers(4))
    lines = [",".join(f"{v:.4f}" for v in series[0]) for series in x]
    names = [f"c{label}" for label in y]
    if kind == 0:
        rows = [f"{line},{name}" for line, name in zip(lines, names, strict=True)]
    elif kind == 1:
        rows = [",".join(f"t{k}" for k in range(9)) + ",label"]
        rows += [f"{line},{label}" for line, label in zip(lines, y, strict=True)]
    elif kind == 2:
        rows = ["id,label," + ",".join(f"t{k}" for k in range(9))]
        rows += [f"{row},{name},{line}" for row, (line, name) in enumerate(zip(lines, names, strict=True))]
    else:
        rows = [f"{line},{label}" for line, label in zip(lines, y, strict=True)]
    (box.inputs / "data.csv").write_text("\n".join(rows) + "\n")

    def read() -> None:
        from antibackdoor.data.reading import read

        found = read(box.inputs / "data.csv", test_fraction=0).train
        if len(found.class_names) != 2:
            raise Wrong(f"a label elsewhere was not seen: {len(found.class_names)} classes, shape {found.shape}")

    return Case(call=read, about=f"kind {kind}")


def first_row(box: Box) -> Case:
    """A first row with an empty class is no header: it is refused or skipped in words."""
    rows, separator = _rows(box, "waves.csv")
    rows[0][0] = ""
    path = box.inputs / "data.csv"
    path.write_text("".join(separator.join(cells) + "\n" for cells in rows))

    def read() -> None:
        from antibackdoor.data.reading import read

        found = read(path, test_fraction=0, on_error="skip")
        if len(found.train) < len(rows) and not found.skipped:
            raise Wrong(f"the first row was dropped in silence: {len(found.train)} of {len(rows)}")

    return Case(call=read)


def unlabeled_table(box: Box) -> Case:
    """`predict` on a table without labels uses all of its values, or refuses."""
    x, _ = waves(n=6)
    path = box.inputs / "data.csv"
    path.write_text("".join(",".join(f"{v:.5f}" for v in series[0]) + "\n" for series in x))

    def call() -> None:
        from antibackdoor.data.reading import read_inputs

        inputs, _ = read_inputs(path, shape=(1, 16))
        if not np.allclose(np.asarray(inputs), x, atol=1e-4):
            raise Wrong("an unlabeled table lost its first value, or was stretched")

    return Case(call=call)


def bytes_of_a_table(box: Box) -> Case:
    """Some bytes are changed."""
    name = box.pick("waves.csv", "waves.tsv", "waves.ts")
    path = box.inputs / name
    path.write_bytes(mutated((box.material / name).read_bytes(), box.rng))
    return reading(box, path)


def header_of_a_ts(box: Box) -> Case:
    """One line of the header is changed, missing, doubled or new."""
    lines = (box.material / "waves.ts").read_text().splitlines()
    first = next(k for k, line in enumerate(lines) if line.lower().startswith("@data"))
    kind, row = int(box.rng.integers(4)), int(box.rng.integers(first + 1))
    if kind == 0:
        del lines[row]
    elif kind == 1:
        lines.insert(row, lines[row])
    else:
        new = box.pick(
            "@timeStamps true", "@missing true", "@univariate false", "@equalLength false", "@seriesLength 99",
            "@seriesLength -1",
            "@dimensions 7", "@classLabel true", "@classLabel false", "@classLabel true a b",
            "@classLabel true " + "x " * 5000,
            "@targetLabel true", "@data", "@", "@unknown x", "text", "@classLabel", "@classLabel true 0 0 1",
            "@dimensions x",
        )  # fmt: skip
        if kind == 2:
            lines.insert(row, new)
        else:
            lines[row] = new
    path = box.inputs / "data.ts"
    path.write_text("\n".join(lines) + "\n")
    return reading(box, path, f"kind {kind} line {row}: {lines[min(row, len(lines) - 1)][:40]}")


def line_of_a_ts(box: Box) -> Case:
    """One line of data is changed."""
    lines = (box.material / "waves.ts").read_text().splitlines()
    first = next(k for k, line in enumerate(lines) if line.lower().startswith("@data")) + 1
    row = int(box.rng.integers(first, len(lines)))
    values, _, label = lines[row].rpartition(":")
    lines[row] = box.pick(
        values, f"{values}:", f":{label}", f"{values}:{values}:{label}", f"?,{values}:{label}", f"NaN,{values}:{label}",
        f"(0,1),(1,2):{label}", f"{values}:unknown", f"{values},:{label}", f"{values},{box.pick(*_CELLS)}:{label}",
        f"1:{label}",
        f"{values}:{label}:{label}", "#" + lines[row], "", f"{values},{values}:{label}", f",:{label}",
    )  # fmt: skip
    path = box.inputs / "data.ts"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8", errors="replace")
    return reading(box, path, lines[row][:40])


def test_beside(box: Box) -> Case:
    """`NAME_TRAIN` with an odd `NAME_TEST` beside it."""
    suffix = box.pick("ts", "tsv", "csv")
    text = (box.material / f"waves.{suffix}").read_text()
    (box.inputs / f"W_TRAIN.{suffix}").write_text(text)
    other = box.inputs / f"W_TEST.{suffix}"
    kind = int(box.rng.integers(5))
    if kind == 0:
        other.mkdir()
    elif kind == 1:
        other.symlink_to("nowhere" if box.chance(0.5) else box.outside / "precious.txt")
    elif kind == 2:
        other.write_bytes(b"")
    elif kind == 3:
        other.write_text(text.replace("class1", "class9"))
    else:
        other.write_bytes(mutated(text.encode(), box.rng))
    return reading(box, box.inputs / f"W_TRAIN.{suffix}", f"{suffix} kind {kind}")


def a_long_series(box: Box) -> Case:
    """One series of 200,000 values among short ones must not take gigabytes."""
    x, y = waves(n=2000, length=30)
    rows = [(label, ",".join(f"{v:.2f}" for v in series[0])) for label, series in zip(y, x, strict=True)]
    rows[7] = (0, ",".join(["0.5"] * 200_000))
    suffix = box.pick("csv", "ts")
    path = box.inputs / f"data.{suffix}"
    if suffix == "csv":
        path.write_text("".join(f"{label},{line}\n" for label, line in rows))
    else:
        lines = "".join(f"{line}:{label}\n" for label, line in rows)
        path.write_text(f"@problemName d\n@univariate true\n@equalLength false\n@classLabel true 0 1\n@data\n{lines}")
    return reading(box, path, suffix, commands=False)


def parquets(box: Box) -> Case:
    """A parquet given as data: nothing reads it, and nothing breaks."""
    path = box.inputs / box.pick("data.parquet", "data.csv", "data.npz")
    data = Path(box.material / "run" / "samples.parquet").read_bytes()
    path.write_bytes(mutated(data, box.rng) if box.chance(0.5) else data)
    return reading(box, path)


def wide_tables(box: Box) -> Case:
    """Very wide, very ragged or endless lines."""
    kind = int(box.rng.integers(4))
    path = box.inputs / box.pick("data.csv", "data.tsv", "data.ts")
    if kind == 0:
        path.write_text("0," * 1_000_000 + "\n1" + ",1" * 1_000_000)
    elif kind == 1:
        path.write_text("\n".join(f"{k % 2}" + ",1" * k for k in range(600)))
    elif kind == 2:
        path.write_text('0,"' + "1,2\n" * 50_000)
    else:
        path.write_bytes(b"\0" * 1_000_000)
    return reading(box, path, f"kind {kind}")


TABLES = Table(
    {
        "table cell": cell_of_a_table, "table form": form_of_a_table, "label elsewhere": label_elsewhere,
        "first row": first_row,
        "unlabeled table": unlabeled_table, "table bytes": bytes_of_a_table, "ts header": header_of_a_ts,
        "ts line": line_of_a_ts,
        "test beside": test_beside,
    },
    {"long series": a_long_series, "parquet as data": parquets, "wide tables": wide_tables},
)  # fmt: skip
