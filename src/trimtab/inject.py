"""The one place that edits a model: adapters put in, and taken out again.

Everything is found out and checked first; only then is the model touched, so that an error leaves it as it was.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from . import match, tie
from .blocks import BlockSite
from .config import AdapterConfig
from .errors import AdapterError, ConfigError, TargetError, TrimtabError, listing
from .held import Shared
from .layer import AdapterLayer
from .match import Place, adapter_layers
from .method import Method, Slot, method_of
from .replicate import replicate_layers
from .route import Router
from .shared import brings_shared, join_groups, make_shared
from .sites import ParameterSite, Site, is_quantized, site_of, site_type
from .watch import unwatch, watch
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
    followers: list[Place] = field(default_factory=list)  # tied layers that share its adapter

    @property
    def path(self) -> str:
        """The layer's path in the base model, or its parameter's."""
        return f"{self.place.name}.{self.parameter}" if self.parameter else self.place.name


@dataclass
class Request:
    """What is to be put in, and how."""

    cfg: AdapterConfig
    name: str
    method: Method
    empty: bool = False
    autocast: bool = True
    groups: dict[tuple[str, str], nn.Parameter] = field(default_factory=dict)  # what `join_groups` has found


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
    ranges = cfg.layer_replication
    undo = replicate_layers(model, ranges, any(switches(model))) if ranges else lambda: None
    try:
        match.resolve(model, cfg, request.method)
        mounts = plan(model, request, state_dict)
        tokens = plan_tokens(model, cfg)
        keeps = plan_modules_to_save(model, cfg)
        tie.check(model, cfg, request.method, [f for m in mounts for f in m.followers], keeps)
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
    put_modules_to_save(keeps, name, router, cfg.ensure_weight_tying)
    train_biases(model, request)
    watch(model, request, router)


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
    places, followers = tie.lead(model, cfg, places, method.tied)
    mounts: list[Mount] = []
    wrong: list[tuple[type[TrimtabError], str]] = []
    inner = [] if method.on_blocks else attention_outputs(places)
    wanted = [(p, "") for p in (*places, *inner)] + match.parameter_targets(model, cfg)
    width = getattr(getattr(model, "config", None), "hidden_size", None)
    first: dict[tuple[int, str], Mount] = {}
    for place, parameter in wanted:
        if same := first.get((id(place.module), parameter)):
            same.aliases.append(place)
            continue
        with noting(wrong, place.name):
            site = block_at(place, width, method) if method.on_blocks else site_at(place, parameter)
            mount = first[id(place.module), parameter] = Mount(place, site, cfg, {}, parameter)
            mounts.append(mount)
    if followers:
        mounts[0].followers = followers
    if not wrong:
        method.meet(model, cfg)
        method.prepare(cfg, {m.path: m.site for m in mounts})
    for mount in mounts:
        with noting(wrong, mount.place.name):
            if len(mount.site.shape) == 1 and not method.vectors:
                raise TargetError(
                    f"the weight of a {mount.site.kind} layer is a vector, and {cfg.kind} adapts matrices"
                )
            mount.cfg = cfg.at(mount.path)
            mount.slots = method.slots(mount.site, mount.cfg)
            if method.depends and not method.direct(mount.site, mount.cfg):
                raise TargetError(f"a {mount.site.kind} layer cannot show {method.depends} to an adapter")
    if wrong:
        kind = TargetError if any(k is TargetError for k, _ in wrong) else ConfigError
        raise kind(
            f"{len(wrong)} of {len(wanted)} targets cannot take {cfg.kind}: " + "; ".join(t for _, t in wrong[:8])
        )
    return mounts


@contextmanager
def noting(wrong: list[tuple[type[TrimtabError], str]], name: str) -> Iterator[None]:
    """Within it, an error of ours is noted, with the layer's name, and goes no further."""
    try:
        yield
    except TrimtabError as error:
        wrong.append((type(error), f"{name}: {error}"))


def attention_outputs(places: Sequence[Place]) -> list[Place]:
    """The output projections of the MultiheadAttention layers among these, adapted along with them."""
    outputs = []
    for place in places:
        layer = match.bare(place.module)
        if type(layer).__name__ == "MultiheadAttention":
            outputs.append(Place(f"{place.name}.out_proj", layer, "out_proj", layer.out_proj))  # type: ignore[arg-type]
    return outputs


def site_at(place: Place, parameter: str) -> Site:
    """The site of a layer, or of one of its parameters. Raises `TargetError` where there can be none."""
    module = place.module
    if isinstance(module, Wrapper):
        raise TargetError("is trained in full (`modules_to_save`) or by rows (`trainable_token_indices`) already")
    if parameter:
        sites = [layer.site for layer in _nest(module)]
        held = [s for s in sites if isinstance(s, ParameterSite) and s.local == parameter]
        return held[0] if held else ParameterSite(module, parameter)
    if isinstance(module, AdapterLayer) and module.site.whole:
        raise TargetError("has an adapter of the module as a whole already")
    return module.site if isinstance(module, AdapterLayer) else site_of(module)


def block_at(place: Place, width: int | None, method: Method) -> Site:
    """The site of a layer that computes row by row, or else of a module as a whole, as the method sees it."""
    module, kind, block = place.module, site_type(match.bare(place.module)), method.block or BlockSite
    if isinstance(module, AdapterLayer) and module.site.whole:
        if type(module.site) is not block:
            raise TargetError("has an adapter already that acts elsewhere in the module as a whole")
        return module.site
    if isinstance(module, Wrapper) or (kind is not None and kind.pointwise and not method.block):
        return site_at(place, "")
    return block(match.bare(module), width)


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
    found = tie.lead_modules(model, cfg, [p for p in places if p.name.endswith(tuple(cfg.modules_to_save))])
    if stored := [p.name for p in found if any(map(is_quantized, p.module.modules()))]:
        raise TargetError(f"{listing(stored)} cannot be trained in full (`modules_to_save`): quantised")
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
def mount_adapter(mount: Mount, request: Request, router: Router, shared: dict[str, Shared]) -> None:
    """Wrap the layer if it is not yet, and give it the adapter."""
    place, current = mount.place, mount.place.parent._modules[mount.place.key]
    layer = next((x for x in _nest(current) if x.site is mount.site), None)  # type: ignore[arg-type]
    if layer is None:
        if mount.parameter:
            mount.site = ParameterSite(current, mount.parameter)  # type: ignore[arg-type]
        layer = AdapterLayer(current, mount.site, mount.path, router)  # type: ignore[arg-type]
        for where in (place, *mount.aliases):
            where.parent._modules[where.key] = layer
    layer.add(request.name, request.method, mount.cfg, mount.slots, shared, request.empty, request.autocast)
    join_groups(layer, request.name, request.groups)
    adapter = layer.adapters[request.name]
    with torch.no_grad():
        if mount.site.device.type != "meta" and not (request.empty and brings_shared(mount.slots)):
            request.method.derive(adapter)
        if not request.empty or request.method.changes_base(mount.cfg):
            request.method.start(adapter)
    for follower in mount.followers:
        tie.follow(follower, request.name, layer)


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


def put_modules_to_save(places: Sequence[Place], name: str, router: Router, tied: bool = False) -> None:
    """Wrap modules that are trained in full, and give the adapter its copies; `tied`: of tied modules, one copy."""
    copies: dict[int, nn.Parameter] = {}
    for place in places:
        wrapper = put_module_to_save(place, name, router)
        if tied and (weight := getattr(wrapper.original_module, "weight", None)) is not None:
            twin: Any = wrapper.modules_to_save[name]
            twin.weight = copies.setdefault(id(weight), twin.weight)


def put_module_to_save(place: Place, name: str, router: Router) -> ModulesToSaveWrapper:
    """Wrap a module that is trained in full, and give the adapter its copy; returns the wrapper."""
    wrapper = place.parent._modules[place.key]
    if not isinstance(wrapper, ModulesToSaveWrapper):
        wrapper = ModulesToSaveWrapper(place.module, place.name, router)
        place.parent._modules[place.key] = wrapper
    wrapper.add(name)
    return wrapper


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


# take out
def replace(model: nn.Module, merge: bool) -> None:
    """Take every wrapper out of the model; the base layers stand where they stood. Merging is the caller's."""
    unwatch(model)
    for parent in list(model.modules()):
        for key, child in parent._modules.items():
            while isinstance(child, (AdapterLayer, Wrapper)):
                child = parent._modules[key] = _inner(child, merge)


def unwrapped(module: nn.Module) -> nn.Module:
    """The base model's own module that stands under any wrappers."""
    while isinstance(module, (AdapterLayer, Wrapper)):
        module = _inner(module, merge=False)
    return module


def _inner(wrapper: nn.Module, merge: bool) -> nn.Module:
    if isinstance(wrapper, ModulesToSaveWrapper):
        return wrapper.acting() if merge else wrapper.original_module
    if isinstance(wrapper, TrainableTokensWrapper):
        return wrapper.token_adapter
    return wrapper.base_layer  # type: ignore[return-value]
