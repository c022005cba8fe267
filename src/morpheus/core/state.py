"""State: what a stage remembers about one user between batches.

A state is a plain value: numbers, text, arrays, and structs of these. The runtime owns it. It keys
states by stage and user, hands each to its stage with the next batch, and can save and restore all
of them. A stage never keeps anything about a user in local variables or in itself.
"""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple, TypeVar, get_origin

import msgspec
import numpy as np
from numpy.typing import NDArray

from morpheus.errors import ModelCorruptedError

StateT = TypeVar("StateT", bound="State")


SOURCE = "source"
"""Name under which the state of the source is kept."""
PARTS = f"{SOURCE}#"
"""Start of the names of its parts; see `SeenEvents`. They are saved once, and not needed for each
event."""


class State(msgspec.Struct):
    """What a stage remembers about one user.

    Fields are annotated with plain types: numbers, text, `numpy.ndarray`, lists, dictionaries and
    other structs. `process` and `flush` change the fields in place.

    Attributes:
        version: Version of the fields; raise it when their meaning changes. A saved state of
            another version is rejected.
        max_bytes: Upper bound of the encoded size, which keeps memory level on a stream.
    """

    version: ClassVar[int] = 1
    max_bytes: ClassVar[int] = 1 << 16


class StateKey(NamedTuple):
    """What a state belongs to.

    Attributes:
        stage: Name of the stage, with its number among the stages of that name: `add-scores#1`.
        user: The user; None for events without a user.
    """

    stage: str
    user: str | None


def part_key(user: str | None, number: int) -> StateKey:
    """Return what a part of the state of the source is kept under.

    >>> part_key("ann", 7).stage
    'source#007'
    """
    return StateKey(f"{PARTS}{number:03}", user)


def encode_state(state: State) -> bytes:
    """Encode a state as MessagePack; arrays keep their type and shape.

    >>> class Seen(State):
    ...     times: np.ndarray
    >>> data = encode_state(Seen(np.array([1.5, 2.0])))
    >>> decode_state(Seen, data).times.tolist()
    [1.5, 2.0]
    """
    return _ENCODER.encode((state.version, state))


def decode_state(kind: type[StateT], data: bytes) -> StateT:
    """Decode a state.

    Args:
        kind: Class of the state.
        data: What `encode_state` returned.

    Raises:
        ModelCorruptedError: The data is damaged, or was written by another version.
    """
    try:
        version, raw = _HEADER.decode(data)
        if version == kind.version:
            return msgspec.msgpack.decode(raw, type=kind, dec_hook=_decode_array)
    except (msgspec.MsgspecError, ValueError, TypeError) as error:
        raise ModelCorruptedError(
            f"The saved state of `{kind.__name__}` cannot be read: {error}. Delete the state file "
            "and run again from the first input."
        ) from error
    raise ModelCorruptedError(
        f"The saved state of `{kind.__name__}` has version {version}, and this release reads "
        f"version {kind.version}. Delete the state file and run again from the first input."
    )


def decode_plain(data: bytes) -> tuple[int, Any]:
    """Decode a state whose class is not known, for people.

    Args:
        data: What `encode_state` returned.

    Returns:
        The version, and the fields: dictionaries, lists, numbers, text, bytes and arrays.

    Raises:
        ModelCorruptedError: The data is damaged.

    >>> class Seen(State):
    ...     times: np.ndarray
    >>> decode_plain(encode_state(Seen(np.array([1.5, 2.0]))))
    (1, {'times': array([1.5, 2. ])})
    """
    try:
        version, fields = msgspec.msgpack.decode(data, type=tuple[int, Any])
    except msgspec.MsgspecError as error:
        raise ModelCorruptedError(f"The saved state cannot be read: {error}.") from error
    return version, _find_arrays(fields)


def _find_arrays(value: object) -> object:
    """Return a decoded value, with arrays in place of their parts."""
    match value:
        case dict():
            return {name: _find_arrays(each) for name, each in value.items()}
        case [str() as kind, list() as shape, bytes() as data]:
            return np.frombuffer(data, dtype=np.dtype(kind)).reshape(tuple(map(int, shape)))
        case list():
            return [_find_arrays(each) for each in value]
        case _:
            return value


def _encode_array(value: object) -> object:
    if isinstance(value, np.ndarray):
        array = np.ascontiguousarray(value)
        return [array.dtype.str, list(array.shape), array.tobytes()]
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"a state cannot hold a {type(value).__name__}")


def _decode_array(kind: type, value: object) -> object:
    if (get_origin(kind) or kind) is np.ndarray and isinstance(value, list):
        name, shape, data = value
        dtype = np.dtype(name)
        if dtype.hasobject:
            raise ValueError("an array of Python objects is never read")
        array: NDArray[np.generic] = np.frombuffer(data, dtype=dtype).reshape(shape)
        return array.copy()
    raise TypeError(f"a state cannot hold a {kind.__name__}")


_ENCODER = msgspec.msgpack.Encoder(enc_hook=_encode_array)
_HEADER = msgspec.msgpack.Decoder(tuple[int, msgspec.Raw])
