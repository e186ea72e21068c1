"""What happens to a task whose attempt has ended badly: another attempt, or none."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import datetime, timedelta
from typing import NoReturn

from parsl_balsam.model.errors import ConfigurationError
from parsl_balsam.model.states import FAILURES, Outcome

#: Longest delay a policy may ask for, seconds: a year.
LONGEST_DELAY_S = 366 * 86400.0

#: Largest growth of the delay from one retry to the next.
LARGEST_FACTOR = 1e6


@dataclass(frozen=True, slots=True)
class Attempt:
    """One ended try at running a task."""

    number: int  #: place among all attempts of the task, from 1
    outcome: Outcome  #: how it ended
    exit_code: int | None  #: of its process, if it exited
    host: str | None  #: first node it ran on, if it was placed


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """When a task is tried again.

    Failures of the app and crashes of the infrastructure are counted apart; the end of a block counts as neither.

    Raises
    ------
    ConfigurationError
        A field has a wrong type or value; the message names it.
    """

    max_retries: int = 0  #: tries after the first that failed
    backoff_s: float = 0.0  #: delay before the first retry of a failure, seconds
    factor: float = 2.0  #: each further delay is this many times the one before, at least 1
    ceiling_s: float = 300.0  #: no delay is longer, the first included, seconds
    retry_on: frozenset[Outcome] = FAILURES  #: failures worth another try; any collection of outcomes or their names
    never_exit_codes: frozenset[int] = frozenset()  #: exit codes that no other try would change
    max_crashes: int = 3  #: the crash that is the last, at least 1

    def __post_init__(self) -> None:
        checked: dict[str, object] = {
            "max_retries": _count("max_retries", self.max_retries, 0),
            "max_crashes": _count("max_crashes", self.max_crashes, 1),
            "backoff_s": _number("backoff_s", self.backoff_s, 0, LONGEST_DELAY_S),
            "factor": _number("factor", self.factor, 1, LARGEST_FACTOR),
            "ceiling_s": _number("ceiling_s", self.ceiling_s, 0, LONGEST_DELAY_S),
            "retry_on": _outcomes(self.retry_on),
            "never_exit_codes": _exit_codes(self.never_exit_codes),
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    def to_dict(self) -> dict[str, object]:
        """Return all fields, ready for JSON."""
        return asdict(self) | {
            "retry_on": sorted(outcome.value for outcome in self.retry_on),
            "never_exit_codes": sorted(self.never_exit_codes),
        }

    @classmethod
    def from_dict(cls, given: Mapping[str, object]) -> RetryPolicy:
        """Return the policy that ``to_dict`` described; fields that are missing have their default.

        Raises
        ------
        ConfigurationError
            There is no such field, or its value is wrong.
        """
        known = [field.name for field in fields(cls)]
        if not isinstance(given, Mapping):
            raise ConfigurationError(f"A description of a retry policy is a dictionary, not {given!r}.")
        for name in given:
            if name not in known:
                raise ConfigurationError(f"A retry policy has no {name!r}; it has {', '.join(known)}.")
        return cls(**given)  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class Retry:
    """The task becomes ready again."""

    at: datetime | None  #: not before this; None = at once
    reason: str  #: for the task's history


@dataclass(frozen=True, slots=True)
class GiveUp:
    """The task has failed."""

    reason: str  #: for the task's history and its error


def after(policy: RetryPolicy, history: Sequence[Attempt], now: datetime) -> Retry | GiveUp:
    """Decide what follows the last attempt of ``history``.

    Parameters
    ----------
    history
        The ended attempts of the task's present budget, in order.
    now
        When the last of them ended; delays count from here.

    Raises
    ------
    ValueError
        There is no attempt, or the last one was done or cancelled: nothing is to be decided.
    """
    if not history:
        raise ValueError("a task without attempts has nothing to retry")
    last = history[-1]
    if last.outcome is Outcome.ENDED:
        return Retry(None, f"attempt {last.number} ended with its block, which costs nothing")
    if last.outcome is Outcome.CRASH:
        return _after_crash(policy, [attempt for attempt in history if attempt.outcome is Outcome.CRASH])
    if last.outcome in FAILURES:
        return _after_failure(policy, last, sum(attempt.outcome in FAILURES for attempt in history), now)
    raise ValueError(f"an attempt that ended as {last.outcome.value} is not retried")


def _after_crash(policy: RetryPolicy, crashes: Sequence[Attempt]) -> Retry | GiveUp:
    if len(crashes) < policy.max_crashes:
        host = crashes[-1].host or "an unknown host"
        return Retry(
            None, f"attempt {crashes[-1].number} crashed on {host}: crash {len(crashes)} of {policy.max_crashes}"
        )
    hosts = ", ".join(crash.host or "unknown host" for crash in crashes)
    return GiveUp(
        f"crashed {_times(len(crashes))} (max_crashes={policy.max_crashes}), on {hosts}; "
        "how each crash ended is in the task's attempts"
    )


def _after_failure(policy: RetryPolicy, last: Attempt, failures: int, now: datetime) -> Retry | GiveUp:
    ending = last.outcome.value if last.exit_code is None else f"{last.outcome.value} (exit code {last.exit_code})"
    what = f"attempt {last.number} ended with {ending}"
    if last.outcome not in policy.retry_on:
        return GiveUp(f"{what}, which the policy does not retry")
    if last.exit_code in policy.never_exit_codes:
        return GiveUp(f"{what}, an exit code that the policy never retries")
    if failures > policy.max_retries:
        return GiveUp(f"{what}: failed {_times(failures)} (max_retries={policy.max_retries})")
    reason = f"{what}: retry {failures} of {policy.max_retries}"
    if policy.backoff_s == 0:
        return Retry(None, reason)
    return Retry(now + timedelta(seconds=_delay(policy, failures)), reason)


def _delay(policy: RetryPolicy, failures: int) -> float:
    try:
        return min(policy.ceiling_s, policy.backoff_s * policy.factor ** (failures - 1))
    except OverflowError:
        return policy.ceiling_s


def _times(number: int) -> str:
    return "once" if number == 1 else f"{number} times"


def _refuse(name: str, value: object, expected: str) -> NoReturn:
    raise ConfigurationError(f"{name}={value!r} of a retry policy: expected {expected}.")


def _count(name: str, value: object, least: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        _refuse(name, value, f"a whole number, at least {least}")
    return value


def _number(name: str, value: object, least: float, most: float) -> float:
    # Compared before it is converted: an int may be too large for a float. NaN compares false.
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not least <= value <= most:
        _refuse(name, value, f"a number from {least:g} to {most:g}")
    return float(value)


def _outcomes(value: object) -> frozenset[Outcome]:
    expected = f"a collection of {', '.join(sorted(repr(outcome.value) for outcome in FAILURES))}"
    if isinstance(value, str) or not isinstance(value, Iterable):
        _refuse("retry_on", value, expected)
    try:
        outcomes = frozenset(Outcome(item) for item in value)
    except ValueError:
        _refuse("retry_on", value, expected)
    if not outcomes <= FAILURES:
        _refuse("retry_on", value, f"{expected}; crashes are counted by max_crashes, and ended attempts always rerun")
    return outcomes


def _exit_codes(value: object) -> frozenset[int]:
    expected = "a collection of whole numbers"
    if isinstance(value, str) or not isinstance(value, Iterable):
        _refuse("never_exit_codes", value, expected)
    codes = list(value)
    if not all(isinstance(code, int) and not isinstance(code, bool) for code in codes):
        _refuse("never_exit_codes", value, expected)
    return frozenset(codes)
