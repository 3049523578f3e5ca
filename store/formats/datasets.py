"""A folder that `datasets.load_from_disk` opens."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from ...errors import BadInput
from ...hashing import content_hash
from ..arrow import datasets_library
from ..format import Kind, Lines, Read, Record
from .parquet import batches, read_batches, schema_of

_ROWS = 2000


class Datasets(Lines):
    """A folder for `datasets.load_from_disk`.

    It has the columns of the format `parquet`.
    TRL takes it as it is: what a trainer does not know it leaves out. Needs the library `datasets`
    (`pip install 'redistill[train]'`).
    """

    name = "datasets"
    writes = ("preference", "demonstration", "thumbs", "rating")
    reads = ("preference", "demonstration", "thumbs", "rating")
    whole = True

    def write(self, records: Iterable[Record], kind: Kind, target: Path) -> None:
        """Write the folder."""
        library = datasets_library()
        table = pa.Table.from_batches(batches(records, kind), schema_of(kind))
        # Left to itself, the library draws the name of its cache, and equal rows would differ.
        mark = content_hash([str(table.schema), content_hash(table.to_pylist())])
        with _quiet(library):
            library.Dataset(table, fingerprint=mark[:16]).save_to_disk(str(target))

    def read(self, file: Path) -> Read:
        """Yield the rows of the folder."""
        library = datasets_library()
        try:
            found = library.load_from_disk(str(file))
        except (OSError, ValueError) as error:
            raise BadInput.at(file.name, f"no folder of datasets: {error}") from error
        if not isinstance(found, library.Dataset):
            raise BadInput.at(file.name, "holds several splits", "name the folder of one of them")
        table = found.with_format("arrow")
        parts = (table[start : start + _ROWS] for start in range(0, len(found), _ROWS))
        yield from read_batches((b for part in parts for b in part.to_batches()), file)


@contextlib.contextmanager
def _quiet(library: Any) -> Iterator[None]:
    """Keep the library's progress bar out of what the command prints."""
    shown = not library.are_progress_bars_disabled()
    library.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            library.enable_progress_bars()
