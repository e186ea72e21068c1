"""qsub: submits a script, and prints the job's id."""

from __future__ import annotations

import optparse
import os
import re
import sys
import time
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

from tests.cobalt.directives import directives
from tests.cobalt.joblog import stamp
from tests.cobalt.questions import Away, Refused, ask, fail, fail_without, user_name
from tests.cobalt.walltimes import minutes

_MODES = ("co", "vn", "script", "interactive")

#: Options with one word as their value.
_PLAIN = {
    "-t": "time",
    "-q": "queue",
    "-A": "project",
    "-O": "prefix",
    "-o": "stdout",
    "-e": "stderr",
    "-i": "stdin",
    "-u": "umask",
    "-M": "notify",
    "--debuglog": "log",
    "--cwd": "cwd",
    "--jobname": "name",
    "--dependencies": "dependencies",
    "--run_users": "run_users",
}


def main(home: str, argv: Sequence[str]) -> None:
    """Submit to the server whose directory is `home`."""
    parser = _parser()
    options, words = parser.parse_args(list(argv))
    line = [*(directives(_script(options, words[0])) if words else []), *argv]
    options, words = parser.parse_args(list(line))
    if len(words) == len(line):
        parser.print_usage()
        fail("No required options provided")
    if not words:
        parser.print_usage()
        fail("No executable or script specified")
    job = _job(options, words)
    _check_files(job)
    accepted = _submit(home, job)
    if strangers := accepted["unknown_dependencies"]:
        print(f"WARNING: dependencies {':'.join(strangers)} do not match jobs currently in the queue", file=sys.stderr)
    _begin_log(accepted["log"], accepted["id"], line, job["cwd"])
    print(accepted["id"])


def _parser() -> optparse.OptionParser:
    usage = "%prog [options] <executable> [<executable options>]"
    parser = optparse.OptionParser(usage, prog="qsub.py", add_help_option=False)
    parser.disable_interspersed_args()
    parser.add_option("--help", action="help")
    parser.add_option("-h", dest="held", action="store_true", default=False)
    parser.add_option("-n", dest="nodes", type="int")
    parser.add_option("--proccount", type="int")
    for name in ("mode", "env", "attrs"):
        parser.add_option(f"--{name}", action="append")
    for option, name in _PLAIN.items():
        parser.add_option(option, dest=name)
    return parser


def _script(options: optparse.Values, word: str) -> str:
    return os.path.join(options.cwd or os.getcwd(), word).replace(" ", "")


def _job(options: optparse.Values, words: Sequence[str]) -> dict[str, Any]:
    """Return the job as the server takes it."""
    if options.time is None:
        fail("'time' not provided")
    if options.nodes is None:
        fail("'nodecount' not provided")
    try:
        walltime = minutes(options.time)
    except ValueError as error:
        fail(str(error))
    try:
        umask = int(options.umask or "022", 8)
    except ValueError:
        fail(f"Invalid umask: {options.umask}")
    if len(options.attrs or ()) > 1:
        fail("Multiple --attrs options not supported.  Specify multiple attributes in one, separated by colons")
    cwd = options.cwd or os.getcwd()
    prefix = options.prefix
    paths = {
        name: None if path is None else os.path.join(cwd, path)
        for name, path in (
            ("stdin", options.stdin),
            ("stdout", options.stdout or (prefix and f"{prefix}.output")),
            ("stderr", options.stderr or (prefix and f"{prefix}.error")),
            ("log", options.log or (prefix and f"{prefix}.cobaltlog")),
        )
    }
    name = options.name
    if name is None and paths["stdout"] is not None:
        name = os.path.basename(paths["stdout"]).removesuffix(".output")
    return {
        **paths,
        "script": _script(options, words[0]),
        "args": words[1:],
        "nodes": options.nodes,
        "minutes": walltime,
        "queue": options.queue or "default",
        "user": user_name(),
        "cwd": cwd,
        "name": name,
        "project": options.project,
        "env": _environment(options.env or ()),
        "attrs": _attributes(options.attrs or ()),
        "mode": _mode(options.mode or ()),
        "held": options.held,
        "dependencies": [word for word in (options.dependencies or "").split(":") if word],
        "proccount": options.proccount,
        "umask": umask,
        "notify": options.notify,
        "run_users": (options.run_users or "").split(":") if options.run_users else [],
        "path": os.environ.get("PATH", ""),
    }


def _environment(values: Iterable[str]) -> dict[str, str]:
    found = {}
    for value in values:
        # A colon is one between two variables only where another one's name comes after it.
        for item in re.split(r"(?<!\\):(?=[A-Za-z_]\w*=)", value):
            name, equals, text = item.partition("=")
            if not equals:
                fail(f"Improperly formatted argument to env : {[item]}")
            found[name] = text.replace(r"\:", ":").replace(r"\=", "=")
    return found


def _attributes(values: Iterable[str]) -> dict[str, str]:
    found = {}
    for value in values:
        for item in value.split(":"):
            name, *rest = item.split("=")
            if len(rest) > 1:
                fail(f"Improperly formatted argument to attrs : {item}")
            if rest:
                found[name] = rest[0]
            elif name.startswith("no_"):
                found[name.removeprefix("no_")] = "false"
            else:
                found[name] = "true"
    return found


def _mode(values: Sequence[str]) -> str:
    for value in values:
        if value not in _MODES:
            fail(f"Specifed mode '{value}' not valid, valid modes are", *_MODES)
        if value != values[0]:
            fail(f"Mode already set to '{values[0]}' and trying to set it again to '{value}'")
    return values[0] if values else "script"


def _check_files(job: dict[str, Any]) -> None:
    script = job["script"]
    if not os.path.isfile(script):
        fail(f"command {script} not found, or is not a file")
    if not os.access(script, os.R_OK):
        fail(f"command {script} is not readable")
    if not os.access(script, os.X_OK):
        fail(f"command {script} is not executable")
    for path in (job["stdout"], job["stderr"], job["log"]):
        if path is not None and not os.path.isdir(os.path.dirname(path)):
            fail(f"directory {path} does not exist")
    if not os.path.isdir(job["cwd"]):
        fail(f"directory {job['cwd']} does not exist")
    if job["stdin"] is not None and not os.path.isfile(job["stdin"]):
        fail(f"file {job['stdin']} not found, or is not a file")


def _submit(home: str, job: dict[str, Any]) -> dict[str, Any]:
    try:
        ask(home, "validate_job", nodes=job["nodes"], minutes=job["minutes"])
        if notice := ask(home, "filter", job=job):
            print(notice, file=sys.stderr)
        accepted: dict[str, Any] = ask(home, "add_job", job=job)
    except Refused as refused:
        _tell(home, refused)
    except Away:
        fail_without("system")
    return accepted


def _tell(home: str, refused: Refused) -> NoReturn:
    if refused.component == "filter":
        fail(refused.text, f"Filter {home}/filter failed")
    if refused.component == "client":
        fail(refused.text)
    if refused.component == "system":
        fail(f"component error: XMLRPC failure {refused} in system.validate_job", "", noise=True)
    fail(str(refused), noise=True)


def _begin_log(path: str, job_id: str, line: Sequence[str], cwd: str) -> None:
    try:
        with open(path, "a") as log:
            print(f"Jobid: {job_id}", f"qsub {' '.join(line)}", sep="\n", file=log)
            print(f"{stamp(time.time())} submitted with cwd set to: {cwd}", file=log)
            if sys.stdout.isatty():
                print(f"jobid {job_id} submitted from terminal {os.ttyname(1)}", file=log)
    except OSError as error:
        for warning in (f"failed to create cobalt log file at: {path}", error.strerror):
            print(f"WARNING: {warning}", file=sys.stderr)
