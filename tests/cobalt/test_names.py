"""What users name reaches Cobalt and the shells of its jobs as one word."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from parsl_balsam.db.schema import blocks
from tests.campaigns import SiteCampaign, site_campaign
from tests.cobalt.cobalt import Cobalt
from tests.faults.conftest import until

NAME = """it's "odd" $(touch HACKED)`touch HACKED`; touch HACKED & * \\ é#"""

#: Cobalt itself cannot do with blanks and "$" in the path of a script.
DIRECTORY = """it's"odd"`>HACKED`;>HACKED&*\\é#"""

SCRIPT = """
@bash_app
def step(number, stdout=parsl.AUTO_LOGNAME):
    return f"echo {{number}} >> lines; echo said {{number}}"

if __name__ == "__main__":
    with load_blocks(dict(label={name!r}, workflow={name!r}), worker_init={init!r}):
        steps = [step(number) for number in range(3)]
        report([[future.result() for future in steps], [Path(future.stdout).read_text() for future in steps]])
"""


@pytest.fixture
def campaign(cobalt: Cobalt, postgres_url: str, tmp_path: Path) -> Iterator[SiteCampaign]:
    directory = tmp_path / DIRECTORY
    directory.mkdir()
    with site_campaign("CobaltProvider", cobalt.environ, postgres_url, directory, cobalt.cancel_all) as made:
        yield made


def test_any_name_will_do(campaign: SiteCampaign, cobalt: Cobalt, tmp_path: Path) -> None:
    init = f"export PYTHONPATH={shlex.quote(str(Path(__file__).parents[2]))}"  # Cobalt's jobs do not get the script's
    ended, said = campaign.run(campaign.write(SCRIPT.format(name=NAME, init=init)))
    assert ended == [0] * 3
    assert said == ["said 0\n", "said 1\n", "said 2\n"]
    (block,) = campaign.rows(blocks)
    assert block.tag.startswith("parsl.it_s_odd_touch_HACKED_touch_HACKED_touch_HACKED_.block-0.")
    campaign.check_invariants()
    assert [path for path in tmp_path.rglob("*") if path.name == "HACKED"] == []
    for directory in (Path.cwd(), Path.home(), Path("/")):
        assert not (directory / "HACKED").exists()
    until(lambda: not cobalt.jobs())
