#!/usr/bin/env python3
"""Embeds texts with what others use, for `thalweg bench embed` to compare with:

    scripts/embed-peer.py MODEL_FOLDER CACHE_FOLDER

Reads requests from standard input, one JSON object a line, and answers each
with one on standard output:

    {"peer": "sentence-transformers", "batch": 32, "texts": FILE, "vectors": FILE or null}
    {"seconds": ..., "cpu_seconds": ..., "by": ...}

FILE of the texts is a JSON list; the vectors are written as fp32, little
endian, one after another. Peers: `sentence-transformers` (fp32) and
`onnxruntime-int8` (the same model exported and quantised dynamically, kept in
CACHE_FOLDER; the package sorts nothing and pads each batch, so texts are
sorted by length here). `seconds` is the wall time of embedding alone,
`cpu_seconds` the processor time of all threads meanwhile.

Needs the packages sentence-transformers, and onnx and onnxruntime for the
second.
"""

import json
import os
import sys
import time
from importlib.metadata import version
from pathlib import Path

import numpy
import sentence_transformers
import torch

CORES = len(os.sched_getaffinity(0))


def limit_of(folder):
    return json.loads((Path(folder) / "sentence_bert_config.json").read_text())["max_seq_length"]


class SentenceTransformers:
    def __init__(self, folder, _cache):
        torch.set_num_threads(CORES)
        self.model = sentence_transformers.SentenceTransformer(str(folder), device="cpu")
        # Without a list of modules beside it, which the engine does not need,
        # the library takes the limit of the positions for that of the training.
        self.model.max_seq_length = limit_of(folder)
        self.by = f"sentence-transformers {version('sentence-transformers')}, torch {torch.__version__}"

    def embed(self, texts, batch):
        return self.model.encode(texts, batch_size=batch, normalize_embeddings=True, show_progress_bar=False)


class OnnxRuntimeInt8:
    def __init__(self, folder, cache):
        import onnxruntime
        from onnxruntime.quantization import QuantType, quantize_dynamic

        self.by = f"onnxruntime {onnxruntime.__version__}, dynamic int8"
        encoder = sentence_transformers.SentenceTransformer(str(folder), device="cpu")
        self.tokenizer = encoder.tokenizer
        self.limit = limit_of(folder)
        exported, quantised = cache / "model.onnx", cache / f"model-int8-{onnxruntime.__version__}.onnx"
        if not quantised.exists():
            cache.mkdir(parents=True, exist_ok=True)
            export(encoder[0].auto_model, self.tokenizer, exported)
            part = cache / "part.onnx"
            quantize_dynamic(exported, part, weight_type=QuantType.QInt8)
            part.rename(quantised)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = CORES
        self.session = onnxruntime.InferenceSession(str(quantised), options, providers=["CPUExecutionProvider"])

    def embed(self, texts, batch):
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        vectors = [None] * len(texts)
        for first in range(0, len(order), batch):
            some = order[first : first + batch]
            tokens = self.tokenizer(
                [texts[i] for i in some], padding=True, truncation=True, max_length=self.limit, return_tensors="np"
            )
            names = {given.name for given in self.session.get_inputs()}
            states = self.session.run(None, {k: v.astype(numpy.int64) for k, v in tokens.items() if k in names})[0]
            mask = tokens["attention_mask"][:, :, None].astype(numpy.float32)
            sums = (states * mask).sum(axis=1)
            for i, vector in zip(some, sums / numpy.linalg.norm(sums, axis=1, keepdims=True)):
                vectors[i] = vector
        return numpy.array(vectors)


def export(model, tokenizer, path):
    """The transformer alone: what stands before the pooling."""

    class States(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, input_ids, attention_mask, token_type_ids):
            return self.model(
                input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids
            ).last_hidden_state

    given = tokenizer(["a text", "another, longer text"], padding=True, return_tensors="pt")
    names = ["input_ids", "attention_mask", "token_type_ids"]
    # The tracing exporter: the newer one needs a further package.
    torch.onnx.export(
        States().eval(),
        tuple(given[name] for name in names),
        str(path),
        input_names=names,
        output_names=["states"],
        dynamic_axes={name: {0: "texts", 1: "tokens"} for name in [*names, "states"]},
        opset_version=17,
        dynamo=False,
    )


def main():
    folder, cache = Path(sys.argv[1]), Path(sys.argv[2])
    kinds = {"sentence-transformers": SentenceTransformers, "onnxruntime-int8": OnnxRuntimeInt8}
    peers = {}
    answers = os.fdopen(os.dup(1), "w")
    # What libraries print must not pass for an answer.
    os.dup2(2, 1)
    for line in sys.stdin:
        asked = json.loads(line)
        name = asked["peer"]
        if name not in peers:
            peers[name] = kinds[name](folder, cache)
        texts = json.loads(Path(asked["texts"]).read_text())
        started, cpu = time.perf_counter(), time.process_time()
        vectors = peers[name].embed(texts, asked["batch"])
        seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu
        if asked.get("vectors"):
            Path(asked["vectors"]).write_bytes(vectors.astype("<f4").tobytes())
        answer = {"seconds": seconds, "cpu_seconds": cpu_seconds, "by": peers[name].by}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
