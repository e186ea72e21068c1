"""A command line of an app is started on every rank, by what bash reads before it runs it."""

from __future__ import annotations

import shlex
import socket
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from parsl_balsam.launcher import gpus

PREFIX = Path(gpus.__file__).with_name("prefix.bash")

#: A stand-in for an MPI launcher: ``launch COUNT NOTE COMMAND...`` runs a command so often, one rank after the other.
LAUNCHER = """
count=$1
export NOTE="$2"
shift 2
number=0
code=0
while [ $number -lt $count ]; do
    env PMI_RANK=$number ${LOCAL_RANK:-MPI_LOCALRANKID}=$number "$@" || code=$?
    number=$((number + 1))
done
exit $code
"""

COMMANDS = {
    "blanks": "printf '%s|' a   'b  c' \"d \"",
    "quotes": """printf '%s|' "it's" '"quoted"' \\" \\' '\\'""",
    "dollars": """name='a b'; printf '%s|' $name "$name" '$name' \\$name "${name/a/x}" $((6*7)) `echo 1` $(echo 2)""",
    "backslashes": r"""printf '%s|' \\ \n '\n' "\\n" $'\n' a\
b""",
    "lines": """
        for word in one two; do
            echo "$word"   # a comment: it's not the end
        done

        cat <<'END'
$not "expanded"
END
    """,
    "functions": "again() { echo \"$1\"; }; again 'first  time' && again second || echo never; (again inside) | cat",
    "globs": "touch 'x y.dat'; printf '%s|' *.dat '*.dat'; [[ -e 'x y.dat' ]] && echo there",
    "bytes": r"printf '\xff\x00é' | od -An -tx1",
    "empty": "",
}


@dataclass(frozen=True)
class Shell:
    """The bash of a task's app."""

    directory: Path
    launcher: Path

    @property
    def environ(self) -> dict[str, str]:
        return {"PATH": f"{self.directory}:/usr/bin:/bin", "HOME": str(self.directory), "LC_ALL": "C.UTF-8"}

    def prefix(self, ranks: int, note: str = "") -> str:
        return shlex.join([str(self.launcher), str(ranks), note])

    def plain(self, command: str, **environ: str) -> subprocess.CompletedProcess[str]:
        """Run a command as if it had no ranks."""
        return self._run(command, environ)

    def run(self, command: str, ranks: int = 2, **environ: str) -> subprocess.CompletedProcess[str]:
        """Run a command that has ranks."""
        prefix = self.prefix(ranks)
        told = {"BASH_ENV": str(PREFIX), "BALSAM_STAGE": "launch", "BALSAM_USER_BASH_ENV": ""}
        told |= {f"PARSL_{name}_PREFIX": prefix for name in ("MPI", "SRUN", "MPIEXEC", "APRUN")}
        return self._run(command, told | environ)

    def says(self, command: str, ranks: int = 2, **environ: str) -> list[str]:
        """Return the lines that a command with ranks prints."""
        ended = self.run(command, ranks, **environ)
        assert (ended.returncode, ended.stderr) == (0, "")
        return ended.stdout.splitlines()

    def _run(self, command: str, environ: dict[str, str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", "-c", command],
            env=self.environ | environ,
            cwd=self.directory,
            input="of the launcher",
            capture_output=True,
            text=True,
            timeout=30,
        )


@pytest.fixture(params=["sh", "bash"])
def shell(request: pytest.FixtureRequest, tmp_path: Path) -> Shell:
    """A shell whose launcher is itself a script: for bash, it too reads what BASH_ENV names."""
    return Shell(tmp_path, script(tmp_path / "launch", f"#!/bin/{request.param}\n{LAUNCHER}"))


def script(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o700)
    return path


def test_command_runs_on_every_rank(shell: Shell) -> None:
    assert shell.says("echo rank $PMI_RANK", ranks=3) == ["rank 0", "rank 1", "rank 2"]


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_quoting_survives(shell: Shell, command: str) -> None:
    alone = shell.plain(command)
    on_ranks = shell.run(command)
    assert on_ranks.stdout == 2 * alone.stdout
    assert on_ranks.returncode == alone.returncode


@given(word=st.text(st.characters(codec="utf-8", exclude_characters="\0\r")))
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_word_survives(shell: Shell, word: str) -> None:
    assert shell.run(f"printf %s {shlex.quote(word)}", ranks=1).stdout == word


def test_quoted_options_of_the_launcher_survive(shell: Shell) -> None:
    note = "a 'b'  \"$HOME\" \\ *"
    assert shell.says('echo "$NOTE"', PARSL_MPI_PREFIX=shell.prefix(1, note)) == [note]


def test_command_runs_once_where_no_launcher_is_needed(shell: Shell) -> None:
    assert shell.says("echo once; bash -c 'echo inside'", PARSL_MPI_PREFIX="") == ["once", "inside"]


@pytest.mark.parametrize("name", ["MPI", "SRUN", "MPIEXEC", "APRUN"])
@pytest.mark.parametrize("form", ["$PARSL_{}_PREFIX", "${{PARSL_{}_PREFIX}}", "eval ${{PARSL_{}_PREFIX:-none}}"])
def test_command_that_starts_its_ranks_itself_runs_once(shell: Shell, name: str, form: str) -> None:
    script(shell.directory / "program", "#!/bin/bash\necho rank $PMI_RANK\n")
    assert shell.says(f"echo before\n  {form.format(name)} ./program") == ["before", "rank 0", "rank 1"]


def test_bash_that_a_rank_starts_is_not_prefixed_again(shell: Shell) -> None:
    script(shell.directory / "inner", "#!/bin/bash\necho script $PMI_RANK\n")
    command = "bash -c 'echo nested $PMI_RANK'; ./inner"
    assert shell.says(command) == ["nested 0", "script 0", "nested 1", "script 1"]


def test_script_that_an_app_starts_before_its_command_is_not_prefixed(shell: Shell) -> None:
    inner = script(shell.directory / "inner", "#!/bin/bash\necho script\nbash -c 'echo nested'\n")
    told = {"BASH_ENV": str(PREFIX), "BALSAM_STAGE": "launch", "BALSAM_USER_BASH_ENV": ""}
    environ = shell.environ | told | {"PARSL_MPI_PREFIX": shell.prefix(2)}
    assert subprocess.check_output([inner], env=environ, text=True) == "script\nnested\n"


def test_users_own_bash_env_is_read_by_every_bash(shell: Shell) -> None:
    own = shell.directory / "my env"
    own.write_text("greet() { echo hello $1; }\necho read >>reads\n")
    command = "greet rank; bash -c 'greet nested'; echo \"$BASH_ENV\""
    assert shell.says(command, BALSAM_USER_BASH_ENV=str(own)) == 2 * ["hello rank", "hello nested", str(own)]
    by_launcher = 1 if shell.launcher.read_text().startswith("#!/bin/bash") else 0
    assert (shell.directory / "reads").read_text().count("read") == 4 + by_launcher


def test_users_own_bash_env_is_read_where_the_command_starts_its_ranks(shell: Shell) -> None:
    own = shell.directory / "env"
    own.write_text("greet() { echo hello $1; }\n")
    command = "greet once; $PARSL_MPI_PREFIX bash -c 'greet rank'"
    assert shell.says(command, BALSAM_USER_BASH_ENV=str(own)) == ["hello once", "hello rank", "hello rank"]


def test_missing_bash_env_of_the_user_is_no_error(shell: Shell) -> None:
    assert shell.says('echo "$BASH_ENV"', ranks=1, BALSAM_USER_BASH_ENV="/not/there") == ["/not/there"]


@pytest.mark.parametrize("command", ["exit 7", "(exit 7)", "kill -9 $$", "no-such-program", "exit $PMI_RANK", "true"])
def test_exit_code_is_the_commands(shell: Shell, command: str) -> None:
    codes = {"exit 7": 7, "(exit 7)": 7, "kill -9 $$": 137, "no-such-program": 127, "exit $PMI_RANK": 1, "true": 0}
    assert shell.run(command).returncode == codes[command]


def test_ranks_have_nothing_to_read(shell: Shell) -> None:
    assert shell.says("cat; echo read") == ["read", "read"]


def test_launcher_that_is_not_there_fails_the_command(shell: Shell) -> None:
    ended = shell.run("echo never", PARSL_MPI_PREFIX="no-such-launcher -n 2")
    assert (ended.returncode, ended.stdout) == (127, "")
    assert "no-such-launcher" in ended.stderr


VISIBLE = 'echo "$CUDA_VISIBLE_DEVICES $ROCR_VISIBLE_DEVICES $ZE_AFFINITY_MASK"'


@pytest.mark.parametrize(
    ("table", "per_rank", "chosen"),
    [
        ("*=0,1,2,3", 1, ["0", "1"]),
        ("*=0,1,2,3", 2, ["0,1", "2,3"]),
        ("*=GPU-5ebe9f43,MIG-1/2/0", 1, ["GPU-5ebe9f43", "MIG-1/2/0"]),
        ("elsewhere=0,1 {host}=4,6", 1, ["4", "6"]),
        ("{host}=4,5,6,7 elsewhere=0,1,2,3", 2, ["4,5", "6,7"]),
        ("{host}.some.domain=4,6 elsewhere=0,1", 1, ["4", "6"]),
        ("elsewhere=0,1 {host}2=2,3", 1, ["", ""]),
    ],
)
def test_every_rank_is_given_its_own_gpus(shell: Shell, table: str, per_rank: int, chosen: list[str]) -> None:
    table = table.format(host=socket.gethostname().partition(".")[0])
    told = {"BALSAM_GPUS": table, "BALSAM_GPUS_PER_RANK": str(per_rank), "CUDA_VISIBLE_DEVICES": "all"}
    assert shell.says(VISIBLE, **told) == [" ".join(3 * [mine]) for mine in chosen]
    # A program started by way of Python's rank is told the same.
    host = socket.gethostname()
    assert [",".join(gpus.of_rank(gpus.read_table(table, host), per_rank, rank)) for rank in (0, 1)] == chosen


@pytest.mark.parametrize("name", gpus.LOCAL_RANK)
def test_rank_on_its_node_is_known_by_any_launcher(shell: Shell, name: str) -> None:
    told = {"BALSAM_GPUS": "*=0,1", "BALSAM_GPUS_PER_RANK": "1", "LOCAL_RANK": name, "SLURM_LOCALID": "0"}
    assert shell.says("echo $CUDA_VISIBLE_DEVICES", **told) == ["0", "1"]


def test_only_srun_names_the_node_of_a_rank(shell: Shell) -> None:
    table = f"n1=0,1 n7=6,7 {socket.gethostname()}=4,5"
    told = {"BALSAM_GPUS": table, "BALSAM_GPUS_PER_RANK": "1", "SLURMD_NODENAME": "n7"}
    assert shell.says("echo $CUDA_VISIBLE_DEVICES", **told) == ["4", "5"]
    shell.launcher.rename(shell.directory / "srun")
    assert shell.says("echo $CUDA_VISIBLE_DEVICES", PARSL_MPI_PREFIX="srun 2 note", **told) == ["6", "7"]


def test_files_named_like_the_table_do_not_matter(shell: Shell) -> None:
    (shell.directory / "a=0,1").touch()
    told = {"BALSAM_GPUS": "*=0,1", "BALSAM_GPUS_PER_RANK": "1"}
    assert shell.says("echo $CUDA_VISIBLE_DEVICES", **told) == ["0", "1"]


def test_users_own_bash_env_sees_the_gpus_of_its_rank(shell: Shell) -> None:
    own = shell.directory / "env"
    own.write_text("seen=$CUDA_VISIBLE_DEVICES\n")
    told = {"BALSAM_GPUS": "*=0,1", "BALSAM_GPUS_PER_RANK": "1", "BALSAM_USER_BASH_ENV": str(own)}
    assert shell.says("echo $seen", **told) == ["0", "1"]


def test_rank_of_a_task_that_was_given_up_does_not_begin(shell: Shell) -> None:
    given_up = shell.directory / "ended"
    assert shell.says("echo began", BALSAM_RANKS_ENDED=str(given_up)) == ["began", "began"]
    given_up.touch()
    ended = shell.run("echo began", BALSAM_RANKS_ENDED=str(given_up))
    assert (ended.returncode, ended.stdout) == (1, "")


def on_ranks(shell: Shell, command: str) -> list[str]:
    return shell.says(command, BALSAM_GPUS="*=0,1", BALSAM_GPUS_PER_RANK="1")


def started_by_itself(shell: Shell, command: str) -> list[str]:
    return shell.says(f": PARSL_MPI_PREFIX; {command}")


def without_stage(shell: Shell, command: str) -> list[str]:
    return shell.says(command, BALSAM_STAGE="")


@pytest.mark.parametrize("run", [on_ranks, started_by_itself, without_stage])
def test_nothing_is_left_of_the_way_the_command_was_started(
    shell: Shell, run: Callable[[Shell, str], list[str]]
) -> None:
    left = [name for name in run(shell, "compgen -v") if "balsam" in name.lower() or name == "BASH_ENV"]
    assert set(left) <= {"BALSAM_GPUS", "BALSAM_GPUS_PER_RANK"}
