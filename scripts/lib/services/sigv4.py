"""Just enough of S3 to make a bucket and to see that a key is accepted.

The signature is AWS Signature Version 4 over an empty body, with the payload
hash of nothing: https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html
"""

import datetime
import hashlib
import hmac
import http.client

REGION = "us-east-1"
EMPTY_SHA256 = hashlib.sha256(b"").hexdigest()


def request(method, port, path, key, secret, now=None):
    """Sends a signed request without a body to 127.0.0.1; returns the status
    and the body of the answer. OSError and HTTPException if there is none."""
    now = now or datetime.datetime.now(datetime.timezone.utc)
    host = f"127.0.0.1:{port}"
    connection = http.client.HTTPConnection(host, timeout=10)
    try:
        connection.request(method, path, headers=headers(method, host, path, key, secret, now))
        answer = connection.getresponse()
        return answer.status, answer.read().decode(errors="replace")
    finally:
        connection.close()


def headers(method, host, path, key, secret, now):
    """The headers that sign a request without query and body."""
    stamp, day = now.strftime("%Y%m%dT%H%M%SZ"), now.strftime("%Y%m%d")
    signed = {"host": host, "x-amz-content-sha256": EMPTY_SHA256, "x-amz-date": stamp}
    names = ";".join(signed)
    canonical = "\n".join([method, path, "", *(f"{k}:{v}" for k, v in signed.items()), "", names,
                           EMPTY_SHA256])
    scope = f"{day}/{REGION}/s3/aws4_request"
    digest = hashlib.sha256(canonical.encode()).hexdigest()
    signing_key = ("AWS4" + secret).encode()
    for part in scope.split("/"):
        signing_key = hmac.digest(signing_key, part.encode(), "sha256")
    signature = hmac.digest(signing_key, f"AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{digest}".encode(),
                            "sha256").hex()
    return {**signed, "Content-Length": "0",
            "Authorization": f"AWS4-HMAC-SHA256 Credential={key}/{scope}, "
                             f"SignedHeaders={names}, Signature={signature}"}
