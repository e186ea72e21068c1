"""Configurations are found, loaded and judged before a run uses them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from sqlalchemy.engine import make_url

from parsl_balsam.cli.main import main

HEAD = """
from parsl import Config
from parsl.executors import ThreadPoolExecutor
from parsl.providers import LocalProvider, PBSProProvider
from parsl_balsam import BalsamExecutor, CobaltProvider
"""

Check = Callable[..., Result]


@pytest.fixture
def check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Check:
    """Writes a configuration and checks it, in the directory that it is in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])

    def run(text: str, *words: str, source: str = "machine.py") -> Result:
        (tmp_path / "machine.py").write_text(HEAD + text)
        return CliRunner().invoke(main, ["check", source, *words])

    return run


def said(result: Result, code: int = 0) -> str:
    assert result.exit_code == code, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result.output


def problems(result: Result) -> list[str]:
    return [line for line in said(result, 1).splitlines() if line.startswith("problem")]


# which configuration


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("config = Config(executors=[BalsamExecutor(label='mine')])", "machine.py"),
        ("a = Config()\nb = Config(executors=[BalsamExecutor(label='mine')])", "machine.py:b"),
        (
            "def make_config():\n return Config(executors=[BalsamExecutor(label='mine')])\nother = Config()",
            "machine.py",
        ),
        ("def here():\n return Config(executors=[BalsamExecutor(label='mine')])", "machine.py:here"),
    ],
    ids=["the only Config", "a Config by name", "make_config", "a function by name"],
)
def test_configuration_is_found(check: Check, text: str, source: str) -> None:
    assert "Executor mine: LocalProvider" in said(check(text, source=source))


def test_configuration_is_found_in_a_module(check: Check, tmp_path: Path) -> None:
    (tmp_path / "balsam_sites_of_test").mkdir()
    (tmp_path / "balsam_sites_of_test" / "here.py").write_text(
        HEAD + "def make_config(workflow=None, nodes=1): return Config(executors=[BalsamExecutor(workflow=workflow)])"
    )
    assert "Executor balsam" in said(check("", source="balsam_sites_of_test.here"))
    assert "Executor balsam" in said(check("", source="balsam_sites_of_test.here:make_config"))


NAMED = "return Config(executors=[BalsamExecutor(label=f'for-{workflow}', workflow=workflow)])"


@pytest.mark.parametrize(
    ("head", "words", "label"),
    [
        ("def make_config(workflow):", (), "for-check"),
        ("def make_config(workflow):", ("--workflow", "scan"), "for-scan"),
        ("def make_config(*, workflow):", ("--workflow", "scan"), "for-scan"),
        ("def make_config(workflow='own'):", (), "for-own"),
        ("def make_config(workflow='own'):", ("--workflow", "scan"), "for-scan"),
    ],
)
def test_function_gets_the_workflow(check: Check, head: str, words: tuple[str, ...], label: str) -> None:
    assert f"Executor {label}: " in said(check(f"{head}\n    {NAMED}", *words))


def test_function_gets_what_is_set(check: Check) -> None:
    text = """
def make_config(workflow: str, account: str, mode: "Literal['a', 'b']" = "a", *, nodes: int | None = None, share=0.5):
    label = "-".join(map(repr, (workflow, account, mode, nodes, share)))
    return Config(executors=[BalsamExecutor(label=label)])
"""
    given = ["account=123", "nodes=4", "share=1.5", "mode=b", "workflow=scan"]
    words = [word for each in given for word in ("--set", each)]
    assert "Executor 'scan'-'123'-'b'-4-1.5: " in said(check(text, *words))
    assert "Executor 'check'-'m=1'-'a'-None-0.5: " in said(check(text, "--set", "account=m=1"))
    refused = check(text, "--set", "account=123", "--set", "node=4")
    assert "make_config takes no node: it takes workflow, account, mode, nodes, share" in refused.stderr
    assert check(text, "--set", "account").exit_code == 2
    assert "config of machine.py is no function: it takes no account" in check(config(), *words[:2]).stderr


@pytest.mark.parametrize(
    ("text", "source", "why"),
    [
        ("", "nowhere.py", "there is no file nowhere.py"),
        ("", "no.such.module", "no.such.module cannot be loaded: ModuleNotFoundError: No module named 'no'"),
        ("", "machine.py", "machine.py has neither make_config nor a Config"),
        ("a = Config()\nb = Config()", "machine.py", "machine.py has the Configs a, b: name what is to be checked"),
        ("a = Config()", "machine.py:b", "machine.py has no b"),
        ("a = 7", "machine.py:a", "a of machine.py is a int, not a parsl.Config"),
        (
            "def make_config(site, nodes): ...",
            "machine.py",
            "make_config must be called with nodes, site: give --set nodes=VALUE --set site=VALUE",
        ),
        ("1 / 0", "machine.py", "machine.py cannot be loaded: ZeroDivisionError: division by zero ("),
        ("def make_config():\n  raise KeyError('x')", "machine.py", "cannot be loaded: KeyError: 'x' ("),
        ("import sys\nsys.exit(3)", "machine.py", "cannot be loaded: SystemExit: 3"),
        ("a = (", "machine.py", "cannot be loaded: SyntaxError: "),
        ("a = Config(executors=[BalsamExecutor(lease_s=-1)])", "machine.py", "lease_s=-1 must be greater than zero ("),
        ("a = Config(executors=[ThreadPoolExecutor()])", "machine.py", "machine.py has no BalsamExecutor"),
    ],
)
def test_what_cannot_be_loaded_is_told_in_one_line(check: Check, text: str, source: str, why: str) -> None:
    result = check(text, source=source)
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1
    assert why in result.stderr


def test_line_of_the_user_is_named(check: Check, tmp_path: Path) -> None:
    (tmp_path / "balsam_parts_of_test.py").write_text("def part():\n    raise OSError('no such machine')\n")
    result = check("from balsam_parts_of_test import part\nconfig = part()")
    assert f"OSError: no such machine ({tmp_path}/machine.py, line 7)" in result.stderr


# the database


def config(**options: object) -> str:
    given = ", ".join(f"{name}={value}" for name, value in options.items())
    return f"config = Config(executors=[BalsamExecutor({given})])"


def test_database_file_is_not_made(check: Check, tmp_path: Path) -> None:
    assert "will be made by the first run" in said(check(config()))
    assert not (tmp_path / "balsam.db").exists()
    (problem,) = problems(check(config(database=repr(f"sqlite:///{tmp_path}/none/balsam.db"))))
    assert f"{tmp_path}/none is not there" in problem


def test_database_that_cannot_be_opened(check: Check, tmp_path: Path) -> None:
    (tmp_path / "balsam.db").write_text("This is not a database, but a text that may be taken for one." * 20)
    (problem,) = problems(check(config()))
    assert "The database cannot be opened here" in problem
    assert "not a database" in problem


def test_sqlite_is_refused_where_blocks_are_elsewhere(check: Check) -> None:
    result = check(config(provider="PBSProProvider(walltime='00:30:00')"))
    assert "PBSProProvider starts blocks on other hosts, and SQLite serves one host only" in result.stderr


def test_provider_of_parsl_renders_its_own_scripts(check: Check, postgres_url: str) -> None:
    provider = "PBSProProvider(nodes_per_block=3, walltime='00:30:00', worker_init='module load chemistry')"
    result = check(config(database=repr(postgres_url), provider=provider), "--submit")
    lines = said(result, 1).splitlines()
    assert "A block has 3 nodes for 00:30:00." in lines
    assert "  | module load chemistry" in lines
    assert (
        "Its script is rendered by Parsl's PBSProProvider when a block is requested, and cannot be shown here." in lines
    )
    assert (
        "Nothing is submitted: a try from a block's node needs a provider of parsl_balsam, not PBSProProvider." in lines
    )
    assert any(line.startswith("ok       The database can be opened here: postgresql") for line in lines)
    (problem,) = problems(result)
    assert "127.0.0.1 is each host's own address for itself" in problem


@pytest.mark.parametrize(
    ("where", "why"),
    [
        ("localhost:1/x", "localhost is each host's own name for itself"),
        ("127.8.9.1:1/x", "127.8.9.1 is each host's own address for itself"),
        ("[::1]:1/x", "::1 is each host's own address for itself"),
        ("/x?port=1", "its URL names no host"),
        ("/x?host=/var/run/none&port=1", "it is a socket of this host"),
    ],
)
def test_address_that_is_another_machine_for_each_host(check: Check, where: str, why: str) -> None:
    database = repr(f"postgresql://me:secret@{where}")
    first, second = problems(check(config(database=database, provider="PBSProProvider()")))
    assert f": {why}. If it is a server of your own: parsl-balsam db start DIR --host NAME, " in first
    assert "The database cannot be opened here" in second
    assert "secret" not in first + second


def test_address_that_may_be_meant_for_all(check: Check, postgres_url: str) -> None:
    url = make_url(postgres_url).set(host="192.0.2.1", port=1).set(query={"connect_timeout": "1"})
    address = url.render_as_string(hide_password=False)
    (problem,) = problems(check(config(database=repr(address), provider="PBSProProvider()")))
    assert "cannot be opened here" in problem


# Python


def test_cobalt_cannot_be_asked_whether_it_would_take_a_script(check: Check, postgres_url: str) -> None:
    result = check(config(database=repr(postgres_url), provider="CobaltProvider(account='chemistry')"))
    lines = said(result, 1).splitlines()
    assert "  | #!/bin/bash" in lines
    (submission,) = (line for line in lines if line.startswith("It is submitted by: "))
    assert submission.startswith("It is submitted by: qsub ")
    assert " -A chemistry " in submission
    assert "note     cobalt cannot be asked whether it would take the script: only --submit tells." in lines


def test_package_that_is_found_only_from_here_is_a_problem(tmp_path: Path) -> None:
    """As where it was never installed, but the program is started in its checkout."""
    (tmp_path / "machine.py").write_text(HEAD + config())
    packages = [path for path in sys.path if path.endswith("site-packages")]
    checkout = str(Path(__file__).parents[2])
    bare = subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "bare"], check=False)
    assert bare.returncode == 0
    result = subprocess.run(
        [
            tmp_path / "bare" / "bin" / "python",
            "-c",
            "from parsl_balsam.cli.main import main; main()",
            "check",
            "machine.py",
        ],
        env={"PYTHONPATH": ":".join([checkout, *packages]), "PATH": "/usr/bin:/bin"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1, result.stdout + result.stderr
    (problem,) = (line for line in result.stdout.splitlines() if line.startswith("problem"))
    assert "imports parsl_balsam only from this directory or by $PYTHONPATH" in problem
    assert "ModuleNotFoundError: No module named 'parsl_balsam'" in problem
