"""Columns of parquet files, with a limit on what is read. Needs pyarrow (the extra `datasets`)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from training.data.dataset import DatasetError
from training.data.pictures import absent

if TYPE_CHECKING:
    from pyarrow import Table

MAX_TABLE_BYTES = 4 * 2**30  # of one parquet file, uncompressed


def read_columns(path: Path, columns: list[str]) -> Table:
    """Some columns of a parquet file, those of them that it has."""
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            described = file.metadata
            size = sum(described.row_group(group).total_byte_size for group in range(described.num_row_groups))
            if size > MAX_TABLE_BYTES:
                raise DatasetError(f"{path}: holds {size} bytes; at most {MAX_TABLE_BYTES} are read")
            return file.read([column for column in columns if column in file.schema_arrow.names])
    except FileNotFoundError as error:
        raise DatasetError(f"{path}: {absent(path)}") from error
    except (pyarrow.ArrowException, OSError) as error:
        raise DatasetError(f"{path}: is not a whole parquet file: {str(error).splitlines()[0]}") from error


def whole_column(table: Table, name: str, where: str) -> Any:
    """A column without holes."""
    if name not in table.schema.names:
        raise DatasetError(f"{where}: lacks the column {name}")
    column = table.column(name)
    if column.null_count:
        raise DatasetError(f"{where}: column {name} has {column.null_count} empty rows")
    return column


def rows_of_numbers(table: Table, name: str, where: str) -> NDArray[np.generic]:
    """A column of numbers, or of equally long lists of numbers, as `[rows, numbers]` in the type it is kept in."""
    import pyarrow
    import pyarrow.compute as compute

    column = whole_column(table, name, where).combine_chunks()
    if isinstance(column, pyarrow.ChunkedArray):  # what older versions make of a column without rows
        column = pyarrow.concat_arrays(column.chunks) if column.num_chunks else pyarrow.array([], column.type)
    rows = len(column)
    if pyarrow.types.is_list(column.type) or pyarrow.types.is_fixed_size_list(column.type):
        widths = set(compute.list_value_length(column).to_pylist())
        if len(widths) > 1:
            raise DatasetError(f"{where}: rows of {name} must be equally long, got {sorted(widths)}")
        column = column.flatten()
    values = np.asarray(column.to_numpy(zero_copy_only=False))
    values = values.reshape(rows, -1) if rows else values.reshape(0, 1)
    if values.dtype.kind not in "fiub":
        raise DatasetError(f"{where}: {name} must hold rows of numbers, got {column.type}")
    return values
