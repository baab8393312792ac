#!/usr/bin/env python3
"""Loads rows the way people write it: psycopg's executemany with pgvector's
client library, 1,000 rows a batch, into one table that can be searched by
vector and by word. Prints the seconds it took, reading the file
not counted.

    load-peer.py URL FILE DIMENSIONS

A line of FILE is [tenant, text, vector]. Needs PyPI's psycopg[binary],
pgvector and numpy.
"""

import json
import sys
import time

import numpy
import psycopg
from pgvector.psycopg import register_vector

BATCH = 1_000


def main():
    url, path, dimensions = sys.argv[1], sys.argv[2], int(sys.argv[3])
    with open(path, encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    rows = [(tenant, text, numpy.array(vector, dtype=numpy.float32)) for tenant, text, vector in rows]
    with psycopg.connect(url, autocommit=True) as connection:
        register_vector(connection)
        connection.execute(
            "CREATE TABLE docs (id bigserial PRIMARY KEY, tenant text NOT NULL, content text NOT NULL,"
            " terms tsvector GENERATED ALWAYS AS (to_tsvector('english', content)) STORED,"
            f" embedding vector({dimensions}) NOT NULL)")
        connection.execute("CREATE INDEX ON docs (tenant)")
        connection.execute("CREATE INDEX ON docs USING gin (terms)")
        started = time.monotonic()
        with connection.cursor() as cursor:
            for at in range(0, len(rows), BATCH):
                with connection.transaction():
                    cursor.executemany(
                        "INSERT INTO docs (tenant, content, embedding) VALUES (%s, %s, %s)", rows[at:at + BATCH])
        print(time.monotonic() - started)


if __name__ == "__main__":
    main()
