"""What may stand in an experiment file: one model a concern. `check.py` reads one and reports its mistakes."""

from collections import Counter
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, ValidationInfo, field_validator, model_validator

from trimtab.lab import assets
from trimtab.lab.errors import AssetError
from trimtab.lab.methods import Method, all_methods
from trimtab.lab.plan import Run, runs
from trimtab.lab.schema import Choice, Name, Strict
from trimtab.lab.tasks import Task, all_tasks
from trimtab.lab.training import Train

FILE_KINDS = {".csv": "csv", ".jsonl": "json", ".json": "json", ".parquet": "parquet"}


def _locate(source: str, kind: Any, info: ValidationInfo) -> str:
    """Check an asset's name; make a path absolute, seen from the experiment file's folder; let any other name pass."""
    if source.startswith(assets.PREFIX):
        try:
            assets.find(source.removeprefix(assets.PREFIX), kind)
        except AssetError as error:
            raise ValueError(str(error)) from None
        return source
    path = (info.context or {}).get("folder", Path()) / Path(source).expanduser()
    if path.exists():
        return str(path.resolve())
    if path.suffix in FILE_KINDS or source.startswith((".", "/", "~")):
        raise ValueError(f"no such file or folder: {path}")
    return source


def _model_source(source: str, info: ValidationInfo) -> str:
    return _locate(source, "model", info)


def _data_source(source: str, info: ValidationInfo) -> str:
    return _locate(source, "data", info)


def _share_or_source(value: float | str, info: ValidationInfo) -> float | str:
    if isinstance(value, str):
        return _locate(value, "data", info)
    if not 0 < value < 1:
        raise ValueError(f"a share lies between 0 and 1; found {value:g}")
    return value


DataSource = Annotated[str, AfterValidator(_data_source)]
ShareOrSource = Annotated[float | str, AfterValidator(_share_or_source)]


class Sourced(Strict):
    """What comes from somewhere; `NAME` alone is short for `{source: NAME}`."""

    @model_validator(mode="before")
    @classmethod
    def _spell_out(cls, value: Any) -> Any:
        return {"source": value} if isinstance(value, str) else value


class Model(Sourced):
    """The model to fine-tune; `model: NAME` is short for `model: {source: NAME}`."""

    source: Annotated[str, AfterValidator(_model_source)] = Field(description="asset:NAME, a folder, or a hub id.")
    revision: str | None = Field(None, description="Which version of a hub model.")
    dtype: Literal["as_saved", "float32", "bfloat16", "float16"] = Field(
        "as_saved", description="The number format of the weights; adapters are float32 all the same."
    )


class Split(Strict):
    """How the examples are divided; a share is drawn at random, the same share of every class."""

    train: str = Field("train", description="The named part of the source to train on, where it has parts.")
    validation: ShareOrSource = Field(0.15, description="Chooses checkpoints: a share, a file, or a named part.")
    test: ShareOrSource = Field(0.15, description="Measures the result: a share, a file, or a named part.")
    seed: int = Field(0, ge=0, description="Seed of the draw.")

    @model_validator(mode="after")
    def _leave_something(self) -> Self:
        shares = [share for share in (self.validation, self.test) if isinstance(share, float)]
        if sum(shares) >= 1:
            raise ValueError(f"validation and test take {sum(shares):g} of the examples and leave none to train on")
        return self


class Data(Sourced):
    """The examples; `data: NAME` is short for `data: {source: NAME}`."""

    source: DataSource = Field(description="asset:NAME, a csv, jsonl or parquet file, a folder, or a hub id.")
    subset: str | None = Field(None, description="Which configuration of a hub data set.")
    revision: str | None = Field(None, description="Which version of a hub data set.")
    split: Split = Split()


class Evaluate(Strict):
    """How sure the measured numbers are: percentile bootstrap over the test examples."""

    confidence: float = Field(0.95, gt=0, lt=1, description="Share of the resamples that an interval covers.")
    resamples: int = Field(2000, ge=1000, description="How often the test examples are drawn again.")
    seed: int = Field(0, ge=0, description="Seed of the draws.")
    forgetting: Data | None = Field(
        None,
        description="General text, on the test part of which perplexity is measured before and after: for language "
        "models with a column `text`, for seq2seq with the columns of the task.",
    )


class Track(Strict):
    """Where the curves go besides the run's own folder."""

    to: list[Literal["tensorboard", "wandb", "trackio", "mlflow"]] = Field(
        [], description="Trackers; each needs its package. TensorBoard writes into the run's folder."
    )
    project: str | None = Field(None, description="The tracker's project; the experiment's name if left out.")


def _checked_grid(method: Method) -> Method:
    runs(method)  # which refuses what is no option
    return method


class Experiment(Strict):
    """One experiment: a model, a task, data, and the methods to compare on them."""

    name: Name = Field(description="Names the folder of the results.")
    model: Model
    task: Annotated[Task, Choice(all_tasks)] = Field(description="What is learned, and from which columns.")
    data: Data
    methods: list[Annotated[Method, Choice(all_methods), AfterValidator(_checked_grid)]] = Field(
        min_length=1, description="What is compared. A method used twice needs a `name` to tell the two apart."
    )
    train: Train = Train()
    evaluate: Evaluate = Evaluate()
    track: Track = Track()

    @model_validator(mode="after")
    def _can_forget(self) -> Self:
        if self.evaluate.forgetting is not None and self.task.general() is None:
            raise ValueError(f"evaluate.forgetting: perplexity is no measure of {self.task.kind}; leave it out")
        return self

    @field_validator("methods")
    @classmethod
    def _tell_apart(cls, methods: list[Method]) -> list[Method]:
        different = {method.title: method for method in methods}.values()  # the same name is told by its line
        titles = Counter(run.title for method in different for run in runs(method))
        if twice := [title for title, number in titles.items() if number > 1]:
            raise ValueError(f"several runs would be called {', '.join(twice)}; give the methods a `name` each")
        return methods

    @property
    def runs(self) -> list[Run]:
        """All runs that the methods ask for."""
        return [run for method in self.methods for run in runs(method)]

    def settings(self, method: Method, data_hash: str, trial: bool = False) -> "Settings":
        """Everything that decides what one run's result will be."""
        train = self.train.with_changes(method.train)
        rate = train.learning_rate or method.learning_rate
        return Settings(
            task=self.task,
            model=self.model,
            data=data_hash,
            method=method,
            train=train.model_copy(update={"learning_rate": rate}),
            evaluate=self.evaluate,
            trial=trial,
        )


class Settings(Strict):
    """Everything that decides one method's result; two results may stand side by side if only the method differs."""

    model: Model
    task: Annotated[Task, Choice(all_tasks)]
    data: str
    """Fingerprint of the examples as divided."""
    method: Annotated[Method, Choice(all_methods)]
    train: Train
    evaluate: Evaluate
    trial: bool = False
    """Whether only the validation part is measured."""
