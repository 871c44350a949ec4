"""The training loop: endless exact pairs, one loss, checkpoints that a stopped run resumes from."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ...core.errors import ConfigError, WeightsError
from ...matching.backbone import Backbone, fold_batch_norm
from ...matching.coarse_to_fine import CoarseToFine
from ...matching.expectation import ExpectationMatcher, FastExpectationMatcher
from ...matching.regression import RegressionMatcher
from ...matching.weights import read_weights
from ...learning.augmentation import augment
from ..simulation.pairs import PairRenderer, warp
from .photographs import HomographyPairs, warp_homography
from .supervision import map_distance, matching_loss, sample_queries

# Rendering a pair costs several times as much as learning from it. Pairs are rendered in blocks, a pool of blocks is drawn from, and a pair is
# seen REUSE times on average, every time with other queries and other photometric effects.
BLOCK_STEPS = 4  # a block holds as many pairs as so many steps take
POOL_BLOCKS = 8
REUSE = 24

MATCHERS: dict[str, type[CoarseToFine]] = {
    matcher.name: matcher for matcher in (ExpectationMatcher, FastExpectationMatcher, RegressionMatcher)
}


@dataclass(frozen=True)
class TrainingPlan:
    """All that decides the outcome of a training, besides the images."""

    matcher: str
    steps: int
    batch: int = 6
    height: int = 240
    width: int = 320
    queries: int = 192
    learning_rate: float = 1.5e-3
    photograph_share: float = 0.33
    seed: int = 0
    init: str = ""  # weights file to go on from; of the other family, what both have in common is taken over
    teacher: str = ""  # weights file of a larger network whose maps are to be learned as well
    teacher_weight: float = 3.0  # of 1 - cosine, summed over both maps
    matching_weight: float = 1.0  # of the matching loss
    bfloat16: bool = False  # convolutions in bfloat16, weights and losses in float32


class Trainer:
    """Takes steps, and remembers enough to go on after a stop."""

    def __init__(self, plan: TrainingPlan, photographs: list[Tensor], out: Path, device: torch.device) -> None:
        """Goes on from a checkpoint in `out` where there is one.

        Raises:
            ConfigError: that checkpoint is of another plan; only the number of steps may differ.
            WeightsError: the file to go on from, or the teacher's, holds another network.
        """
        self.plan, self.out, self.device = plan, out, device
        resumes = self.checkpoint.is_file()
        if resumes:
            self._compare_plans()
        torch.manual_seed(plan.seed)
        self.teacher = load_teacher(Path(plan.teacher)) if plan.teacher else None
        if self.teacher is not None:
            self.teacher.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.matcher = self._begin().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub lacks it
        self.optimizer = torch.optim.AdamW(self.matcher.parameters(), lr=plan.learning_rate, weight_decay=1e-3)
        self.renderer = PairRenderer(device, photographs)
        self.photographs = HomographyPairs(photographs, device) if photographs else None
        self.pool: dict[int, dict[str, Tensor]] = {}
        self.step = 0
        if resumes:
            self._resume()

    def _begin(self) -> CoarseToFine:
        """Random weights with batch norm, or finished ones, which have none any more. The layers that read the maps begin as the teacher's.

        Raises:
            WeightsError: the file to go on from has another backbone.
        """
        plan = self.plan
        matcher = MATCHERS[plan.matcher](batch_norm=not plan.init)
        own = {k: v.shape for k, v in matcher.state_dict().items()}
        if plan.teacher:
            _, state = read_weights(Path(plan.teacher))
            heads = {k: v for k, v in state.items() if own.get(k) == v.shape and not k.startswith("backbone.")}
            matcher.load_state_dict(heads, strict=False)
        if plan.init:
            _, state = read_weights(Path(plan.init))
            strange = [
                k
                for k in own.keys() | state.keys()
                if k.startswith("backbone.") and (k not in state or own.get(k) != state[k].shape)
            ]
            if strange:
                raise WeightsError(
                    f"{plan.init} has another backbone than '{plan.matcher}': {min(strange)} differs ({len(strange)} "
                    "tensors); go on from weights with that backbone, or give larger ones as --teacher"
                )
            matcher.load_state_dict({k: v for k, v in state.items() if own.get(k) == v.shape}, strict=False)
        return matcher

    @property
    def checkpoint(self) -> Path:
        return self.out / "checkpoint.safetensors"

    def train(
        self, report: Callable[[int, dict[str, float]], None], save_every: int = 500, until: int | None = None
    ) -> None:
        """Runs to the plan's last step (or to `until`); KeyboardInterrupt saves and is raised again."""
        last = min(self.plan.steps, until if until is not None else self.plan.steps)
        try:
            while self.step < last:
                parts = self.take_step()
                self.step += 1
                if self.step % 20 == 0 or self.step == last:
                    report(self.step, {k: float(v) for k, v in parts.items()})
                if self.step % save_every == 0:
                    self.save()
        finally:
            self.save()

    def take_step(self) -> dict[str, Tensor]:
        """One optimiser step. Everything random is seeded by (seed, step): a resumed run takes the same steps."""
        plan = self.plan
        for group in self.optimizer.param_groups:
            group["lr"] = plan.learning_rate * self._rate(self.step)
        generator = torch.Generator(self.device).manual_seed(plan.seed * 1_000_003 + self.step)
        image_a, image_b, uv_a, uv_b, visible = self.draw(self.step, generator)
        self.matcher.train()
        images = torch.cat([image_a, image_b])
        with torch.autocast(self.device.type, torch.bfloat16, enabled=plan.bfloat16):
            maps = self.matcher.backbone(images)
            wanted = self.teacher(images) if self.teacher else None
        loss, parts = matching_loss(self.matcher, maps, uv_a, uv_b, visible, generator)
        if wanted is not None:
            parts["teacher_coarse"], parts["teacher_fine"] = (map_distance(m, w) for m, w in zip(maps, wanted))
            loss = plan.matching_weight * loss + plan.teacher_weight * (parts["teacher_coarse"] + parts["teacher_fine"])
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.matcher.parameters(), 1.0)
        if torch.isfinite(norm):
            self.optimizer.step()
        return {"loss": loss.detach(), **{k: v.detach() for k, v in parts.items()}}

    def draw(self, step: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Images (B, 1, H, W), queries and truth (B, Q, 2), visible (B, Q)."""
        plan = self.plan
        rng = np.random.default_rng((plan.seed, step))
        of_photographs = round(plan.batch * plan.photograph_share) if self.photographs else 0
        pairs = self._draw_rendered(step, plan.batch - of_photographs, rng)
        image_a, image_b = pairs["image_A"], pairs["image_B"]
        if self.photographs:
            photo_a, photo_b, H_BA = self.photographs.draw(of_photographs, (plan.height, plan.width), rng)
            image_a, image_b = torch.cat([image_a, photo_a]), torch.cat([image_b, photo_b])
        effect_seed = int(rng.integers(2**31))
        image_a, image_b = augment(image_a, effect_seed), augment(image_b, effect_seed + 1)
        uv_a = sample_queries(image_a, plan.queries, generator)
        rendered, photographed = uv_a.tensor_split([len(uv_a) - of_photographs])
        uv_b, visible = warp(rendered, pairs["depth_A"], pairs["K"], pairs["T_WA"], pairs["T_WB"], pairs["depth_B"])
        if self.photographs:
            photo_uv_b = warp_homography(H_BA, photographed)
            corner = uv_a.new_tensor([plan.width - 1, plan.height - 1])
            uv_b = torch.cat([uv_b, photo_uv_b])
            visible = torch.cat([visible, ((photo_uv_b >= 0) & (photo_uv_b <= corner)).all(-1)])
        return image_a, image_b, uv_a, uv_b, visible

    def _draw_rendered(self, step: int, count: int, rng: np.random.Generator) -> dict[str, Tensor]:
        """`count` pairs from the pool of the newest blocks; which blocks these are depends on the step alone."""
        newest = step // (BLOCK_STEPS * REUSE)
        wanted = range(max(0, newest - POOL_BLOCKS + 1), newest + 1)
        for block in wanted:
            if block not in self.pool:
                seed = self.plan.seed * 1_000_003 + block
                self.pool[block] = self.renderer.pairs(
                    seed, BLOCK_STEPS * self.plan.batch, (self.plan.height, self.plan.width), effects=False
                )
        for block in [b for b in self.pool if b not in wanted]:
            del self.pool[block]
        chosen = [
            (int(rng.integers(wanted.start, wanted.stop)), int(rng.integers(BLOCK_STEPS * self.plan.batch)))
            for _ in range(count)
        ]
        return {key: torch.stack([self.pool[block][key][i] for block, i in chosen]) for key in self.pool[newest]}

    def finished(self) -> CoarseToFine:
        """The matcher as it ships: batch norm folded into the convolutions, on the CPU."""
        matcher = MATCHERS[self.plan.matcher]()
        if self.plan.init:
            matcher.load_state_dict(self.matcher.state_dict())
            return matcher.cpu().eval()
        rest = {k: v for k, v in self.matcher.state_dict().items() if not k.startswith("backbone.")}
        matcher.load_state_dict(rest, strict=False)
        matcher.backbone = fold_batch_norm(self.matcher.backbone).cpu()
        return matcher.cpu().eval()

    def save(self) -> None:
        tensors = {f"model.{k}": v.contiguous() for k, v in self.matcher.state_dict().items()}
        for index, parameter in enumerate(self.optimizer.param_groups[0]["params"]):
            state = self.optimizer.state.get(parameter)
            if state:
                tensors |= {f"adam.{index}.{k}": torch.as_tensor(v).contiguous() for k, v in state.items()}
        self.out.mkdir(parents=True, exist_ok=True)
        partial = self.checkpoint.with_suffix(".partial")
        save_file(tensors, partial, {"plan": json.dumps(asdict(self.plan)), "step": str(self.step)})
        os.replace(partial, self.checkpoint)

    def _compare_plans(self) -> None:
        with safe_open(str(self.checkpoint), "pt") as file:
            before = json.loads(file.metadata()["plan"])
        changed = [
            key for key, value in asdict(self.plan).items() if key != "steps" and before.get(key, value) != value
        ]
        if changed:
            told = ", ".join(f"{key} = {before[key]!r}, now {getattr(self.plan, key)!r}" for key in changed)
            raise ConfigError(f"{self.checkpoint} was begun with {told}; give the same again, or another --out")

    def _resume(self) -> None:
        with safe_open(str(self.checkpoint), "pt") as file:
            tensors = {k: file.get_tensor(k) for k in file.keys()}
            self.step = int(file.metadata()["step"])
        self.matcher.load_state_dict({k[6:]: v for k, v in tensors.items() if k.startswith("model.")})
        state: dict[int, dict[str, Tensor]] = {}
        for key, tensor in tensors.items():
            if key.startswith("adam."):
                _, index, name = key.split(".")
                state.setdefault(int(index), {})[name] = tensor
        self.optimizer.load_state_dict({"state": state, "param_groups": self.optimizer.state_dict()["param_groups"]})

    def _rate(self, step: int) -> float:
        """Linear warm-up over 200 steps (or a tenth), then a half cosine down to 2 %."""
        warm = min(200, max(self.plan.steps // 10, 1))
        if step < warm:
            return (step + 1) / warm
        progress = (step - warm) / max(self.plan.steps - warm, 1)
        return 0.02 + 0.98 * 0.5 * (1 + float(np.cos(np.pi * progress)))


def load_teacher(path: Path) -> Backbone:
    """The backbone of a weights file, frozen.

    Raises:
        WeightsError: the file holds another network than `Backbone`.
    """
    _, state = read_weights(path)
    teacher = Backbone()
    given = {k.removeprefix("backbone."): v for k, v in state.items() if k.startswith("backbone.")}
    if {k: v.shape for k, v in teacher.state_dict().items()} != {k: v.shape for k, v in given.items()}:
        raise WeightsError(
            f"{path} holds no teacher's network; expected weights of the matcher expectation or regression"
        )
    teacher.load_state_dict(given)
    return teacher.eval().requires_grad_(False)
