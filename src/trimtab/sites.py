"""Sites: a layer of the base model seen as `y = op(x, W) + b`, whatever its class, layout or storage.

`W` is canonical: (out, in, *kernel). Layouts are turned here and nowhere else. A new kind of layer, or of storage,
registers its `Site` and every method works on it.
"""

import math
from collections.abc import Callable
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import offload
from .errors import MergeError, TargetError, listing

Snapshot = dict[str, Tensor]
PLAIN = (torch.float32, torch.bfloat16, torch.float16, torch.float64)

SITES: dict[str, type["Site"]] = {}
"""Site by the qualified class name of the layer, or of its weight where the storage is a class of tensors."""


class Site:
    """The plain case, `nn.Linear`: weight (out, in) and optional bias, both floating point."""

    kind: ClassVar[str] = "linear"
    layers: ClassVar[tuple[str, ...]] = ("torch.nn.modules.linear.Linear",)
    pointwise: ClassVar[bool] = True
    """Whether `op` reads its first argument only, so that an adapter may act on input and output instead of on `W`."""
    whole: ClassVar[str] = ""
    """Of a module without a weight of its own: what the effect of an adapter depends on. "" where there is a weight."""
    first: str = "input"
    """The name of its first argument."""
    codec: str = ""
    """The storage of the weight; "" for plain tensors."""
    refusal: str = ""
    """Why no weight can be written, where the storage does not allow it; to stand after "because"."""
    biased: ClassVar[str] = "bias"
    """The name of the bias in the layer, where it has one."""
    gain: ClassVar[float] = 1.0
    """A factor on the scale of additive updates at this kind of site."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name in cls.__dict__.get("layers", ()):
            SITES[name] = cls

    def __init__(self, layer: nn.Module, parameter: str = "weight") -> None:
        self.layer: Any = layer
        self.parameter = parameter
        self.tied = False
        self.shape = self.size()
        self.measure()

    def size(self) -> tuple[int, ...]:
        """The canonical weight's shape."""
        return tuple(self.weight().shape)

    def measure(self) -> None:
        """Find the sizes of output and input, `out` and `inp`, from the shape."""
        self.out, self.inp = self.shape[0], self.shape[1]

    @property
    def kept(self) -> Tensor:
        """The weight as it is stored."""
        return offload.get(self.layer, self.parameter)

    # the weight
    def weight(self) -> Tensor:
        """The canonical weight, differentiable where the stored one is."""
        return self.kept

    @property
    def bias(self) -> Tensor | None:
        """The bias (out,), if the layer has one."""
        return offload.get(self.layer, self.biased)

    @property
    def device(self) -> torch.device:
        """Where the layer computes."""
        held = getattr(self.layer, self.parameter)
        hook = offload.hook_of(self.layer) if held.is_meta else None
        return held.device if hook is None else torch.device(hook.execution_device)

    @property
    def dtype(self) -> torch.dtype:
        """The number format of the weight as the layer computes with it."""
        return self.weight().dtype

    def owned(self) -> dict[str, Tensor]:
        """The stored tensors that a merge replaces, by their name in the layer."""
        return {k: v for k in (self.parameter, self.biased) if (v := offload.get(self.layer, k)) is not None}

    def snapshot(self) -> Snapshot:
        """The stored tensors as they are; `restore` brings exactly these back, tied parameters included."""
        return dict(self.owned())

    def restore(self, old: Snapshot) -> None:
        """Put back what `snapshot` returned."""
        for key, tensor in old.items():
            offload.put(self.layer, key, tensor)

    def write(self, w: Tensor, b: Tensor | None = None) -> None:
        """Store a canonical weight, and a bias, as new tensors: what held the old ones is not touched.

        Raises `MergeError` when the shape is not that of the layer.
        """
        if tuple(w.shape) != self.shape:
            raise MergeError(f"a weight of shape {tuple(w.shape)} does not fit a layer whose weight is {self.shape}")
        self._set(self.parameter, self.stored(w))
        if b is not None:
            self._set(self.biased, b)

    def stored(self, w: Tensor) -> Tensor:
        """A canonical tensor in the layout of the layer."""
        return w

    def plain(self, w: Tensor, b: Tensor | None = None) -> nn.Module:
        """A layer that holds a canonical weight, and a bias, as ordinary tensors, to stand in this one's place."""
        self.write(w, b)
        return self.layer

    def _set(self, key: str, value: Tensor) -> None:
        old = getattr(self.layer, key)
        new = nn.Parameter(value.detach().to(old.dtype).contiguous(), requires_grad=old.requires_grad)
        offload.put(self.layer, key, new)

    @property
    def matrix(self) -> tuple[int, ...]:
        """The weight's shape as a matrix (out, columns), a kernel flattened into the columns; a stack for experts."""
        return self.shape

    def add(self, w: Tensor, update: Tensor) -> Tensor:
        """`w + update`; of a grouped convolution either may be in its own shape or in that of the full weight."""
        return w + update

    # the operation
    def op(self, x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
        """What the layer computes with weight `w` and bias `b`."""
        return F.linear(x, w, b)

    def up(self, h: Tensor, b: Tensor) -> Tensor:
        """Map features `h` with `b` (out, r) position by position; `op` is the way down."""
        return F.linear(h, b)

    def call(self, w: Tensor, b: Tensor | None, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The layer's own forward, with weight `w` and bias `b` in place of its own."""
        return self.op(x, w, b)

    def holder(self, shape: tuple[int, ...]) -> nn.Module:
        """A module with a `weight` of this shape and no bias, of the class that other people's code expects there."""
        if len(shape) == 2:
            return bare_linear(shape[1], shape[0])
        module = nn.Module()
        module.register_parameter("weight", None)
        return module


def bare_linear(inp: int, out: int) -> nn.Linear:
    """An `nn.Linear` without tensors: its own initialisation would cost most of the time of an injection."""
    module = nn.Linear.__new__(nn.Linear)
    nn.Module.__init__(module)
    module.in_features, module.out_features = inp, out
    module.register_parameter("weight", None)
    module.register_parameter("bias", None)
    return module


SITES["torch.nn.modules.linear.Linear"] = Site


class AttentionOutputSite(Site):
    """The output projection of `nn.MultiheadAttention`.

    Hugging Face PEFT (0.21) adds a LoRA update there twice, in training, inference and merging alike. Adapter files
    mean that, so `gain` doubles the scale of methods that add an update.
    """

    layers = ("torch.nn.modules.linear.NonDynamicallyQuantizableLinear",)
    gain = 2.0


class Conv1DSite(Site):
    """GPT-2's `Conv1D`: a linear layer that stores (in, out)."""

    layers = ("transformers.pytorch_utils.Conv1D",)

    def weight(self) -> Tensor:
        return self.kept.T

    def stored(self, w: Tensor) -> Tensor:
        return w.T


class EmbeddingSite(Site):
    """`nn.Embedding`, stored (num, dim), read as a linear layer from one-hot rows: out = dim, in = num."""

    kind = "embedding"
    layers: ClassVar[tuple[str, ...]] = ("torch.nn.modules.sparse.Embedding",)

    def weight(self) -> Tensor:
        return self.kept.T

    def stored(self, w: Tensor) -> Tensor:
        return w.T

    def op(self, x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
        y = self.scaled(F.embedding(x, w.T, getattr(self.layer, "padding_idx", None)))
        return y if b is None else y + b

    def scaled(self, y: Tensor) -> Tensor:
        """Looked-up rows as the layer returns them."""
        return scaled(self.layer, y)


def scaled(embedding: nn.Module, y: Tensor) -> Tensor:
    """Looked-up rows as an embedding returns them: some architectures (Gemma) multiply inside it."""
    scale: Any = getattr(embedding, "embed_scale", None)
    return y if scale is None else y * (scale.to(y.dtype) if isinstance(scale, Tensor) else scale)


class ConvSite(Site):
    """`nn.Conv1d/2d/3d`: weight (out, in / groups, *kernel)."""

    kind = "conv"
    layers = tuple(f"torch.nn.modules.conv.Conv{n}d" for n in (1, 2, 3))

    def __init__(self, layer: nn.Module, parameter: str = "weight") -> None:
        super().__init__(layer, parameter)
        self.groups: int = self.layer.groups
        self.inp = self.shape[1] * self.groups
        self._conv: Callable[..., Tensor] = (F.conv1d, F.conv2d, F.conv3d)[len(self.shape) - 3]

    def op(self, x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
        layer = self.layer
        padding = layer.padding
        if layer.padding_mode != "zeros":
            x = F.pad(x, layer._reversed_padding_repeated_twice, mode=layer.padding_mode)
            padding = 0
        return self._conv(x, w, b, layer.stride, padding, layer.dilation, self.inp // w.shape[1])

    def up(self, h: Tensor, b: Tensor) -> Tensor:
        return self._conv(h, b, groups=h.shape[1 - b.dim()] // b.shape[1])

    @property
    def matrix(self) -> tuple[int, ...]:
        return self.shape[0], math.prod(self.shape[1:])

    def add(self, w: Tensor, update: Tensor) -> Tensor:
        if w.shape[1] == update.shape[1]:
            return w + update
        return self.dense(w) + update if w.shape[1] < update.shape[1] else w + self.dense(update)

    def dense(self, w: Tensor) -> Tensor:
        """A grouped weight (out, in / groups, ...) as the full one it stands for, zero between groups."""
        if self.groups == 1:
            return w
        rows, per = w.shape[0] // self.groups, w.shape[1]
        full = w.new_zeros(w.shape[0], per * self.groups, *w.shape[2:])
        for g in range(self.groups):
            full[g * rows : (g + 1) * rows, g * per : (g + 1) * per] = w[g * rows : (g + 1) * rows]
        return full

    def holder(self, shape: tuple[int, ...]) -> nn.Module:
        if len(shape) < 3:
            return super().holder(shape)
        layer: Any = self.layer
        options = {"stride": layer.stride, "padding": layer.padding, "dilation": layer.dilation}
        base = getattr(nn, f"Conv{len(shape) - 2}d")
        if shape[2:] == self.shape[2:] and shape[1] == self.inp:
            return base(shape[1], shape[0], shape[2:], bias=False, device="meta", **options)
        groups = self.groups if math.prod(shape[2:]) == 1 and shape[0] == self.out else 1
        return base(shape[1] * groups, shape[0], shape[2:], bias=False, device="meta", groups=groups)


class FunctionalSite(Site):
    """A layer whose forward reads its parameters in its own way: it runs as it is, with the adapted ones put in."""

    pointwise = False

    def call(self, w: Tensor, b: Tensor | None, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return torch.func.functional_call(self.layer, self.swapped(w, b), (x, *args), kwargs)

    def swapped(self, w: Tensor, b: Tensor | None) -> dict[str, Tensor]:
        """The parameters to put in, by their path in the layer."""
        return {self.parameter: self.stored(w)} | ({} if b is None else {self.biased: b})


class NormSite(FunctionalSite):
    """A normalisation: its weight (features,) scales what it returns, its bias (features,) shifts it."""

    kind = "norm"
    pointwise = True
    layers = tuple(f"torch.nn.modules.normalization.{n}" for n in ("LayerNorm", "RMSNorm", "GroupNorm"))

    def __init__(self, layer: nn.Module, parameter: str = "weight") -> None:
        if getattr(layer, "weight", None) is None:
            raise TargetError(f"this {type(layer).__name__} has no weight to adapt")
        super().__init__(layer, parameter)

    def measure(self) -> None:
        self.out = self.inp = math.prod(self.shape)


class AttentionSite(FunctionalSite):
    """`nn.MultiheadAttention`: the weight is its joint input projection (3 * dim, dim); `out_proj` is its own site."""

    kind = "attention"
    layers = ("torch.nn.modules.activation.MultiheadAttention",)
    biased = "in_proj_bias"

    def __init__(self, layer: nn.Module, parameter: str = "in_proj_weight") -> None:
        if layer.in_proj_weight is None:
            raise TargetError("MultiheadAttention with its own `kdim` or `vdim` has no joint input projection to adapt")
        super().__init__(layer, "in_proj_weight")

    def weight(self) -> Tensor:
        return self.kept

    def swapped(self, w: Tensor, b: Tensor | None) -> dict[str, Tensor]:
        found, inner = super().swapped(w, b), self.layer.out_proj
        if hasattr(inner, "effective"):
            weight, bias = inner.effective()
            found |= {"out_proj.base_layer.weight": weight}
            found |= {} if bias is None else {"out_proj.base_layer.bias": bias}
        return found


class ParameterSite(FunctionalSite):
    """One bare parameter of a module: (out, in), or a stack of experts (experts, out, in)."""

    kind = "parameter"
    layers = ()

    def __init__(self, layer: nn.Module, parameter: str = "weight") -> None:
        self.owner: Any = layer
        self.local, path = parameter, parameter
        while hasattr(self.owner, "base_layer"):
            self.owner, path = self.owner.base_layer, f"base_layer.{path}"
        if is_quantized(self.owner):
            raise TargetError(f"parameter {parameter!r} is quantised; name its layer in `target_modules` instead")
        super().__init__(layer, path)
        if len(self.shape) not in (2, 3):
            raise TargetError(f"parameter {parameter!r} has shape {self.shape}; only 2 or 3 dimensions can be adapted")
        self.experts = self.shape[0] if len(self.shape) == 3 else 1
        self.out, self.inp = self.shape[-2:]

    def weight(self) -> Tensor:
        return getattr(self.owner, self.local)

    @property
    def bias(self) -> Tensor | None:
        return None

    def owned(self) -> dict[str, Tensor]:
        return {self.local: self.weight()}

    def restore(self, old: Snapshot) -> None:
        setattr(self.owner, self.local, old[self.local])

    def _set(self, key: str, value: Tensor) -> None:
        old = self.weight()
        setattr(self.owner, self.local, nn.Parameter(value.detach().to(old.dtype).contiguous(), old.requires_grad))


def site_type(layer: nn.Module) -> type[Site] | None:
    """The registered site for a layer, found along the class hierarchy of its weight or its own, or None."""
    weight = type(layer._parameters.get("weight"))
    for cls in (*(weight.__mro__ if weight is not nn.Parameter else ()), *type(layer).__mro__):
        if site := SITES.get(f"{cls.__module__}.{cls.__qualname__}"):
            return site
    # Every architecture of Transformers has a class of its own for the same normalisation.
    return NormSite if type(layer).__name__.endswith("Norm") and "weight" in layer._parameters else None


def is_quantized(layer: nn.Module) -> bool:
    """Whether a layer's weight is stored in a codec."""
    site = site_type(layer)
    return site is not None and bool(site.codec)


def site_of(layer: nn.Module) -> Site:
    """The site of a layer. Raises `TargetError` for a class that none is registered for."""
    site = site_type(layer)
    if site is None:
        known = sorted({name.rpartition(".")[2] for name in SITES})
        raise TargetError(f"a {type(layer).__name__} carries no adapter; layers that do: {listing(known, 12)}")
    made = site(layer)
    if not made.codec and made.dtype not in PLAIN:
        raise TargetError(
            f"a {type(layer).__name__} whose weight is stored as {made.dtype} is quantised in a way that no codec knows"
        )
    return made
