"""``python -m parsl_balsam.launcher ORDER BLOCK``: what a block's batch job runs."""

from __future__ import annotations

import logging
import sys
from dataclasses import replace
from pathlib import Path

from parsl_balsam.db.blocks import abandon_block, requested_walltime
from parsl_balsam.db.claims import LeaseLost
from parsl_balsam.db.connect import LAUNCHER_BUSY_S, open_database
from parsl_balsam.db.outage import until_it_answers
from parsl_balsam.db.private import read_private
from parsl_balsam.launcher.block import prepare
from parsl_balsam.launcher.launcher import run_block
from parsl_balsam.launcher.memory import keep_freed_memory
from parsl_balsam.model.errors import BalsamError
from parsl_balsam.model.launch import LaunchOrder

logger = logging.getLogger(__name__)

#: How long one thread may keep the others waiting, seconds. Python's own 5 ms are too long: agents may run out of short
#: tasks in 2 ms.
_SWITCH_S = 0.0005

#: To the database, besides that on which a launcher listens: one thread of it speaks at a time.
_CONNECTIONS = 1


def main() -> int:
    """Run the launcher of a block; return the exit code of the batch job."""
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    keep_freed_memory()
    sys.setswitchinterval(_SWITCH_S)
    order_file, block_id = Path(sys.argv[1]), int(sys.argv[2])
    try:
        order = LaunchOrder.loads(read_private(order_file), str(order_file))
        patience_s = order.idle_timeout_s
        database = until_it_answers(
            lambda: open_database(order.database, create=False, busy_s=LAUNCHER_BUSY_S, connections=_CONNECTIONS),
            patience_s,
            logger,
        )
        walltime_min = until_it_answers(lambda: requested_walltime(database, block_id), patience_s, logger)
        if walltime_min is not None:
            order = replace(order, walltime_s=walltime_min * 60)
        try:
            parts = prepare(order, block_id)
        except BalsamError as error:
            abandon_block(database, block_id, str(error))
            raise
        run_block(order, database, block_id, parts)
    except (BalsamError, LeaseLost, OSError) as error:
        print(f"launcher of block {block_id}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
