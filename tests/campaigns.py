"""Scripts of users whose blocks come from a batch system: started, killed, started again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Row

from tests.executor.parsl_runs import rows
from tests.faults.conftest import Campaign

_HEAD = """
from parsl_balsam import CobaltProvider, NodeRange, Queue, QueuePolicy, SlurmProvider

def load_blocks(executor={{}}, **options):
    provider = {provider}(**{{"poll_interval_s": 0.5, "walltime": "00:10:00", **options}})
    return load(provider=provider, cores_per_node=2, address="127.0.0.1", **executor)

"""


@dataclass
class SiteCampaign(Campaign):
    """A script whose blocks come from a batch system. In it `load_blocks` starts Parsl."""

    provider: str = "SlurmProvider"

    def write(self, body: str, name: str = "script.py") -> Path:
        """Write the script."""
        script = super().write(body, name)
        marker = "def report(value):"
        script.write_text(script.read_text().replace(marker, _HEAD.format(provider=self.provider) + marker, 1))
        return script

    def rows(self, table: Any, *conditions: Any) -> list[Row[Any]]:
        """Read rows of the database."""
        return list(rows(self.url, table, *conditions))


@contextmanager
def site_campaign(
    provider: str, environ: Mapping[str, str], url: str, directory: Path, cancel_all: Callable[[], None]
) -> Iterator[SiteCampaign]:
    """Give a campaign at a site; end what its scripts have started."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**environ, "BALSAM_CAMPAIGN": str(directory)}.items():
            patch.setenv(name, value)
        campaign = SiteCampaign(directory, url, provider=provider)
        try:
            yield campaign
        finally:
            campaign.end()
            cancel_all()
            campaign.end()
