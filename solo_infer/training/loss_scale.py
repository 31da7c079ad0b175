"""The scale of the loss that keeps float16 gradients from vanishing."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

# torch's GradScaler starts, grows and shrinks the same way.
FIRST_SCALE = 2.0**16
GROWTH_INTERVAL = 2000  # steps in a row after which a larger scale is tried


class LossScaler:
    """Multiplies the loss by a power of two: half of it when gradients overflow, more while they do not.

    torch's own scaler divides in float64 on the device, which CoreX turns into zeros; a power of two needs no
    such care.

    Args:
        enabled: If not, nothing is scaled and every step is taken.
    """

    def __init__(self, enabled: bool) -> None:
        self.enabled = enabled
        self.factor = FIRST_SCALE if enabled else 1.0
        self.good_steps = 0

    def scale(self, loss: Tensor) -> Tensor:
        """Return the loss to take gradients of."""
        return loss * self.factor if self.enabled else loss

    def unscale(self, parameters: Iterable[Parameter]) -> None:
        """Bring the gradients of parameters back to their own size."""
        if not self.enabled:
            return
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad.mul_(1.0 / self.factor)

    def step(self, optimizer: Optimizer, norm: float) -> None:
        """Take a step, unless the gradients overflowed, and adapt the scale.

        Args:
            optimizer: Whose parameters have their gradients.
            norm: Of all gradients, which are finite if it is.
        """
        if self.enabled and not math.isfinite(norm):
            self.factor, self.good_steps = self.factor / 2, 0
            return
        optimizer.step()
        self.good_steps += 1
        if self.enabled and self.good_steps == GROWTH_INTERVAL:
            self.factor, self.good_steps = self.factor * 2, 0

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs, {} if nothing is scaled."""
        return {"scale": self.factor, "good_steps": self.good_steps} if self.enabled else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to a state."""
        self.factor, self.good_steps = state["scale"], state.get("good_steps", 0)
