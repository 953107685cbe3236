"""SCFAE: Self-Consistent Field Autoencoder (Xiong et al., ICML 2026, arXiv:2410.15475v2, section 4).

Expand each modality, split it into a shared and a specific part, hand the shared parts round the
ring of modalities, recompose, reconstruct the encoders' outputs. Plain torch.

Names follow the paper: V_m is the encoder output of modality m and l_m its width, l* = min l_m,
n the expansion, b_m = round(b n l_m) the boundary, k = (m + 1) mod M the next modality in the ring.
"""
from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .block import FusionBlock
from .contract import FusionOutput, channel_axis, expand_mask, on_device_of, positions, weighted, where_there
from .kept import Kept
from .layers import ChannelLinear, InputNorm, SwiGLU, channels_last, linear_of_rows, make_norm
from .merging import Ends, merge_ends, merging_pays, untouched
from .row_blocks import Block, join_rows, rows_pay
from .similarity import SILENT, cosine

__all__ = ["SCFAE"]

METRICS = ("cosine", "mse")
READS = ("post", "pre", "post_and_input")
NEIGHBOURS = ("zeros", "own", "next")
BRANCHES = ("full", "shared", "specific")
SOURCES = ("both", "received")


class GatedStage(nn.Module):
    """SwiGLU, normalised before it (``norm``) and bypassed (``residual``) where asked.

    Shapes: any rank of the contract with ``channels`` channels, unchanged.
    """

    def __init__(self, channels: int, norm: str | None, residual: bool) -> None:
        super().__init__()
        self.norm = make_norm(norm, channels)
        self.swiglu = SwiGLU(channels)
        self.residual = residual

    def hidden(self, x: Tensor) -> Tensor:
        """What SwiGLU's last linear reads."""
        return self.swiglu.hidden(self.norm(x))

    def forward(self, x: Tensor) -> Tensor:
        y = self.swiglu(self.norm(x))
        return x + y if self.residual else y


class SCFAE(FusionBlock):
    """Self-Consistent Field Autoencoder.

    ``SCFAE(modalities, in_channels, norm=None)`` is the form that the paper prints (24.14 M parameters at 512/512,
    Table 13), which hardly passes a gradient; the default adds LayerNorm. ``residual=True,
    head_reads='post_and_input'`` was better on the digit clips, level on the six views and worse on CMU-MOSI
    (results/README.md).

    Args:
        modalities: names in ring order: modality m receives the shared part of the next one.
        in_channels: width l_m of each modality, looked up by name; widths may differ.
        out_channels: None lets the head read all Z_m, concatenated in list order; a number adds one
            linear readout to that width.
        expansion: n of Eq. 3 (Table 10: 2 suffices).
        shared_ratio: b, the share of the expanded features that is exchanged; one number, or a dict
            by modality.
        recon_weight: lambda of Eq. 6. 0 leaves the reconstruction out altogether.
        recon_metric: ``cosine`` (1 - cosine similarity; Eq. 5 prints the similarity itself, whose
            minimisation would be the wrong way round) or ``mse`` (Table 9).
        recon_reads: what the reconstruction of V_m reads: ``both`` parts of Z_m, as published, or ``received``, the
            neighbour's alone, which therefore has to carry what m needs (a second pass of SwiGLU_post; counted where
            both modalities are there). Not in the paper; better with modalities missing (results/README.md).
        norm: ``layer`` puts a LayerNorm before both SwiGLUs; None is the literal form.
        residual: add the input of each SwiGLU to its output.
        head_reads: Z after (``post``) or before (``pre``) SwiGLU_post, or Z after it and, beside it, the encoders'
            outputs V (``post_and_input``; normalised if ``norm`` is given): a short way for the task's gradient
            while the block is still learning.
        missing_neighbour: what replaces the shared part of a neighbour that is missing: ``zeros``,
            the modality's ``own`` part, or that of the ``next`` available one along the ring. The
            last two need equal boundaries b_m.
        detach_target: stop gradients at V_m as the target of the reconstruction. Attached, the
            encoders can meet the loss by giving everything the same direction: without norm they do
            (effective rank 1.9 against 4.5 on vectors); with norm both were measured level.
        branch: ``full``, ``shared`` or ``specific``: the other branch of Z is zeroed (Table 14).
        exchange: False keeps every shared part at home (k = m), the ablation of the ring.
        width: light form for dense maps: modality m is first mapped from l_m to w_m and the block
            runs at that width, while the reconstruction still goes back to l_m. A number of
            channels, a ratio of l_m (float), a dict of either by modality, or None (no mapping).
        with_cp: recompute the block's activations in the backward pass instead of keeping them (activation
            checkpointing, OpenMMLab's name for it): same results, less memory, about one more forward pass.
        missing_fill: see :class:`FusionBlock`.
        modality_dropout: see :class:`FusionBlock`; the paper has none, measurements ask for 0.3 at
            M = 2 and 0.5 at M = 3.

    Shapes: feats {m: (B, l_m)} or any other rank of the contract, available {m: (B,)} bool ->
        fused (B, sum_m (w_m + w*)) or (B, out_channels), w_m = l_m without ``width``; with ``post_and_input``
        sum_m l_m more.
    Losses: ``fusion.loss_recon``, recon_weight times the sum over modalities of the mean over available
        samples and positions. A missing modality's term is 0: there is nothing to conserve; so is
        that of an all-zero vector under ``cosine``, which has no direction.
    Diagnostics: ``fusion.recon_similarity.<m>``, the mean cosine of V_m and its reconstruction over the
        same samples and positions, whatever the metric; 0 where the whole batch lacks m.
        ``fusion.recon_distance.<m>``, m's term of the loss before recon_weight; per sample a mean over positions.
    Raises: ValueError for any option outside its range.
    Source: Eq. 3-6, Table 12.
    """

    pointwise = True

    def __init__(
        self,
        modalities: Sequence[str],
        in_channels: Mapping[str, int],
        *,
        out_channels: int | None = None,
        expansion: float = 2,
        shared_ratio: float | Mapping[str, float] = 0.5,
        recon_weight: float = 1.0,
        recon_metric: str = "cosine",
        recon_reads: str = "both",
        norm: str | None = "layer",
        residual: bool = False,
        head_reads: str = "post",
        missing_neighbour: str = "zeros",
        detach_target: bool = True,
        branch: str = "full",
        exchange: bool = True,
        width: float | Mapping[str, float] | None = None,
        with_cp: bool = False,
        missing_fill: str = "zeros",
        modality_dropout: float = 0.0,
    ) -> None:
        super().__init__(
            modalities, in_channels, missing_fill=missing_fill, modality_dropout=modality_dropout
        )
        _check_choice("recon_metric", recon_metric, METRICS)
        _check_choice("recon_reads", recon_reads, SOURCES)
        _check_choice("head_reads", head_reads, READS)
        _check_choice("missing_neighbour", missing_neighbour, NEIGHBOURS)
        _check_choice("branch", branch, BRANCHES)
        _check_choice("residual", residual, (True, False))
        _check_choice("exchange", exchange, (True, False))
        _check_choice("detach_target", detach_target, (True, False))
        _check_choice("with_cp", with_cp, (True, False))
        if not _is_number(recon_weight) or recon_weight < 0:
            raise ValueError(f"recon_weight must be a number of 0 or more, got {recon_weight!r}")
        if out_channels is not None and not (_is_number(out_channels, int) and out_channels > 0):
            raise ValueError(f"out_channels must be a positive integer or None, got {out_channels!r}")
        self.recon_weight = recon_weight
        self.recon_metric = recon_metric
        self.recon_reads = recon_reads
        self.head_reads = head_reads
        self.missing_neighbour = missing_neighbour
        self.detach_target = detach_target
        self.branch = branch
        self.with_cp = with_cp

        M = len(self.modalities)
        step = 1 if exchange else 0
        self.neighbour = {m: self.modalities[(i + step) % M] for i, m in enumerate(self.modalities)}
        w = self._widths(width)
        w_star = min(w.values())
        self.expanded = {m: _expanded_width(m, w[m], expansion) for m in self.modalities}
        self.boundary = self._boundaries(shared_ratio)
        if missing_neighbour != "zeros" and len(set(self.boundary.values())) > 1:
            raise ValueError(
                f"missing_neighbour={missing_neighbour!r} passes one modality's shared part through "
                f"another's mapping, which needs equal boundaries, but they are {self.boundary}; "
                "choose missing_neighbour='zeros' or shared_ratio such that b_m agree"
            )

        def per_modality(build, used=True):
            # only what is used is built: DistributedDataParallel waits for every parameter's gradient
            return nn.ModuleDict({m: build(m) for m in self.modalities} if used else {})

        self.P_reduce = per_modality(
            lambda m: nn.Identity() if width is None else ChannelLinear(self.in_channels[m], w[m])
        )
        self.pre = per_modality(lambda m: GatedStage(w[m], norm, residual))
        self.P_expand = per_modality(lambda m: ChannelLinear(w[m], self.expanded[m]))
        self.P_shared = per_modality(lambda m: ChannelLinear(self.boundary[self.neighbour[m]], w_star))
        self.P_specific = per_modality(
            lambda m: ChannelLinear(self.expanded[m] - self.boundary[m], w[m])
        )
        recon = recon_weight > 0
        self.post = per_modality(
            lambda m: GatedStage(w[m] + w_star, norm, residual), used=recon or head_reads != "pre"
        )
        self.P_recon = per_modality(lambda m: ChannelLinear(w[m] + w_star, self.in_channels[m]), used=recon)
        self.input_norm = InputNorm(self.in_channels, norm) if head_reads == "post_and_input" else None
        width_read = sum(w[m] + w_star for m in self.modalities)
        width_read += 0 if self.input_norm is None else sum(self.in_channels.values())
        self.readout = nn.Identity() if out_channels is None else ChannelLinear(width_read, out_channels)
        self._out_channels = width_read if out_channels is None else out_channels

    @property
    def out_channels(self) -> int:
        return self._out_channels

    @property
    def _reconstructs(self) -> bool:
        return self.recon_weight > 0 and not self.fused_only

    def fuse(
        self, feats: Mapping[str, Tensor], available: Mapping[str, Tensor], weights: Mapping[str, Tensor] | None = None
    ) -> FusionOutput:
        V = {m: channels_last(feats[m]) for m in self.modalities}
        first = V[self.modalities[0]]
        keeps = self.kept is not None and first.ndim == 2 and rows_pay(V)
        ends = self._merged_ends(first.shape[0]) if keeps else None
        fused, compared = self._fuse(V, available, weights, ends=ends)
        return self._output(fused, compared, positions(first).numel())

    def fuse_blocks(self, blocks: Sequence[Block], feats: Mapping[str, Tensor]) -> FusionOutput:
        like = feats[self.modalities[0]]
        ends = self._merged_ends(sum(V[self.modalities[0]].shape[0] for V, *_ in blocks))
        fused, compared = zip(*(self._fuse(*block, ends=ends) for block in blocks))
        places = positions(like).numel()
        joined = {}
        for m in compared[0]:
            distance_BP, similarity_BP, counted_BP = (
                torch.cat(rows).view(like.shape[0], places) for rows in zip(*(block[m] for block in compared)))
            joined[m] = distance_BP.sum(1), similarity_BP.sum(1), counted_BP[:, 0]
        return self._output(join_rows(fused, like), joined, places)

    def _fuse(
        self, V: Mapping[str, Tensor], available: Mapping[str, Tensor], weights: Mapping[str, Tensor] | None = None,
        *, ends: Ends | None,
    ) -> tuple[Tensor, dict[str, tuple[Tensor, Tensor, Tensor]]]:
        """What the head reads; by modality what :meth:`_compare` finds, {} where nothing is reconstructed."""
        if self.with_cp and torch.is_grad_enabled():
            # nothing is drawn there, and a CUDA graph cannot be asked where its generator stands
            Z, after = checkpoint(
                self._states, V, available, weights, ends, use_reentrant=False, preserve_rng_state=False)
        else:
            Z, after = self._states(V, available, weights, ends)

        if ends is not None:
            return self._from_ends(V, after, available)
        read = [(Z if self.head_reads == "pre" else after)[m] for m in self.modalities]
        if self.input_norm is not None:
            normed = self.input_norm(V, available, weights)
            read += [normed[m] for m in self.modalities]
        fused = self.readout(torch.cat(read, channel_axis(read[0])))
        if not self._reconstructs:
            return fused, {}
        return fused, {
            m: self._compare(V[m], *self._reconstruction(m, Z, after, available)) for m in self.modalities}

    def _merged_ends(self, rows: int) -> Ends | None:
        """By modality one linear from inside SwiGLU_post to its part of the readout and to its reconstruction.

        None where ``rows`` are too few for that to pay, or where it would pass something by.
        """
        if not self._ends_meet:
            return None
        ends = {m: stage.swiglu.down for m, stage in self.post.items()}, self.readout, self._reconstructing
        keeps = self.kept is not None and not torch.is_grad_enabled()
        if not merging_pays(math.inf if keeps else rows, *ends):
            return None
        if not keeps:
            return merge_ends(*ends)
        linears = [*ends[0].values(), self.readout, *self._reconstructing.values()]
        weights = [p for linear in linears for p in (linear.weight, linear.bias)]
        return self.kept.of(weights, lambda: merge_ends(*ends, Kept), key=self._reconstructs)

    @property
    def _reconstructing(self) -> Mapping[str, ChannelLinear]:
        """P_recon where it is asked for, by modality."""
        return self.P_recon if self._reconstructs else {}

    @property
    def _ends_meet(self) -> bool:
        """Whether the last linear of SwiGLU_post is read by linears alone, and nothing watches any of them."""
        recon = self._reconstructing
        if self.head_reads != "post" or (recon and self.recon_reads != "both"):
            return False
        stages = list(self.post.values())
        gates = [stage.swiglu for stage in stages]
        linears = [self.readout, *(gate.down for gate in gates), *(self.P_recon.values() if recon else ())]
        kinds = (GatedStage, stages), (SwiGLU, gates), (ChannelLinear, linears)
        return not any(stage.residual for stage in stages) and all(
            untouched(layer, kind) for kind, layers in kinds for layer in layers)

    def _from_ends(
        self, V: Mapping[str, Tensor], ended: Mapping[str, Tensor], available: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, tuple[Tensor, Tensor, Tensor]]]:
        """:meth:`_fuse`'s results from what :meth:`_merged_ends` gave."""
        if not self._reconstructs:
            return sum(ended.values()), {}
        split = {m: x.split([self._out_channels, self.in_channels[m]], 1) for m, x in ended.items()}
        return sum(read for read, _ in split.values()), {
            m: self._compare(V[m], recon, available[m]) for m, (_, recon) in split.items()}

    def _output(
        self, fused: Tensor, compared: Mapping[str, tuple[Tensor, Tensor, Tensor]], places: int
    ) -> FusionOutput:
        """Eq. 5 and 6: the mean over available samples and all ``places`` of each."""
        if not compared:
            return FusionOutput(fused)
        total, diagnostics, per_sample = 0.0, {}, {}
        for m, (distance_B, similarity_B, counted_B) in compared.items():
            number = counted_B.sum().clamp(min=1) * places
            distance = distance_B.sum() / number
            total = total + distance
            diagnostics[f"fusion.recon_similarity.{m}"] = similarity_B.sum() / number
            diagnostics[f"fusion.recon_distance.{m}"] = distance
            per_sample[f"fusion.recon_distance.{m}"] = distance_B / places
        return FusionOutput(fused, {"fusion.loss_recon": self.recon_weight * total}, diagnostics, per_sample)

    def _reconstruction(
        self, m: str, Z: Mapping[str, Tensor], Z_post: Mapping[str, Tensor], available: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """What Eq. 5 compares with V_m, and in which samples (B,)."""
        if self.recon_reads == "both":
            return self.P_recon[m](Z_post[m]), available[m]
        own = self.P_specific[m].out_features
        received = Z[m].narrow(channel_axis(Z[m]), own, Z[m].shape[channel_axis(Z[m])] - own)
        silent = torch.zeros_like(Z[m].narrow(channel_axis(Z[m]), 0, own))
        alone = self.post[m](torch.cat([silent, received], channel_axis(received)))
        # a missing neighbour has sent nothing to reconstruct from
        return self.P_recon[m](alone), available[m] & available[self.neighbour[m]]

    def _states(
        self, V: Mapping[str, Tensor], available: Mapping[str, Tensor], weights: Mapping[str, Tensor] | None,
        ends: Ends | None,
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Z_m before SwiGLU_post, and after it or, with ``ends``, after those."""
        parts = self._exchange(V, available, weights)
        Z = {m: self._recompose(**parts[m]) for m in self.modalities}
        if ends is not None:
            return Z, {m: linear_of_rows(stage.hidden(Z[m]), *ends[m]) for m, stage in self.post.items()}
        if self.head_reads == "pre" and not self._reconstructs:
            return Z, {}
        return Z, {m: stage(Z[m]) for m, stage in self.post.items()}

    def parts(
        self, feats: Mapping[str, Tensor], available: Mapping[str, Tensor] | None = None,
        weights: Mapping[str, Tensor] | None = None,
    ) -> dict[str, dict[str, Tensor]]:
        """``{m: dict(specific=, shared=)}`` as Eq. 4 gives them, for plots and probes.

        The same path as :meth:`forward`, without dropout and without touching running means.

        Shapes: as :meth:`forward` -> specific (B, w_m), shared (B, w*), or the same at each position.
        """
        available = on_device_of(feats, self.check(feats, available))
        filled = self.missing_fill.replace(feats, available)
        return self._exchange({m: channels_last(filled[m]) for m in self.modalities}, available, weights)

    def _exchange(
        self, V: Mapping[str, Tensor], available: Mapping[str, Tensor], weights: Mapping[str, Tensor] | None
    ) -> dict[str, dict[str, Tensor]]:
        """Eq. 3 and 4: expand, split, substitute the neighbour's shared part, map to size.

        Weights multiply what is expanded: behind the norm, which would take them away, and before anything is handed
        on, so that a modality that counts little gives little and consists of what it is given.
        """
        shared_hat, specific_hat = {}, {}
        for m in self.modalities:
            read = self.pre[m](self.P_reduce[m](V[m]))
            read = read if weights is None else weighted(read, weights[m], available[m])
            Z_hat = self.P_expand[m](read, "gelu")
            b = self.boundary[m]
            shared_hat[m], specific_hat[m] = Z_hat.split([b, self.expanded[m] - b], channel_axis(Z_hat))
        return {
            m: dict(
                specific=self.P_specific[m](specific_hat[m], "gelu"),
                shared=self.P_shared[m](self._from_neighbour(m, shared_hat, available), "gelu"),
            )
            for m in self.modalities
        }

    def _from_neighbour(
        self, m: str, shared_hat: Mapping[str, Tensor], available: Mapping[str, Tensor]
    ) -> Tensor:
        """Shared part that m receives from k; where k is missing, what ``missing_neighbour`` says."""
        k = self.neighbour[m]
        if self.missing_neighbour == "zeros":
            stand_in = 0.0
        elif self.missing_neighbour == "own":
            stand_in = shared_hat[m]
        else:
            stand_in = shared_hat[m]
            for j in reversed(self._ring_after(k)):
                stand_in = torch.where(expand_mask(available[j], stand_in), shared_hat[j], stand_in)
        return where_there(expand_mask(available[k], shared_hat[k]), shared_hat[k], stand_in)

    def _ring_after(self, k: str) -> list[str]:
        start = self.modalities.index(k) + 1
        return [*self.modalities[start:], *self.modalities[: start - 1]]

    def _recompose(self, specific: Tensor, shared: Tensor) -> Tensor:
        """Z_m = [specific; shared], with one branch zeroed if ``branch`` says so (Table 14)."""
        # times 0, not zeros_like: the zeroed branch's parameters keep a (zero) gradient
        if self.branch == "shared":
            specific = specific * 0
        if self.branch == "specific":
            shared = shared * 0
        return torch.cat([specific, shared], channel_axis(specific))

    def _compare(self, V: Tensor, recon: Tensor, available_B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Distance by ``recon_metric`` and cosine similarity of V_m and its reconstruction, each (B,), a sum over
        positions that is exactly 0, in the graph, where m is missing; and ``available_B``."""
        axis = channel_axis(V)
        target = V.detach() if self.detach_target else V
        if target.dtype != torch.float64:  # half precision cannot hold a norm of large features
            target, recon = target.float(), recon.float()
        size = target.norm(dim=axis, keepdim=True)
        counts = expand_mask(available_B, V) & ((size.detach() > SILENT) | (self.recon_metric == "mse"))
        counts = counts.squeeze(axis)
        similarity = cosine(target, recon, axis, size)
        distance = 1 - similarity if self.recon_metric == "cosine" else (target - recon).square().mean(axis)
        # enough for the gradients, too: what stands in for a missing V_m is finite, and so is the cosine's slope at 0
        distance = torch.where(counts, distance, 0.0)
        similarity = torch.where(counts, similarity.detach(), 0.0)
        if counts.ndim == 1:
            return distance, similarity, available_B
        return distance.flatten(1).sum(1), similarity.flatten(1).sum(1), available_B

    def _widths(self, width: float | Mapping[str, float] | None) -> dict[str, int]:
        """w_m by modality: channels (int) or a ratio of l_m (float)."""
        if width is None:
            return dict(self.in_channels)
        given = _by_modality("width", width, self.modalities)
        w = {
            m: round(v * self.in_channels[m]) if isinstance(v, float) else v for m, v in given.items()
        }
        for m in self.modalities:
            if w[m] < 1:
                raise ValueError(f"width of {m!r} comes to {w[m]} channels (width={width!r})")
        return w

    def _boundaries(self, shared_ratio: float | Mapping[str, float]) -> dict[str, int]:
        """b_m by modality."""
        given = _by_modality("shared_ratio", shared_ratio, self.modalities)
        boundary = {m: round(given[m] * self.expanded[m]) for m in self.modalities}
        for m, b in boundary.items():
            if not 0 < b < self.expanded[m]:
                raise ValueError(
                    f"shared_ratio={given[m]} of {m!r} leaves {b} shared of {self.expanded[m]} expanded "
                    "channels; both parts need at least one"
                )
        return boundary

    def extra_repr(self) -> str:
        ring = " -> ".join((*self.modalities, self.modalities[0]))
        return (
            f"ring {ring}, boundary={self.boundary}, recon_weight={self.recon_weight}, branch={self.branch}"
        )


def _expanded_width(m: str, w: int, expansion: float) -> int:
    if not _is_number(expansion) or expansion <= 0:
        raise ValueError(f"expansion must be a positive number, got {expansion!r}")
    expanded = round(expansion * w)
    if expanded < 2:
        raise ValueError(f"expansion={expansion} leaves {expanded} channels for {m!r} of width {w}")
    return expanded


def _by_modality(key: str, value: float | Mapping[str, float], modalities: Sequence[str]) -> dict[str, float]:
    """One number for all, or a dict that names exactly the modalities."""
    given = value if isinstance(value, Mapping) else dict.fromkeys(modalities, value)
    if set(given) != set(modalities):
        raise ValueError(f"{key} names {sorted(given)}, modalities names {list(modalities)}")
    if not all(_is_number(v) for v in given.values()):
        raise ValueError(f"{key} must be a number or a dict of one number per modality, got {value!r}")
    return {m: given[m] for m in modalities}


def _is_number(value: object, kind: type | tuple[type, ...] = (int, float)) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool) and math.isfinite(value)


def _check_choice(key: str, value: object, choices: Sequence) -> None:
    # by identity for flags: 1 == True, and the string "False" is true
    if not any(value is c or (isinstance(c, str) and value == c) for c in choices):
        raise ValueError(f"{key} must be one of {list(choices)}, got {value!r}")
