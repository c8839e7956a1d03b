"""Multipart uploads that somebody began and never ended: invisible in lists, and paid for.

rayburst itself makes none (a pack is one request), but tools that copy checkpoints do. Only S3
can list them; elsewhere there is nothing to do.
"""

from __future__ import annotations

import os
import secrets
from datetime import UTC, datetime, timedelta
from urllib.parse import urlsplit

from rayburst.checkpoint.gc_lock import store_time
from rayburst.checkpoint.store import ObjectStore
from rayburst.errors import StoreError

__all__ = ["abort_stray_uploads"]


def abort_stray_uploads(store: ObjectStore, *, older_than_s: float, dry_run: bool = False) -> int:
    """End uploads below the store's URI that began longer ago, by the store's clock.

    Returns how many there were. StoreError where the store refuses.
    """
    parts = urlsplit(store.uri)
    if parts.scheme not in ("s3", "s3a"):
        return 0
    import boto3
    from botocore.exceptions import BotoCoreError, ClientError

    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    client = boto3.client("s3", endpoint_url=endpoint)
    prefix = parts.path.strip("/")
    try:
        now = store_time(store, secrets.token_hex(4))
    except StoreError:
        if not dry_run:
            raise
        now = datetime.now(UTC)  # it may only read
    count = 0
    try:
        pages = client.get_paginator("list_multipart_uploads")
        for page in pages.paginate(Bucket=parts.netloc, Prefix=f"{prefix}/" if prefix else ""):
            for upload in page.get("Uploads", []):
                if now - upload["Initiated"] < timedelta(seconds=older_than_s):
                    continue
                count += 1
                if not dry_run:
                    client.abort_multipart_upload(
                        Bucket=parts.netloc, Key=upload["Key"], UploadId=upload["UploadId"]
                    )
    except (BotoCoreError, ClientError) as error:
        raise StoreError(
            f"{store.uri}: stray uploads could not be listed: {type(error).__name__}"
        ) from None
    return count
