"""Whether a learning rate is one that a method is known to train at.

The ranges are wide: a decade or more around what the papers and this project's own experiments used with AdamW. Outside
them a run mostly learns nothing, or falls apart.
"""

from trimtab.lab.doctor.findings import Diagnosis
from trimtab.lab.methods import Adapter, Method

Range = tuple[float, float, str]

FULL: Range = (1e-6, 5e-4, "BERT: 2e-5 to 5e-5")
PROBE: Range = (1e-4, 1e-1, "one layer on fixed features")
WEIGHTS: Range = (2e-5, 1e-2, "LoRA: 2e-4 to 5e-4, small encoders 2e-3")
VECTORS: Range = (1e-4, 1e-1, "VeRA: 4e-3 to 1e-2, IA3: 3e-3")
PROMPTS: Range = (5e-5, 5e-1, "prefix-tuning: 5e-5, prompt tuning: 3e-1")

KINDS: dict[str, Range] = {"full": FULL, "linear_probe": PROBE} | dict.fromkeys(
    ("ia3", "vera", "pvera", "vblora", "unilora", "tinylora", "fourierft", "waveft", "c3a", "road", "beft", "bitfit"),
    VECTORS,
)
"""Methods whose range is not that of their family: few numbers are trained, so each has to move further."""


def usual(method: Method) -> Range:
    """The range of a method's learning rate: lowest, highest, and where it comes from."""
    if method.kind in KINDS:
        return KINDS[method.kind]
    return PROMPTS if isinstance(method, Adapter) and method.build().is_prompt_learning else WEIGHTS


def look_at_rate(diagnosis: Diagnosis, method: Method, rate: float) -> None:
    """Note whether the learning rate is in the range."""
    low, high, source = usual(method)
    if low <= rate <= high:
        diagnosis.add("info", "learning rate", f"{rate:g}, usual for {method.kind} ({low:g} to {high:g})")
        return
    side = "higher" if rate > high else "lower"
    diagnosis.add(
        "warning",
        "learning rate",
        f"{rate:g} is {side} than what is usual for {method.kind}: {low:g} to {high:g} ({source})",
        "set train.learning_rate of the method, or try several with train.tune",
    )
