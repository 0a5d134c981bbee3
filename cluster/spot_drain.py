"""Tell Ray that this spot instance is about to be taken away, as soon as its cloud says so.

Started beside each Ray node of a spot instance: `python spot_drain.py aws` or `gcp`. It asks the instance's metadata
every few seconds, and when the notice comes, has Ray drain the node: the runs there save a checkpoint and go on
elsewhere. Needs nothing but Python and the `ray` command. Ends when the node has been drained; what goes wrong on the
way is printed and tried again.
"""

import argparse
import http.client
import json
import logging
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

logger = logging.getLogger("spot_drain")

METADATA = {"aws": "http://169.254.169.254", "gcp": "http://metadata.google.internal"}
"""Where each cloud's instances ask about themselves."""
NOTICE_S = {"aws": 120, "gcp": 30}
"""Seconds from the notice to the end: two minutes on EC2, half a minute on Compute Engine."""
MARGIN_S = 10
TIMEOUT_S = 2.0
POLL_S = 5.0
TOKEN_TTL_S = 60


def ec2_takes_away(metadata: str) -> bool:
    """Whether EC2 has announced to stop or terminate the instance (`spot/instance-action`), by IMDSv2."""
    token = _ask(
        f"{metadata}/latest/api/token", method="PUT", headers={"X-aws-ec2-metadata-token-ttl-seconds": str(TOKEN_TTL_S)}
    )
    headers = {"X-aws-ec2-metadata-token": token or ""}
    notice = _ask(f"{metadata}/latest/meta-data/spot/instance-action", headers=headers)
    # Hibernation is a third action; the node comes back from it, but its connections do not.
    return notice is not None and json.loads(notice)["action"] in ("stop", "terminate", "hibernate")


def compute_engine_takes_away(metadata: str) -> bool:
    """Whether Compute Engine has begun to preempt the instance (`instance/preempted`)."""
    preempted = _ask(f"{metadata}/computeMetadata/v1/instance/preempted", headers={"Metadata-Flavor": "Google"})
    return preempted is not None and preempted.strip() == "TRUE"


CLOUDS: dict[str, Callable[[str], bool]] = {"aws": ec2_takes_away, "gcp": compute_engine_takes_away}


def drain(node: tuple[str, str], remaining_s: int) -> bool:
    """Have Ray drain the node of this id, in the cluster of this address; whether Ray accepted."""
    node_id, address = node
    command = ["ray", "drain-node", "--address", address, "--node-id", node_id]
    command += ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "the cloud takes the instance away"]
    command += ["--deadline-remaining-seconds", str(remaining_s)]
    return subprocess.run(command, check=False).returncode == 0


def main() -> int:
    """Wait for the notice, then drain."""
    logging.basicConfig(format="%(asctime)s %(name)s: %(message)s")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cloud", choices=CLOUDS)
    parser.add_argument("--metadata", help="URL of the metadata server")
    parser.add_argument("--every", type=float, default=POLL_S, metavar="SECONDS")
    parser.add_argument("--node-id", help="of this node; by default that of the raylet that runs here")
    parser.add_argument("--address", help="of the node's cluster, with --node-id")
    options = parser.parse_args()
    takes_away, metadata = CLOUDS[options.cloud], options.metadata or METADATA[options.cloud]
    while True:
        try:
            if takes_away(metadata):
                break
        except (OSError, ValueError, KeyError, TypeError, http.client.HTTPException) as error:
            logger.warning("no answer from %s: %s", metadata, error)
        time.sleep(options.every)
    noticed_s = time.monotonic()
    while True:
        left_s = NOTICE_S[options.cloud] - MARGIN_S - round(time.monotonic() - noticed_s)
        if left_s <= 0:
            logger.error("too late to drain")
            return 1
        try:
            node = (options.node_id, options.address) if options.node_id else this_node()
            if drain(node, left_s):
                logger.warning("draining, %d s left", left_s)
                return 0
        except (OSError, LookupError) as error:
            logger.warning("%s", error)
        time.sleep(1)


def this_node(processes: Path = Path("/proc")) -> tuple[str, str]:
    """Id and cluster address of the one Ray node on this machine, by its raylet's command line; else LookupError."""
    found = []
    for file in processes.glob("[0-9]*/cmdline"):
        try:
            program, *arguments = file.read_text(errors="replace").split("\0")
        except OSError:
            continue  # It has ended meanwhile.
        if Path(program).name == "raylet":
            values = dict(argument.lstrip("-").split("=", 1) for argument in arguments if "=" in argument)
            found.append((values["node_id"], values["gcs-address"]))
    if len(found) != 1:
        raise LookupError(f"{len(found)} Ray nodes run here, not one; start one, or choose by --node-id and --address")
    return found[0]


def _ask(url: str, *, method: str = "GET", headers: dict[str, str]) -> str | None:
    """The answer; None where there is no such thing (404), which is how both clouds say that nothing is planned."""
    request = urllib.request.Request(url, method=method, headers=headers)
    # The metadata are never behind a proxy.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=TIMEOUT_S) as answer:
            return answer.read().decode()
    except urllib.error.HTTPError as error:
        if error.code == 404:
            return None
        raise


if __name__ == "__main__":
    sys.exit(main())
