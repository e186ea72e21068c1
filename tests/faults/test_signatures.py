"""Somebody else writes to the database: what was not called by its user is not run, and is not taken for a result."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, Table, select

from parsl_balsam.db.keyfile import KEY_VARIABLE
from parsl_balsam.db.schema import arguments, functions, results, runs, tasks
from parsl_balsam.model.signing import unsealed, unsealed_order
from tests.executor.parsl_runs import rows
from tests.faults.conftest import Campaign, until

SCRIPT = """
    @python_app
    def first(directory):
        import os, time
        open(directory + "/started", "w").close()
        while not os.path.exists(directory + "/gate"):
            time.sleep(0.02)

    @python_app
    def victim(directory):
        with open(directory + "/lines", "a") as file:
            file.write("victim\\n")
        return "victim"

    @python_app
    def other(directory):
        with open(directory + "/lines", "a") as file:
            file.write("other\\n")
        return "other"

    def told(future):
        try:
            return future.result()
        except Exception as error:
            return [type(error).__name__, str(error)]

    if __name__ == "__main__":
        with load(workflow="signed", cores_per_node=1):
            futures = [app(DIRECTORY) for app in (first, victim, other)]
            report([told(future) for future in futures])
"""


class Harm:
    """Bytes that do something when they are unpickled."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def __reduce__(self) -> Any:
        return os.system, (f"touch '{self.directory}/harmed'",)


def change(url: str, act: Callable[[Connection], object]) -> None:
    """Write to the database as somebody does who has got in."""
    from parsl_balsam.db.connect import open_database

    database = open_database(url, create=False)
    with database.begin() as connection:
        act(connection)
    database.close()


def task_of(connection: Connection, app: str) -> int:
    return connection.execute(select(tasks.c.id).where(tasks.c.app == app)).scalar_one()


def payload_of(connection: Connection, table: Table, app: str) -> bytes:
    query = select(table.c.payload).where(table.c.task_id == task_of(connection, app))
    return bytes(connection.execute(query).scalar_one())


def write_payload(connection: Connection, table: Table, app: str, payload: bytes) -> None:
    connection.execute(table.update().where(table.c.task_id == task_of(connection, app)).values(payload=payload))


def alter_arguments(connection: Connection, directory: Path) -> None:
    write_payload(connection, arguments, "victim", pickle.dumps(((), (Harm(directory),), {})))


def keep_the_signature(connection: Connection, directory: Path) -> None:
    sealed = payload_of(connection, arguments, "victim")
    head = sealed[: len(sealed) - len(unsealed(sealed))]
    write_payload(connection, arguments, "victim", head + pickle.dumps(((), (Harm(directory),), {})))


def swap_arguments(connection: Connection, _directory: Path) -> None:
    write_payload(connection, arguments, "victim", payload_of(connection, arguments, "other"))


def alter_function(connection: Connection, directory: Path) -> None:
    digest = select(tasks.c.function).where(tasks.c.app == "victim").scalar_subquery()
    connection.execute(
        functions.update().where(functions.c.digest == digest).values(body=pickle.dumps(Harm(directory)))
    )


def swap_functions(connection: Connection, _directory: Path) -> None:
    digest = select(tasks.c.function).where(tasks.c.app == "other").scalar_subquery()
    connection.execute(tasks.update().where(tasks.c.app == "victim").values(function=digest))


def alter_resources(connection: Connection, directory: Path) -> None:
    spec = f'{{"launch": "ranks", "launcher_options": "; touch {directory}/harmed;"}}'
    connection.execute(tasks.update().where(tasks.c.app == "victim").values(spec=spec))


@pytest.mark.parametrize(
    "alter",
    [alter_arguments, keep_the_signature, swap_arguments, alter_function, swap_functions, alter_resources],
    ids=lambda alter: alter.__name__,
)
@pytest.mark.parametrize("url", ["postgresql"], indirect=True)
def test_altered_call_is_not_run(campaign: Campaign, alter: Callable[[Connection, Path], None]) -> None:
    script = campaign.start(campaign.write(SCRIPT))
    until(lambda: (campaign.directory / "started").exists() and len(rows(campaign.url, tasks)) == 3)
    # The others may have been claimed by now: their arguments are with the launcher then, and out of reach.
    until(lambda: change_ready(campaign.url, lambda connection: alter(connection, campaign.directory)))
    (campaign.directory / "gate").touch()
    first, victim, other = campaign.finish(script)
    assert (first, other) == (None, "other")
    assert victim[0] == "UntrustedPayload"
    assert "was altered" in victim[1] or "is not signed" in victim[1]
    assert campaign.lines == ["other"]
    assert not (campaign.directory / "harmed").exists()
    assert ("victim", "failed", 1, "error") in campaign.attempts()
    campaign.check_invariants()


def change_ready(url: str, act: Callable[[Connection], None]) -> bool:
    """Change rows while the victim waits; tell whether it did."""
    changed: list[bool] = []

    def act_if_ready(connection: Connection) -> None:
        state = connection.execute(select(tasks.c.state).where(tasks.c.app == "victim").with_for_update()).scalar()
        if state == "ready":
            act(connection)
            changed.append(True)

    change(url, act_if_ready)
    return bool(changed)


def test_altered_result_is_not_read(campaign: Campaign) -> None:
    (campaign.directory / "gate").touch()
    script = campaign.write(SCRIPT)
    assert campaign.run(script) == [None, "victim", "other"]
    change(campaign.url, lambda c: write_payload(c, results, "victim", pickle.dumps(Harm(campaign.directory))))
    first, victim, other = campaign.run(script)
    assert (first, other) == (None, "other")
    assert victim[0] == "UntrustedPayload"
    assert "result of task" in victim[1]
    change(campaign.url, lambda c: write_payload(c, results, "victim", payload_of(c, results, "other")))
    assert campaign.run(script)[1][0] == "UntrustedPayload"
    assert not (campaign.directory / "harmed").exists()
    campaign.check_invariants()


def balsam(*words: str) -> str:
    command = [Path(sys.executable).with_name("parsl-balsam"), *words]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_database_without_signatures_is_read_once_its_user_has_signed_it(campaign: Campaign) -> None:
    (campaign.directory / "gate").touch()
    script = campaign.write(SCRIPT)
    campaign.run(script)

    def take_signatures_off(connection: Connection) -> None:
        for table in (arguments, results):
            for row in connection.execute(select(table)).all():
                write = table.update().where(table.c.task_id == row.task_id)
                connection.execute(write.values(payload=unsealed(bytes(row.payload))))
        for row in connection.execute(select(runs)).all():
            order = unsealed_order(row.launch_order)
            connection.execute(runs.update().where(runs.c.id == row.id).values(launch_order=order))

    change(campaign.url, take_signatures_off)
    refused = campaign.run(script)
    assert [error for error, _ in refused] == ["UntrustedPayload"] * 3
    assert "parsl-balsam db sign" in refused[0][1]
    said = balsam("db", "sign", "--database", campaign.url)
    assert said == "Signed 3 calls and 3 results; the others had your signature before.\n"
    assert campaign.run(script) == [None, "victim", "other"]
    assert "Signed 0 calls and 0 results" in balsam("db", "sign", "--database", campaign.url)
    assert sorted(campaign.lines) == ["other", "victim"]
    campaign.check_invariants()


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
def test_results_of_another_key_are_not_read(campaign: Campaign, monkeypatch: pytest.MonkeyPatch) -> None:
    (campaign.directory / "gate").touch()
    script = campaign.write(SCRIPT)
    campaign.run(script)
    monkeypatch.setenv(KEY_VARIABLE, str(campaign.directory / "new key"))
    assert [error for error, _ in campaign.run(script)] == ["UntrustedPayload"] * 3
    monkeypatch.undo()
    assert campaign.run(script) == [None, "victim", "other"]


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
def test_altered_orders_start_no_launcher(campaign: Campaign, monkeypatch: pytest.MonkeyPatch) -> None:
    (campaign.directory / "gate").touch()
    campaign.run(campaign.write(SCRIPT))

    def lead_elsewhere(connection: Connection) -> None:
        for row in connection.execute(select(runs)).all():
            order = row.launch_order.replace('"python_path": [', f'"python_path": ["{campaign.directory}/theirs", ')
            connection.execute(runs.update().where(runs.c.id == row.id).values(launch_order=order))

    change(campaign.url, lead_elsewhere)
    command = [Path(sys.executable).with_name("parsl-balsam"), "launcher", "signed", "--database", campaign.url]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=campaign.directory)
    assert done.returncode != 0
    assert "what the launchers of this run are told is not signed with your key" in done.stderr
