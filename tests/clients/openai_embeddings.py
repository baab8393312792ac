"""Asks for vectors with openai and langchain-openai from PyPI, as they are:
openai_embeddings.py URL MODEL KEY TEXT... Prints what they make of the answers.
"""

import json
import sys

from langchain_openai import OpenAIEmbeddings
from openai import AuthenticationError, BadRequestError, NotFoundError, OpenAI

url, model, key, *texts = sys.argv[1:]
client = OpenAI(base_url=url, api_key=key)
# The client asks for base64 unless told otherwise, and decodes it.
default = client.embeddings.create(model=model, input=texts)
floats = client.embeddings.create(model=model, input=texts, encoding_format="float", dimensions=384, user="me")
# Otherwise it sends the ids of tokens, which no other model understands.
chain = OpenAIEmbeddings(model=model, base_url=url, api_key=key, check_embedding_ctx_length=False)

refused = {}
for name, ask in {
    "model": lambda: client.embeddings.create(model="text-embedding-3-small", input="a"),
    "token ids": lambda: client.embeddings.create(model=model, input=[[1, 2, 3]]),
    "key": lambda: OpenAI(base_url=url, api_key="not-the-key", max_retries=0).models.list(),
}.items():
    try:
        ask()
    except (AuthenticationError, BadRequestError, NotFoundError) as error:
        refused[name] = [error.status_code, error.code]

json.dump(
    {
        "default": [datum.embedding for datum in default.data],
        "floats": [datum.embedding for datum in floats.data],
        "indices": [datum.index for datum in default.data],
        "tokens": default.usage.total_tokens,
        "models": [listed.id for listed in client.models.list()],
        "model": client.models.retrieve(model).id,
        "chain": chain.embed_documents(texts),
        "chain query": chain.embed_query(texts[0]),
        "refused": refused,
    },
    sys.stdout,
)
