"""Which modules a configuration means: names, regular expressions, "all-linear", layer indices, known defaults.

Paths are those of the base model as the user knows it: wrappers put in by earlier adapters do not show in them.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from .config import AdapterConfig, TaskType
from .errors import ConfigError, NoMatchingPeftModuleError, TargetError, listing, nearest, warn
from .layer import AdapterLayer
from .method import Method
from .sites import site_type
from .wrappers import Wrapper

ALL_LINEAR = "all-linear"
HEADS = ("score", "classifier", "qa_outputs")
"""Heads that a task class adds to `modules_to_save` whether or not the architecture calls its own so."""
LAYER_INDEX = r".*?\.[^.]*\.(\d+)\."


@dataclass
class Place:
    """One module of the base model: its name there, and where it stands now."""

    name: str
    parent: nn.Module
    key: str
    module: nn.Module


def modules(root: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Path and module of everything in a model but the inside of adapters; far faster than `named_modules`."""
    stack, seen = [("", root)], set()
    while stack:
        path, module = stack.pop()
        if id(module) in seen:
            continue
        seen.add(id(module))
        yield path, module
        inside = ("base_layer",) if isinstance(module, AdapterLayer) else tuple(module._modules)
        for key in reversed(inside):
            child = module._modules[key]
            if child is not None:
                stack.append((f"{path}.{key}" if path else key, child))


def adapter_layers(model: nn.Module) -> Iterator[AdapterLayer]:
    """The adapter layers of a model, those of token rows included."""
    return (m for _, m in modules(model) if isinstance(m, AdapterLayer))


def walk(root: nn.Module, name: str = "") -> Iterator[Place]:
    """Every module of the base model below `root`, also those inside adapter layers, never the adapters' own."""
    for key, child in root._modules.items():
        if child is None:
            continue
        path = f"{name}.{key}" if name else key
        yield Place(path, root, key, child)
        yield from _inside(child, path)


def _inside(module: nn.Module, name: str) -> Iterator[Place]:
    if isinstance(module, Wrapper):
        return
    if not isinstance(module, AdapterLayer):
        yield from walk(module, name)
        return
    base = module.base_layer
    if isinstance(base, AdapterLayer):
        yield Place(name, module, "base_layer", base)
    yield from _inside(base, name)


def ends_with(name: str, endings: Iterable[str]) -> bool:
    """Whether a path is one of these names or ends with `.` and one of them."""
    return any(name == e or name.endswith("." + e) for e in endings)


def hits(name: str, pattern: str | Sequence[str] | None) -> bool:
    """Whether a path is meant by a regular expression (the whole path) or a list of endings."""
    if pattern is None:
        return False
    if isinstance(pattern, str):
        return re.fullmatch(pattern, name) is not None
    return ends_with(name, pattern)


def in_layers(name: str, cfg: AdapterConfig) -> bool:
    """Whether a path lies in a layer that `layers_to_transform` names (True where the option is unset)."""
    wanted = cfg.layers_to_transform
    if wanted is None:
        return True
    patterns = [cfg.layers_pattern] if isinstance(cfg.layers_pattern, str) else cfg.layers_pattern
    tries = [rf".*\.{p}\.(\d+)\." for p in patterns] if patterns else [LAYER_INDEX]
    found = next((m for t in tries if (m := re.match(t, "." + name))), None)
    return found is not None and int(found.group(1)) in ([wanted] if isinstance(wanted, int) else wanted)


def model_type(model: nn.Module) -> str | None:
    """The architecture's name in Transformers, if the model has one."""
    config: Any = getattr(model, "config", None)
    return config.get("model_type") if isinstance(config, dict) else getattr(config, "model_type", None)


def resolve(model: nn.Module, cfg: AdapterConfig, method: Method) -> None:
    """Fill in `target_modules` where the user left it to us: the architecture's default, or all linear layers.

    Raises `ConfigError` when there is no default for the architecture.
    """
    method.fill(cfg, kind := model_type(model))
    if cfg.target_modules is None and not cfg.target_parameters:
        cfg.target_modules = method.find(model, cfg)
    if cfg.target_modules is None and not cfg.target_parameters:
        raise ConfigError(
            f"`target_modules` is unset, and {cfg.kind} has no default for architecture {kind!r}; "
            f'name the modules, or use "{ALL_LINEAR}"'
        )
    if isinstance(cfg.target_modules, str) and cfg.target_modules.lower() == ALL_LINEAR:
        cfg.target_modules = all_linear(model, cfg)


def all_linear(model: nn.Module, cfg: AdapterConfig) -> list[str]:
    """The shortest names that mean every linear layer except the output head, and nothing else."""
    places = list(walk(model))
    output = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None  # type: ignore[operator]
    heads = list(cfg.modules_to_save or []) + (list(HEADS) if cfg.task_type == TaskType.SEQ_CLS else [])
    own = {"out_proj"}  # read by its attention, never called

    def wanted(place: Place) -> bool:
        site = site_type(bare(place.module))
        inside = type(bare(place.parent)).__name__ == "MultiheadAttention" and place.key in own
        return (
            site is not None
            and site.kind == "linear"
            and bare(place.module) is not output
            and not inside
            and not ends_with(place.name, heads)
        )

    names = {p.name: wanted(p) for p in places}
    if not any(names.values()):
        raise NoMatchingPeftModuleError('`target_modules`="all-linear": the model has no linear layer besides its head')
    return sorted(shortest([n for n, w in names.items() if w], [n for n, w in names.items() if not w]))


def shortest(inside: Sequence[str], outside: Sequence[str]) -> set[str]:
    """The shortest endings that mean all of `inside` and nothing of `outside`."""
    taken = {".".join(o.split(".")[-n:]) for o in outside for n in range(1, o.count(".") + 2)}
    endings = set()
    for name in inside:
        parts = name.split(".")
        endings.add(next((e for n in range(1, len(parts)) if (e := ".".join(parts[-n:])) not in taken), name))
    return endings


def bare(module: nn.Module) -> nn.Module:
    """The base model's own module, where an adapter layer stands around it."""
    return module.get_base_layer() if isinstance(module, AdapterLayer) else module


def targets(model: nn.Module, cfg: AdapterConfig) -> list[Place]:
    """The places of the modules that a resolved configuration means.

    Raises `NoMatchingPeftModuleError`, naming the nearest modules there are, when there is none.
    """
    wanted = cfg.target_modules
    if wanted is None or wanted == []:
        return []
    places = [p for p in walk(model) if not (isinstance(p.module, AdapterLayer) and p.module.site.kind == "parameter")]
    named = [p for p in places if hits(p.name, wanted)]
    found = [p for p in named if not hits(p.name, cfg.exclude_modules) and in_layers(p.name, cfg)]
    if found:
        missing = [] if isinstance(wanted, str) else [w for w in wanted if not any(hits(p.name, [w]) for p in named)]
        if missing:
            warn(f"`target_modules`: nothing is called {listing(missing)}. {suggest(missing, places)}")
        return found[-cfg.topmost :] if cfg.topmost else found
    if named:
        raise NoMatchingPeftModuleError(
            f"`target_modules`={wanted!r} means {listing(p.name for p in named)}, but `exclude_modules`="
            f"{cfg.exclude_modules!r} and `layers_to_transform`={cfg.layers_to_transform!r} leave none of them"
        )
    raise NoMatchingPeftModuleError(f"Target modules {wanted!r} not found in the base model. {suggest(wanted, places)}")


def suggest(wanted: str | Sequence[str], there: Sequence[Place | str]) -> str:
    """A sentence that names what there is nearest to the wanted names."""
    names = [p if isinstance(p, str) else p.name for p in there]
    last = sorted({n.rpartition(".")[2] for n in names if not n.rpartition(".")[2].isdigit()})
    asked = re.findall(r"\w+", wanted) if isinstance(wanted, str) else wanted
    close = sorted({c for a in asked for c in nearest(a.rpartition(".")[2], last)})
    return f"Nearest: {listing(close)}." if close else f"It has {listing(last, 12)}."


def means(wanted: str, name: str) -> bool:
    """Whether a parameter's name is meant by its ending, or by a regular expression for the whole of it."""
    return ends_with(name, [wanted]) or re.fullmatch(wanted, name) is not None


def parameter_targets(model: nn.Module, cfg: AdapterConfig) -> list[tuple[Place, str]]:
    """Module and parameter name of each bare parameter that `target_parameters` means, in the model's order.

    Raises `NoMatchingPeftModuleError` when one of the names means nothing.
    """
    wanted = [cfg.target_parameters] if isinstance(cfg.target_parameters, str) else cfg.target_parameters
    if not wanted:
        return []
    found: list[tuple[Place, str]] = []
    names: list[str] = []
    for place in walk(model):
        if isinstance(place.parent, AdapterLayer):
            continue
        for key in bare(place.module)._parameters:
            name = f"{place.name}.{key}"
            names.append(name)
            if any(means(w, name) for w in wanted) and not hits(name, cfg.exclude_modules) and in_layers(name, cfg):
                found.append((place, key))
    if missing := [w for w in wanted if not any(means(w, n) for n in names)]:
        raise NoMatchingPeftModuleError(
            f"`target_parameters`: no parameter is called {listing(missing)}. {suggest(missing, names)} "
            "(a parameter of the top module itself cannot be adapted)"
        )
    return found


def check_inside_attention(places: Sequence[Place]) -> None:
    """Refuse `out_proj` of a MultiheadAttention on its own: its attention reads the weight and never calls it."""
    wrong = [p.name for p in places if p.key == "out_proj" and type(p.parent).__name__ == "MultiheadAttention"]
    if wrong:
        raise TargetError(f"{listing(wrong)} would have no effect on its own; target the attention module instead")
