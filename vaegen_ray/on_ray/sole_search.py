"""One search at a time in a cluster: Ray Tune supports no more.

A module of its own, because the holder's process imports it, and is to start without torch.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import ray

from vaegen_ray.errors import ClusterError
from vaegen_ray.search.directory import SearchDirectory

SEARCH_OF_THE_CLUSTER = "vaegen_ray_search"
"""Name of the actor that a running search holds."""


@ray.remote(num_cpus=0)
class _Holder:
    """Lives as long as its search."""

    def __init__(self, search: str) -> None:
        self._search = search

    def search(self) -> str:
        return self._search


@contextmanager
def sole_search_of_the_cluster(directory: SearchDirectory) -> Iterator[None]:
    """Hold the cluster for the search in ``directory``; ClusterError, naming the other, while another runs."""
    place = f"{directory.root}, driven from {ray.util.get_node_ip_address()}, process {os.getpid()}"
    holder = _Holder.options(  # type: ignore[attr-defined]
        name=SEARCH_OF_THE_CLUSTER, namespace=SEARCH_OF_THE_CLUSTER, get_if_exists=True
    ).remote(place)
    try:
        owner = ray.get(holder.search.remote())
    except ray.exceptions.RayActorError as error:
        raise ClusterError("another search of this cluster has ended just now; give the command again") from error
    if owner != place:
        raise ClusterError(
            f"this cluster runs another search ({owner}), and Ray Tune supports one at a time; wait for it, stop it "
            f"with `vaegen search stop`, or use another cluster"
        )
    try:
        yield
    finally:
        ray.kill(holder)
