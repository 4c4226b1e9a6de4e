"""Settings that every stage shares; a stage's own settings extend them (SPEC C1, C2, C6)."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import Field, model_validator

from muomni import units
from muomni.config import ReportsIdle, Strict
from muomni.data.order import Order
from muomni.data.sample import Source
from muomni.errors import ConfigError

DEFAULT_STEPS = 1000  # of a stage that names neither steps nor epochs


class ParamGroup(Strict):
    """Parameters whose name matches `pattern` (shell wildcards) get their own learning rate and decay, and
    may rest at first: they join after `from_step` updates. Of several groups the last one that says it counts."""

    pattern: str
    lr: float | None = Field(None, gt=0)
    wd: float | None = Field(None, ge=0)
    from_step: int | None = Field(None, ge=0)


class TrainSettings(ReportsIdle):
    """How a stage trains. A step is always an optimizer step."""

    data: list[Source] = []
    init_from: Path | None = None
    train: list[str] = ["*"]
    param_groups: list[ParamGroup] = []

    max_steps: int | None = Field(
        None, ge=1, description="None: as many as max_epochs says, 1000 where that isn't given either"
    )
    max_epochs: int | None = Field(None, ge=1)
    epoch_duration: str | None = Field(
        None,
        description="about how long an epoch is to take, e.g. 1h: a probe says how many samples that are",
    )
    samples_per_epoch: int | None = Field(
        None, ge=1, description="samples that max_epochs counts as an epoch; None: one pass"
    )
    batch_size: int = Field(8, ge=1)
    gradient_accumulation_steps: int = Field(1, ge=1)
    lr: float = Field(3e-4, gt=0)
    wd: float = Field(0.1, ge=0)
    betas: tuple[float, float] = (0.9, 0.95)
    optimizer: Literal["adamw", "muon"] = Field(
        "adamw",
        description="muon: for matrices of attention, feed-forward and projectors, AdamW for the rest",
    )
    schedule: Literal["cosine", "linear", "constant", "wsd"] = "cosine"
    warmup_steps: int = Field(10, ge=0)
    min_lr_ratio: float = Field(0.1, ge=0, le=1)
    decay_share: float = Field(
        0.2, gt=0, le=1, description="wsd only: share of the run in which the rate falls"
    )
    max_grad_norm: float = Field(1.0, gt=0)
    explosion_norm: float = Field(100.0, gt=0)
    max_skips: int = Field(10, ge=0, description="skipped updates in a row that stop the run")
    ema_decay: float | None = Field(None, gt=0, lt=1)

    shard: bool = Field(
        False,
        description="share weights, gradients and optimizer state out among the ranks (FSDP2), where all weights train",
    )
    use_amp: bool = True
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    seed: int = Field(42, ge=0)
    num_workers: int = Field(0, ge=0)
    cache_mb: int | None = Field(
        None,
        ge=0,
        description="decoded media kept for the next epoch, all workers together; None: 2 GiB or an eighth of what is free",
    )
    threads: int | None = Field(
        None,
        ge=1,
        description="threads of this stage; None: the recipe's. For one that runs when others are done",
    )

    val_split: float = Field(0.1, ge=0, lt=1)
    val_freq: int = Field(200, ge=1)
    val_batches: int = Field(20, ge=1)
    len_buckets: list[int] = []
    patience: int | None = Field(None, ge=1, description="validations without improvement that end the stage")
    min_delta: float = Field(0.0, ge=0)
    checkpoint_freq: int = Field(500, ge=1)
    keep_checkpoints: int = Field(2, ge=1)
    final: Literal["last", "best"] = Field(
        "last", description="the weights that are handed on; best where there is `patience`"
    )
    print_freq: int = Field(20, ge=1)
    tensorboard: bool = Field(
        False, description="also write curves for tensorboard, beside metrics.jsonl (extra: track)"
    )
    quarantine_limit: float = Field(0.01, ge=0, le=1)

    @model_validator(mode="before")
    @classmethod
    def _ends_and_best(cls, values: Any) -> Any:
        """Epochs alone end a run where they end, a run without either has DEFAULT_STEPS; early stopping hands
        on the best."""
        if not isinstance(values, dict):
            return values
        is_endless = values.get("max_steps") is None and values.get("max_epochs") is None
        ends = {"max_steps": DEFAULT_STEPS} if is_endless else {}
        best = {"final": "best"} if values.get("patience") is not None else {}
        return {**best, **values, **ends}

    @model_validator(mode="after")
    def _effective(self) -> TrainSettings:
        sizes = {"epoch_duration": self.epoch_duration, "samples_per_epoch": self.samples_per_epoch}
        if named := [key for key, size in sizes.items() if size is not None and self.max_epochs is None]:
            raise ValueError(f"{named[0]} has an effect with max_epochs (num_epochs) only")
        if self.epoch_duration is not None:
            try:
                units.seconds(self.epoch_duration, "epoch_duration")
            except ConfigError as error:
                raise ValueError(error.message) from error
        latest = self.last_phase
        if latest and self.max_steps is not None and latest >= self.max_steps:
            raise ValueError(
                f"param_groups: from_step {latest} has no effect in a run of {self.max_steps} steps"
            )
        if latest and self.ema_decay is not None:
            raise ValueError(
                "ema_decay: an average is of what trains from the beginning; leave out from_step or it"
            )
        if not self.use_amp and self.precision in ("bf16", "fp16"):
            raise ValueError(f"use_amp is false, so precision {self.precision} would have no effect")
        return self

    @property
    def last_phase(self) -> int:
        """The update from which on all that trains does; 0 where nothing rests at first."""
        return max((group.from_step or 0 for group in self.param_groups), default=0)

    def batches_per_epoch(self, order: Order) -> int:
        """Micro-batches that count as an epoch: a pass through the data, or enough for `samples_per_epoch`.

        The order of the samples knows nothing of it: an epoch is where the count stands, not where a shuffle
        begins.
        """
        return (
            order.batches_per_epoch
            if self.samples_per_epoch is None
            else -(-self.samples_per_epoch // self.batch_size)
        )

    def idle(self) -> dict[str, str]:
        """Beside those of a stage: what belongs to another schedule, or to early stopping."""
        idle_options = {}
        if self.schedule != "wsd":
            idle_options["decay_share"] = "it is of schedule: wsd"
        if self.schedule == "constant":
            idle_options["min_lr_ratio"] = "with schedule: constant the rate never falls"
        if self.patience is None:
            idle_options["min_delta"] = "it is of `patience`"
        return idle_options


Settings = TypeVar("Settings", bound=TrainSettings)


def steps_in_all(
    settings: TrainSettings, order: Order, per_step: int, done: int = 0, position: int = 0
) -> int:
    """Where a run ends that has done so many steps and drawn so many batches: at `max_steps` or `max_epochs`,
    whichever comes first.

    Takes   per_step: micro-batches of an update, of all ranks.
    """
    ends = [] if settings.max_steps is None else [settings.max_steps]
    if settings.max_epochs is not None:
        left = settings.max_epochs * settings.batches_per_epoch(order) - position
        ends.append(done + max(0, -(-left // per_step)))
    return min(ends)


def sized(settings: Settings, order: Order, per_step: int) -> Settings:
    """The settings as a run of this data has them: `max_steps` is known, and the warm-up is shorter than the
    run.

    A warm-up that is not becomes a tenth of it: at full length the rate would never reach its height.
    Takes   per_step: micro-batches of an update, of all ranks.
    """
    steps = steps_in_all(settings, order, per_step)
    warmup = (
        settings.warmup_steps
        if settings.warmup_steps < steps
        else min(settings.warmup_steps, max(1, steps // 10))
    )
    return settings.model_copy(update={"max_steps": steps, "warmup_steps": warmup})


def clipped(settings: TrainSettings, run: TrainSettings) -> list[str]:
    """A line where the warm-up that was asked for is longer than the run, whose `sized` settings are
    given."""
    if settings.warmup_steps == run.warmup_steps:
        return []
    return [
        f"warmup_steps {settings.warmup_steps} is no shorter than the run of {run.max_steps} steps: {run.warmup_steps} are taken"
    ]
