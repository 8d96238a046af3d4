"""HiRA."""

from tests.row import ALL, Row, method, without

OPTIONS = {"r": 4}
REFUSED = "grouped attention"
IGNORED = "PEFT ignores HiRA's `rank_pattern`"


def hira(name: str, **options: object) -> Row:
    return Row(f"HiRA {name}", "HIRA", OPTIONS | ALL | options)


ROWS = [
    *method("HIRA", OPTIONS, REFUSED),
    without(hira("dropout", hira_dropout=0.3), "dropout draws anew", "rows, training"),
    without(hira("patterns", rank_pattern={"lin1": 3, "c.*": 1}), "", oracle=IGNORED),
    without(hira("init False", init_weights=False), "it starts with an effect", "no effect at first"),
    hira("gaussian", init_weights="gaussian"),
    Row("HiRA default targets", "HIRA", OPTIONS, "llama"),
]
