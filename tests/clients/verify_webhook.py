"""Verifies a delivery of a Thalweg webhook.

    verify_webhook.py SIGNATURE NOW SECRET... < BODY

Prints the event and ends with 0 if SIGNATURE, the value of the header
`Thalweg-Signature`, is of BODY by one of the secrets; else says why not and
ends with 1. NOW is in seconds since the Unix epoch.
"""

import hashlib
import hmac
import json
import sys

TOLERANCE_S = 300


def verify(body: bytes, signature: str, secrets: list[str], now: float) -> None:
    """Raises ValueError unless one of the secrets signed these bytes lately."""
    parts = [part.partition("=") for part in signature.split(",")]
    time = next((value for name, _, value in parts if name == "t"), "")
    if not time.isdigit() or abs(now - int(time)) > TOLERANCE_S:
        raise ValueError("the signature is too old, or has no time")
    signed = time.encode() + b"." + body
    ours = [hmac.new(secret.encode(), signed, hashlib.sha256).hexdigest() for secret in secrets]
    theirs = [value for name, _, value in parts if name == "v1"]
    # The body's own bytes: parsing and writing it again gives others.
    if not any(hmac.compare_digest(a.encode(), b.encode()) for a in ours for b in theirs):
        raise ValueError("the signature is of another secret or body")


if __name__ == "__main__":
    content = sys.stdin.buffer.read()
    try:
        verify(content, sys.argv[1], sys.argv[3:], float(sys.argv[2]))
    except ValueError as error:
        sys.exit(str(error))
    print(json.loads(content)["event"])
