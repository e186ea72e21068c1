"""What scripts see at the stand-in for Cobalt, and where they run."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.cobalt.cobalt import Cobalt
from tests.cobalt.conftest import Write
from tests.cobalt.stories import KILLED, PATIENT, alive, completed, finish, output, start, submit

#: Variables that bash sets.
OWN = frozenset({"PWD", "SHLVL", "_", "OLDPWD"})


def variables(text: str) -> dict[str, str]:
    return dict(line.split("=", 1) for line in text.splitlines() if "=" in line)


def test_environment_on_a_cluster(cobalt: Cobalt, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXPORTED", "no")
    cobalt.change(login={"MODULES": "mpi"})
    script = write("env; cat $COBALT_NODEFILE; test -e $COBALT_NODEFILE")
    job = submit(cobalt, script, "-n", "3", "--proccount", "8", "--env", "OWN=$jobid")
    finish(cobalt, job)
    seen = variables(output(script, job))
    assert seen.keys() - OWN - cobalt.login.keys() == {
        "COBALT_JOBID",
        "COBALT_NODEFILE",
        "COBALT_PARTNAME",
        "COBALT_PARTSIZE",
        "COBALT_JOBSIZE",
        "COBALT_STARTTIME",
        "COBALT_ENDTIME",
        "OWN",
        "MODULES",
    }
    assert seen["COBALT_JOBID"] == seen["OWN"] == job
    assert (seen["COBALT_PARTNAME"], seen["COBALT_PARTSIZE"], seen["COBALT_JOBSIZE"]) == ("cc001", "8", "8")
    assert int(seen["COBALT_ENDTIME"]) - int(seen["COBALT_STARTTIME"]) == 600
    assert [line for line in output(script, job).splitlines() if "=" not in line] == ["cc001", "cc003", "cc002"]
    assert not os.path.exists(seen["COBALT_NODEFILE"])


def test_environment_by_ssh(cobalt: Cobalt, write: Write) -> None:
    cobalt.change(remote=True)
    script = write('env; for word; do echo "[$word]"; done')
    job = submit(cobalt, script, "--env", "OWN=$HOME", args=("two words", ";", "exit", "9"))
    assert finish(cobalt, job) == completed(9)
    seen = variables(output(script, job))
    assert seen.keys() - OWN - cobalt.login.keys() == {"COBALT_JOBID", "COBALT_NODEFILE", "OWN"}
    assert seen["OWN"] == os.path.expanduser("~")
    assert [line for line in output(script, job).splitlines() if line[0] == "["] == ["[two]", "[words]"]
    assert "COBALT_ENDTIME" in cobalt.log(job)


def test_environment_on_a_cray(write: Write) -> None:
    script = write("env")
    with Cobalt(nodes=["12", "13", "14", "15", "20"], cray=True) as cray:
        job = submit(cray, script, "-n", "5", "-A", "mine", "-t", "1")
        finish(cray, job)
        seen = variables(output(script, job))
    assert "COBALT_NODEFILE" not in seen
    assert seen["COBALT_PARTNAME"] == "12-15,20"
    assert (seen["COBALT_PARTSIZE"], seen["COBALT_PROJECT"], seen["COBALT_QUEUE"]) == ("5", "mine", "default")


def test_script_far_away_is_not_told_to_end(cobalt: Cobalt, write: Write) -> None:
    cobalt.change(remote=True, epilogue_s=1000)
    script = write(PATIENT)
    job = start(cobalt, script)
    running = cobalt.processes(job)
    cobalt.run("qdel", job)
    cobalt.wait_for(job, "exiting")
    assert len(alive(running)) == len(running)
    cobalt.change(epilogue_s=0)
    assert finish(cobalt, job) == KILLED
    assert alive(running) == []
    assert output(script, job) == "begun\n"


def test_node_file_can_have_names_that_work(cobalt: Cobalt, write: Write) -> None:
    cobalt.change(host_name="localhost")
    script = write("cat $COBALT_NODEFILE")
    job = submit(cobalt, script)
    finish(cobalt, job)
    assert output(script, job) == "localhost\n"
    assert cobalt.nodes_of(job) == ["cc001"]


def test_where_it_runs(cobalt: Cobalt, write: Write, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "words").write_text("from a file\n")
    script = write('pwd; cat; umask; ps -o pid=,pgid=,sid= $$; printf "[%s]" "$@"')
    options = ("--cwd", f"{tmp_path}/there", "-i", "../words", "-u", "077", "-o", "said_$jobid", "-e", "e")
    job = submit(cobalt, script, *options, args=("a b", "$HOME"))
    finish(cobalt, job)
    said = (tmp_path / "there" / f"said_{job}").read_text().splitlines()
    assert said[:3] == [f"{tmp_path}/there", "from a file", "0077"]
    assert said[3].split() == [str(cobalt.script_pid(job))] * 3
    assert said[4] == "[a b][$HOME]"
    assert (tmp_path / "there" / f"{job}.cobaltlog").exists()


def test_output_that_cannot_be_written_is_lost(cobalt: Cobalt, write: Write, tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    job = submit(cobalt, write("echo lost; exit 5"), "-o", "taken")
    assert finish(cobalt, job) == completed(5)
    assert "unable to open" in cobalt.log(job)
