"""How a method is trained: the `train:` of an experiment, and of one of its methods."""

from typing import Literal, Self

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from trimtab.lab.schema import Strict


class Train(Strict):
    """How a method is trained."""

    epochs: PositiveInt = Field(3, description="Passes over the training examples; each ends in a checkpoint.")
    max_steps: PositiveInt | None = Field(None, description="Steps after which training ends, whatever the epochs.")
    batch_size: PositiveInt = Field(32, description="Examples a step, on one device.")
    accumulate: PositiveInt = Field(1, description="Batches whose gradients make one step.")
    learning_rate: PositiveFloat | None = Field(
        None, description="Peak rate; if left out, 5e-5 for full fine-tuning, 1e-3 for adapters, 1e-2 for prompts."
    )
    tune: list[PositiveFloat] = Field(
        [],
        description="Factors on each method's learning rate to try first, with the first seed; the best on the "
        "validation part is taken. All methods get the same number of trials.",
    )
    schedule: Literal["linear", "cosine", "constant_with_warmup"] = Field(
        "linear", description="How the rate falls after its peak."
    )
    warmup: float = Field(0.1, ge=0, lt=1, description="Share of the steps in which the rate rises to its peak.")
    weight_decay: float = Field(0.01, ge=0, description="AdamW's decay of the trained weights.")
    max_grad_norm: PositiveFloat = Field(1.0, description="Larger gradients are scaled down to this norm.")
    patience: NonNegativeInt = Field(
        0, description="Epochs without a better validation score after which training stops; 0 goes on to the end."
    )
    precision: Literal["fp32", "bf16", "fp16"] = Field("fp32", description="What the model computes in (autocast).")
    checkpointing: bool = Field(False, description="Compute activations again in the backward pass: less memory.")
    seed: int = Field(0, ge=0, description="Seed of the new head, the adapter, the order of examples and dropout.")

    def with_changes(self, changes: "Train") -> Self:
        """These settings, with what `changes` sets explicitly in their place."""
        return self.model_copy(update=changes.model_dump(exclude_unset=True))
