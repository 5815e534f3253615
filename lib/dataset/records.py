"""Records on disk: one schema, written in batches, read back memory-mapped, so that no step holds all text at once."""

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lib.dataset import grams

BATCH = 1000  # records held in memory while writing
SCHEMA = pa.schema(
    [
        ("id", pa.string()),  # source:config:split:row, and .n for the n-th further answer of a conversation
        ("source", pa.string()),  # label from lib.dataset.entries: a data set, a file, or who wrote rows in its columns
        ("config", pa.string()),
        ("split", pa.string()),  # the publisher's split, not ours
        ("revision", pa.string()),
        ("row", pa.int64()),  # position in the source as read
        ("row_id", pa.string()),  # the data set's own identifier of the row
        ("benchmark", pa.string()),  # where the data set says that the item comes from
        ("licence", pa.string()),
        ("instruction", pa.string()),
        ("reasoning", pa.string()),
        ("output", pa.string()),
        ("options", pa.list_(pa.string())),
        ("answer", pa.string()),
        ("letter", pa.string()),
        ("history", pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))),  # a conversation's start
        ("skill", pa.string()),  # what the question takes, where its source says so: the clinic does
    ]
)


def write(path, records):
    """Write an iterable of records as one Arrow stream, atomically; returns the number written.

    Raises pyarrow.ArrowInvalid or ArrowTypeError for a record whose fields are not SCHEMA's.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial, count = path.with_name(f".{path.name}.{os.getpid()}.partial"), 0
    try:
        with pa.OSFile(str(partial), "wb") as sink, pa.ipc.new_stream(sink, SCHEMA) as stream:
            for batch in grams.batches(records, BATCH):
                stream.write_batch(pa.RecordBatch.from_pylist(batch, schema=SCHEMA))
                count += len(batch)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return count


def read(path):
    """The records of an Arrow file as a memory-mapped pyarrow.Table: text is read from disk when it is used."""
    return pa.ipc.open_stream(pa.memory_map(str(path))).read_all()


def rows(table, keep=None):
    """Yield the records of a table as dicts, in order; with keep, one truth value per record, only those marked."""
    start = 0
    for batch in table.to_batches(max_chunksize=BATCH):
        if keep is None:
            yield from batch.to_pylist()
        elif (wanted := np.flatnonzero(keep[start : start + len(batch)])).size:
            yield from batch.take(pa.array(wanted)).to_pylist()
        start += len(batch)


def reasoned(table, keep):
    """Whether any record that `keep` marks has reasoning; only lengths are read, not the text."""
    return bool(pc.binary_length(table["reasoning"]).to_numpy()[keep].any())
