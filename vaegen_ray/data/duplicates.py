"""Which images repeat earlier ones, found from the hashes of their pixels: some 40 bytes of memory an image."""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from vaegen_ray.storage import Location

HALF = np.dtype(">u8")
"""A hash is compared as two of these."""


def find_duplicates(tables: Sequence[Location]) -> list[dict[int, str]]:
    """For each table of images the numbers of its rows that repeat an earlier row of any, and the first one's id."""
    hashes = [_hashes(table) for table in tables]
    starts = np.cumsum([0, *map(len, hashes)])
    repeated_by = _first_equal(np.concatenate(hashes))
    del hashes
    duplicates = np.flatnonzero(repeated_by != np.arange(len(repeated_by)))
    firsts = repeated_by[duplicates]
    ids = _ids(tables, starts, np.unique(firsts))
    found: list[dict[int, str]] = [{} for _ in tables]
    for index, first, table in zip(duplicates, firsts, _table_of(duplicates, starts), strict=True):
        found[table][int(index - starts[table])] = ids[int(first)]
    return found


def _hashes(table: Location) -> NDArray[np.uint64]:
    with table.open() as opened:
        column = pq.ParquetFile(opened).read(["hash"])["hash"]
    filled = [chunk for chunk in column.chunks if len(chunk)]  # An empty one may have no buffer.
    content = b"".join(chunk.buffers()[1].slice(chunk.offset * 16, len(chunk) * 16) for chunk in filled)
    return np.frombuffer(content, HALF).reshape(-1, 2)


def _first_equal(hashes: NDArray[np.uint64]) -> NDArray[np.int64]:
    """The index of the first row that equals each row."""
    order = np.lexsort((hashes[:, 1], hashes[:, 0]))  # Stable: of equal rows the first stays first.
    ordered = hashes[order]
    begins = np.ones(len(order), bool)
    begins[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    first = np.empty(len(order), np.int64)
    first[order] = order[np.maximum.accumulate(np.where(begins, np.arange(len(order)), 0))]
    return first


def _ids(tables: Sequence[Location], starts: NDArray[np.int64], indices: NDArray[np.int64]) -> dict[int, str]:
    """The ids of the rows with these indices; tables without any are not read."""
    by_table = defaultdict(list)
    for index, table in zip(indices, _table_of(indices, starts), strict=True):
        by_table[table].append(int(index))
    ids = {}
    for table, wanted in by_table.items():
        with tables[table].open() as opened:
            column = pq.ParquetFile(opened).read(["id"])["id"]
        ids.update({index: column[index - int(starts[table])].as_py() for index in wanted})
    return ids


def _table_of(indices: NDArray[np.int64], starts: NDArray[np.int64]) -> list[int]:
    return [int(table) for table in np.searchsorted(starts, indices, side="right") - 1]
