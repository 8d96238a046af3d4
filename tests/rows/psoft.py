"""PSOFT."""

from tests.row import LINEAR, Row, method, without

OPTIONS = {"r": 3, "psoft_alpha": 5}
REFUSED = "Conv1D Embedding Conv1d Conv2d Conv3d grouped attention"
NEUMANN = {"use_cayley_neumann": True, "num_cayley_neumann_terms": 6}


def psoft(name: str, model: str = "zoo", **options: object) -> Row:
    return Row(f"PSOFT {name}", "PSOFT", OPTIONS | (LINEAR if model == "zoo" else {}) | options, model)


ROWS = [
    *method("PSOFT", OPTIONS, REFUSED),
    psoft("pissa_init", ab_svd_init="pissa_init"),
    psoft("lowrank", psoft_svd="lowrank", random_seed=3),
    psoft("lowrank, pissa_init", psoft_svd="lowrank", psoft_svd_lowrank_niter=1, ab_svd_init="pissa_init"),
    psoft("no magnitudes", psoft_mag_a=False, psoft_mag_b=False),
    psoft("any R", psoft_orth=False, psoft_mag_a=False),
    psoft("Neumann", **NEUMANN),
    psoft("Neumann, bounded", cayley_neumann_eps=0.2, **NEUMANN),
    without(psoft("dropout", psoft_dropout=0.3), "dropout draws anew", "rows, training"),
    without(psoft("init False", init_weights=False), "it starts with an effect", "no effect at first"),
    without(psoft("any R, init False", init_weights=False, psoft_orth=False), "it starts with an effect",
            "no effect at first"),
    psoft("default targets", "llama"),
]  # fmt: skip
