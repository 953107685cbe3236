"""What tools/benchmarks/speed.py times: fusion blocks and whole two-stream models, on made-up inputs."""
from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from speed_floor import adamw
from torch import Tensor, nn

from mmfusion_plugin.fusion import FUSIONS
from mmfusion_plugin.fusion.input_statistics import NUM_STATISTICS
from mmfusion_plugin.fusion.modes import constant_weights, fused_only
from mmfusion_plugin.fusion.udml import UDML

__all__ = ["BLOCKS", "LIGHT", "TASKS", "BlockCase", "ModelCase"]

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
LIGHT = 0.125  # of the ResNet-18 configs at 480x640
BLOCKS: dict[str, dict] = {
    "SCFAE literal": dict(type="SCFAE", norm=None),
    "SCFAE": dict(type="SCFAE"),
    "SCFAE light": dict(type="SCFAE", width=LIGHT),
    "sum": dict(type="SumFusion"),
    "concat": dict(type="ConcatFusion"),
    "MLP": dict(type="MLPFusion"),
    "gated": dict(type="GatedFusion"),
    "FiLM": dict(type="FiLMFusion"),
    "cross-attention": dict(type="CrossAttentionFusion"),
    "UDML(concat)": dict(type="UDML", inner=dict(type="ConcatFusion")),
    "UDML(SCFAE)": dict(type="UDML", inner=dict(type="SCFAE")),
}


class BlockCase:
    """One fusion block on features of its own, everything available; a readout to the first modality's width.

    Args:
        cfg: of :data:`BLOCKS`.
        widths: by modality.
        shape: of a batch without its channels: (B,), (B, T), (B, H, W) or (B, T, H, W).
        autocast: dtype of the products, or None.
        constant: the weights stay as they are, for good: predictions alone.
    """

    def __init__(self, cfg: Mapping, widths: Mapping[str, int], shape: tuple[int, ...], device: torch.device,
                 autocast: torch.dtype | None = None, constant: bool = False) -> None:
        torch.manual_seed(0)
        self.block = _build(cfg, dict(widths)).to(device)
        self.device, self.autocast = device, autocast
        # the memory format that a convolutional encoder hands over without being told otherwise
        self.feats = {m: _features(shape, C).to(device).requires_grad_() for m, C in widths.items()}
        self.available = {m: torch.ones(shape[0], dtype=torch.bool) for m in widths}  # as models give it
        self.told = {}
        if isinstance(self.block, UDML):
            self.block.set_progress(1.0)
            self.told = dict(
                levels={m: torch.full((shape[0],), 3.0, device=device) for m in widths},
                statistics={m: torch.randn(shape[0], NUM_STATISTICS, device=device) for m in widths})
        self.optimiser = adamw(self.block.parameters(), device)
        self._within = constant_weights(*([self.block] if constant else []))  # it ends where nobody refers to it
        self._within.__enter__()
        self.block.eval()
        with torch.no_grad():
            self.gradient = torch.randn_like(self.run().fused) * 1e-3

    def run(self):
        with torch.autocast(self.device.type, dtype=self.autocast, enabled=self.autocast is not None):
            return self.block(self.feats, self.available, **self.told)

    def forward(self) -> None:
        """What a prediction asks for: the fused features alone."""
        _switch(self.block, training=False)
        with torch.no_grad(), fused_only(self.block):
            self.run()

    def step(self) -> None:
        """Forward, backward from a given gradient of the fused features and the block's losses, fused AdamW."""
        _switch(self.block, training=True)
        out = self.run()
        losses = list(out.losses.values())
        torch.autograd.backward([out.fused, *losses], [self.gradient, *map(torch.ones_like, losses)])
        self.optimiser.step()
        self.optimiser.zero_grad()
        for x in self.feats.values():
            x.grad = None


def _build(cfg: Mapping, widths: dict[str, int]) -> nn.Module:
    options, names = dict(cfg), list(widths)
    kind, inner = options.pop("type"), options.pop("inner", None)
    if kind == "UDML":
        return UDML(names, widths, _build(inner, widths), **options)
    return FUSIONS[kind](names, widths, out_channels=widths[names[0]], **options)


def _features(shape: tuple[int, ...], C: int) -> Tensor:
    return torch.randn(shape[0], C, *shape[1:]) if len(shape) > 2 else torch.randn(*shape, C)


LITERAL = dict(norm=None, width=None, residual=False, head_reads="post")
# rows of a task: (config, what its neck has otherwise); the first is the base
TASKS: dict[str, dict[str, tuple[str, dict]]] = {
    "segmentation": {
        "concat": ("segmentation/concat_r18-segformer_nyuv2-480x640.py", {}),
        "SCFAE light": ("segmentation/scfae_r18-segformer_nyuv2-480x640.py", {}),
        "SCFAE light, 9/32": ("segmentation/scfae_r18-segformer_nyuv2-480x640.py", dict(width=0.28125)),
        "SCFAE literal": ("segmentation/scfae_r18-segformer_nyuv2-480x640.py", LITERAL),
        "UDML(concat)": ("segmentation/udml-default_r18-segformer_nyuv2-480x640.py", {}),
        "UDML(SCFAE light)": ("segmentation/udml-scfae_r18-segformer_nyuv2-480x640.py", {}),
    },
    "audio-visual": {
        "concat": ("recognition/concat_r18_kinetics-sound.py", {}),
        "SCFAE light": ("recognition/scfae_r18_kinetics-sound.py", {}),
        "SCFAE": ("recognition/scfae_r18_kinetics-sound.py", dict(width=None)),
        "SCFAE literal": ("recognition/scfae_r18_kinetics-sound.py", LITERAL),
        "UDML(concat)": ("recognition/udml-default_r18_kinetics-sound.py", {}),
        "UDML(SCFAE light)": ("recognition/udml-scfae_r18_kinetics-sound.py", {}),
    },
}


class ModelCase:
    """A shipped config's model on random inputs, through mmengine's own ``train_step`` and ``test_step``.

    Args:
        task: of :data:`TASKS`.
        row: of the task.
        batch: samples.
        size: of the images; the sound keeps its config's.
        amp: through GuardedAmpOptimWrapper in bfloat16.
        optimiser: replaces the config's own.
        constant: the weights stay as they are, for good: predictions alone.
        compiled: the neck by torch.compile.
        graphs: the fusion from CUDA graphs, by the neck's ``cuda_graphs``.
    """

    def __init__(self, task: str, row: str, batch: int, size: tuple[int, int], device: torch.device,
                 amp: bool = False, optimiser: Mapping | None = None, constant: bool = False,
                 compiled: bool = False, graphs: bool = False) -> None:
        warnings.filterwarnings("ignore", module="mmseg")  # deprecations that concern no one here
        from mmengine.optim import build_optim_wrapper

        path, options = TASKS[task][row]
        cfg = Config.fromfile(str(CONFIGS / path))
        cfg.model.neck.update(options)
        if graphs:
            cfg.model.neck.get("inner", cfg.model.neck).cuda_graphs = True
        cfg.model.data_preprocessor.pop("train_noise", None)  # the neck's cost is asked for, not the noise's
        if task == "segmentation":
            cfg.model.data_preprocessor.size = tuple(size)
        init_default_scope(cfg.default_scope)
        torch.manual_seed(0)
        self.model, self.device = MODELS.build(cfg.model).to(device), device
        self._within = constant_weights(*([self.model] if constant else []))  # it ends where nobody refers to it
        self._within.__enter__()
        neck = self.model.neck
        if hasattr(neck, "udml"):
            neck.udml.set_progress(1.0)
        if compiled:
            neck.compile()
        if optimiser is not None:
            cfg.optim_wrapper.optimizer = dict(optimiser)
        if amp:
            cfg.optim_wrapper.type = "GuardedAmpOptimWrapper"
        self.optim_wrapper = build_optim_wrapper(self.model, cfg.optim_wrapper)
        self.amp = amp
        udml = hasattr(neck, "udml")
        self.data = _segmentation(batch, size, udml) if task == "segmentation" else _audio_visual(batch, size, udml)

    def forward(self) -> None:
        _switch(self.model, training=False)
        with torch.no_grad(), torch.autocast(self.device.type, torch.bfloat16, enabled=self.amp):
            data = self.model.data_preprocessor(self.data, False)
            self.model(**data, mode="tensor")

    def step(self) -> None:
        _switch(self.model, training=True)
        self.model.train_step(self.data, self.optim_wrapper)


def _switch(model: nn.Module, training: bool) -> None:
    # a runner does it once, not in every iteration: walking all modules is no part of a step
    if model.training != training:
        model.train(training)


def _levels(udml: bool, modalities: tuple[str, ...]) -> dict:
    return dict(noise_level={m: 2.0 * i for i, m in enumerate(modalities)}) if udml else {}


def _segmentation(batch: int, size: tuple[int, int], udml: bool) -> dict:
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    generator = torch.Generator().manual_seed(0)
    inputs, samples = {"rgb": [], "depth": []}, []
    for _ in range(batch):
        inputs["rgb"].append(torch.randint(0, 256, (3, *size), generator=generator, dtype=torch.uint8))
        inputs["depth"].append(torch.rand(1, *size, generator=generator) * 8 + 0.5)
        label = torch.randint(0, 40, (1, *size), generator=generator)
        samples.append(SegDataSample(
            gt_sem_seg=PixelData(data=label),
            metainfo=dict(img_shape=tuple(size), ori_shape=tuple(size), **_levels(udml, ("rgb", "depth")))))
    return dict(inputs=inputs, data_samples=samples)


def _audio_visual(batch: int, size: tuple[int, int], udml: bool) -> dict:
    from mmaction.structures import ActionDataSample

    generator = torch.Generator().manual_seed(0)
    inputs, samples = {"visual": [], "audio": []}, []
    for i in range(batch):
        inputs["visual"].append(torch.randint(0, 256, (3, 3, *size), generator=generator, dtype=torch.uint8))
        inputs["audio"].append(torch.randn(1, 1, 129, 626, generator=generator) * 2 - 5)
        sample = ActionDataSample().set_gt_label(i % 31)
        sample.set_metainfo(dict(filename=f"{i}.mp4", **_levels(udml, ("visual", "audio"))))
        samples.append(sample)
    return dict(inputs=inputs, data_samples=samples)
