"""Failures and crashes spend their own budgets, and the end of a block spends none."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parsl_balsam.model.errors import ConfigurationError
from parsl_balsam.model.retry import Attempt, GiveUp, Retry, RetryPolicy, after
from parsl_balsam.model.states import FAILURES, Outcome

NOW = datetime(2030, 1, 2, tzinfo=timezone.utc)

policies = st.builds(
    RetryPolicy,
    max_retries=st.integers(0, 4),
    backoff_s=st.floats(0, 1e6),
    factor=st.floats(1, 1e3),
    ceiling_s=st.floats(0, 1e6),
    retry_on=st.frozensets(st.sampled_from(sorted(FAILURES))),
    never_exit_codes=st.frozensets(st.integers(0, 255), max_size=3),
    max_crashes=st.integers(1, 4),
)
retried = st.sampled_from([*sorted(FAILURES), Outcome.CRASH, Outcome.ENDED])
histories = st.lists(retried, min_size=1, max_size=12)


def history(*outcomes: Outcome, exit_code: int | None = None) -> list[Attempt]:
    return [Attempt(number, outcome, exit_code, f"nid{number}") for number, outcome in enumerate(outcomes, 1)]


def lived(policy: RetryPolicy, outcomes: Sequence[Outcome]) -> list[Attempt]:
    """Return the attempts a task gets if they would end like that, up to the one that is given up."""
    attempts = history(*outcomes)
    for count in range(1, len(attempts)):
        if isinstance(after(policy, attempts[:count], NOW), GiveUp):
            return attempts[:count]
    return attempts


@given(policies, histories)
def test_budgets_are_kept(policy: RetryPolicy, outcomes: list[Outcome]) -> None:
    attempts = lived(policy, outcomes)
    failures = sum(attempt.outcome in FAILURES for attempt in attempts)
    crashes = sum(attempt.outcome is Outcome.CRASH for attempt in attempts)
    last = attempts[-1].outcome
    assert failures <= policy.max_retries + 1
    assert crashes <= policy.max_crashes
    if isinstance(after(policy, attempts, NOW), GiveUp):
        assert (
            last not in {*policy.retry_on, Outcome.CRASH, Outcome.ENDED}
            or (last in FAILURES and failures == policy.max_retries + 1)
            or (last is Outcome.CRASH and crashes == policy.max_crashes)
        )
    else:
        assert failures <= policy.max_retries
        assert crashes < policy.max_crashes


@given(policies, histories)
def test_ended_attempts_change_no_decision(policy: RetryPolicy, outcomes: list[Outcome]) -> None:
    attempts = [*history(*outcomes)]
    counted = [attempt for attempt in attempts if attempt.outcome is not Outcome.ENDED]
    if attempts[-1].outcome is Outcome.ENDED:
        decision = after(policy, attempts, NOW)
        assert isinstance(decision, Retry)
        assert decision.at is None
    else:
        assert after(policy, attempts, NOW) == after(policy, counted, NOW)


@given(policies, histories)
def test_only_failures_wait_and_never_beyond_the_ceiling(policy: RetryPolicy, outcomes: list[Outcome]) -> None:
    decision = after(policy, history(*outcomes), NOW)
    if isinstance(decision, Retry) and decision.at is not None:
        assert outcomes[-1] in FAILURES
        assert NOW <= decision.at <= NOW + timedelta(seconds=policy.ceiling_s)


@given(policies)
def test_policies_survive_json(policy: RetryPolicy) -> None:
    assert RetryPolicy.from_dict(json.loads(json.dumps(policy.to_dict()))) == policy


def test_missing_fields_have_their_defaults() -> None:
    assert RetryPolicy.from_dict({"max_retries": 2}) == RetryPolicy(max_retries=2)


def test_without_retries_the_first_failure_is_the_last() -> None:
    decision = after(RetryPolicy(), history(Outcome.ERROR), NOW)
    assert decision == GiveUp("attempt 1 ended with error: failed once (max_retries=0)")


def test_delays_double_up_to_the_ceiling() -> None:
    policy = RetryPolicy(max_retries=9, backoff_s=10, ceiling_s=60)
    decisions = [after(policy, history(*[Outcome.EXIT] * count), NOW) for count in range(1, 6)]
    waits = [decision.at - NOW for decision in decisions if isinstance(decision, Retry) and decision.at]
    assert [wait.total_seconds() for wait in waits] == [10, 20, 40, 60, 60]


def test_delays_that_overflow_are_the_ceiling() -> None:
    policy = RetryPolicy(max_retries=5000, backoff_s=1, factor=1e6)
    decision = after(policy, history(*[Outcome.EXIT] * 4000), NOW)
    assert isinstance(decision, Retry)
    assert decision.at == NOW + timedelta(seconds=300)


def test_without_backoff_a_retry_is_at_once() -> None:
    decision = after(RetryPolicy(max_retries=1), history(Outcome.TIMEOUT), NOW)
    assert isinstance(decision, Retry)
    assert decision.at is None


def test_crashes_and_failures_are_counted_apart() -> None:
    policy = RetryPolicy(max_retries=2, max_crashes=3)
    mixed = history(Outcome.CRASH, Outcome.ERROR, Outcome.CRASH, Outcome.ERROR)
    assert isinstance(after(policy, mixed, NOW), Retry)
    assert isinstance(after(policy, history(*[a.outcome for a in mixed], Outcome.ERROR), NOW), GiveUp)


def test_the_third_crash_is_the_last_and_names_the_hosts() -> None:
    crashes = [Attempt(number, Outcome.CRASH, None, host) for number, host in enumerate(("nid7", None, "nid9"), 1)]
    policy = RetryPolicy(backoff_s=60)
    assert after(policy, crashes[:2], NOW) == Retry(None, "attempt 2 crashed on an unknown host: crash 2 of 3")
    assert after(policy, crashes, NOW) == GiveUp(
        "crashed 3 times (max_crashes=3), on nid7, unknown host, nid9; how each crash ended is in the task's attempts"
    )


def test_outcomes_that_are_not_to_be_retried() -> None:
    policy = RetryPolicy(max_retries=5, retry_on=["exit"])  # type: ignore[arg-type]
    assert policy.retry_on == frozenset({Outcome.EXIT})
    assert isinstance(after(policy, history(Outcome.EXIT), NOW), Retry)
    decision = after(policy, history(Outcome.TIMEOUT), NOW)
    assert decision == GiveUp("attempt 1 ended with timeout, which the policy does not retry")


def test_exit_codes_that_are_never_retried() -> None:
    policy = RetryPolicy(max_retries=5, never_exit_codes={2, 3})  # type: ignore[arg-type]
    assert isinstance(after(policy, history(Outcome.EXIT, exit_code=1), NOW), Retry)
    decision = after(policy, history(Outcome.EXIT, exit_code=3), NOW)
    assert isinstance(decision, GiveUp)
    assert "exit code 3" in decision.reason


@pytest.mark.parametrize("outcomes", [[], [Outcome.DONE], [Outcome.ERROR, Outcome.CANCELLED]])
def test_other_histories_ask_for_no_decision(outcomes: list[Outcome]) -> None:
    with pytest.raises(ValueError):
        after(RetryPolicy(), history(*outcomes), NOW)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("max_retries", value) for value in (-1, 1.0, True, "1", None)],
        *[("max_crashes", value) for value in (0, 1.5, True)],
        *[("backoff_s", value) for value in (-1, float("nan"), float("inf"), "1", True, 10**400)],
        *[("factor", value) for value in (0.5, 0, float("nan"), float("inf"), 10**400)],
        *[("ceiling_s", value) for value in (-1, float("nan"), float("inf"), 1e30, None)],
        *[("retry_on", value) for value in ("error", Outcome.ERROR, 5, ["crash"], ["ended"], ["done"], ["oops"], [1])],
        *[("never_exit_codes", value) for value in (3, "3", ["3"], [True], [1.0])],
    ],
)
def test_wrong_values_are_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(ConfigurationError, match=f"^{name}=.*expected"):
        RetryPolicy(**{name: value})


def test_unknown_fields_are_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"'tries'.*max_retries"):
        RetryPolicy.from_dict({"tries": 1})
