"""Agents of a block run tasks, are lost, and leave nothing behind: real processes on this host.

Agents end all children of the process they belong to, so each story is told in a process of its own.
"""

from __future__ import annotations

import functools
import os
import select
import selectors
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import psutil
import pytest

from parsl_balsam.launcher import agents as agents_module
from parsl_balsam.launcher import remote as remote_module
from parsl_balsam.launcher.agents import Agents, LocalAgents
from parsl_balsam.launcher.invitation import Invitation
from parsl_balsam.launcher.messages import (
    LEASE_SHARE,
    MARK,
    Clean,
    Cleaned,
    Ended,
    Hello,
    Kill,
    Recall,
    Returned,
    Start,
)
from parsl_balsam.launcher.pool import Node
from parsl_balsam.launcher.processes import die_with_parent, inherit_orphans, kill, marked
from parsl_balsam.launcher.remote import RemoteAgents
from parsl_balsam.model.payload import decode, digest, encode
from parsl_balsam.model.states import Outcome
from tests.executor.parsl_runs import is_alive, open_gate, wait_for, wait_for_text, waiting

#: Agents, and all they start, inherit it; so every process of a story can be found.
STORY = "BALSAM_TEST_STORY"

#: No wait of a story is longer, and no story, seconds. None takes nearly as long where the code is right.
LIMIT_S = 15.0
STORY_S = 60.0

#: A lease that does not end in a story, and one that does, seconds.
LONG_S = 60.0
SHORT_S = 1.5

NODES = ("n1", "n2")

both = pytest.mark.parametrize("kind", ["local", "remote"])

Story = TypeVar("Story", bound=Callable[..., None])


def in_own_process(story: Story) -> Story:
    """Tell a story in a forked process, whatever becomes of it; nothing of it is left afterwards."""

    @functools.wraps(story)
    def tell(tmp_path: Path, **arguments: Any) -> None:
        reader, writer = os.pipe()
        parent = os.getpid()
        teller = os.fork()
        if teller == 0:
            _tell(functools.partial(story, tmp_path, **arguments), tmp_path, writer, parent)
        os.close(writer)
        try:
            trouble = _read_all(reader)
        finally:
            os.close(reader)
            os.kill(teller, signal.SIGKILL)
            os.waitpid(teller, 0)
            left = _end_all(tmp_path)
        if trouble:
            pytest.fail(trouble, pytrace=False)
        assert left == []

    return tell  # type: ignore[return-value]


def _tell(story: Callable[[], None], directory: Path, writer: int, parent: int) -> None:
    trouble = "it ended too early"
    try:
        die_with_parent(parent)
        os.environ[STORY] = str(directory)
        inherit_orphans()
        story()
        trouble = ""
    except BaseException:
        trouble = traceback.format_exc()
    finally:
        with open(writer, "w") as file:
            file.write(trouble)
        os._exit(0)


def _read_all(reader: int) -> str:
    until = time.monotonic() + STORY_S
    read = b""
    while select.select([reader], [], [], max(0.0, until - time.monotonic()))[0]:
        data = os.read(reader, 1 << 16)
        if not data:
            return read.decode()
        read += data
    return f"the story took more than {STORY_S:g} s"


def _end_all(directory: Path) -> list[str]:
    """Kill what a story has left; return what that was."""
    found: dict[int, str] = {}
    until = time.monotonic() + LIMIT_S
    while (pids := marked(STORY, str(directory))) and time.monotonic() < until:
        for pid in pids:
            if pid not in found:
                found[pid] = " ".join(psutil.Process(pid).cmdline()) if psutil.pid_exists(pid) else "?"
            kill(pid)
    return list(found.values())


class Block:
    """A launcher that knows agents, and nothing else."""

    def __init__(self, directory: Path, agents: Agents, lease_s: float) -> None:
        self.directory = directory
        self.agents = agents
        self.renews = True  #: whether the launcher's own lease is extended
        self.nodes: dict[str, Node] = {}
        self.ends: dict[int, Ended] = {}
        self.cleaned: list[tuple[str, int]] = []
        self.returned: list[int] = []
        self.losses: list[tuple[str, str]] = []
        self._lease_s = lease_s
        self._selector = selectors.DefaultSelector()
        self._tasks = 0
        self._homes: dict[int, str] = {}
        agents.open(self._selector)

    def turn(self) -> None:
        """Handle what comes within a short time."""
        self.agents.flush()
        for key, _ in self._selector.select(0.0 if self.agents.pending() else 0.02):
            key.data()
        if self.renews:
            self.agents.lease_until = time.monotonic() + self._lease_s * LEASE_SHARE
        for node, message in self.agents.messages():
            if isinstance(message, Hello):
                assert message.node.name == node
                self.nodes[node] = message.node
            elif isinstance(message, Ended):
                assert self._homes[message.task_id] == node
                assert message.task_id not in self.ends
                self.ends[message.task_id] = message
            elif isinstance(message, Returned):
                self.returned.append(message.task_id)
            else:
                assert isinstance(message, Cleaned)
                self.cleaned.append((node, message.task_id))
        for node, why in self.agents.lost():
            self.nodes.pop(node, None)
            self.losses.append((node, why))

    def until(self, condition: Callable[[], Any], what: str) -> Any:
        """Handle what comes until a condition is true; return its value."""
        return wait_for(lambda: self.turn() or condition(), what, LIMIT_S)  # type: ignore[func-returns-value]

    def start(
        self, node: str, function: Callable[..., Any], *arguments: Any, sent: bool = False, behind: bool = False
    ) -> int:
        """Start a task on a node, to which its function may have been sent before; return its id."""
        self._tasks += 1
        self._homes[self._tasks] = node
        body, payload = encode(function), encode(((), arguments, {}))
        cores = self.nodes[node].cores[:1]
        told = None if sent else body
        start = Start(self._tasks, 1, cores, False, digest(body), told, payload, None, None, behind=behind)
        self.agents.post(node, start)
        return self._tasks

    def end_of(self, task: int) -> Ended:
        """Return how a task ended, as soon as it has."""
        self.until(lambda: task in self.ends, f"the end of task {task}")
        return self.ends[task]

    def call(self, node: str, function: Callable[..., Any], *arguments: Any) -> Any:
        """Return what a task returned."""
        ended = self.end_of(self.start(node, function, *arguments))
        assert ended.outcome is Outcome.DONE, ended.error
        assert ended.payload is not None
        return decode(ended.payload)

    def agent_on(self, node: str) -> int:
        """Return the pid of a node's agent."""
        return int(self.call(node, os.getppid))

    def hold(self, node: str, function: Callable[[str], None] | None = None) -> tuple[int, list[int]]:
        """Start a task that goes on and on; return it, and the pids of its worker and what that started.

        Parameters
        ----------
        function
            `hold`, or one like it.
        """
        file = self.directory / f"holding-{self._tasks}"
        task = self.start(node, function or hold, str(file))
        pids = self.until(lambda: file.exists() and file.read_text(), "the task to hold on").split()
        return task, [int(pid) for pid in pids]

    def loss(self) -> tuple[str, str]:
        """Return the first node that is lost and not yet told of, with the reason."""
        self.until(lambda: self.losses, "a node to be lost")
        return self.losses.pop(0)

    def processes(self) -> list[int]:
        """Return all processes of this block's story."""
        return marked(STORY, str(self.directory))


def hold(file: str) -> None:
    """Start a program that leaves its process group, say so, and go on for long."""
    program = subprocess.Popen(["sleep", "60"], start_new_session=True)
    unfinished = f"{file}.new"
    Path(unfinished).write_text(f"{os.getpid()} {program.pid}")
    os.rename(unfinished, file)
    while True:
        signal.pause()


def hold_with_stamps(file: str) -> None:
    """Do as `hold` does; as long as they live, both processes leave stamps of the clock in files with their pids."""
    program = os.fork()
    if program == 0:
        os.setsid()
    else:
        unfinished = f"{file}.new"
        Path(unfinished).write_text(f"{os.getpid()} {program}")
        os.rename(unfinished, file)
    with open(f"{file}.{os.getpid()}", "ab", buffering=0) as stamps:
        while True:
            stamps.write(f"{time.monotonic()!r}\n".encode())
            time.sleep(0.01)


def last_stamps(directory: Path, pids: Sequence[int]) -> list[float]:
    """Return when processes of `hold_with_stamps` were last seen alive, on the monotonic clock, which all share."""
    files = [file for pid in pids for file in directory.glob(f"holding-*.{pid}")]
    assert len(files) == len(pids)
    # The last line may not be whole: the process may have been killed as it wrote.
    return [float(file.read_text().rpartition("\n")[0].split()[-1]) for file in files]


def hurry() -> None:
    """Have agents that do not end killed soon, in this story."""
    agents_module.END_S = remote_module.END_S = 1.0  # type: ignore[attr-defined]


@contextmanager
def block(
    directory: Path,
    kind: str,
    nodes: Sequence[str] = NODES,
    *,
    lease_s: float = LONG_S,
    start_timeout_s: float = LIMIT_S,
    command: Sequence[str] | None = None,
    give_up: Sequence[str] = (),
    gather: bool = True,
) -> Iterator[Block]:
    """Make a block, wait for its nodes, and end it; check that nothing is left.

    Parameters
    ----------
    command
        What starts remote agents. None for one that stands for a parallel launcher.
    gather
        Whether to wait for the nodes.
    """
    invitation = Invitation(tuple(nodes), 2, 0, lease_s, tuple(sys.path), give_up=tuple(give_up))
    file = directory / "agents.json"
    on_each = f'for host in {" ".join(nodes)}; do SLURMD_NODENAME=$host "$@" & done; wait'

    agents: Agents
    if kind == "local":
        invitation.write(file)
        agents = LocalAgents(dict.fromkeys(nodes, "localhost"), file, lease_s, start_timeout_s)
    else:
        launcher = command or ("sh", "-c", on_each, "sh")
        agents = RemoteAgents(nodes, launcher, invitation, file, "127.0.0.1", start_timeout_s)
    try:
        made = Block(directory, agents, lease_s)
        if gather:
            made.until(lambda: made.nodes.keys() == set(nodes), "all agents to report")
            assert agents.expected == 0
        yield made
        assert made.losses == []
    finally:
        agents.end()
    assert made.processes() == []


@pytest.mark.parametrize(("kind", "nodes"), [("local", ("n1",)), ("local", NODES), ("remote", NODES)])
@in_own_process
def test_agents_report_their_nodes_and_run_tasks(tmp_path: Path, kind: str, nodes: Sequence[str]) -> None:
    with block(tmp_path, kind, nodes) as made:
        for name, node in made.nodes.items():
            assert (len(node.cores), node.gpus, node.host) == (2, (), "localhost" if kind == "local" else name)
            assert node.memory_gb is not None
            assert node.memory_gb > 0
            assert made.call(name, divmod, 17, 5) == (3, 2)
        tasks = [made.start(name, pow, 2, number) for number in range(20) for name in nodes]
        values = [decode(made.end_of(task).payload or b"") for task in tasks]
        assert values == [2**number for number in range(20) for _ in nodes]
        data = os.urandom(3_000_000)
        assert made.call(nodes[-1], bytes.hex, data) == data.hex()


@both
@in_own_process
def test_task_is_stopped_with_what_it_started(tmp_path: Path, kind: str) -> None:
    with block(tmp_path, kind, ["n1"]) as made:
        task, pids = made.hold("n1")
        made.agents.post("n1", Kill(task, Outcome.CANCELLED, "stopped: not needed"))
        ended = made.end_of(task)
        assert (ended.outcome, ended.error) == (Outcome.CANCELLED, "stopped: not needed")
        assert not any(map(is_alive, pids))


def wait_at(gate: str) -> None:
    """Wait until a file is there."""
    while not os.path.exists(gate):
        time.sleep(0.01)


def note(file: str, word: str) -> None:
    """Add a line to a file."""
    with open(file, "a") as lines:
        lines.write(f"{word}\n")


@both
@in_own_process
def test_what_is_sent_ahead_starts_in_its_order(tmp_path: Path, kind: str) -> None:
    notes, gate = tmp_path / "notes", tmp_path / "gate"
    with block(tmp_path, kind, ["n1"]) as made:
        first = made.start("n1", wait_at, str(gate))
        tasks = [made.start("n1", note, str(notes), str(number), behind=True) for number in range(5)]
        made.agents.post("n1", Recall(tasks[1]))
        made.agents.post("n1", Kill(tasks[3], Outcome.CANCELLED, "stopped: not needed"))
        assert made.end_of(tasks[3]).outcome is Outcome.CANCELLED
        made.until(lambda: made.returned, "a task to come back")
        assert list(made.ends) == [tasks[3]]
        open_gate(gate)
        assert made.end_of(tasks[4]).outcome is Outcome.DONE
        assert list(made.ends) == [tasks[3], first, tasks[0], tasks[2], tasks[4]]
        assert made.returned == [tasks[1]]
        assert notes.read_text().split() == ["0", "2", "4"]
        # It is over by now: nothing is waited for, and nothing can be called back.
        late = made.start("n1", note, str(notes), "5", behind=True)
        assert made.end_of(late).outcome is Outcome.DONE
        made.agents.post("n1", Recall(late))
        assert made.call("n1", divmod, 17, 5) == (3, 2)
        assert made.returned == [tasks[1]]


@both
@in_own_process
def test_what_is_sent_ahead_survives_the_end_of_the_one_before(tmp_path: Path, kind: str) -> None:
    with block(tmp_path, kind, ["n1"]) as made:
        task, pids = made.hold("n1")
        # With functions enough to make the agent forget the first one, were it not kept for its task.
        behind = [made.start("n1", eval(f"lambda: {number}"), behind=True) for number in range(300)]
        os.kill(pids[0], signal.SIGKILL)
        assert made.end_of(task).outcome is Outcome.CRASH
        assert [decode(made.end_of(one).payload or b"") for one in behind] == list(range(300))
        assert not any(map(is_alive, pids))
        assert list(made.ends) == [task, *behind]


def say(word: str) -> int:
    """Print a word; return who has done it."""
    print(word, flush=True)
    return os.getpid()


@contextmanager
def frozen(agent: int) -> Iterator[None]:
    """Let an agent stand still for a while."""
    os.kill(agent, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(agent, signal.SIGCONT)


@both
@in_own_process
def test_worker_goes_on_with_what_is_sent_ahead_though_its_agent_does_nothing(tmp_path: Path, kind: str) -> None:
    notes, gate = tmp_path / "notes", tmp_path / "gate"
    with block(tmp_path, kind, ["n1"]) as made:
        agent = made.agent_on("n1")
        first = made.start("n1", wait_at, str(gate))
        tasks = [made.start("n1", note, str(notes), str(number), behind=True) for number in range(5)]
        made.call("n1", int)  # by then the agent has seen them all
        with frozen(agent):
            open_gate(gate)
            wait_for(lambda: notes.exists() and len(notes.read_text().split()) == 5, "all to be run")
        assert made.end_of(tasks[-1]).outcome is Outcome.DONE
        assert [task for task in made.ends if task in {first, *tasks}] == [first, *tasks]
        assert notes.read_text().split() == ["0", "1", "2", "3", "4"]


@both
@in_own_process
def test_output_of_what_follows_at_once_is_its_own(tmp_path: Path, kind: str) -> None:
    gate = tmp_path / "gate"
    with block(tmp_path, kind, ["n1"]) as made:
        made.start("n1", wait_at, str(gate))
        tasks = [made.start("n1", say, str(number), behind=True) for number in range(20)]
        open_gate(gate)
        ends = [made.end_of(task) for task in tasks]
        assert [ended.output for ended in ends] == [f"{number}\n" for number in range(20)]
        assert len({decode(ended.payload or b"") for ended in ends}) == 1


@both
@in_own_process
def test_task_that_is_over_is_not_stopped_in_the_person_of_the_next(tmp_path: Path, kind: str) -> None:
    gate, file, notes = tmp_path / "gate", tmp_path / "holding", tmp_path / "notes"
    with block(tmp_path, kind, ["n1"]) as made:
        agent = made.agent_on("n1")
        first = made.start("n1", wait_at, str(gate))
        second = made.start("n1", note, str(notes), "second", behind=True)
        third = made.start("n1", hold, str(file), behind=True)
        fourth = made.start("n1", note, str(notes), "fourth", behind=True)
        made.call("n1", int)
        with frozen(agent):
            open_gate(gate)
            wait_for(file.exists, "the third task to begin")
            for task in (first, second):
                made.agents.post("n1", Kill(task, Outcome.CANCELLED, "stopped: not needed"))
            made.agents.flush()
        assert [made.end_of(task).outcome for task in (first, second)] == [Outcome.DONE] * 2
        assert made.call("n1", divmod, 17, 5) == (3, 2)
        assert third not in made.ends
        assert all(map(is_alive, map(int, file.read_text().split())))
        made.agents.post("n1", Kill(third, Outcome.CANCELLED, "stopped: not needed"))
        assert made.end_of(third).outcome is Outcome.CANCELLED
        assert made.end_of(fourth).outcome is Outcome.DONE
        assert notes.read_text().split() == ["second", "fourth"]


@both
@in_own_process
def test_crash_is_of_the_task_that_the_worker_had_begun_by_itself(tmp_path: Path, kind: str) -> None:
    gate, file, notes = tmp_path / "gate", tmp_path / "holding", tmp_path / "notes"
    with block(tmp_path, kind, ["n1"]) as made:
        agent = made.agent_on("n1")
        first = made.start("n1", wait_at, str(gate))
        second = made.start("n1", hold, str(file), behind=True)
        third = made.start("n1", note, str(notes), "third", behind=True)
        made.call("n1", int)
        with frozen(agent):
            open_gate(gate)
            wait_for(file.exists, "the second task to begin")
            pids = [int(pid) for pid in file.read_text().split()]
            os.kill(pids[0], signal.SIGKILL)
        assert made.end_of(third).outcome is Outcome.DONE
        assert made.ends[first].outcome is Outcome.DONE
        assert (made.ends[second].outcome, made.ends[second].signal) == (Outcome.CRASH, signal.SIGKILL)
        assert not any(map(is_alive, pids))
        assert notes.read_text().split() == ["third"]


@both
@in_own_process
def test_task_that_its_worker_has_begun_is_not_given_back(tmp_path: Path, kind: str) -> None:
    gate, file, notes = tmp_path / "gate", tmp_path / "holding", tmp_path / "notes"
    with block(tmp_path, kind, ["n1"]) as made:
        agent = made.agent_on("n1")
        made.start("n1", wait_at, str(gate))
        second = made.start("n1", hold, str(file), behind=True)
        third = made.start("n1", note, str(notes), "third", behind=True)
        made.call("n1", int)
        with frozen(agent):
            open_gate(gate)
            wait_for(file.exists, "the second task to begin")
            for task in (third, second):
                made.agents.post("n1", Recall(task))
            made.agents.flush()
        made.until(lambda: made.returned, "a task to come back")
        assert made.call("n1", divmod, 17, 5) == (3, 2)
        assert made.returned == [third]
        made.agents.post("n1", Kill(second, Outcome.CANCELLED, "stopped: not needed"))
        assert made.end_of(second).outcome is Outcome.CANCELLED
        assert made.call("n1", divmod, 17, 5) == (3, 2)
        assert not notes.exists()


@both
@in_own_process
def test_task_that_its_worker_has_begun_ends_with_the_lease(tmp_path: Path, kind: str) -> None:
    gate, file, notes = tmp_path / "gate", tmp_path / "holding-second", tmp_path / "notes"
    lease_s = 4.0
    with block(tmp_path, kind, ["n1"], lease_s=lease_s) as made:
        first = made.start("n1", wait_at, str(gate))
        second = made.start("n1", hold_with_stamps, str(file), behind=True)
        third = made.start("n1", note, str(notes), "third", behind=True)
        made.call("n1", int)
        renewed_at = made.agents.lease_until - lease_s * LEASE_SHARE
        made.renews = False
        open_gate(gate)
        assert made.end_of(second).outcome is Outcome.ENDED
        # Not by when this process hears of it, which a busy host may delay.
        assert renewed_at < max(last_stamps(tmp_path, [*map(int, file.read_text().split())])) < renewed_at + lease_s
        assert made.ends[first].outcome is Outcome.DONE
        made.until(lambda: time.monotonic() > renewed_at + 1.5 * lease_s, "the lease to be over for long")
        assert not notes.exists()
        made.renews = True
        assert made.end_of(third).outcome is Outcome.DONE


@both
@in_own_process
def test_worker_whose_agent_and_guard_are_frozen_begins_nothing_after_the_lease(tmp_path: Path, kind: str) -> None:
    gate, over, notes = tmp_path / "gate", tmp_path / "over", tmp_path / "notes"
    with block(tmp_path, kind, lease_s=SHORT_S) as made:
        agent = made.agent_on("n1")
        guard = psutil.Process(agent).ppid()
        made.start("n1", wait_at, str(gate))
        made.start("n1", wait_at, str(over), behind=True)
        made.start("n1", note, str(notes), "too late", behind=True)
        made.call("n1", int)
        with frozen(guard), frozen(agent):
            lease_until = made.agents.lease_until
            open_gate(gate)
            wait_for(lambda: time.monotonic() > lease_until, "the lease to be over")
            open_gate(over)
            time.sleep(0.3)
            assert not notes.exists()
            os.kill(agent, signal.SIGKILL)
        node, _ = made.loss()
        assert node == "n1"
        assert not notes.exists()


@both
@in_own_process
def test_what_is_large_waits_in_the_agent(tmp_path: Path, kind: str) -> None:
    gate = tmp_path / "gate"
    with block(tmp_path, kind, ["n1"]) as made:
        made.start("n1", wait_at, str(gate))
        tasks = [made.start("n1", len, bytes(1 << (2 * number)), behind=True) for number in range(13)]
        assert made.call("n1", divmod, 17, 5) == (3, 2)  # the agent does not wait for the worker to read
        open_gate(gate)
        assert [decode(made.end_of(task).payload or b"") for task in tasks] == [4**number for number in range(13)]


@both
@in_own_process
def test_killed_agent_is_named_and_its_tasks_end(tmp_path: Path, kind: str) -> None:
    with block(tmp_path, kind) as made:
        task, pids = made.hold("n1")
        other, others = made.hold("n2")
        os.kill(psutil.Process(pids[0]).ppid(), signal.SIGKILL)
        assert made.loss() == ("n1", "its agent died" if kind == "local" else "its agent was killed by signal 9")
        assert not any(map(is_alive, pids))
        assert all(map(is_alive, others))
        assert made.call("n2", divmod, 17, 5) == (3, 2)
        assert not {task, other} & made.ends.keys()


@both
@in_own_process
def test_agent_killed_with_its_guard_is_given_up(tmp_path: Path, kind: str) -> None:
    with block(tmp_path, kind, lease_s=SHORT_S) as made:
        _, pids = made.hold("n1")
        os.kill(psutil.Process(made.agent_on("n1")).ppid(), signal.SIGKILL)
        node, why = made.loss()
        assert node == "n1"
        assert why.startswith("its agent died" if kind == "local" else "its agent was not heard of for ")
        assert not is_alive(pids[0])
        assert made.call("n2", divmod, 17, 5) == (3, 2)


@both
@in_own_process
def test_frozen_agent_is_ended_with_its_tasks(tmp_path: Path, kind: str) -> None:
    gave_up = tmp_path / "gave up"
    with block(tmp_path, kind, lease_s=SHORT_S, give_up=("touch", str(gave_up))) as made:
        agent = made.agent_on("n2")
        task, pids = made.hold("n2")
        os.kill(agent, signal.SIGSTOP)
        assert made.loss() == ("n2", "its agent died" if kind == "local" else "its agent was frozen")
        assert not any(map(is_alive, [agent, *pids]))
        assert task not in made.ends
        assert made.call("n1", divmod, 17, 5) == (3, 2)
    assert not gave_up.exists()


@in_own_process
def test_remote_agent_that_is_late_is_given_up_and_leaves(tmp_path: Path) -> None:
    gate, code = tmp_path / "gate", tmp_path / "code"
    late = f'{waiting(gate)}; SLURMD_NODENAME=n2 "$@"; echo $? > {code}'
    command = ("sh", "-c", f'({late}) & SLURMD_NODENAME=n1 "$@"; wait', "sh")
    with block(tmp_path, "remote", command=command, start_timeout_s=4.0, gather=False) as made:
        made.until(lambda: made.nodes, "the other agent to report")
        assert made.agents.expected == 1
        assert made.loss() == ("n2", "its agent did not report within 4 s")
        assert made.agents.expected == 0
        open_gate(gate)
        made.until(code.exists, "the late agent to leave")
        assert wait_for_text(code) == "0\n"
        assert made.nodes.keys() == {"n1"}
        assert made.call("n1", divmod, 17, 5) == (3, 2)


@in_own_process
def test_local_agent_that_does_not_report_is_replaced(tmp_path: Path) -> None:
    with block(tmp_path, "local", ("n1",), start_timeout_s=0.5, gather=False) as made:
        (frozen,) = psutil.Process().children()
        frozen.suspend()
        assert made.loss() == ("n1", "its agent did not report within 0.5 s")
        assert not is_alive(frozen.pid)
        made.agents._start_timeout_s = LIMIT_S
        restart(made, "n1")
        assert made.call("n1", divmod, 17, 5) == (3, 2)


@pytest.mark.parametrize(("command", "code"), [(("false",), 1), (("sh", "-c", "exit 7"), 7), (("true",), 0)])
@in_own_process
def test_parallel_launcher_that_fails_loses_all_nodes(tmp_path: Path, command: Sequence[str], code: int) -> None:
    with block(tmp_path, "remote", command=command, gather=False) as made:
        why = f"its agent was not started: {command[0]} ended with exit code {code}"
        assert [made.loss(), made.loss()] == [("n1", why), ("n2", why)]
        assert made.agents.expected == 0


@in_own_process
def test_local_agent_that_died_is_replaced(tmp_path: Path) -> None:
    with block(tmp_path, "local", ("n1",)) as made:
        for _ in range(2):
            _, pids = made.hold("n1")
            os.kill(made.agent_on("n1"), signal.SIGKILL)
            assert made.loss() == ("n1", "its agent died")
            assert not any(map(is_alive, pids))
            restart(made, "n1")
            assert made.call("n1", divmod, 17, 5) == (3, 2)


def restart(made: Block, node: str) -> None:
    assert isinstance(made.agents, LocalAgents)
    made.agents.restart(node)
    made.until(lambda: node in made.nodes, "another agent to report")


@both
@in_own_process
def test_marked_processes_are_cleaned_away(tmp_path: Path, kind: str) -> None:
    with block(tmp_path, kind) as made:
        ranks, other = [
            [subprocess.Popen(["sleep", "60"], env={**os.environ, MARK: mark}) for _ in range(2)]
            for mark in ("task-7", "task-70")
        ]
        made.agents.post("n1", Clean(7, "task-7"))
        made.agents.post("n2", Clean(8, "nobody"))
        made.until(lambda: len(made.cleaned) == 2, "the nodes to be clean")
        assert sorted(made.cleaned) == [("n1", 7), ("n2", 8)]
        assert [rank.wait(LIMIT_S) for rank in ranks] == [-signal.SIGKILL, -signal.SIGKILL]
        assert [rank.poll() for rank in other] == [None, None]
        for rank in other:
            rank.kill()
            rank.wait()


@both
@in_own_process
def test_tasks_end_before_the_launchers_lease(tmp_path: Path, kind: str) -> None:
    lease_s = 8.0  # agents leave a tenth of it to a busy host
    with block(tmp_path, kind, ["n1"], lease_s=lease_s) as made:
        task, pids = made.hold("n1", hold_with_stamps)
        made.turn()
        renewed_at = made.agents.lease_until - lease_s * LEASE_SHARE
        made.renews = False
        ended = made.end_of(task)
        assert ended.outcome is Outcome.ENDED
        assert not any(map(is_alive, pids))
        # Not by when this process hears of it, which a busy host may delay.
        assert renewed_at < max(last_stamps(tmp_path, pids)) < renewed_at + lease_s


@both
@in_own_process
def test_start_that_comes_when_the_lease_is_over_waits_for_the_next(tmp_path: Path, kind: str) -> None:
    lease_s = 2.0
    with block(tmp_path, kind, ["n1"], lease_s=lease_s) as made:
        task, _ = made.hold("n1")
        made.turn()
        renewed_at = made.agents.lease_until - lease_s * LEASE_SHARE
        made.renews = False
        assert made.end_of(task).outcome is Outcome.ENDED
        late, unwanted = made.start("n1", divmod, 17, 5), made.start("n1", int)
        behind = made.start("n1", divmod, 17, 6, sent=True, behind=True)
        made.agents.post("n1", Kill(unwanted, Outcome.CANCELLED, "stopped: not needed"))
        assert made.end_of(unwanted).outcome is Outcome.CANCELLED
        made.until(lambda: time.monotonic() > renewed_at + 2.1 * lease_s, "more than two leases to pass")
        assert not {late, behind} & made.ends.keys()
        made.renews = True
        for begun, value in ((late, (3, 2)), (behind, (2, 5))):
            again = made.end_of(begun)
            assert (again.outcome, again.payload and decode(again.payload)) == (Outcome.DONE, value)


@both
@in_own_process
def test_silent_launcher_is_left_by_its_agents(tmp_path: Path, kind: str) -> None:
    gave_up = tmp_path / "gave up"
    with block(tmp_path, kind, lease_s=SHORT_S, give_up=("touch", str(gave_up))) as made:
        _, pids = made.hold("n1")
        agents = [made.agent_on(node) for node in NODES]
        # From now on this launcher does nothing, as one that is frozen.
        wait_for(lambda: not any(map(is_alive, [*pids, *agents])), "the agents to end")
        assert gave_up.exists()
        made.until(lambda: len(made.losses) == 2, "both nodes to be lost")
        made.losses.clear()


@both
@in_own_process
def test_end_leaves_no_process_of_a_task(tmp_path: Path, kind: str) -> None:
    began = 0.0
    with block(tmp_path, kind) as made:
        made.hold("n1")
        made.hold("n2")
        began = time.monotonic()
    assert time.monotonic() - began < 4.0  # nobody had to be killed
    assert made.processes() == []
    assert (tmp_path / "agents.json").exists() == (kind == "local")


@both
@in_own_process
def test_end_while_an_agent_is_frozen(tmp_path: Path, kind: str) -> None:
    hurry()
    with block(tmp_path, kind, ["n1"]) as made:
        made.hold("n1")
        os.kill(made.agent_on("n1"), signal.SIGSTOP)


@both
@in_own_process
def test_end_before_agents_have_reported(tmp_path: Path, kind: str) -> None:
    hurry()
    with block(tmp_path, kind, gather=False):
        pass
