"""From one tensor per modality and clip to normalised batches by modality."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Real

import torch
from mmaction.registry import MODELS
from mmengine.model import BaseDataPreprocessor
from torch import Tensor

from mmfusion_plugin.models.availability import check_test_missing, remaining
from mmfusion_plugin.models.injection import BatchNoise
from mmfusion_plugin.models.samples import NonFiniteReports, sample_name

__all__ = ["MultimodalActionDataPreProcessor"]

# One sample by rank -> axis of its channels: (C,), (T, C), (C, H, W), (N, C, H, W), (N, C, T, H, W).
CHANNEL_AXIS = {1: 0, 2: 1, 3: 0, 4: 1, 5: 1}

Values = float | Sequence[float]


@MODELS.register_module()
class MultimodalActionDataPreProcessor(BaseDataPreprocessor):
    """Stack and normalise each modality, and carry its availability in the samples' metainfo.

    Zero after normalisation stands for "nothing known": non-finite readings and missing modalities
    become 0, the mean of the modality. What a missing modality's tensor holds never matters.

    mmaction2's ``blending`` (mixup, cutmix) is not taken: it knows one tensor, and no samples that lack a modality.

    Args:
        modalities: names; their order carries no meaning here.
        mean, std: by modality, in its own unit (grey levels, log magnitude): a list with one value per
            channel, or one number for all channels. None: that modality is left as it is.
        test_missing: modalities that evaluation treats as missing, whatever the data hold.
        train_noise, test_noise: noise in training and in evaluation, in the modality's unit, see
            :class:`~mmfusion_plugin.models.injection.BatchNoise`.
        non_blocking: as in mmengine's BaseDataPreprocessor.

    Shapes: inputs {m: list of B samples, or one tensor} -> {m: (B, ...)} float32. One sample is a vector
        (C,), a sequence (T, C), a map (C, H, W), N images or spectrograms (N, C, H, W) or N clips
        (N, C, T, H, W), N counting frames, clips and crops.
    Raises: ValueError for names, channels or sizes that do not agree, and samples without any modality.
    """

    def __init__(
        self,
        modalities: Sequence[str],
        mean: Mapping[str, Values | None] | None = None,
        std: Mapping[str, Values | None] | None = None,
        test_missing: Sequence[str] = (),
        train_noise: Mapping | None = None,
        test_noise: Mapping | None = None,
        non_blocking: bool = False,
    ) -> None:
        super().__init__(non_blocking=non_blocking)
        if isinstance(modalities, str) or not modalities or len(set(modalities)) != len(modalities):
            raise ValueError(f"data_preprocessor.modalities must be a list of different names, got {modalities!r}")
        check_test_missing(modalities, test_missing)
        if (mean is None) != (std is None):
            raise ValueError(f"data_preprocessor needs both mean and std or neither, got mean={mean}, std={std}")
        for key, given in (("mean", mean), ("std", std)):
            if given is not None and (not isinstance(given, Mapping) or set(given) != set(modalities)):
                found = sorted(given) if isinstance(given, Mapping) else given
                raise ValueError(f"data_preprocessor.{key} names {found}, modalities names {list(modalities)}")
        self.modalities = tuple(modalities)
        self.test_missing = tuple(test_missing)
        self._reports = NonFiniteReports("they are replaced by the modality's mean")
        self.noise = BatchNoise(self.modalities, train_noise, test_noise)
        for m in self.modalities:
            mean_C, std_C = _statistics(m, None if mean is None else mean[m], None if std is None else std[m])
            self.register_buffer(f"mean_{m}", mean_C, False)
            self.register_buffer(f"std_{m}", std_C, False)

    def forward(self, data: dict, training: bool = False) -> dict:
        data = self.cast_data(data)
        inputs, data_samples = self._by_modality(data["inputs"]), data.get("data_samples")
        number = len(inputs[self.modalities[0]])
        if data_samples is not None and len(data_samples) != number:
            raise ValueError(f"the batch holds {number} inputs and {len(data_samples)} data samples")
        samples = [None] * number if data_samples is None else data_samples
        available = [self._remaining(sample, training) for sample in samples]
        if self.noise.active(training):
            inputs = self.noise(inputs, available, samples, training)
        batch = {m: self._stack(m, inputs[m], [there[m] for there in available], samples) for m in self.modalities}
        self._reports.tell()
        if data_samples is not None:
            for sample, there in zip(data_samples, available):
                sample.set_metainfo({"available": there})
        return {"inputs": batch, "data_samples": data_samples}

    def _by_modality(self, inputs: Mapping[str, Sequence[Tensor]] | Sequence[Mapping[str, Tensor]]) -> dict:
        """The collate function turns a list of dicts into a dict of lists; take either."""
        streams = [inputs] if isinstance(inputs, Mapping) else list(inputs)
        if not streams or not all(isinstance(stream, Mapping) for stream in streams):
            raise ValueError(
                "inputs must hold one tensor per modality; end the pipeline with dict(type='PackAudioVisual', "
                f"modalities={list(self.modalities)})"
            )
        for stream in streams:
            if set(stream) != set(self.modalities):
                raise ValueError(
                    f"data_preprocessor.modalities is {list(self.modalities)}, the pipeline packs "
                    f"{sorted(stream)}; make PackAudioVisual.modalities agree"
                )
        if not isinstance(inputs, Mapping):
            return {m: [stream[m] for stream in streams] for m in self.modalities}
        numbers = {m: len(tensors) for m, tensors in inputs.items()}
        if len(set(numbers.values())) > 1:
            raise ValueError(f"the batch holds different numbers of samples by modality: {numbers}")
        return {m: list(inputs[m]) for m in self.modalities}

    def _remaining(self, data_sample, training: bool) -> dict[str, bool]:
        recorded = {} if data_sample is None else data_sample.metainfo.get("available", {})
        return remaining(self.modalities, recorded, () if training else self.test_missing, sample_name(data_sample))

    def _stack(self, m: str, tensors: Sequence[Tensor], available: Sequence[bool], samples: Sequence) -> Tensor:
        sizes = {tuple(x.shape): sample_name(sample) for x, sample in zip(tensors, samples)}
        if len(sizes) > 1:
            raise ValueError(
                f"one batch holds {m!r} of sizes {sizes}; give every sample one size in the pipeline (num_frames, "
                "clip_seconds, crop), or set batch_size=1 in val_dataloader and test_dataloader"
            )
        return torch.stack([self._normalise(m, x, there, s) for x, there, s in zip(tensors, available, samples)])

    def _normalise(self, m: str, x: Tensor, available: bool, data_sample) -> Tensor:
        mean_C, std_C = getattr(self, f"mean_{m}"), getattr(self, f"std_{m}")
        if x.ndim not in CHANNEL_AXIS:
            raise ValueError(
                f"{m!r} has shape {tuple(x.shape)} in sample {sample_name(data_sample)}; expected (C,), (T, C), "
                "(C, H, W), (N, C, H, W) or (N, C, T, H, W)"
            )
        axis = CHANNEL_AXIS[x.ndim]
        for key, values in (("mean", mean_C), ("std", std_C)):
            if values.ndim and x.shape[axis] != len(values):
                raise ValueError(
                    f"{m!r} has {x.shape[axis]} channels in sample {sample_name(data_sample)} (axis {axis} of shape "
                    f"{tuple(x.shape)}), data_preprocessor.{key}.{m} lists {len(values)}"
                )
        if not available:
            return torch.zeros(x.shape, device=x.device)
        mean, std = (_along(axis, x.ndim, values) for values in (mean_C, std_C))
        normalised = (x.float() - mean) / std
        if not x.is_floating_point():
            return normalised
        finite = torch.isfinite(x)
        known_finite = self._reports.note(m, finite, data_sample)
        return normalised if known_finite else torch.where(finite, normalised, 0.0)


def _statistics(m: str, mean: Values | None, std: Values | None) -> tuple[Tensor, Tensor]:
    """(C,) mean and std; () where one number stands for every channel."""
    if (mean is None) != (std is None):
        raise ValueError(f"data_preprocessor.mean.{m} is {mean} and std.{m} is {std}; give both or neither")
    columns = []
    for key, given, default in (("mean", mean, 0.0), ("std", std, 1.0)):
        values = default if given is None else given
        if isinstance(values, Real):
            columns.append(torch.tensor(float(values)))
            continue
        if isinstance(values, str) or not isinstance(values, Sequence) or not values or not all(
            isinstance(v, Real) for v in values
        ):
            raise ValueError(
                f"data_preprocessor.{key}.{m} must be a number or list one value per channel, got {given!r}"
            )
        columns.append(torch.tensor([float(v) for v in values]))
    mean_C, std_C = columns
    if not (torch.isfinite(mean_C).all() and torch.isfinite(std_C).all() and (std_C > 0).all()):
        raise ValueError(
            f"data_preprocessor.mean.{m} {mean} must be finite and std.{m} {std} finite and positive"
        )
    if mean_C.ndim and std_C.ndim and len(mean_C) != len(std_C):
        raise ValueError(f"data_preprocessor.mean.{m} lists {len(mean_C)} values, std.{m} {len(std_C)}")
    return mean_C, std_C


def _along(axis: int, ndim: int, values: Tensor) -> Tensor:
    return values if values.ndim == 0 else values.view([-1 if i == axis else 1 for i in range(ndim)])
