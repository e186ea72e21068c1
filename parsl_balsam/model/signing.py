"""Signatures of what is stored: a database may be written by others, and its bytes become objects and programs."""

from __future__ import annotations

import hashlib
import hmac
import json
from functools import lru_cache

from parsl_balsam.model.errors import UntrustedPayload
from parsl_balsam.model.resources import ResourceSpec
from parsl_balsam.model.tasks import Call, ClaimedTask

#: How a key file shows that it is whole, bytes.
KEY_BYTES = 32

#: What sealed bytes begin with: a name that no pickle has, and the version of what follows, which is the signature
#: (HMAC-SHA256, RFC 2104) and what is signed.
_MAGIC = b"BALSAM\x00\x01"
_SIGNATURE_BYTES = hashlib.sha256().digest_size
_HEAD_BYTES = len(_MAGIC) + _SIGNATURE_BYTES

_ADVICE = (
    "It is not run or read. If your key file was replaced, put the old one back; if nobody else can write to this "
    "database, `parsl-balsam db sign` signs what is there"
)


class Signer:
    """Seals bytes with a user's key, and opens what was sealed with it.

    A signature covers what the bytes are for, so that nobody can put them in another place: arguments belong to one
    call, with its function, resources and files; a result belongs to one call.

    Parameters
    ----------
    key
        Of the user, `KEY_BYTES` long.
    """

    def __init__(self, key: bytes) -> None:
        if len(key) != KEY_BYTES:
            raise ValueError(f"a key has {KEY_BYTES} bytes, not {len(key)}")
        self._mac = hmac.new(key, digestmod=hashlib.sha256)

    def seal_call(self, call: Call | ClaimedTask) -> bytes:
        """Return a call's arguments, sealed."""
        return self._seal(_of_call(call), call.payload)

    def seal_arguments(
        self, payload: bytes, key: bytes, occurrence: int, function: bytes, spec: ResourceSpec, stderr: str | None
    ) -> bytes:
        """Return the arguments of a call that is not put together yet, sealed."""
        return self._seal(_of_parts(key, occurrence, function, spec, stderr), payload)

    def open_call(self, task: ClaimedTask) -> bytes:
        """Return a task's arguments.

        Raises
        ------
        UntrustedPayload
            If it was not this key's owner who called just this.
        """
        return bytes(self._open(_of_call(task), task.payload, f"the call of task {task.task_id}"))

    def seal_result(self, task: ClaimedTask, payload: bytes | memoryview) -> bytes:
        """Return what became of a task, sealed."""
        return self._seal(_of_result(task.key, task.occurrence), payload)

    def open_result(self, task_id: int, key: bytes, occurrence: int, payload: bytes) -> memoryview:
        """Return what became of the n-th call with a key. It is not copied: it may be large, and is read only once.

        Raises
        ------
        UntrustedPayload
            If it was no launcher of this key's owner that wrote it, for this call.
        """
        return self._open(_of_result(key, occurrence), payload, f"the result of task {task_id}")

    def seal_order(self, text: str) -> str:
        """Return what launchers of a run are told, sealed."""
        return f"{self._sign((b'order',), text.encode()).hex()} {text}"

    def open_order(self, sealed: str) -> str:
        """Return what launchers of a run are told.

        Raises
        ------
        UntrustedPayload
            If it was not this key's owner who wrote it.
        """
        signature, _, text = sealed.partition(" ")
        if not hmac.compare_digest(signature.encode(), self._sign((b"order",), text.encode()).hex().encode()):
            raise UntrustedPayload(f"what the launchers of this run are told is not signed with your key. {_ADVICE}")
        return text

    def _seal(self, what: tuple[bytes, ...], payload: bytes | memoryview) -> bytes:
        return b"".join((_MAGIC, self._sign(what, payload), payload))

    def _open(self, what: tuple[bytes, ...], sealed: bytes, shown: str) -> memoryview:
        if not sealed.startswith(_MAGIC):
            raise UntrustedPayload(f"{shown} is not signed, or by another version of parsl-balsam. {_ADVICE}")
        payload = memoryview(sealed)[_HEAD_BYTES:]
        if not hmac.compare_digest(sealed[len(_MAGIC) : _HEAD_BYTES], self._sign(what, payload)):
            raise UntrustedPayload(f"{shown} was altered, or not signed with your key. {_ADVICE}")
        return payload

    def _sign(self, what: tuple[bytes, ...], payload: bytes | memoryview) -> bytes:
        mac = self._mac.copy()
        # With their lengths: otherwise the end of one part could be taken for the beginning of the next.
        mac.update(b"".join([len(part).to_bytes(8, "big") + part for part in (*what, b"")]))
        mac.update(payload)
        return mac.digest()


def unsealed(stored: bytes) -> bytes:
    """Return stored bytes without their signature, which is not looked at."""
    return stored[_HEAD_BYTES:] if stored.startswith(_MAGIC) else stored


def unsealed_order(stored: str) -> str:
    """Return stored orders without their signature, which is not looked at."""
    return stored[stored.find("{") :]


def _of_call(call: Call | ClaimedTask) -> tuple[bytes, ...]:
    return _of_parts(call.key, call.occurrence, call.function, call.spec, call.stderr)


def _of_parts(
    key: bytes, occurrence: int, function: bytes, spec: ResourceSpec, stderr: str | None
) -> tuple[bytes, ...]:
    return (
        b"call",
        key,
        str(occurrence).encode(),
        function,
        _of_spec(spec),
        # The database takes no lone surrogates: they are question marks there.
        (stderr or "").encode("utf-8", "replace"),
    )


@lru_cache(maxsize=1024)
def _of_spec(spec: ResourceSpec) -> bytes:
    return json.dumps(spec.to_dict() or None, sort_keys=True).encode()


def _of_result(key: bytes, occurrence: int) -> tuple[bytes, ...]:
    return b"result", key, str(occurrence).encode()
