"""A trained adapter whose start changed the base, as an ordinary one of the base as it was.

W_rest + s B A = W + s (B A - B0 A0), where B0 and A0 are what it began with: an adapter of twice the rank.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .errors import AdapterFileError, ConversionError, listing
from .files import find
from .fingerprint import METADATA_KEY
from .fingerprint import load as load_fingerprint
from .method import Adapter, method_of
from .save import Contents, read
from .state import WEIGHTS_NAME, entries

if TYPE_CHECKING:
    from .model import PeftModel

OPTION = "`path_initial_model_for_weight_conversion`"


def from_start(model: "PeftModel", name: str, saved: Contents, initial: str | Path) -> Contents:
    """What a file is to hold of an adapter so that it fits the base as it was before the adapter's start changed it.

    `initial`: folder or hub repository of the adapter as it began. Raises `ConversionError` for an adapter of which
    there is no such form, `AdapterFileError` when `initial` holds another adapter.
    """
    cfg: Any = saved.cfg
    method = None if cfg.is_prompt_learning else method_of(cfg)
    if method is None or not method.product:
        kind = cfg.kind if method is None else type(method).__name__
        raise ConversionError(f"{OPTION}: {name!r} is of {kind}, and only updates B A can be written so")
    doubled = method.doubled(cfg)
    held = {k: e.owner for k, e in entries(model.base_model, name, cfg, "base_model.").items() if e.owner is not None}
    if bound := [a for a, _ in held.values() if a.depends]:
        raise ConversionError(
            f"{OPTION}: the effect of {name!r} depends on {bound[0].depends}, and what its start changed does not"
        )
    factors = {k: owner for k, owner in held.items() if owner[1] in method.product}
    began, metadata = read(find(initial, WEIGHTS_NAME))
    if wrong := [k for k in factors if k not in began or began[k].shape != saved.tensors[k].shape]:
        raise AdapterFileError(f"{OPTION}: {initial} is not how {name!r} began: {listing(wrong)} differ or are missing")
    stacked = {k: _stacked(saved.tensors[k], began[k], *owner) for k, owner in factors.items()}
    text = metadata.get(METADATA_KEY)
    return Contents(doubled, {**saved.tensors, **stacked}, load_fingerprint(text) if text else _base(model, cfg))


def _stacked(now: Tensor, began: Tensor, a: Adapter, key: str) -> Tensor:
    """[A; A0] or [B, -B0]; of experts or groups, each one's own."""
    began = began.to(now)
    if key in a.method.product[1:]:
        return torch.cat([now, -began], dim=1)
    each = (getattr(a.site, "experts", 1) * getattr(a.site, "groups", 1), -1, *now.shape[1:])
    return torch.cat([now.view(each), began.view(each)], dim=1).flatten(0, 1)


def _base(model: "PeftModel", cfg: Any) -> Any:
    """The fingerprint of the base as it was, if this model has seen it so."""
    return model.fingerprint if method_of(cfg).changes_base(cfg) else None
