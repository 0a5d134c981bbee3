"""Runs another loader of images beside ours: a program for the environment of that loader, which need not be ours.

    python serve_peer.py PEER.py convert IMAGES.npy FOLDER [ENCODING]
    python serve_peer.py PEER.py serve FOLDER_OR_URL CACHE_FOLDER IMAGES_PER_BATCH

A peer has a function ``convert(images, folder[, encoding])``, which writes uint8 [N, H, W, C] in its format, and
``batches(source, cache_folder, images_per_batch)``, which opens that and returns what gives the batches of an epoch
when it is called. The served peer reads an epoch for each line that it gets, and answers with its times in JSON.
"""

import importlib
import json
import sys
import time
from pathlib import Path
from types import ModuleType

import numpy as np

READY = "ready"
"""Said when all is imported: what comes before is not measured."""


def _load(file: str) -> ModuleType:
    # By its path, which the processes that a peer starts get too.
    sys.path.append(str(Path(file).parent))
    return importlib.import_module(Path(file).stem)


def _serve(peer: ModuleType, source: str, cache_folder: str, images_per_batch: int) -> None:
    answers, sys.stdout = sys.stdout, sys.stderr  # What the libraries print is no answer.
    print(READY, file=answers, flush=True)
    epoch = None
    for _ in sys.stdin:
        start = time.perf_counter()
        epoch = epoch or peer.batches(source, cache_folder, images_per_batch)
        num_images, first_batch_s = 0, 0.0
        for batch in epoch():
            first_batch_s = first_batch_s or time.perf_counter() - start
            num_images += len(batch)
        times = {"images": num_images, "first_batch_s": first_batch_s, "epoch_s": time.perf_counter() - start}
        print(json.dumps(times), file=answers, flush=True)


if __name__ == "__main__":
    loaded = _load(sys.argv[1])
    if sys.argv[2] == "convert":
        loaded.convert(np.load(sys.argv[3], mmap_mode="r"), *sys.argv[4:])
    else:
        _serve(loaded, sys.argv[3], sys.argv[4], int(sys.argv[5]))
