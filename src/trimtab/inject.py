"""The one place that edits a model: adapters put in, and taken out again.

Everything is found out and checked first; only then is the model touched, so that an error leaves it as it was.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from . import match
from .config import AdapterConfig
from .errors import AdapterError, ConfigError, TargetError, TrimtabError, listing
from .layer import AdapterLayer, Shared
from .match import Place
from .method import Method, Slot, method_of
from .route import Router
from .sites import ParameterSite, Site, site_of
from .wrappers import TOKEN_ROWS, ModulesToSaveWrapper, TrainableTokensWrapper, Wrapper


@dataclass
class Mount:
    """One adapter-to-be on one layer, checked and ready."""

    place: Place
    site: Site
    cfg: Any
    slots: dict[str, Slot]
    parameter: str = ""
    aliases: list[Place] = field(default_factory=list)  # other places where the same module stands


@dataclass
class Request:
    """What is to be put in, and how."""

    cfg: AdapterConfig
    name: str
    method: Method
    empty: bool = False
    autocast: bool = True


def adapter_layers(model: nn.Module) -> Iterator[AdapterLayer]:
    """The adapter layers of a model, those of token rows included."""
    return (m for _, m in match.modules(model) if isinstance(m, AdapterLayer))


def switches(model: nn.Module) -> Iterator[AdapterLayer | ModulesToSaveWrapper]:
    """Everything in a model that adapters are switched in."""
    return (m for _, m in match.modules(model) if isinstance(m, (AdapterLayer, ModulesToSaveWrapper)))


def router_of(model: nn.Module) -> Router:
    """The router that the model's adapter layers share, or a new one."""
    return next((m.router for m in switches(model)), None) or Router()


def inject(
    model: nn.Module,
    cfg: AdapterConfig,
    name: str,
    *,
    empty: bool = False,
    autocast: bool = True,
    state_dict: Mapping[str, Tensor] | None = None,
) -> None:
    """Put adapter `name` into `model`, in place, frozen base and all. Targets are resolved into `cfg`.

    `state_dict`: adapt only the modules that these tensors belong to. Raises `ConfigError`, `TargetError` or
    `AdapterError` before anything is changed.
    """
    check_name(model, name)
    request = Request(cfg, name, method_of(cfg), empty, autocast)
    undo = replicate_layers(model, cfg.layer_replication) if cfg.layer_replication else lambda: None
    try:
        match.resolve(model, cfg, request.method)
        mounts = plan(model, request, state_dict)
        tokens = plan_tokens(model, cfg)
        keeps = plan_modules_to_save(model, cfg)
        if not mounts and not tokens and not keeps:
            raise ConfigError(f"{type(cfg).__name__} adapts nothing: no targets, tokens or modules to save are named")
    except BaseException:
        undo()
        raise

    router = router_of(model)
    if not any(switches(model)):
        model.requires_grad_(False)
    shared = make_shared(model, request, mounts)
    for mount in mounts:
        mount_adapter(mount, request, router, shared)
    put_tokens(tokens, request, router)
    for place in keeps:
        put_module_to_save(place, name, router)
    train_biases(model, request)


def check_name(model: nn.Module, name: str) -> None:
    """Refuse an adapter name that is taken, or that would collide with the names of tensors."""
    if any(name in (m.adapters if isinstance(m, AdapterLayer) else m.modules_to_save) for m in switches(model)):
        raise AdapterError(f"the model already has an adapter {name!r}; choose another name or delete it first")
    if (
        not name
        or "." in name
        or name == "__base__"
        or any(hasattr(d, name) for d in (nn.ModuleDict(), nn.ParameterDict()))
    ):
        raise AdapterError(
            f"an adapter cannot be called {name!r}: names are not empty, hold no '.', are neither '__base__' nor an "
            "attribute of torch's modules"
        )


# plan: nothing is changed here
def plan(model: nn.Module, request: Request, state_dict: Mapping[str, Tensor] | None) -> list[Mount]:
    """Every layer the configuration means, with its site and tensors. All that is wrong is raised at once."""
    cfg, method = request.cfg, request.method
    places = match.targets(model, cfg)
    if state_dict is not None:
        places = [p for p in places if any(f"{p.name}.{method.prefix}" in key for key in state_dict)]
    match.check_inside_attention(places)
    mounts, wrong = [], []
    wanted = [(p, "") for p in (*places, *attention_outputs(places))] + match.parameter_targets(model, cfg)
    first: dict[tuple[int, str], Mount] = {}
    for place, parameter in wanted:
        if same := first.get((id(place.module), parameter)):
            same.aliases.append(place)
            continue
        try:
            mount = first[id(place.module), parameter] = make_mount(place, parameter, request)
            mounts.append(mount)
        except TrimtabError as error:
            wrong.append((type(error), f"{place.name}: {error}"))
    if wrong:
        kind = TargetError if any(k is TargetError for k, _ in wrong) else ConfigError
        raise kind(
            f"{len(wrong)} of {len(wanted)} targets cannot take {cfg.kind}: " + "; ".join(t for _, t in wrong[:8])
        )
    method.prepare(cfg, {m.place.name: m.site for m in mounts})
    return mounts


def attention_outputs(places: Sequence[Place]) -> list[Place]:
    """The output projections of the MultiheadAttention layers among these, adapted along with them."""
    outputs = []
    for place in places:
        layer = match.bare(place.module)
        if type(layer).__name__ == "MultiheadAttention":
            outputs.append(Place(f"{place.name}.out_proj", layer, "out_proj", layer.out_proj))  # type: ignore[arg-type]
    return outputs


def make_mount(place: Place, parameter: str, request: Request) -> Mount:
    """One layer, or one of its parameters, made ready. Raises `TargetError` or `ConfigError` where it cannot be."""
    module = place.module
    name = f"{place.name}.{parameter}" if parameter else place.name
    if isinstance(module, Wrapper):
        raise TargetError("is trained in full (`modules_to_save`) or by rows (`trainable_token_indices`) already")
    if parameter:
        sites = [layer.site for layer in _nest(module)]
        held = [s for s in sites if isinstance(s, ParameterSite) and s.local == parameter]
        site: Site = held[0] if held else ParameterSite(module, parameter)
    else:
        site = module.site if isinstance(module, AdapterLayer) else site_of(module)
    cfg = request.cfg.at(name)
    return Mount(place, site, cfg, request.method.slots(site, cfg), parameter)


def _nest(module: nn.Module) -> Iterator[AdapterLayer]:
    while isinstance(module, AdapterLayer):
        yield module
        module = module.base_layer


def plan_modules_to_save(model: nn.Module, cfg: AdapterConfig) -> list[Place]:
    """The modules to be trained in full. Raises `TargetError` for a name that means none."""
    if not cfg.modules_to_save:
        return []
    places = list(match.walk(model))
    named = [w for w in cfg.modules_to_save if w not in match.HEADS]
    if missing := [w for w in named if not any(p.name.endswith(w) for p in places)]:
        raise TargetError(
            f"`modules_to_save`: no module is called {listing(missing)}. {match.suggest(missing, places)}"
        )
    found = [p for p in places if p.name.endswith(tuple(cfg.modules_to_save))]
    if both := [p.name for p in found if isinstance(p.module, AdapterLayer)]:
        raise TargetError(
            f"{listing(both)} cannot be trained in full (`modules_to_save`): an adapter stands there already"
        )
    return found


def plan_tokens(model: nn.Module, cfg: AdapterConfig) -> list[tuple[Place, tuple[int, ...], bool]]:
    """Place, rows, and whether it is an output layer tied to an embedding, of every layer with trained rows."""
    wanted = cfg.trainable_token_indices
    if not wanted:
        return []
    places = list(match.walk(model))
    inputs = model.get_input_embeddings() if hasattr(model, "get_input_embeddings") else None  # type: ignore[operator]
    if not isinstance(wanted, dict):
        source = next((p for p in places if p.module is inputs or match.bare(p.module) is inputs), None)
        if source is None:
            raise TargetError(
                "`trainable_token_indices` as a list needs a model that tells its input embedding; give {name: indices}"
            )
        wanted = {source.name: wanted}
    found: list[tuple[Place, tuple[int, ...], bool]] = []
    for key, indices in wanted.items():
        hit = [p for p in places if match.ends_with(p.name, [key])]
        if not hit:
            raise TargetError(f"`trainable_token_indices`: no module is called {key!r}. {match.suggest([key], places)}")
        found += [(p, tuple(indices), False) for p in hit]
    for place, indices, _ in list(found):
        weight = getattr(place.module, "weight", None)
        tied = [
            p
            for p in places
            if weight is not None and p.module is not place.module and getattr(p.module, "weight", None) is weight
        ]
        found += [(p, indices, True) for p in tied if all(p.module is not q.module for q, _, _ in found)]
    for place, indices, _ in found:
        if isinstance(place.module, AdapterLayer) or match.hits(place.name, cfg.target_modules):
            raise TargetError(
                f"{place.name!r} is both a target of the adapter and in `trainable_token_indices`; choose one"
            )
        if not isinstance(place.module, Wrapper):
            TOKEN_ROWS.slots(site_of(place.module), indices)
    return found


# edit: nothing is checked here
def make_shared(model: nn.Module, request: Request, mounts: Sequence[Mount]) -> dict[str, Shared]:
    """The tensors all layers read, by slot name: the model's containers, or new ones, with this adapter's in them."""
    shapes: dict[str, tuple[int, ...]] = {}
    for slot in (s for m in mounts for s in m.slots.values() if s.shared):
        shapes[slot.name] = tuple(map(max, shapes.get(slot.name, slot.shape), slot.shape))
    if not shapes:
        return {}
    held = {k: m for layer in adapter_layers(model) for k, m in layer._modules.items() if isinstance(m, Shared)}
    device, dtype = mounts[0].site.device, mounts[0].site.dtype
    half = dtype in (torch.bfloat16, torch.float16)
    for key, start in request.method.shared(shapes, request.cfg).items():
        start = start.to(device if device.type != "meta" else "cpu", dtype)  # rounded first: files count on these bits
        held.setdefault(key, Shared())[request.name] = start.float() if half and request.autocast else start
    return held


def mount_adapter(mount: Mount, request: Request, router: Router, shared: dict[str, Shared]) -> None:
    """Wrap the layer if it is not yet, and give it the adapter."""
    place, current = mount.place, mount.place.parent._modules[mount.place.key]
    layer = next((x for x in _nest(current) if x.site is mount.site), None)  # type: ignore[arg-type]
    if layer is None:
        if mount.parameter:
            mount.site = ParameterSite(current, mount.parameter)  # type: ignore[arg-type]
        path = f"{place.name}.{mount.parameter}" if mount.parameter else place.name
        layer = AdapterLayer(current, mount.site, path, router)  # type: ignore[arg-type]
        for where in (place, *mount.aliases):
            where.parent._modules[where.key] = layer
    layer.add(request.name, request.method, mount.cfg, mount.slots, shared, request.empty, request.autocast)
    if not request.empty or request.method.changes_base(mount.cfg):
        with torch.no_grad():
            request.method.start(layer.adapters[request.name])


def put_tokens(tokens: Sequence[tuple[Place, tuple[int, ...], bool]], request: Request, router: Router) -> None:
    """Give layers their trained rows; a tied output layer reads the very same tensor."""
    source: AdapterLayer | None = None
    for place, indices, tied in tokens:
        wrapper = place.parent._modules[place.key]
        if not isinstance(wrapper, TrainableTokensWrapper):
            layer = AdapterLayer(place.module, site_of(place.module), place.name, router)
            wrapper = place.parent._modules[place.key] = TrainableTokensWrapper(layer)
        layer = wrapper.token_adapter
        if tied and source is not None:
            layer.add_module("trainable_tokens_delta", source.trainable_tokens_delta)
            layer.follows = True
        layer.add(
            request.name,
            TOKEN_ROWS,
            indices,
            TOKEN_ROWS.slots(layer.site, indices),
            {},
            request.empty,
            request.autocast,
        )
        source = source if tied else layer


def put_module_to_save(place: Place, name: str, router: Router) -> None:
    """Wrap a module that is trained in full, and give the adapter its copy."""
    wrapper = place.parent._modules[place.key]
    if not isinstance(wrapper, ModulesToSaveWrapper):
        wrapper = ModulesToSaveWrapper(place.module, place.name, router)
        place.parent._modules[place.key] = wrapper
    wrapper.add(name)


def biases(model: nn.Module, cfg: AdapterConfig) -> dict[str, nn.Parameter]:
    """The biases of the base model that a configuration trains, by their path in `model`."""
    if cfg.bias == "none":
        return {}
    own = (
        [f"{path}." for path, m in model.named_modules() if isinstance(m, AdapterLayer)] if cfg.bias != "all" else [""]
    )
    ours = tuple({s.name for layer in adapter_layers(model) for a in layer.adapters.values() for s in a.slots.values()})
    found = {}
    for path, parameter in model.named_parameters():
        parts = path.split(".")
        if any(o in parts for o in (*ours, "modules_to_save", "original_module")):
            continue  # of an adapter, or of a module that is trained in full and saved so
        if parts[-1] == "bias" and any(path.startswith(o) for o in own):
            found[path] = parameter
    return found


def train_biases(model: nn.Module, request: Request) -> None:
    """Unfreeze the biases that the configuration trains."""
    for parameter in biases(model, request.cfg).values():
        parameter.requires_grad_(not request.cfg.inference_mode)


def replicate_layers(model: nn.Module, ranges: Sequence[Sequence[int]]) -> Callable[[], None]:
    """Stack ranges of the model's layers, in place: the copies share the weights, each can have adapters of its own.

    `ranges` are (start, end) pairs over the list of layers, end exclusive. Returns what takes it back. Raises
    `ConfigError` where there is no one list of layers or a range leaves it, or where adapters stand in the model and
    its layers were not stacked so for them.
    """
    if getattr(model, "replicated_layers", None) == ranges:
        return lambda: None
    if any(switches(model)):
        raise ConfigError(f"`layer_replication`={ranges} would restack layers that hold adapters; load the base again")
    lists = [(p, p.module) for p in match.walk(model) if isinstance(p.module, nn.ModuleList) and len(p.module)]
    top = [(p, m) for p, m in lists if not any(p.name.startswith(q.name + ".") for q, _ in lists)]
    if len(top) != 1:
        raise ConfigError(
            "`layer_replication` needs a model with one list of layers; "
            f"this one has {listing(p.name for p, _ in top) or 'none'}"
        )
    place, layers = top[0]
    if wrong := [list(r) for r in ranges if len(r) != 2 or not 0 <= r[0] < r[1] <= len(layers)]:
        raise ConfigError(f"`layer_replication`: {listing(wrong)} are not ranges in a list of {len(layers)} layers")
    stacked = nn.ModuleList()
    for start, end in ranges:
        for i in range(start, end):
            shared = {id(t): t for t in (*layers[i].parameters(), *layers[i].buffers())}
            stacked.append(copy.deepcopy(layers[i], shared))
    for index, layer in enumerate(stacked):
        for module in layer.modules():
            if hasattr(module, "layer_idx"):
                setattr(module, "layer_idx", index)  # noqa: B010
    config: Any = getattr(model, "config", None)

    def put(these: nn.Module, count: int) -> None:
        place.parent._modules[place.key] = these
        if hasattr(config, "num_hidden_layers"):
            config.num_hidden_layers = count

    def undo() -> None:
        put(layers, len(layers))
        del model.replicated_layers

    put(stacked, len(stacked))
    model.replicated_layers = ranges  # type: ignore[assignment]
    return undo


# take out
def replace(model: nn.Module, merge: bool) -> None:
    """Take every wrapper out of the model; the base layers stand where they stood. Merging is the caller's."""
    for parent in list(model.modules()):
        for key, child in parent._modules.items():
            while isinstance(child, (AdapterLayer, Wrapper)):
                child = parent._modules[key] = _inner(child, merge)


def _inner(wrapper: nn.Module, merge: bool) -> nn.Module:
    if isinstance(wrapper, ModulesToSaveWrapper):
        return wrapper.acting() if merge else wrapper.original_module
    if isinstance(wrapper, TrainableTokensWrapper):
        return wrapper.token_adapter
    return wrapper.base_layer  # type: ignore[return-value]
