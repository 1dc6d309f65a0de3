"""All generators."""

from __future__ import annotations

from .generators_archives import ARCHIVES
from .generators_arrays import ARRAYS
from .generators_calls import CALLS
from .generators_files import FILES
from .generators_pictures import PICTURES
from .generators_runs import RUNS
from .generators_tables import TABLES
from .generators_told import TOLD

GENERATORS = (
    PICTURES.merged(ARCHIVES).merged(ARRAYS).merged(TABLES).merged(RUNS).merged(FILES).merged(CALLS).merged(TOLD)
)
