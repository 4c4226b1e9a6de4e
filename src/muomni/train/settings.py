"""Settings that every stage shares; a stage's own settings extend them (SPEC C1, C2, C6)."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from muomni.config import Strict, Told
from muomni.data.sample import Source


class ParamGroup(Strict):
    """Parameters whose name matches `pattern` (shell wildcards) get their own learning rate and decay."""

    pattern: str
    lr: float | None = Field(None, gt=0)
    wd: float | None = Field(None, ge=0)


class TrainSettings(Told):
    """How a stage trains. A step is always an optimizer step."""

    data: list[Source] = []
    init_from: Path | None = None
    train: list[str] = ["*"]
    param_groups: list[ParamGroup] = []

    max_steps: int = Field(1000, ge=1)
    max_epochs: int | None = Field(None, ge=1)
    batch_size: int = Field(8, ge=1)
    gradient_accumulation_steps: int = Field(1, ge=1)
    lr: float = Field(3e-4, gt=0)
    wd: float = Field(0.1, ge=0)
    betas: tuple[float, float] = (0.9, 0.95)
    optimizer: Literal["adamw", "muon"] = Field(
        "adamw", description="muon: for matrices of attention, feed-forward and projectors, AdamW for the rest"
    )
    schedule: Literal["cosine", "linear", "constant", "wsd"] = "cosine"
    warmup_steps: int = Field(10, ge=0)
    min_lr_ratio: float = Field(0.1, ge=0, le=1)
    decay_share: float = Field(0.2, gt=0, le=1, description="wsd only: share of the run in which the rate falls")
    max_grad_norm: float = Field(1.0, gt=0)
    explosion_norm: float = Field(100.0, gt=0)
    max_skips: int = Field(10, ge=0, description="skipped updates in a row that stop the run")
    ema_decay: float | None = Field(None, gt=0, lt=1)

    use_amp: bool = True
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    seed: int = Field(42, ge=0)
    num_workers: int = Field(0, ge=0)
    cache_mb: int | None = Field(
        None, ge=0, description="decoded media kept for the next epoch, all workers together; None: 2 GiB or an eighth of what is free"
    )
    threads: int | None = Field(None, ge=1, description="threads of this stage; None: the recipe's. For one that runs when others are done")

    val_split: float = Field(0.1, ge=0, lt=1)
    val_freq: int = Field(200, ge=1)
    val_batches: int = Field(20, ge=1)
    len_buckets: list[int] = []
    patience: int | None = Field(None, ge=1, description="validations without improvement that end the stage")
    min_delta: float = Field(0.0, ge=0)
    checkpoint_freq: int = Field(500, ge=1)
    keep_checkpoints: int = Field(2, ge=1)
    final: Literal["last", "best"] = Field("last", description="the weights that are handed on; best where there is `patience`")
    print_freq: int = Field(20, ge=1)
    tensorboard: bool = Field(False, description="also write curves for tensorboard, beside metrics.jsonl (extra: track)")
    quarantine_limit: float = Field(0.01, ge=0, le=1)

    @model_validator(mode="before")
    @classmethod
    def _early_stopping_hands_on_the_best(cls, values: Any) -> Any:
        is_early = isinstance(values, dict) and values.get("patience") is not None
        return {"final": "best", **values} if is_early else values

    @model_validator(mode="after")
    def _effective(self) -> TrainSettings:
        if self.warmup_steps >= self.max_steps and self.warmup_steps > 0 and self.max_steps > 1:
            raise ValueError(f"warmup_steps {self.warmup_steps} must be less than max_steps {self.max_steps}")
        if not self.use_amp and self.precision in ("bf16", "fp16"):
            raise ValueError(f"use_amp is false, so precision {self.precision} would have no effect")
        return self

    def idle(self) -> dict[str, str]:
        """Beside those of a stage: what belongs to another schedule, or to early stopping."""
        found = {}
        if self.schedule != "wsd":
            found["decay_share"] = "it is of schedule: wsd"
        if self.schedule == "constant":
            found["min_lr_ratio"] = "with schedule: constant the rate never falls"
        if self.patience is None:
            found["min_delta"] = "it is of `patience`"
        return found
