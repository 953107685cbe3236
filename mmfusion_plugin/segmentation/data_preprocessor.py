"""From one tensor per sensor to the single normalised tensor that mmsegmentation passes around."""
from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from mmseg.models import SegDataPreProcessor
from mmseg.registry import MODELS
from torch import Tensor

from mmfusion_plugin.corruptions.sensor import KINDS
from mmfusion_plugin.models.availability import check_test_missing, remaining
from mmfusion_plugin.models.injection import BatchNoise
from mmfusion_plugin.models.samples import NonFiniteReports, sample_name

__all__ = ["MultimodalSegDataPreProcessor"]


@MODELS.register_module()
class MultimodalSegDataPreProcessor(SegDataPreProcessor):
    """Normalise each modality, stack them along channels, pad, and carry their availability.

    Zero after normalisation stands for "nothing known": padding, invalid readings and missing
    modalities all become 0, the mean of the sensor.

    Args:
        modalities: names in stacking order, as in ``model.backbone.modalities``.
        mean, std: one value per channel and modality, in the sensor's own unit (grey levels, metres).
        bgr_to_rgb: modalities with three channels to be reversed.
        invalid: reading that means "no value", by modality (depth: 0).
        size, size_divisor, seg_pad_val, test_cfg: as in mmsegmentation's SegDataPreProcessor.
        test_missing: modalities that evaluation treats as missing, whatever the data hold.
        train_noise, test_noise: noise in training and in evaluation, in the sensor's unit, see
            :class:`~mmfusion_plugin.models.injection.BatchNoise`. Invalid readings stay invalid.
        non_blocking: as in mmengine's BaseDataPreprocessor.

    Shapes: inputs {m: list of (C_m, H, W)} (or a list of such dicts) -> (B, sum C_m, H, W) float32.
    Raises: ValueError for names or lengths that do not agree, sizes that differ between sensors or
        cannot be stacked, and samples without any modality.
    """

    def __init__(
        self,
        modalities: Sequence[str],
        mean: Mapping[str, Sequence[float]],
        std: Mapping[str, Sequence[float]],
        bgr_to_rgb: Sequence[str] = (),
        invalid: Mapping[str, float] | None = None,
        size: tuple[int, int] | None = None,
        size_divisor: int | None = None,
        seg_pad_val: int = 255,
        test_missing: Sequence[str] = (),
        train_noise: Mapping | None = None,
        test_noise: Mapping | None = None,
        test_cfg: dict | None = None,
        non_blocking: bool = False,
    ) -> None:
        super().__init__(
            size=size, size_divisor=size_divisor, pad_val=0, seg_pad_val=seg_pad_val, test_cfg=test_cfg
        )
        self._non_blocking = non_blocking  # mmsegmentation's class does not hand it on to mmengine's
        invalid = invalid or {}
        if isinstance(modalities, str) or len(set(modalities)) != len(modalities):
            raise ValueError(f"data_preprocessor.modalities must be a list of different names, got {modalities!r}")
        _check_padding("data_preprocessor", size, size_divisor)
        if test_cfg:
            unknown = sorted(set(test_cfg) - {"size", "size_divisor"})
            if unknown:
                raise ValueError(f"data_preprocessor.test_cfg has {unknown}, it takes size or size_divisor")
            _check_padding("data_preprocessor.test_cfg", **test_cfg)
        if isinstance(bgr_to_rgb, (str, bool)):
            name = bgr_to_rgb if isinstance(bgr_to_rgb, str) else modalities[0]
            raise ValueError(f"data_preprocessor.bgr_to_rgb must be a list such as [{name!r}], got {bgr_to_rgb!r}")
        for key, names in (("mean", mean), ("std", std)):
            if set(names) != set(modalities):
                raise ValueError(
                    f"data_preprocessor.{key} names {sorted(names)}, modalities names {list(modalities)}"
                )
        for key, names in (("bgr_to_rgb", bgr_to_rgb), ("invalid", invalid)):
            unknown = sorted(set(names) - set(modalities))
            if unknown:
                raise ValueError(
                    f"data_preprocessor.{key} names {unknown}, modalities names {list(modalities)}"
                )
        check_test_missing(modalities, test_missing)
        self.modalities = tuple(modalities)
        self.invalid = dict(invalid)
        self.reverse = tuple(bgr_to_rgb)
        self.test_missing = tuple(test_missing)
        self._reports = NonFiniteReports("they are treated as invalid readings")
        self.noise = BatchNoise(self.modalities, train_noise, test_noise)
        self._check_depth_noise()
        for m in self.modalities:
            for key, values in (("mean", mean[m]), ("std", std[m])):
                if not isinstance(values, Sequence) or isinstance(values, str) or not values:
                    raise ValueError(
                        f"data_preprocessor.{key}.{m} must list one value per channel such as [0.0], got {values!r}"
                    )
            if m in bgr_to_rgb and len(mean[m]) != 3:
                raise ValueError(
                    f"data_preprocessor.bgr_to_rgb names {m!r}, which has {len(mean[m])} channels in "
                    f"data_preprocessor.mean.{m}; only three can be reversed"
                )
            if len(mean[m]) != len(std[m]) or min(std[m]) <= 0:
                raise ValueError(
                    f"data_preprocessor.mean.{m} {list(mean[m])} and std.{m} {list(std[m])} must have one "
                    "value per channel, std positive"
                )
            self.register_buffer(f"mean_{m}", torch.tensor(mean[m], dtype=torch.float32).view(-1, 1, 1), False)
            self.register_buffer(f"std_{m}", torch.tensor(std[m], dtype=torch.float32).view(-1, 1, 1), False)

    @property
    def channels(self) -> dict[str, int]:
        """Width of each modality in the stacked tensor."""
        return {m: getattr(self, f"mean_{m}").shape[0] for m in self.modalities}

    def forward(self, data: dict, training: bool = False) -> dict:
        data = self.cast_data(data)
        samples = self._by_sample(data["inputs"])
        data_samples = data.get("data_samples") or [None] * len(samples)
        if len(data_samples) != len(samples):
            raise ValueError(f"the batch holds {len(samples)} inputs and {len(data_samples)} data samples")
        remains = [self._remaining(data_sample, training) for data_sample in data_samples]
        samples = self._with_noise(samples, remains, data_samples, training)
        stacked = []
        for streams, available, data_sample in zip(samples, remains, data_samples):
            stacked.append(torch.cat([self._normalise(m, streams, available[m], data_sample) for m in self.modalities]))
            if data_sample is not None:
                data_sample.set_metainfo({"available": available})
        self._reports.tell()
        if training and self.size is None and self.size_divisor is None:
            raise ValueError("training needs data_preprocessor.size or data_preprocessor.size_divisor")
        self._check_sizes(stacked, data.get("data_samples"), training)
        return super().forward({"inputs": stacked, "data_samples": data.get("data_samples")}, training)

    def _by_sample(self, inputs: Mapping[str, Sequence[Tensor]] | Sequence[Mapping[str, Tensor]]) -> list[dict]:
        """The collate function turns a list of dicts into a dict of lists; take either."""
        if isinstance(inputs, Mapping):
            self._check_names(inputs)
            numbers = {m: len(tensors) for m, tensors in inputs.items()}
            if len(set(numbers.values())) > 1:
                raise ValueError(f"the batch holds different numbers of samples by modality: {numbers}")
            return [dict(zip(inputs, tensors)) for tensors in zip(*inputs.values())]
        if not all(isinstance(streams, Mapping) for streams in inputs):
            raise ValueError(
                "inputs must hold one tensor per modality; end the pipeline with dict(type='PackModalities', "
                f"modalities={list(self.modalities)})"
            )
        for streams in inputs:
            self._check_names(streams)
        return list(inputs)

    def _with_noise(
        self, samples: list[dict], available: Sequence[Mapping[str, bool]], data_samples: Sequence, training: bool
    ) -> list[dict]:
        if not self.noise.active(training) or not samples:
            return samples
        self._check_counts(data_samples)
        noisy = self.noise({m: [streams[m] for streams in samples] for m in self.modalities}, available, data_samples,
                           training)
        return [
            {m: self._keep_invalid(m, streams[m], noisy[m][b]) for m in self.modalities}
            for b, streams in enumerate(samples)]

    def _keep_invalid(self, m: str, x: Tensor, noisy: Tensor) -> Tensor:
        """What was no reading before the noise is none after it."""
        return noisy if m not in self.invalid else torch.where(x == self.invalid[m], x.to(noisy.dtype), noisy)

    def _check_depth_noise(self) -> None:
        for m, (key, sensor) in self.noise.sensors.items():
            if sensor.kind == "depth" and self.invalid.get(m) != sensor.empty:
                raise ValueError(
                    f"{key} reads {sensor.empty:g} as 'no value', data_preprocessor.invalid.{m} is "
                    f"{self.invalid.get(m)}; they must agree"
                )

    def _check_counts(self, data_samples: Sequence) -> None:
        """Grey levels' own range would clip what is stored in more than 8 bits."""
        own = KINDS["image"].valid_range
        narrow = {m: key for m, (key, sensor) in self.noise.sensors.items()
                  if sensor.kind == "image" and sensor.valid_range == own}
        for sample in data_samples:
            wide = set() if sample is None else narrow.keys() & set(sample.metainfo.get("not_8_bit", ()))
            for m in sorted(wide):
                raise ValueError(
                    f"{narrow[m]} clips at {own}, and {m!r} of sample {sample_name(sample)} is stored in more than 8 "
                    f"bits; set {narrow[m]}.valid_range=(lowest, highest) in its counts, such as (0, 65535), and its "
                    "scale"
                )

    def _check_sizes(self, stacked: Sequence[Tensor], data_samples: Sequence | None, training: bool) -> None:
        """What stock stacking answers with an assertion or torch's own error."""
        sizes = sorted({tuple(x.shape[1:]) for x in stacked})
        if not training:
            if len(sizes) > 1:
                raise ValueError(
                    f"one evaluation batch holds images of sizes {sizes}; set batch_size=1 in val_dataloader and "
                    "test_dataloader, or resize in the pipeline"
                )
            if self.test_cfg and data_samples is None:
                raise ValueError("data_preprocessor.test_cfg pads images, which needs data_samples to undo it")
        elif self.size is not None:
            padded = {tuple(max(have, want) for have, want in zip(size, self.size)) for size in sizes}
            if len(padded) > 1:
                raise ValueError(
                    f"one training batch holds images of sizes {sizes}, larger than data_preprocessor.size "
                    f"{tuple(self.size)}; crop to it in the pipeline (RandomCrop.crop_size)"
                )

    def _check_names(self, streams: Mapping) -> None:
        if set(streams) != set(self.modalities):
            raise ValueError(
                f"data_preprocessor.modalities is {list(self.modalities)}, the pipeline packs "
                f"{sorted(streams)}; make PackModalities.modalities agree"
            )

    def _remaining(self, data_sample, training: bool) -> dict[str, bool]:
        recorded = {} if data_sample is None else data_sample.metainfo.get("available", {})
        return remaining(self.modalities, recorded, () if training else self.test_missing, sample_name(data_sample))

    def _normalise(self, m: str, streams: Mapping[str, Tensor], available: bool, data_sample) -> Tensor:
        x, mean, std = streams[m], getattr(self, f"mean_{m}"), getattr(self, f"std_{m}")
        if x.shape[0] != mean.shape[0]:
            raise ValueError(
                f"{m!r} has {x.shape[0]} channels in sample {sample_name(data_sample)}, data_preprocessor.mean.{m} "
                f"lists {mean.shape[0]}"
            )
        first = streams[self.modalities[0]]
        if x.shape[1:] != first.shape[1:]:
            raise ValueError(
                f"{m!r} is {tuple(x.shape[1:])} and {self.modalities[0]!r} {tuple(first.shape[1:])} "
                f"in sample {sample_name(data_sample)}; sensors must be registered to one size"
            )
        if not available:
            return torch.zeros(x.shape, device=x.device)
        if m in self.reverse:
            x = x.flip(0)
        known = torch.ones_like(x, dtype=torch.bool) if m not in self.invalid else x != self.invalid[m]
        if x.is_floating_point():
            finite = torch.isfinite(x)
            self._reports.note(m, finite, data_sample)
            known &= finite
        return torch.where(known, (x.float() - mean) / std, 0.0)


def _check_padding(where: str, size: Sequence[int] | None = None, size_divisor: int | None = None) -> None:
    if size is not None and size_divisor is not None:
        raise ValueError(f"{where} sets both size={size} and size_divisor={size_divisor}; keep one")
