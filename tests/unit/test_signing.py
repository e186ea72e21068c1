"""Signatures: what was sealed opens as it was, in its own place, with its own key; nothing else opens."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parsl_balsam.model.errors import UntrustedPayload
from parsl_balsam.model.payload import encode
from parsl_balsam.model.resources import ResourceSpec
from parsl_balsam.model.signing import KEY_BYTES, Signer, unsealed, unsealed_order
from parsl_balsam.model.tasks import Call, ClaimedTask

KEY = bytes(range(KEY_BYTES))
MINE = Signer(KEY)
THEIRS = Signer(KEY[::-1])

SPEC = ResourceSpec(num_nodes=2, ranks_per_node=4, launcher_options="--bind-to none")
CALL = Call(b"key of the call", 3, "relax", b"digest", encode((1, "two")), SPEC, None, "/scratch/relax.err")


def claimed(call: Call, payload: bytes) -> ClaimedTask:
    """What a launcher claims."""
    return ClaimedTask(7, 1, 1, call.key, call.occurrence, "app", call.function, payload, call.spec, call.stderr)


@settings(deadline=None, derandomize=True)
@given(payload=st.binary(max_size=200), key=st.binary(max_size=40), occurrence=st.integers(0, 2**40))
def test_what_was_sealed_opens_as_it_was(payload: bytes, key: bytes, occurrence: int) -> None:
    call = replace(CALL, payload=payload, key=key, occurrence=occurrence)
    sealed = MINE.seal_call(call)
    assert MINE.open_call(claimed(call, sealed)) == payload == unsealed(sealed)
    result = MINE.seal_result(claimed(call, sealed), payload)
    assert MINE.open_result(7, key, occurrence, result) == payload == unsealed(result)


@pytest.mark.parametrize(
    "changes",
    [
        {"key": b"another"},
        {"occurrence": 4},
        {"function": b"os.system"},
        {"spec": replace(SPEC, launcher_options="; rm -rf ~")},
        {"spec": ResourceSpec()},
        {"stderr": "/home/me/.ssh/id_ed25519"},
        {"stderr": None},
        {"payload": MINE.seal_call(replace(CALL, key=b"another"))},
        {"payload": THEIRS.seal_call(CALL)},
        {"payload": MINE.seal_result(claimed(CALL, b""), CALL.payload)},
        {"payload": CALL.payload},
        {"payload": b""},
    ],
)
def test_call_that_was_changed_or_moved_does_not_open(changes: dict[str, Any]) -> None:
    sealed = MINE.seal_call(CALL)
    MINE.open_call(claimed(CALL, sealed))
    with pytest.raises(UntrustedPayload, match=r"call of task 7 .*parsl-balsam db sign"):
        MINE.open_call(replace(claimed(CALL, sealed), **changes))


def test_parts_do_not_run_into_each_other() -> None:
    one, other = replace(CALL, key=b"ab", function=b"c"), replace(CALL, key=b"a", function=b"bc")
    with pytest.raises(UntrustedPayload):
        MINE.open_call(claimed(other, MINE.seal_call(one)))


def test_result_of_another_call_does_not_open() -> None:
    result = MINE.seal_result(claimed(CALL, b""), b"42")
    for key, occurrence in ((b"another", 3), (CALL.key, 2)):
        with pytest.raises(UntrustedPayload, match="result of task 9 was altered"):
            MINE.open_result(9, key, occurrence, result)
    with pytest.raises(UntrustedPayload):
        THEIRS.open_result(9, CALL.key, 3, result)


class Trap:
    """Does harm when it is unpickled."""

    sprung = False

    def __reduce__(self) -> Any:
        return _spring, ()


def _spring() -> None:
    Trap.sprung = True


@settings(deadline=None, derandomize=True, max_examples=300)
@given(data=st.data())
def test_damaged_bytes_do_not_open(data: st.DataObject) -> None:
    sealed = bytearray(MINE.seal_result(claimed(CALL, b""), encode(Trap())))
    kind = data.draw(st.sampled_from(["flip", "cut", "grow", "garbage", "version"]))
    if kind == "flip":
        place = data.draw(st.integers(0, len(sealed) - 1))
        sealed[place] ^= 1 << data.draw(st.integers(0, 7))
    elif kind == "cut":
        del sealed[data.draw(st.integers(0, len(sealed) - 1)) :]
    elif kind == "grow":
        sealed += data.draw(st.binary(min_size=1, max_size=50))
    elif kind == "version":
        sealed[7] = data.draw(st.integers(2, 255))
    else:
        sealed = bytearray(data.draw(st.binary(max_size=100)))
    with pytest.raises(UntrustedPayload):
        MINE.open_result(9, CALL.key, 3, bytes(sealed))
    assert not Trap.sprung


@pytest.mark.parametrize("altered", ["", " ", "{}", "00 {}", "\N{SNOWMAN} {}"])
def test_orders_are_sealed_too(altered: str) -> None:
    sealed = MINE.seal_order('{"python_path": []}')
    assert MINE.open_order(sealed) == '{"python_path": []}' == unsealed_order(sealed)
    for wrong in (altered, sealed.replace("[]", '["/tmp/theirs"]'), THEIRS.seal_order('{"python_path": []}')):
        with pytest.raises(UntrustedPayload):
            MINE.open_order(wrong)


def test_lone_surrogates_are_signed_as_the_database_has_them() -> None:
    call = replace(CALL, stderr=os.fsdecode(b"/scratch/\xff.err"))
    stored = replace(call, stderr="/scratch/?.err")
    assert MINE.open_call(claimed(stored, MINE.seal_call(call))) == call.payload


def test_key_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        Signer(b"short")
