"""Objects in S3: named as `s3://bucket/key`, listed, read, written and removed.

obstore does the work, and is loaded with the first request. Who may do what is settled by what it
and AWS's own tools take from the environment: keys (`AWS_ACCESS_KEY_ID`), roles (web identity,
container and instance credentials), profiles (`AWS_PROFILE`), or nobody at all
(`AWS_SKIP_SIGNATURE=true`). A name is a plain value: each process opens its own connections, with
its own credentials.
"""

from morpheus.bucket.address import S3_SCHEME, S3Path, is_s3_url
from morpheus.bucket.connection import storage_options
from morpheus.bucket.requests import (
    list_recursive,
    stream_object,
    head_object,
    list_dir,
    read_object,
    get_with_etag,
    delete_objects,
    put_if_match,
    write_object,
)

__all__ = [
    "S3_SCHEME",
    "S3Path",
    "delete_objects",
    "get_with_etag",
    "head_object",
    "is_s3_url",
    "list_dir",
    "list_recursive",
    "put_if_match",
    "read_object",
    "storage_options",
    "stream_object",
    "write_object",
]
