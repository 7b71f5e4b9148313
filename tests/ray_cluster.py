"""A cluster of several raylets on this machine, for tests; alone in its network namespace.

`python ray_cluster.py WORKERS CPUS READY` starts a head and so many workers, writes to READY the
address and each worker's raylet, and stays until its standard input ends.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from pathlib import Path

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
# Else its processes wait behind everything else that a busy machine does.
os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 (Ray spells it so)

from ray.cluster_utils import Cluster


def main() -> None:
    workers, cpus, ready = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    store = 128 << 20
    logging.disable(logging.CRITICAL)
    cluster = Cluster(
        initialize_head=True,
        head_node_args={
            "num_cpus": cpus,
            "node_ip_address": "127.0.0.1",
            "object_store_memory": store,
            "include_dashboard": False,
            "ray_client_server_port": 10001,
        },
    )
    nodes = [cluster.add_node(num_cpus=cpus, object_store_memory=store) for _ in range(workers)]
    pids = [node.all_processes["raylet"][0].process.pid for node in nodes]
    temporary = ready.with_suffix(".new")
    temporary.write_text(json.dumps({"address": cluster.address, "raylets": pids}))
    temporary.rename(ready)
    sys.stdin.read()
    cluster.shutdown()


main()
