"""Looks at one batch before any training: which tokens carry loss, and which parameters get a gradient from it.

    print(trimtab.audit(model, batch))

Most of what goes wrong in fine-tuning goes wrong silently: labels that are all -100, an answer that was cut off, an
adapter that no gradient reaches. Works with any trainer, since it asks for nothing but the model and a batch.
"""

import random
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from .errors import ConfigError, listing
from .inject import switches
from .model import PeftModel
from .status import count

IGNORED = -100
"""The label that torch's cross entropy leaves out."""
NUDGE = 0.02
"""Standard deviation of what is put into tensors of zeros for the second look."""
PACKED = (torch.uint8, torch.int8)
"""Number formats of packed weights, which no forward pass writes to."""

Batch = Mapping[str, Any]
Loss = Callable[[nn.Module, Batch], Tensor]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: how bad it is, what was found, and what to do about it."""

    level: Literal["info", "warning", "error"]
    topic: str
    found: str
    advice: str = ""

    def __str__(self) -> str:
        return f"{self.level}: {self.found}" + (f"; {self.advice}" if self.advice else "")


@dataclass(frozen=True)
class Audit:
    """What one batch told about a model. `findings` judges it, `ok` says whether there is no error among them."""

    loss: float
    supervised: list[float]
    """For each sample, the share of its tokens (padding left out) that carry loss; empty for a batch without labels."""
    padding: int
    """Padded positions that carry loss."""
    trainable: dict[str, int]
    """Parameters that are trained, by name, with their sizes."""
    total: int
    """Number of all parameters."""
    unused: list[str]
    """Trained parameters that take no part in the loss."""
    dead: list[str]
    """Trained parameters that take part in the loss, and whose gradient is zero all the same."""
    non_finite: list[str]
    """Trained parameters with NaN or infinity in their gradient."""
    idle: list[str]
    """Adapters that are trained though they do not act."""
    lifeless: list[str]
    """Adapters none of whose trained parameters gets a gradient."""

    @property
    def findings(self) -> list[Finding]:
        """What was found, the judgements of tokens before those of parameters."""
        return [*self._of_tokens(), *self._of_parameters()]

    @property
    def ok(self) -> bool:
        """Whether no error was found."""
        return all(finding.level != "error" for finding in self.findings)

    def __str__(self) -> str:
        return "\n".join(map(str, self.findings))

    def _of_tokens(self) -> Iterator[Finding]:
        if not self.supervised:
            return
        silent = [number for number, share in enumerate(self.supervised) if not share]
        if len(silent) == len(self.supervised):
            yield Finding(
                "error",
                "tokens",
                f"no token carries loss: all labels of all {len(silent)} samples are {IGNORED}",
                "look at how prompts are masked, and whether truncation cuts the answers off",
            )
            return
        if silent:
            yield Finding(
                "warning",
                "tokens",
                f"{len(silent)} of {len(self.supervised)} samples carry no loss: {listing(silent)}",
                "they are often those whose answer was cut off; raise the length, or leave them out",
            )
        if self.padding:
            advice = f"give padding the label {IGNORED}, or the model learns to pad"
            yield Finding("warning", "tokens", f"{self.padding} padded positions carry loss", advice)
        share = sum(self.supervised) / len(self.supervised)
        yield Finding("info", "tokens", f"{share:.0%} of a sample's tokens carry loss")

    def _of_parameters(self) -> Iterator[Finding]:
        trained = sum(self.trainable.values())
        if not trained:
            advice = "put an adapter in, or switch requires_grad on; an adapter that is loaded needs is_trainable=True"
            yield Finding("error", "parameters", "no parameter is trainable", advice)
            return
        yield Finding(
            "info", "parameters", f"{trained:,} of {self.total:,} parameters are trained ({trained / self.total:.2%})"
        )
        if self.idle:
            advice = "freeze them (set_requires_grad), or let them act (set_adapter)"
            yield Finding("warning", "parameters", f"trained, but not active: adapters {listing(self.idle)}", advice)
        if self.supervised and not any(self.supervised):
            return  # without a loss there is no gradient to judge
        if self.loss != self.loss or abs(self.loss) == float("inf"):
            advice = "look at the number format, and for NaN in the weights and the inputs"
            yield Finding("error", "parameters", f"the loss of the first batch is {self.loss}", advice)
        elif self.non_finite:
            advice = "compute in bfloat16 or float32 rather than float16, and look for NaN in the weights"
            found = f"NaN or infinity in the gradient of {listing(self.non_finite)}"
            yield Finding("error", "parameters", found, advice)
        yield from self._of_silence()

    def _of_silence(self) -> Iterator[Finding]:
        if len(self.unused) + len(self.dead) == len(self.trainable):
            advice = (
                "something cuts the graph: reentrant checkpointing (use_reentrant=False), no_grad, or a frozen layer "
                "that passes no gradient on"
            )
            yield Finding("error", "parameters", "no trained parameter gets a gradient", advice)
            return
        if broken := [name for name in self.lifeless if name not in self.idle]:
            advice = "its layers take no part in the loss, or something cuts the graph before them"
            yield Finding("error", "parameters", f"no gradient reaches adapter {listing(broken)}", advice)
        if self.unused:
            advice = "they will stay as they are: leave them out of what is trained"
            yield Finding("warning", "parameters", f"trained, but no part of the loss: {listing(self.unused)}", advice)
        if self.dead:
            advice = "if another batch gives them none either, they will not learn"
            yield Finding("warning", "parameters", f"trained, but their gradient is zero: {listing(self.dead)}", advice)


def audit(model: nn.Module, batch: Batch, loss: Loss | None = None) -> Audit:
    """Run one batch forward and backward, in training mode, and say what would be learned from it.

    Everything is put back as it was: parameters, gradients, buffers, modes, and the states of the random generators, so
    that a training afterwards is the same to the bit.

    Args:
        model: any module, with an adapter or without.
        batch: what the model is called with, on its device: tensors by name, the labels among them.
        loss: computes the loss of a model and a batch; left out, it is the `loss` of the model's output.

    Raises:
        ConfigError: the model gives no loss and `loss` is left out.
    """
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    with _untouched(model):
        value, first = _gradients(model, batch, loss or _own_loss, trained)
        alive = {name for name, size in first.items() if size}  # NaN is alive, and is told apart
        if len(alive) < len(trained):
            # A tensor of zeros hides its partner: B = 0 of LoRA, say, leaves A without a gradient at the start. With
            # something else in their place, a gradient that is still zero is zero for another reason.
            zeros = [p for p in trained.values() if not p.any()]
            with _nudged(zeros):
                second = _gradients(model, batch, loss or _own_loss, trained)[1] if zeros else {}
            alive |= {name for name, size in second.items() if size}
    silent = [name for name in trained if name not in alive]
    supervised, padding = _supervised(model, batch)
    adapters = _adapters(model, {id(p): name for name, p in trained.items()})
    return Audit(
        loss=value,
        supervised=supervised,
        padding=padding,
        trainable={name: p.numel() for name, p in trained.items()},
        total=count(model)[1],
        unused=[name for name in silent if name not in first],
        dead=[name for name in silent if name in first],
        non_finite=[name for name, size in first.items() if not size < float("inf")],
        idle=sorted(name for name, (active, names) in adapters.items() if names and not active),
        lifeless=sorted(name for name, (_, names) in adapters.items() if names and alive.isdisjoint(names)),
    )


def _own_loss(model: nn.Module, batch: Batch) -> Tensor:
    output = model(**batch)
    loss = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
    if not isinstance(loss, Tensor):
        raise ConfigError(
            f"audit: the output of {type(model).__name__} has no loss; put `labels` into the batch "
            f"(it has {listing(batch)}), or give `loss`, a function of a model and a batch"
        )
    return loss


def _gradients(
    model: nn.Module, batch: Batch, loss: Loss, trained: dict[str, nn.Parameter]
) -> tuple[float, dict[str, float]]:
    """The loss, and the largest magnitude in the gradient of each parameter that gets one."""
    value = loss(model, batch)
    if value.requires_grad:
        value.backward()
    found = {name: float(p.grad.abs().max()) for name, p in trained.items() if p.grad is not None and p.numel()}
    for p in model.parameters():
        p.grad = None
    return float(value.detach()), found


def _supervised(model: nn.Module, batch: Batch) -> tuple[list[float], int]:
    """Of each sample, the share of tokens that carry loss, padding left out; and how much padding carries loss."""
    labels, mask = batch.get("labels"), batch.get("attention_mask")
    if not isinstance(labels, Tensor) or labels.is_floating_point() or not labels.ndim:
        return [], 0
    counted = (labels != IGNORED).reshape(len(labels), -1)
    real = torch.ones_like(counted)
    of_labels = not getattr(getattr(model, "config", None), "is_encoder_decoder", False)  # else it masks the source
    if of_labels and isinstance(mask, Tensor) and mask.shape == labels.shape:
        real = mask.bool().reshape(len(labels), -1)
    shares = (counted & real).sum(1) / real.sum(1).clamp(min=1)
    return shares.tolist(), int((counted & ~real).sum())


def _adapters(model: nn.Module, names: dict[int, str]) -> dict[str, tuple[bool, set[str]]]:
    """Each adapter: whether it acts anywhere, and the names of its trained parameters."""
    found: dict[str, tuple[bool, set[str]]] = {}

    def add(adapter: str, active: bool, tensors: list[Tensor | None]) -> None:
        before, inside = found.get(adapter, (False, set()))
        found[adapter] = before or active, inside | {names[id(t)] for t in tensors if id(t) in names}

    for switch in switches(model):
        for name in switch.adapter_names():
            add(name, name in switch.active, [held[key] for held, key, _ in switch.owned(name)])
    if isinstance(model, PeftModel) and model.is_prompt_learning:
        for name, encoder in model.prompt_encoder.items():
            add(name, name in model.active_adapters, list(encoder.parameters()))
    return found


@contextmanager
def _nudged(tensors: list[nn.Parameter]) -> Iterator[None]:
    """Within it, tensors of zeros hold small random numbers."""
    before = [tensor.detach().clone() for tensor in tensors]
    with torch.no_grad():
        for tensor in tensors:
            tensor.normal_(0, NUDGE)
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, zeros in zip(tensors, before, strict=True):
                tensor.copy_(zeros)


@contextmanager
def _untouched(model: nn.Module) -> Iterator[None]:
    """Within it, a model is in training mode; all that a pass changes is put back at the end."""
    gradients = {p: p.grad for p in model.parameters()}
    modes = {module: module.training for module in model.modules()}
    buffers = [(b, b.clone()) for b in model.buffers() if b.dtype not in PACKED]
    numpy: Any = sys.modules.get("numpy")  # models that mask their inputs draw from it
    states = random.getstate(), numpy and numpy.random.get_state()
    for p in gradients:
        p.grad = None
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())), torch.enable_grad():
            if not model.training:
                model.train()
            yield
    finally:
        random.setstate(states[0])
        if numpy:
            numpy.random.set_state(states[1])
        for module, training in modes.items():
            module.training = training
        for p, gradient in gradients.items():
            p.grad = gradient
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)
