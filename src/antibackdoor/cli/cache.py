"""`cache` on the command line: where decoded images are kept, how much, and how to be rid of them."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter


def show_cache(*, cache: Path | None = None, clear: Annotated[bool, Parameter(negative="")] = False) -> None:
    """Show where decoded images are kept and how much space they take.

    Deleted images are decoded again when needed.

    Parameters
    ----------
    cache
        The cache folder, if not the default.
    clear
        Delete the cached images.
    """
    from antibackdoor.data.cache import cache_folder
    from antibackdoor.data.cache_entries import clear_entries, entries
    from antibackdoor.errors import readable_size

    folder = cache_folder(cache)
    found = entries(folder)
    size = readable_size(sum(entry.n_bytes for entry in found))
    if clear:
        print(f"Deleted {clear_entries(found)} of {len(found)} entries ({size}) in {folder}")
    else:
        print(f"{folder}\n{len(found)} entries, {size}" + ("; delete them with --clear" if found else ""))
