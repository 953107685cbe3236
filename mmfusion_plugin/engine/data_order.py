"""Random numbers and the order of training data as functions of (seed, epoch, number of the sample).

Then neither the number of loader processes, nor what they have prefetched, nor a restart changes a sample.
"""
from __future__ import annotations

import multiprocessing
import os
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence, Sized
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from mmengine.dataset import InfiniteSampler
from mmengine.dist import get_rank, get_world_size
from torch.utils.data import DataLoader

__all__ = [
    "NumberedBatches", "ResumedBatches", "SeededDataset", "end_with_training", "kept_randomness", "random_states",
    "restore_random_states", "seeded_loader",
]


def random_states() -> dict[str, Any]:
    """State of the global generators of python, numpy and torch, of the CPU and of this process's GPU.

    Holds tensors and plain containers only, so that a checkpoint with it loads with ``weights_only=True``.
    """
    name, key, position, has_gauss, gauss = np.random.get_state()
    states = {
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(key.astype(np.int64)), int(position), int(has_gauss), float(gauss)),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_initialized():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def restore_random_states(states: dict[str, Any]) -> None:
    """Undo what has been drawn since :func:`random_states`; tensors may be on any device."""
    version, key, gauss = states["python"]
    random.setstate((version, tuple(key), gauss))
    name, key, *rest = states["numpy"]
    np.random.set_state((name, key.cpu().numpy().astype(np.uint32), *rest))
    torch.set_rng_state(states["torch"].cpu())
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"].cpu())


@contextmanager
def kept_randomness(*key: int) -> Iterator[None]:
    """Inside, the CPU's global generators are seeded from ``key``; afterwards they are as before."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    words = np.random.SeedSequence(key).generate_state(4)
    random.seed(int(words[0]))
    np.random.seed(words[1:2])
    # torch.manual_seed would seed the GPUs too, of which loading takes nothing
    torch.default_generator.manual_seed(int(words[2]) << 32 | int(words[3]))
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])


class Place(NamedTuple):
    """Which sample of the data set, and where it comes in training, counted over all ranks."""

    epoch: int
    number: int
    index: int


class SeededDataset:
    """A data set whose every access draws from (seed, epoch, number of the sample). Else as ``dataset``."""

    def __init__(self, dataset: Any, seed: int) -> None:
        self.dataset, self.seed = dataset, seed

    def __getitem__(self, place: Place) -> Any:
        with kept_randomness(self.seed, place.epoch, place.number):
            return self.dataset[place.index]

    def __len__(self) -> int:
        return len(self.dataset)

    def __getattr__(self, name: str) -> Any:
        if name == "dataset":  # while it is being unpickled
            raise AttributeError(name)
        return getattr(self.dataset, name)


class NumberedBatches:
    """A batch sampler's batches, as places; ``skip`` of them are left out without reading a sample.

    Sample j of rank r has number j * ranks + r: one process with the whole batch and several with parts of it
    give every sample the same random numbers.

    Args:
        batches: yields lists of indices; finite, or endless as over an InfiniteSampler.
        endless: go on with the next epoch where ``batches`` ends, as mmengine's iteration-based loop does.
    """

    def __init__(self, batches: Any, endless: bool) -> None:
        self.batches, self.endless = batches, endless
        self.sampler = getattr(batches, "sampler", None)
        self.batch_size = getattr(batches, "batch_size", None)
        self.epoch = self.skip = 0
        self.rank, self.ranks = get_rank(), get_world_size()

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[Place]]:
        skip, self.skip = self.skip, 0
        epoch = self.epoch
        if isinstance(self.sampler, InfiniteSampler):
            # it has one generator for good, of which an earlier iterator may have taken a part
            self.sampler.indices = self.sampler._indices_of_rank()
        while True:
            number = 0
            for batch in self.batches:
                if skip:
                    skip -= 1
                else:
                    yield self._places(epoch, number, batch)
                number += len(batch)
            if not self.endless:
                return
            if not number:
                raise ValueError(
                    "train_dataloader gives no batch: its data set is smaller than batch_size, with drop_last=True")
            epoch += 1
            if hasattr(self.sampler, "set_epoch"):
                self.sampler.set_epoch(epoch)

    def _places(self, epoch: int, number: int, batch: Sequence[int]) -> list[Place]:
        return [Place(epoch, (number + j) * self.ranks + self.rank, index) for j, index in enumerate(batch)]


class ResumedBatches:
    """What mmengine's iteration-based loop takes its batches from.

    Resuming, that loop asks for ``done`` batches and throws them away: here nothing is read for them.
    """

    def __init__(self, loader: DataLoader, done: int) -> None:
        self.loader, self.unread = loader, done
        loader.batch_sampler.skip = done
        self._iterator: Iterator | None = None

    def __iter__(self) -> ResumedBatches:
        return self

    def __next__(self) -> Any:
        if self.unread:
            self.unread -= 1
            return None
        if self._iterator is None:
            self._iterator = iter(self.loader)
        return next(self._iterator)


def end_with_training(worker_id: int, then: Callable[[int], Any] | None = None, seconds: float = 2.0) -> None:
    """A loader process ends within ``seconds`` of the training that started it, however that died; ``then`` as well.

    torch's own look at the parent is not enough: a batch that the dead training will not read blocks the queue, and
    the process waits for it for good.
    """
    training = multiprocessing.parent_process().pid

    def watch() -> None:
        while os.getppid() == training:
            time.sleep(seconds)
        os._exit(1)  # sys.exit would wait for the queue

    threading.Thread(target=watch, daemon=True).start()
    if then is not None:
        then(worker_id)


def seeded_loader(loader: DataLoader, seed: int, endless: bool) -> DataLoader:
    """``loader`` with :class:`SeededDataset` and :class:`NumberedBatches`, and a generator of its own.

    Its processes end with the training (:func:`end_with_training`).

    Raises: ValueError for a loader without batches, without an order, or that gives batches in another one.
    """
    if loader.batch_sampler is None or not isinstance(loader.dataset, Sized):
        raise ValueError(
            "exact resuming needs a train_dataloader with a sampler and batch_size over a data set with a length, got "
            f"batch_size={loader.batch_size} over {type(loader.dataset).__name__}"
        )
    if not getattr(loader, "in_order", True):
        raise ValueError(
            "exact resuming needs train_dataloader.in_order=True, got False: batches would come as workers finish them")
    options = dict(
        num_workers=loader.num_workers, collate_fn=loader.collate_fn, pin_memory=loader.pin_memory,
        timeout=loader.timeout, worker_init_fn=partial(end_with_training, then=loader.worker_init_fn),
        prefetch_factor=loader.prefetch_factor, persistent_workers=loader.persistent_workers,
        multiprocessing_context=loader.multiprocessing_context,
        # every start of an iteration draws a number, which would otherwise come from the model's generator
        generator=torch.Generator().manual_seed(seed))
    if getattr(loader, "pin_memory_device", ""):
        options["pin_memory_device"] = loader.pin_memory_device
    return DataLoader(
        SeededDataset(loader.dataset, seed), batch_sampler=NumberedBatches(loader.batch_sampler, endless), **options)
