"""Pictures of predictions while a model is tested."""
from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from mmengine.runner import Runner
from mmseg.engine.hooks import SegVisualizationHook
from mmseg.registry import HOOKS
from mmseg.structures import SegDataSample
from torch.utils.data import Dataset

from .sensors import Sensor
from .transforms import sensors_of

__all__ = ["SensorVisualizationHook"]


@HOOKS.register_module()
class SensorVisualizationHook(SegVisualizationHook):
    """mmsegmentation's, which opens the first sensor's file in its own way, on what the model's sensors read.

    The ground is the first colour sensor that a frame has, else the first of all, from its lowest reading (dark) to
    its highest. ``tools/test.py --show-dir`` puts it in the stock one's place.

    Raises: ValueError for a data set without LoadModalities.
    """

    def _after_iter(self, runner: Runner, batch_idx: int, data_batch: dict, outputs: Sequence[SegDataSample],
                    mode: str = "val") -> None:
        if not self.draw or mode == "train" or not self.every_n_inner_iters(batch_idx, self.interval):
            return
        sensors = _sensors(getattr(runner, f"{mode}_loop").dataloader.dataset)
        for output in outputs:
            there = {m: path for m, path in output.modality_paths.items() if path is not None and m in sensors}
            shown = sorted(there, key=lambda m: sensors[m].kind != "color")[0]
            self._visualizer.add_datasample(
                f"{mode}_{output.get('frame', shown)}".replace("/", "_"), _picture(sensors[shown], there[shown]),
                data_sample=output, show=self.show, wait_time=self.wait_time, step=runner.iter)


def _sensors(dataset: Dataset) -> dict[str, Sensor]:
    """Of the data set's pipeline; of several joined, the first one's."""
    while not hasattr(dataset, "pipeline"):
        dataset = dataset.datasets[0] if hasattr(dataset, "datasets") else dataset.dataset
    found = sensors_of(dataset.pipeline)
    if not found:
        raise ValueError("SensorVisualizationHook draws what LoadModalities reads, which the pipeline has not; use "
                         "SegVisualizationHook")
    return {sensor.name: sensor for sensor in found}


def _picture(sensor: Sensor, path: str) -> np.ndarray:
    """(H, W, 3) uint8 in RGB."""
    read = sensor.read(path)
    if sensor.kind == "color":
        return np.ascontiguousarray(read[..., ::-1])
    grey = (read if read.ndim == 2 else read[..., 0]).astype(np.float32)
    finite = np.isfinite(grey)
    low, high = (grey[finite].min(), grey[finite].max()) if finite.any() else (0, 1)
    scaled = np.where(finite, (grey - low) / max(high - low, 1e-6), 0)
    return (scaled * 255).astype(np.uint8)[..., None].repeat(3, 2)
