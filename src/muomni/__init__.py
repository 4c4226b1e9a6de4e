"""muOmni: staged training of omni-modal models by a trainer that refuses to lie.

Gives `Engine` (a trained folder -> answers), `run` (a recipe -> a run folder), `quickstart` (a toy world -> a
score board), `gate` (a finished stage -> verdicts) and `plan` (what a recipe will need).
Each is imported when first used, so that importing the package costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["Engine", "gate", "plan", "quickstart", "run"]

if TYPE_CHECKING:
    from muomni.execution.runner import gate, quickstart, run
    from muomni.infer.engine import Engine
    from muomni.planning.forecast import plan


def __getattr__(name: str) -> Any:
    if name == "Engine":
        from muomni.infer.engine import Engine

        return Engine
    if name == "plan":
        from muomni.planning import forecast

        return forecast.plan
    if name in ("run", "gate", "quickstart"):
        from muomni.execution import runner

        return getattr(runner, name)
    raise AttributeError(f"module 'muomni' has no attribute {name!r}")
