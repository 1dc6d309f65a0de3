"""Reading and writing as it is called from Python: messages name arguments, not flags. No torch is loaded."""

from __future__ import annotations

from antibackdoor.app.python_words import python_words
from antibackdoor.data import from_huggingface as huggingface
from antibackdoor.data import from_python, reading

read = python_words()(reading.read)
read_samples = python_words()(reading.read_samples)
read_inputs = python_words()(reading.read_inputs)
write = python_words()(reading.write)
from_arrays = python_words()(from_python.from_arrays)
from_dataframe = python_words()(from_python.from_dataframe)
from_torch = python_words()(from_python.from_torch)
from_huggingface = python_words()(huggingface.from_huggingface)
