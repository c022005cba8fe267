"""Objects in S3: named as `s3://bucket/key`, listed, read, written and removed.

obstore does the work, and is loaded with the first request. Who may do what is settled by what it
and AWS's own tools take from the environment: keys (`AWS_ACCESS_KEY_ID`), roles (web identity,
container and instance credentials), profiles (`AWS_PROFILE`), or nobody at all
(`AWS_SKIP_SIGNATURE=true`). A name is a plain value: each process opens its own connections, with
its own credentials.
"""

from morpheus.bucket.address import SCHEME, Object, is_address
from morpheus.bucket.connection import for_others
from morpheus.bucket.requests import (
    below,
    blocks,
    find,
    level,
    read,
    read_marked,
    remove,
    replace_marked,
    write,
)

__all__ = [
    "SCHEME",
    "Object",
    "below",
    "blocks",
    "find",
    "for_others",
    "is_address",
    "level",
    "read",
    "read_marked",
    "remove",
    "replace_marked",
    "write",
]
