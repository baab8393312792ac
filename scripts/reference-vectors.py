#!/usr/bin/env python3
"""Writes fixtures/reference_vectors.jsonl.zst: texts and the vectors that
sentence-transformers computes for them in fp32, which the encoder's tests
compare with.

Needs the packages sentence-transformers and zstandard, the corpora
irc_ubuntu, scifact_train and python311 (JSON lines, zstd), and the model:

    scripts/reference-vectors.py DATA_DIR [MODEL_DIR]

The first line of the output is about the file; every other one is
{"id", "text", "vector"}, the vector as little-endian 32-bit floats in hex.
The same inputs and library versions give the same file.
"""

import io
import json
import sys
from importlib.metadata import version
from pathlib import Path

import sentence_transformers
import zstandard

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures"
NOTICE = {
    "irc": "chat of #ubuntu from jkkummerfeld/irc-disentanglement, CC BY 4.0",
    "scifact": "abstracts of allenai/scifact, ODC-By 1.0, and claims, CC BY 4.0",
    "python311": "documentation of Python 3.11, Python Software Foundation License",
    "edge": "made for this file",
}


def lines(path):
    with zstandard.open(path, "rt", encoding="utf-8") as file:
        yield from map(json.loads, file)


def spread(items, count):
    """`count` of the items, evenly spread."""
    items = list(items)
    return [items[i * len(items) // count] for i in range(count)]


def irc(data):
    """Single turns, as short as chat is, and some longer runs of turns."""
    turns = [t for t in lines(data / "irc_ubuntu.jsonl.zst") if not t.get("sys")]
    for t in spread(turns, 50):
        yield f"irc:{t['file']}:{t['n']}", t["text"]
    for i in range(10):
        start = i * len(turns) // 10
        run = turns[start : start + 12]
        yield (
            f"irc:{run[0]['file']}:{run[0]['n']}+12",
            "\n".join(f"<{t['user']}> {t['text']}" for t in run),
        )


def scifact(data):
    records = list(lines(data / "scifact_train.jsonl.zst"))
    for d in spread((r for r in records if r["k"] == "doc"), 60):
        yield f"scifact:{d['id']}", f"{d['title']} {d['text']}"
    for q in spread((r for r in records if r["k"] == "query"), 20):
        yield f"scifact:query:{q['id']}", q["text"]


def python311(data):
    """Passages of 200 to 2,400 characters, the longest beyond 256 tokens."""
    pages = spread(lines(data / "python311.jsonl.zst"), 40)
    for i, page in enumerate(pages):
        start = page["text"].find("\n", len(page["text"]) // 3) + 1
        text = page["text"][start : start + 200 + 55 * i]
        yield f"python311:{page['id']}@{start}", text or page["title"]


def edge():
    cases = {
        "empty": "",
        "space": " \t\n ",
        "letter": "a",
        "punctuation": "...!?",
        "chinese": "他们在河边走了很久，水流很急。" * 3,
        "japanese": "日本語のテキストと English の混在、そして「括弧」。",
        "korean": "한국어 문장은 자모로 나뉜다. 강이 깊고 빠르게 흐른다.",
        "chinese-long": "河流最深最快的地方。" * 40,
        "arabic": "النهر عميق وسريع في هذا المكان.",
        "devanagari": "नदी यहाँ गहरी और तेज़ बहती है।",
        "emoji": "😀 👩‍👩‍👧‍👦 🏳️‍🌈 ship it 🚀🚀🚀",
        "accents": "Crème brûlée, Ångström, Čeština, e\u0301t\u0301e\u0301",
        "capitals": "THE QUICK BROWN FOX JUMPS OVER THE LAZY DOG",
        "word-x1000": "river " * 1000,
        "long-word": "a" * 500,
        "digits": "3.14159265358979 0xDEADBEEF 2026-01-02T03:04:05Z 1,234,567.89",
        "url": "https://example.org/a/very/long/path?with=query&and=more#fragment",
        "code": "fn main() { let x: Vec<u8> = vec![0; 1 << 20]; println!(\"{x:?}\"); }",
        "special-tokens": "[CLS] this [SEP] is [MASK] literal [PAD]",
        "control": "nul\u0000 bell\u0007 zero\u200bwidth soft\u00adhyphen",
    }
    for name, text in cases.items():
        yield f"edge:{name}", text


def main():
    data = Path(sys.argv[1])
    model_dir = sys.argv[2] if len(sys.argv) > 2 else "models/all-MiniLM-L6-v2"
    passages = [*irc(data), *scifact(data), *python311(data), *edge()]
    model = sentence_transformers.SentenceTransformer(model_dir, device="cpu")
    vectors = model.encode([text for _, text in passages], batch_size=1)
    packages = ["sentence-transformers", "transformers", "tokenizers", "torch"]
    header = {
        "about": "texts and their vectors by all-MiniLM-L6-v2 in fp32",
        "made_by": "scripts/reference-vectors.py",
        "versions": {name: version(name) for name in packages},
        "max_tokens": model.max_seq_length,
        "texts": NOTICE,
    }
    out = io.StringIO()
    out.write(json.dumps(header) + "\n")
    for (name, text), vector in zip(passages, vectors, strict=True):
        row = {"id": name, "text": text, "vector": vector.astype("<f4").tobytes().hex()}
        out.write(json.dumps(row, ensure_ascii=False) + "\n")
    packed = zstandard.ZstdCompressor(level=19).compress(out.getvalue().encode())
    (FIXTURES / "reference_vectors.jsonl.zst").write_bytes(packed)
    print(f"{len(passages)} texts, {len(packed):,} bytes")


if __name__ == "__main__":
    main()
