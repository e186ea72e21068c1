"""The page of guarantees names tests that there are."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "guarantees.md"


def test_every_guarantee_names_tests_that_exist() -> None:
    sections = re.split(r"^## \d+\. ", PAGE.read_text(), flags=re.MULTILINE)[1:]
    assert len(sections) == 14
    for section in sections:
        named = re.findall(r"^- `(tests/\S+)::(\S+)`$", section, flags=re.MULTILINE)
        assert named, section
        for path, name in named:
            defined = {
                node.name
                for node in ast.walk(ast.parse((ROOT / path).read_text()))
                if isinstance(node, ast.FunctionDef)
            }
            assert name in defined, f"{path} has no {name}"
