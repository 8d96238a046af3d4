"""One step of training and one of evaluation, as the Trainer makes them."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from trimtab.lab.training import Train

Loss = Callable[..., Tensor]


@dataclass(frozen=True)
class Stepper:
    """How a model is trained: with which settings, and which loss in place of its own."""

    train: Train
    loss: Loss | None = None

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """The Trainer's optimiser."""
        trained = [p for p in model.parameters() if p.requires_grad]
        return torch.optim.AdamW(trained, lr=self.train.learning_rate or 1e-4, fused=True)

    def step(self, model: nn.Module, optimizer: torch.optim.Optimizer, batch: Mapping[str, Any]) -> None:
        """Forward, backward and update; more than two accumulated batches take no more memory than two."""
        for _ in range(min(self.train.accumulate, 2)):
            self.loss_of(model, batch).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), self.train.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()

    def evaluate(self, model: nn.Module, batch: Mapping[str, Any]) -> Any:
        """Forward only."""
        with torch.no_grad():
            return self._outputs(model, batch)

    def loss_of(self, model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
        """The loss of a batch."""
        if self.loss is None:
            return self._outputs(model, batch)["loss"]
        labels = batch["labels"]
        return self.loss(self._outputs(model, {k: v for k, v in batch.items() if k != "labels"}), labels)

    def _outputs(self, model: nn.Module, batch: Mapping[str, Any]) -> Any:
        from accelerate.utils.operations import convert_to_fp32

        with self._precision(next(model.parameters()).device.type):
            outputs = model(**batch)
        return outputs if self.train.precision == "fp32" else convert_to_fp32(outputs)

    def _precision(self, device: str) -> AbstractContextManager[Any]:
        if self.train.precision == "fp32":
            return nullcontext()
        dtype = torch.bfloat16 if self.train.precision == "bf16" else torch.float16
        return torch.autocast(device, dtype=dtype)
