"""The same call has the same key in every process; another call has another."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st
from parsl.app.app import bash_app, python_app
from parsl.app.errors import wrap_error
from parsl.app.python import timeout
from parsl.data_provider.files import File
from parsl.data_provider.http import in_task_transfer_wrapper
from parsl.data_provider.rsync import in_task_stage_in_wrapper, in_task_stage_out_wrapper

from parsl_balsam.model.identity import NoStableIdentity, call_key, function_digest
from parsl_balsam.model.resources import ResourceSpec

PREAMBLE = """
import abc, collections, dataclasses, datetime, decimal, enum, functools, json, os, pathlib, random, re, sys, uuid
import numpy as np
from parsl import File, bash_app, python_app
from parsl.app.python import timeout
from parsl.data_provider.http import in_task_transfer_wrapper
from parsl_balsam.model.identity import call_key, NoStableIdentity
from parsl_balsam.model.resources import ResourceSpec
KEYS = {}
def record(case, func, *args, **kwargs):
    KEYS[case] = call_key(func, args, kwargs, ResourceSpec()).hex()
def plain(*args, **kwargs):
    return args
WORDS = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta"]
"""

#: Calls that stay the same although order of sets, object sharing, run numbers and addresses differ.
#: CASE in a name becomes the number of the case, and 'CASE' its name.
SAME = {
    "set": "record('CASE', plain, set(WORDS), frozenset(WORDS), {frozenset(WORDS[:2]), frozenset(WORDS[2:])})",
    "dict": "record('CASE', plain, {word: 1 for word in set(WORDS)}, **{word: 2 for word in set(WORDS)})",
    "constant": "def fCASE(x): return x in {'alpha', 'beta', 'gamma', 'delta'}\nrecord('CASE', fCASE, 1)",
    "nested": """
class BagCASE:
    def __init__(self): self.words = set(WORDS)
record('CASE', plain, [BagCASE(), {'bag': BagCASE()}])""",
    "subclass": """
class BagCASE(set): pass
class BookCASE(dict): pass
record('CASE', plain, BagCASE(WORDS), BookCASE({word: 1 for word in set(WORDS)}))""",
    "collections": """
record('CASE', plain, collections.OrderedDict(a=1, b=2), collections.Counter('banana'), collections.deque([1, 2]),
       collections.defaultdict(list, {word: [1] for word in set(WORDS)}))""",
    "sharing": """
one = ['x']
record('CASE', plain, [one, one] if random.random() < 0.5 else [['x'], ['x']])""",
    "circle": """
ring = [1]; ring.append(ring)
record('CASE', plain, ring)""",
    "circles in a set": """
class KnotCASE:
    def __init__(self, name): self.name = name
a, b = KnotCASE('a'), KnotCASE('b'); a.other, b.other = b, a
record('CASE', plain, {a, b}, a, b)""",
    "values": """
record('CASE', plain, pathlib.Path('a/b'), datetime.datetime(2020, 1, 1, tzinfo=datetime.timezone.utc), range(3),
       decimal.Decimal('1.5'), 10**5000, re.compile('a+'), slice(1, 2), 1j, b'x',
       bytearray(b'y'), ..., ValueError('no'))""",
    "file": """
file = File('http://host/data.txt'); file.local_path = f'/tmp/{uuid.uuid4()}/data.txt'
record('CASE', plain, inputs=[file])""",
    "array": """
grid = np.arange(6.0).reshape(2, 3)
record('CASE', plain, grid, grid.T, np.array(['a', {'b'}], dtype=object), np.float64(1), np.datetime64('2020-01-01'),
       np.zeros(2, dtype=[('x', 'f4'), ('y', 'i2')]), np.ma.masked_array([1, 2], [0, 1]))""",
    "enum": """
class ColourCASE(enum.Enum):
    RED = 1
    GREEN = 2
    def brighter(self): return ColourCASE.GREEN
class RightCASE(enum.Flag):
    READ = 1
    WRITE = 2
record('CASE', plain, ColourCASE.RED, RightCASE.READ | RightCASE.WRITE)""",
    "dataclass": """
@dataclasses.dataclass(frozen=True, slots=True)
class PointCASE:
    x: int
    tags: frozenset = frozenset(WORDS)
    more: list = dataclasses.field(default_factory=list)
record('CASE', plain, PointCASE(1))""",
    "namedtuple": """
PairCASE = collections.namedtuple('PairCASE', 'a b')
record('CASE', plain, PairCASE(1, {'x', 'y'}))""",
    "class": """
class BaseCASE(abc.ABC):
    scale = 2
    @abc.abstractmethod
    def area(self): ...
class SquareCASE(BaseCASE):
    def __init__(self, side): super().__init__(); self.side = side
    def area(self): return self.scale * self.side ** 2
    @property
    def double(self): return SquareCASE(2 * self.side)
    @staticmethod
    def unit(): return SquareCASE(1)
    @functools.cached_property
    def slow(self): return 1
square = SquareCASE(3)
record('CASE', square.area, square, SquareCASE)""",
    "local class": """
def makeCASE():
    class Inner:
        word = WORDS[0]
        def again(self): return Inner()
    return Inner()
record('CASE', plain, makeCASE())""",
    "lambda": "record('CASE', plain, lambda x: x + 1, functools.partial(int, base=2), len, str.upper, np.add, np.sum)",
    "closure": """
def makeCASE(n, words):
    def inner(x): return x + n if x in words else makeCASE
    return inner
record('CASE', makeCASE(3, set(WORDS)), 1)""",
    "recursion": """
def evenCASE(n): return n == 0 or oddCASE(n - 1)
def oddCASE(n): return n != 0 and evenCASE(n - 1)
record('CASE', evenCASE, 3)""",
    "app": """
TABLE_CASE = {word: len(word) for word in set(WORDS)}
@functools.lru_cache
def helpCASE(x): return np.sum(x)
@python_app
def fCASE(x):
    return TABLE_CASE, helpCASE(x), fCASE
record('CASE', fCASE.func, 1)""",
    "bash": """
@bash_app
def fCASE(x, stdout=None): return f'echo {x}'
run = f'/scratch/runinfo/{random.randrange(1000):03d}/task_logs/0000/task_{random.randrange(10000):04d}_fCASE'
record('CASE', fCASE.wrapped_remote_function, 1, stdout=run + '.stdout', stderr=(run + '_mine.stderr', 'w'))""",
    "monitored": """
from parsl.monitoring.remote import monitor_wrapper
@python_app
def fCASE(x): return x
func, args, kwargs = monitor_wrapper(
    f=fCASE.func, args=(1,), kwargs={'y': 2}, x_try_id=random.randrange(9), x_task_id=random.randrange(99),
    radio_config=None, run_id=str(uuid.uuid4()), run_dir=str(uuid.uuid4()),
    logging_level=0, sleep_dur=0, monitor_resources=False)
record('CASE', func, *args, **kwargs)""",
    "staged": """
@python_app
def fCASE(x): return x
file = File('http://host/data.txt'); file.local_path = f'/tmp/{uuid.uuid4()}/data.txt'
record('CASE', in_task_transfer_wrapper(timeout(fCASE.func, 5), file, f'/tmp/{uuid.uuid4()}'), 1)""",
    "where": "def fCASE(): return __file__, __name__\nrecord('CASE', fCASE)",
    "warm": """
def fCASE(n):
    total = 0
    for i in range(n): total += i * 2
    return total
if random.random() < 0.5: fCASE(100_000)
record('CASE', fCASE, 3)""",
}

#: Pairs of calls that are not the same.
DIFFERENT = {
    "body": ("def fCASE(x): return x + 1\nrecord('CASE', fCASE, 1)", "x + 1", "x - 1"),
    "number": ("def fCASE(x): return x * 2\nrecord('CASE', fCASE, 1)", "* 2", "* 3"),
    "type of a number": ("def fCASE(x): return x * 2\nrecord('CASE', fCASE, 1)", "* 2", "* 2.0"),
    "attribute": ("def fCASE(x): return x.real\nrecord('CASE', fCASE, 1)", "real", "imag"),
    "default": ("def fCASE(x, y=1): return y\nrecord('CASE', fCASE, 1)", "y=1", "y=2"),
    "keyword default": ("def fCASE(x, *, y=1): return y\nrecord('CASE', fCASE, 1)", "y=1", "y=2"),
    "argument": ("def fCASE(x): return x\nrecord('CASE', fCASE, 1)", "fCASE, 1", "fCASE, 2"),
    "positional": ("def fCASE(x): return x\nrecord('CASE', fCASE, 1)", "fCASE, 1", "fCASE, x=1"),
    "name of an argument": ("def fCASE(x, **k): return k\nrecord('CASE', fCASE, 1)", "x, **k", "z, **k"),
    "name": ("def fCASE(x): return x\nrecord('CASE', fCASE, 1)", "fCASE", "gCASE"),
    "generator": ("async def fCASE(x): return x\nrecord('CASE', fCASE, 1)", "async def", "def"),
    "exception": (
        "def fCASE(x):\n  try: return 1 / x\n  except ValueError: return 0\nrecord('CASE', fCASE, 1)",
        "ValueError",
        "TypeError",
    ),
    "inner": ("def fCASE(x): return [(y, 'one') for y in x]\nrecord('CASE', fCASE, [1])", "'one'", "'two'"),
    "inner lambda": ("def fCASE(x): return map(lambda y: y + 1, x)\nrecord('CASE', fCASE, [1])", "y + 1", "y + 2"),
    "set constant": ("def fCASE(x): return x in {'a', 'b'}\nrecord('CASE', fCASE, 1)", "{'a', 'b'}", "{'a', 'c'}"),
    "docstring in use": ("def fCASE():\n  'one'\n  return 'one'\nrecord('CASE', fCASE)", "'one'", "'two'"),
    "closure": ("def makeCASE(n): return lambda: n\nrecord('CASE', makeCASE(1))", "(1)", "(2)"),
    "decorator": (
        "def timesCASE(n):\n  def deco(f):\n    @functools.wraps(f)\n    def inner(*a): return f(*a) * n\n"
        "    return inner\n  return deco\n@python_app\n@timesCASE(2)\ndef fCASE(x): return x\n"
        "record('CASE', fCASE.func, 1)",
        "timesCASE(2)",
        "timesCASE(3)",
    ),
    "decorated": (
        "def decoCASE(f):\n  @functools.wraps(f)\n  def inner(*a): return f(*a)\n  return inner\n"
        "@python_app\n@decoCASE\ndef fCASE(x): return x\nrecord('CASE', fCASE.func, 1)",
        "return x",
        "return -x",
    ),
    "global": ("NCASE = 1\ndef fCASE(): return NCASE\nrecord('CASE', fCASE)", "NCASE = 1", "NCASE = 2"),
    "global in a lambda": (
        "NCASE = 1\ndef fCASE(): return lambda: NCASE\nrecord('CASE', fCASE)",
        "NCASE = 1",
        "NCASE = 2",
    ),
    "global array": ("NCASE = np.zeros(3)\ndef fCASE(): return NCASE\nrecord('CASE', fCASE)", "zeros", "ones"),
    "helper": ("def hCASE(): return 1\ndef fCASE(): return hCASE()\nrecord('CASE', fCASE)", "return 1", "return 2"),
    "helper of a helper": (
        "def gCASE(): return 1\ndef hCASE(): return gCASE()\ndef fCASE(): return hCASE()\nrecord('CASE', fCASE)",
        "return 1",
        "return 2",
    ),
    "cached helper": (
        "@functools.lru_cache\ndef hCASE(): return 1\ndef fCASE(): return hCASE()\nrecord('CASE', fCASE)",
        "return 1",
        "return 2",
    ),
    "app as helper": (
        "@python_app\ndef hCASE(): return 1\n@python_app\ndef fCASE(): return hCASE()\nrecord('CASE', fCASE.func)",
        "return 1",
        "return 2",
    ),
    "app as argument": ("@python_app\ndef hCASE(): return 1\nrecord('CASE', plain, hCASE)", "return 1", "return 2"),
    "function as argument": ("def hCASE(): return 1\nrecord('CASE', plain, [hCASE])", "return 1", "return 2"),
    "which lambda": ("record('CASE', plain, lambda: 1, lambda: 2)", "lambda: 1, lambda: 2", "lambda: 2, lambda: 1"),
    "module": ("import os.path as mCASE\ndef fCASE(): return mCASE\nrecord('CASE', fCASE)", "os.path", "json"),
    "class of a global": (
        "class CCASE:\n  def go(self): return 1\ndef fCASE(): return CCASE().go()\nrecord('CASE', fCASE)",
        "return 1",
        "return 2",
    ),
    "class of an argument": (
        "class CCASE:\n  def go(self): return 1\nrecord('CASE', plain, CCASE())",
        "return 1",
        "return 2",
    ),
    "base class": (
        "class BCASE:\n  def go(self): return 1\nclass CCASE(BCASE): pass\nrecord('CASE', plain, CCASE())",
        "return 1",
        "return 2",
    ),
    "class attribute": ("class CCASE:\n  _n_ = 1\nrecord('CASE', plain, CCASE())", "= 1", "= 2"),
    "class property": (
        "class CCASE:\n  @property\n  def go(self): return 1\nrecord('CASE', plain, CCASE())",
        "return 1",
        "return 2",
    ),
    "class method": (
        "class CCASE:\n  @classmethod\n  def go(self): return 1\nrecord('CASE', plain, CCASE())",
        "return 1",
        "return 2",
    ),
    "slots": (
        "class CCASE:\n  __slots__ = ('a',)\n  def __init__(self, a): self.a = a\nrecord('CASE', plain, CCASE(1))",
        "CCASE(1)",
        "CCASE(2)",
    ),
    "dataclass default": (
        "@dataclasses.dataclass\nclass CCASE:\n  n: int = 1\ndef fCASE(): return CCASE()\nrecord('CASE', fCASE)",
        "= 1",
        "= 2",
    ),
    "enum member": (
        "class CCASE(enum.Enum):\n  A = 1\n  B = 2\nrecord('CASE', plain, CCASE.A)",
        "plain, CCASE.A",
        "plain, CCASE.B",
    ),
    "enum value": ("class CCASE(enum.Enum):\n  A = 1\n  B = 2\nrecord('CASE', plain, CCASE)", "B = 2", "B = 3"),
    "enum method": (
        "class CCASE(enum.Enum):\n  A = 1\n  def go(self): return 1\nrecord('CASE', plain, CCASE.A)",
        "return 1",
        "return 2",
    ),
    "self": (
        "class CCASE:\n  def __init__(self, n): self.n = n\n  def go(self): return self.n\nrecord('CASE', CCASE(1).go)",
        "CCASE(1)",
        "CCASE(2)",
    ),
    "partial": ("record('CASE', functools.partial(plain, 1))", "plain, 1", "plain, 2"),
    "function attribute": ("def fCASE(): return 1\nfCASE.n = 1\nrecord('CASE', fCASE)", "n = 1", "n = 2"),
    "command": (
        "@bash_app\ndef fCASE(x): return f'echo {x} one'\nrecord('CASE', fCASE.wrapped_remote_function, 1)",
        "one",
        "two",
    ),
    "order of an OrderedDict": (
        "record('CASE', plain, collections.OrderedDict(a=1, b=2))",
        "a=1, b=2",
        "b=2, a=1",
    ),
    "in a circle": ("ring = [1]; ring.append(ring)\nrecord('CASE', plain, ring)", "[1]", "[2]"),
    "in a set": ("record('CASE', plain, {'a', 'b'})", "{'a', 'b'}", "{'a', 'c'}"),
    "file": ("record('CASE', plain, inputs=[File('a.txt')])", "a.txt", "b.txt"),
    "ndarray": ("record('CASE', plain, np.array([1, 2]))", "[1, 2]", "[1, 3]"),
    "shape": ("record('CASE', plain, np.zeros((2, 3)))", "(2, 3)", "(3, 2)"),
    "kind of array": ("record('CASE', plain, np.zeros(2))", "zeros(2)", "zeros(2, 'i8')"),
    "path": ("record('CASE', plain, pathlib.Path('a'))", "'a'", "'b'"),
}


def script(edited: bool) -> str:
    """Return a program that prints the keys of all cases."""
    lines = [PREAMBLE]
    for number, (case, source) in enumerate(SAME.items()):
        name = f"s{number}"
        lines.append(source.replace("'CASE'", repr(case)).replace("CASE", name))
    for number, (case, (source, old, new)) in enumerate(DIFFERENT.items()):
        name = f"d{number}"
        assert old in source
        text = source.replace(old, new) if edited else source
        lines.append(text.replace("'CASE'", repr(case + "!")).replace("CASE", name))
    return "\n".join(lines) + "\nprint(json.dumps(KEYS))\n"


def shifted(source: str) -> str:
    """Return the program with other line numbers, comments and docstrings."""
    moved = source.replace("\ndef ", "\n\n# a comment\ndef ").replace("\nclass ", "\n\n\n# another\nclass ")
    return "# a first line\n" * 300 + moved.replace(
        "def plain(*args, **kwargs):\n", "def plain(*args, **kwargs):\n    '''Now with a docstring.'''\n"
    )


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    """Keys of all cases, as several interpreters and edits of the program see them."""
    base = script(edited=False)
    folder = tmp_path_factory.mktemp("scripts")
    variants = {
        "first": (base, "campaign.py", "1", []),
        "other hashes": (base, "campaign.py", "2", []),
        "random hashes": (base, "elsewhere/renamed.py", "random", []),
        "shifted": (shifted(base), "shifted.py", "3", []),
        "optimised": (base, "campaign.py", "4", ["-O"]),
        "edited": (script(edited=True), "campaign_edited.py", "5", []),
    }
    # Before any of them is started: some are the same file, which must not be empty for a moment when one is read.
    for source, name, *_ in variants.values():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(source)
    started = {}
    for variant, (_, name, seed, options) in variants.items():
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(Path(__file__).parents[2])}
        started[variant] = subprocess.Popen(
            [sys.executable, *options, str(folder / name)],
            stdout=subprocess.PIPE,
            env=environment,
            cwd=folder,
            text=True,
        )
    outputs = {variant: process.communicate()[0] for variant, process in started.items()}
    assert all(process.returncode == 0 for process in started.values())
    return {variant: json.loads(output) for variant, output in outputs.items()}


@pytest.mark.parametrize("variant", ["other hashes", "random hashes", "shifted", "optimised"])
def test_another_run_has_the_same_keys(runs: dict[str, dict[str, str]], variant: str) -> None:
    assert set(runs["first"]) == {*SAME, *(case + "!" for case in DIFFERENT)}
    assert {case for case, key in runs["first"].items() if runs[variant][case] != key} == set()


@pytest.mark.parametrize("case", DIFFERENT)
def test_an_edit_changes_the_key(runs: dict[str, dict[str, str]], case: str) -> None:
    assert runs["edited"][case + "!"] != runs["first"][case + "!"]


def test_an_edit_changes_no_other_key(runs: dict[str, dict[str, str]]) -> None:
    assert {case for case in SAME if runs["edited"][case] != runs["first"][case]} == set()


def test_different_calls_have_different_keys(runs: dict[str, dict[str, str]]) -> None:
    assert len({runs["first"][case] for case in SAME}) == len(SAME)


def add(x: Any, y: Any = 0) -> Any:
    return x + y


def key(*args: Any, spec: ResourceSpec | None = None, func: Callable[..., Any] = add, **kwargs: Any) -> bytes:
    return call_key(func, args, kwargs, spec or ResourceSpec())


scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary()
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(max_size=3), inner, max_size=4)
        | st.frozensets(st.integers() | st.text(max_size=3), max_size=4)
    ),
    max_leaves=12,
)


def typed(value: Any) -> Any:
    """Return what compares equal only for values of the same types."""
    if isinstance(value, (list, tuple)):
        return (type(value), [typed(item) for item in value])
    if isinstance(value, dict):
        return (dict, sorted((name, repr(typed(item))) for name, item in value.items()))
    if isinstance(value, frozenset):
        return (frozenset, sorted(map(repr, value)))
    return (type(value), repr(value))


def copied(value: Any) -> Any:
    """Return an equal value that shares no container, with dictionaries in reverse order."""
    if isinstance(value, (list, tuple)):
        return type(value)([copied(item) for item in value])
    if isinstance(value, dict):
        return {name: copied(item) for name, item in reversed(value.items())}
    return value


@given(values, values)
def test_keys_are_equal_exactly_for_equal_arguments(one: Any, other: Any) -> None:
    assert (key(one) == key(other)) == (typed(one) == typed(other))
    assert key([one, one], other) == key([copied(one), one], copied(other))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (1, 1.0),
        (1, True),
        (0, None),
        ("1", b"1"),
        ((1, 2), [1, 2]),
        ({1}, frozenset({1})),
        ({"a": 1}, OrderedDict(a=1)),
        ([[1], 2], [[1, 2]]),
        (["ab", "c"], ["a", "bc"]),
        (b"x", bytearray(b"x")),
        (numpy.float64(1), 1.0),
        (numpy.zeros(2), [0.0, 0.0]),
        (numpy.array([1, 2], "<i4"), numpy.array([1, 2], ">i4")),
        (Path("a"), "a"),
    ],
)
def test_like_values_of_different_types_differ(one: Any, other: Any) -> None:
    assert key(one) != key(other)


@pytest.mark.parametrize(
    "value",
    [
        threading.Lock(),
        (number for number in range(3)),
        sys.__stdout__,
        Future(),
        sys._getframe(),
        memoryview(b"x"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_has_no_value_elsewhere_has_no_identity(value: Any) -> None:
    with pytest.raises(NoStableIdentity, match=r"^argument 1: .*cannot"):
        key(1, [value])
    with pytest.raises(NoStableIdentity, match=r"^argument y: "):
        key(1, y={"inside": value})


def test_a_function_that_holds_a_lock_has_no_identity() -> None:
    lock = threading.Lock()

    def guarded() -> bool:
        return lock.locked()

    with pytest.raises(NoStableIdentity, match=r"^the function: "):
        key(func=guarded)
    with pytest.raises(NoStableIdentity):
        function_digest(guarded)


def test_endless_nesting_has_no_identity() -> None:
    nest: list[Any] = []
    for _ in range(100_000):
        nest = [nest]
    with pytest.raises(NoStableIdentity, match="RecursionError"):
        key(nest)


def test_many_circles_have_no_identity() -> None:
    crowd: list[list[Any]] = [[number] for number in range(30)]
    for member in crowd:
        member.extend(crowd)
    with pytest.raises(NoStableIdentity, match="circles"):
        key(crowd)


def test_arguments_that_fail_to_be_read_have_no_identity() -> None:
    class Broken:
        def __reduce_ex__(self, protocol: Any) -> Any:
            raise KeyboardInterrupt if protocol == 0 else ZeroDivisionError("by design")

    with pytest.raises(NoStableIdentity, match="by design"):
        key(Broken())


def test_temporary_objects_are_not_mistaken_for_each_other() -> None:
    """Parts that exist only while they are read get the addresses of parts freed before."""

    class Table:
        def __init__(self, *columns: int) -> None:
            self.columns = columns

        def __reduce__(self) -> Any:
            return (Table, (), None, ([column] * 3 for column in self.columns))

    assert key(Table(*range(50))) != key(Table(*[0] * 50))
    assert len({key(Table(*[0] * 20, number)) for number in range(50)}) == 50


def test_shared_structure_is_read_once() -> None:
    tree: list[Any] = []
    for _ in range(60):
        tree = [tree, tree]
    assert key(tree) == key(tree)


def test_a_global_that_is_bound_anew_is_noticed() -> None:
    scope: dict[str, Any] = {"__name__": "__main__", "scale": 1000}
    exec("def part(): return scale\ndef whole(): return part()", scope)
    before = key(func=scope["whole"])
    scope["scale"] = 1001
    after = key(func=scope["whole"])
    scope["scale"] = 1000
    assert before != after
    assert key(func=scope["whole"]) == before
    exec("def part(): return -scale", scope)
    assert key(func=scope["whole"]) not in (before, after)


def test_code_of_imported_modules_counts_by_name() -> None:
    assert key(json.dumps) != key(json.loads)
    assert key(func=json.dumps) != key(func=json.loads)
    assert function_digest(add) != function_digest(functools.partial(add, 1))


class TestParslWrappers:
    def test_error_wrapper_is_not_seen(self) -> None:
        assert function_digest(python_app(add).func) == function_digest(add) == function_digest(wrap_error(add))

    def test_bash_is_not_python(self) -> None:
        bash = bash_app(add).wrapped_remote_function
        assert function_digest(bash) != function_digest(python_app(add).func)
        spec = ResourceSpec(key="mine")
        assert key(spec=spec, func=bash) != key(spec=spec, func=wrap_error(add))

    def test_same_named_bash_apps_differ(self) -> None:
        def make(command: str) -> Any:
            def run() -> str:
                return command

            return bash_app(run).wrapped_remote_function

        assert function_digest(make("true")) != function_digest(make("false"))
        assert function_digest(make("true")) == function_digest(make("true"))

    def test_walltime_counts(self) -> None:
        wrapped = wrap_error(add)
        assert function_digest(timeout(wrapped, 5)) == function_digest(timeout(wrapped, 5))
        assert len({function_digest(f) for f in (wrapped, timeout(wrapped, 5), timeout(wrapped, 6))}) == 3
        assert key(1, walltime=5) != key(1, walltime=6)

    def test_staged_files_count_and_their_places_do_not(self) -> None:
        def staged(wrapper: Any, url: str, place: str, *more: str) -> bytes:
            file = File(url)
            file.local_path = place + "/file"
            return function_digest(wrapper(wrap_error(add), file, place, *more))

        http, url = in_task_transfer_wrapper, "http://host/a"
        assert staged(http, url, "/tmp/1") == staged(http, url, "/tmp/2")
        assert staged(http, url, "/tmp/1") != staged(http, "http://host/b", "/tmp/1")
        rsync_in = staged(in_task_stage_in_wrapper, url, "/tmp/1", "login1")
        assert rsync_in == staged(in_task_stage_in_wrapper, url, "/tmp/2", "login2")
        assert (
            len({rsync_in, staged(in_task_stage_out_wrapper, url, "/tmp/1", "login1"), staged(http, url, "/tmp/1")})
            == 3
        )

    def test_users_decorators_are_kept(self) -> None:
        def times(n: int) -> Any:
            def decorate(func: Any) -> Any:
                @functools.wraps(func)
                def inner(*args: Any) -> Any:
                    return n * func(*args)

                return inner

            return decorate

        wrapped = [wrap_error(times(n)(add)) for n in (2, 3)]
        assert len({function_digest(f) for f in (add, *wrapped)}) == 3

    def test_monitoring_and_resources_are_not_arguments(self) -> None:
        plain = key(1)
        assert plain == key(1, _parsl_monitoring_task_id=7, _parsl_monitoring_try_id=1)
        assert plain == key(1, parsl_resource_specification={"priority": 3})

    def test_paths_that_parsl_chose_are_not_seen(self) -> None:
        def log(run: int, task: int, end: str = "_add.stdout") -> str:
            return f"/home/me/runinfo/{run:03d}/task_logs/{task // 10000:04d}/task_{task:04d}{end}"

        assert key(1, stdout=log(1, 2)) == key(1, stdout=log(2, 123_456, "_add_label.stdout"))
        assert key(1, stdout=(log(1, 2), "w")) == key(1, stdout=(log(3, 4), "w"))
        assert key(1, stdout=File(log(1, 2))) == key(1, stdout=File(log(3, 4)))
        assert len({key(1), key(1, stdout=log(1, 2)), key(1, stderr=log(1, 2)), key(1, stdout=(log(1, 2), "a"))}) == 4
        assert key(1, stdout="mine/1.txt") != key(1, stdout="mine/2.txt")
        assert key(log(1, 2)) != key(log(2, 2))

    def test_staging_tasks_do_not_see_what_they_wait_for(self) -> None:
        def staging(url: str, parent: Any) -> bytes:
            return key("/work", parent_fut=parent, outputs=[File(url)], _parsl_staging_inhibit=True)

        assert staging("http://host/a", None) == staging("http://host/a", Future()) == staging("http://host/a", object)
        assert staging("http://host/a", None) != staging("http://host/b", None)


class TestResources:
    @pytest.mark.parametrize(
        "change",
        [
            {"num_nodes": 2},
            {"ranks_per_node": 2},
            {"cores_per_rank": 2},
            {"gpus_per_rank": 1},
            {"launch": "ranks"},
            {"launcher_options": "--exclusive"},
        ],
        ids=lambda change: next(iter(change)),
    )
    def test_where_and_how_counts(self, change: dict[str, Any]) -> None:
        assert key(1, spec=ResourceSpec.parse(change)) != key(1)

    def test_when_and_how_often_does_not(self) -> None:
        spec = ResourceSpec.parse(
            {"priority": 1, "tags": {"a": "b"}, "walltime_min": 1, "timeout_s": 2, "max_retries": 3, "memory_gb": 4}
        )
        assert key(1, spec=spec) == key(1)

    def test_the_users_key_is_all_but_the_function_name(self) -> None:
        mine = ResourceSpec(key="mine")
        first, second = (lambda: 1), (lambda: 2)
        second.__qualname__ = first.__qualname__
        assert key(threading.Lock(), spec=mine, func=first) == key(2, spec=mine, func=wrap_error(second))
        assert key(1, spec=mine) == key(2, spec=ResourceSpec(key="mine", num_nodes=3))
        assert len({key(1), key(1, spec=mine), key(1, spec=ResourceSpec(key="yours")), key(spec=mine, func=key)}) == 4


def test_keys_are_short() -> None:
    assert len(key(1)) == len(key(1, spec=ResourceSpec(key="k"))) == len(function_digest(add)) == 16
