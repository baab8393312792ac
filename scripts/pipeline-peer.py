#!/usr/bin/env python3
"""Indexes a folder of text files with CocoIndex, the way its documentation
shows it: walk, split, embed each chunk, declare each row, with every step
memoised. The embedder is a stub that gives one vector to all, so that only the
pipeline is left. Prints a JSON object: the versions that did it.

    pipeline-peer.py URL FOLDER STATE CHUNK_BYTES DIMENSIONS

URL is an empty database that has pgvector, STATE a folder for CocoIndex's own
state. Needs PyPI's cocoindex[postgres]:

    python3 -m venv target/cocoindex
    target/cocoindex/bin/pip install -r scripts/pipeline-peer.txt
"""

import importlib.metadata
import json
import os
import pathlib
import sys
from dataclasses import dataclass
from typing import Annotated

URL, FOLDER, STATE, CHUNK_BYTES, DIMENSIONS = sys.argv[1:]
os.environ["COCOINDEX_DB"] = STATE
os.environ["COCOINDEX_DISABLE_USAGE_TRACKING"] = "1"

import asyncpg
import cocoindex as coco
import numpy
from cocoindex.connectors import localfs, postgres
from cocoindex.ops.text import RecursiveSplitter
from cocoindex.resources.file import FileLike, PatternFilePathMatcher
from cocoindex.resources.id import IdGenerator
from cocoindex.resources.schema import VectorSchema
from numpy.typing import NDArray

SCHEMA = VectorSchema(dtype=numpy.dtype(numpy.float32), size=int(DIMENSIONS))
VECTOR = numpy.full(SCHEMA.size, SCHEMA.size ** -0.5, dtype=numpy.float32)
DATABASE = coco.ContextKey[asyncpg.Pool]("database")
SPLITTER = RecursiveSplitter()


@coco.lifespan
async def lifespan(builder):
    async with asyncpg.create_pool(URL) as pool:
        builder.provide(DATABASE, pool)
        yield


@dataclass
class Row:
    id: int
    filename: str
    chunk_start: int
    chunk_end: int
    text: str
    embedding: Annotated[NDArray, SCHEMA]


@coco.fn
async def process_chunk(chunk, filename, ids, table):
    row = Row(
        id=await ids.next_id(chunk.text),
        filename=str(filename),
        chunk_start=chunk.start.char_offset,
        chunk_end=chunk.end.char_offset,
        text=chunk.text,
        embedding=VECTOR,
    )
    table.declare_row(row=row)


@coco.fn(memo=True)
async def process_file(file: FileLike, table: postgres.TableTarget[Row]) -> None:
    chunks = SPLITTER.split(await file.read_text(), chunk_size=int(CHUNK_BYTES))
    await coco.map(process_chunk, chunks, file.file_path.path, IdGenerator(), table)


@coco.fn
async def main() -> None:
    table = await postgres.mount_table_target(
        DATABASE, "docs", await postgres.TableSchema.from_class(Row, primary_key=["id"]))
    files = localfs.walk_dir(pathlib.Path(FOLDER), path_matcher=PatternFilePathMatcher(included_patterns=["*.txt"]))
    await coco.mount_each(process_file, files.items(), table)


if __name__ == "__main__":
    coco.App(coco.AppConfig(name="bench"), main).update_blocking()
    print(json.dumps({"by": f"cocoindex {importlib.metadata.version('cocoindex')}"}))
