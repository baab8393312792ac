#!/usr/bin/env python3
"""Ranks texts with sentence-transformers in fp32, for `thalweg bench quality`
to compare with:

    scripts/quality-reference.py INPUT OUTPUT

INPUT is a JSON object: `model` (folder), `top`, `queries`, `chunks` (of each
record a list of texts) and `whole` (of each record its text). OUTPUT gets
`by` (who computed it) and two lists of rankings, one for each query, of the
numbers of the `top` nearest records: `chunks`, where a record counts as its
nearest chunk, and `whole`, where the model reads as far as its folder says.

Needs the package sentence-transformers. Written under another name first, so
an interrupted run leaves no half OUTPUT.
"""

import json
import sys
from importlib.metadata import version
from pathlib import Path

import numpy
import sentence_transformers


def main():
    given = json.loads(Path(sys.argv[1]).read_text())
    model = sentence_transformers.SentenceTransformer(given["model"], device="cpu")
    # Without a list of modules beside it, which the engine does not need, the
    # library takes the limit of the positions for that of the training.
    says = json.loads((Path(given["model"]) / "sentence_bert_config.json").read_text())
    model.max_seq_length = says["max_seq_length"]
    # What is one chunk anyway is embedded once.
    texts = sorted({*given["queries"], *given["whole"], *(t for record in given["chunks"] for t in record)})
    vectors = model.encode(texts, batch_size=16, normalize_embeddings=True, show_progress_bar=True)
    number = {text: i for i, text in enumerate(texts)}

    def rows(texts):
        return vectors[[number[text] for text in texts]]

    queries = rows(given["queries"])
    flat = [(n, text) for n, record in enumerate(given["chunks"]) for text in record]
    owner = numpy.array([n for n, _ in flat])
    near = queries @ rows([text for _, text in flat]).T
    best = numpy.full((len(queries), len(given["chunks"])), -2.0, dtype=numpy.float32)
    for query, similarities in enumerate(near):
        numpy.maximum.at(best[query], owner, similarities)

    def ranked(similarities):
        order = numpy.argsort(-similarities, axis=1, kind="stable")
        return order[:, : given["top"]].tolist()

    result = {
        "by": f"sentence-transformers {version('sentence-transformers')}, torch {version('torch')}, fp32",
        "chunks": ranked(best),
        "whole": ranked(queries @ rows(given["whole"]).T),
    }
    part = Path(sys.argv[2] + ".part")
    part.write_text(json.dumps(result))
    part.rename(sys.argv[2])


if __name__ == "__main__":
    main()
