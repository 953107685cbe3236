from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path

import pytest
from mmengine.dataset import DefaultSampler
from torch.utils.data import BatchSampler, DataLoader, IterableDataset

from mmfusion_plugin.engine.data_order import NumberedBatches, seeded_loader

TRAINING = """
import os
import numpy as np
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler
from mmfusion_plugin.engine.data_order import seeded_loader

class Large:  # too large for a pipe, and no tensors: a loader process waits until the training has read a batch
    def __len__(self):
        return 100_000

    def __getitem__(self, i):
        return np.zeros(300_000, np.uint8)

def tell(worker):
    print("loader", os.getpid(), flush=True)

data = Large()
batches = BatchSampler(SequentialSampler(data), 1, False)
loader = DataLoader(data, batch_sampler=batches, num_workers=2, collate_fn=list, worker_init_fn=tell)
seeded = seeded_loader(loader, 0, False)
it = iter(seeded)
next(it), next(it), next(it)
print("read", flush=True)
import time
time.sleep(600)
"""


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="asks /proc which processes live")
def test_loader_processes_end_with_a_killed_training_whose_batches_nobody_reads():
    training = subprocess.Popen([sys.executable, "-c", TRAINING], stdout=subprocess.PIPE, text=True,
                                env=os.environ | {"OMP_NUM_THREADS": "1"})
    loaders = []
    try:
        for line in training.stdout:
            if line.startswith("read"):
                break
            loaders.append(int(line.split()[1]))
        assert len(loaders) == 2, "the loader's own worker_init_fn ran in each"
        time.sleep(0.5)  # until the queue is full
        training.send_signal(signal.SIGKILL)
        training.wait()
        end = time.monotonic() + 30
        while any(map(running, loaders)) and time.monotonic() < end:
            time.sleep(0.1)
        assert not any(map(running, loaders))
    finally:
        training.kill()
        for pid in filter(running, loaders):
            os.kill(pid, signal.SIGKILL)


class Endless(IterableDataset):
    def __iter__(self):
        return iter(range(10))


@pytest.mark.parametrize(("data", "options", "words"), [
    (range(4), dict(in_order=False), "train_dataloader.in_order=True, got False"),
    (range(4), dict(batch_size=None), "a sampler and batch_size over a data set with a length"),
    (Endless(), dict(), "over a data set with a length, got .* over Endless")])
def test_loaders_without_an_order_are_refused(data, options, words):
    with pytest.raises(ValueError, match=words):
        seeded_loader(DataLoader(data, **options), 0, endless=False)


def test_samples_are_numbered_over_all_ranks_and_an_endless_order_is_drawn_anew():
    sampler = DefaultSampler(range(4), shuffle=True, seed=0)
    batches = NumberedBatches(BatchSampler(sampler, 2, drop_last=False), endless=True)
    batches.rank, batches.ranks = 1, 2
    places = [place for batch in islice(batches, 4) for place in batch]
    assert [place.number for place in places] == [1, 3, 5, 7] * 2
    assert [place.epoch for place in places] == [0] * 4 + [1] * 4 and sampler.epoch == 1


def test_where_memory_is_pinned_is_kept():
    loader = DataLoader(range(4), batch_size=2)
    loader.pin_memory_device = "elsewhere"
    assert seeded_loader(loader, 0, endless=False).pin_memory_device == "elsewhere"
