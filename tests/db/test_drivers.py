"""A driver of this host is known by its start, whatever the host's clock says."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import psutil
import pytest

from parsl_balsam.db.drivers import is_dead, this_process

from .conftest import LIMIT_S


def test_this_process_lives() -> None:
    assert not is_dead(this_process())


def test_process_lives_on_when_the_clock_of_its_host_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = this_process()
    create_time, boot_time = psutil.Process.create_time, psutil.boot_time
    monkeypatch.setattr(psutil.Process, "create_time", lambda process: create_time(process) + 3600.0)
    monkeypatch.setattr(psutil, "boot_time", lambda: boot_time() + 3600.0)
    assert this_process() == driver
    assert not is_dead(driver)


def test_process_that_has_ended_is_dead_before_its_parent_asks_for_it() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", "from parsl_balsam.db.drivers import this_process; print(this_process())"],
        stdout=subprocess.PIPE,
        text=True,
    ) as child:
        assert child.stdout is not None
        told = child.stdout.read()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        driver = replace(this_process(), pid=child.pid, pid_started=float(told.split("pid_started=")[1].rstrip(")\n")))
        assert driver.pid_started > 0
        assert is_dead(driver)
        child.wait(LIMIT_S)
        assert is_dead(driver)


def test_later_process_with_the_same_pid_is_another() -> None:
    driver = this_process()
    assert is_dead(replace(driver, pid_started=driver.pid_started - 0.01))


def test_process_of_another_host_or_boot_is_not_known_to_be_dead() -> None:
    assert not is_dead(replace(this_process(), host_key="elsewhere", pid=1, pid_started=0.0))
