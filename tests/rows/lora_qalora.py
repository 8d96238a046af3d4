"""QA-LoRA: A reads groups of inputs."""

from dataclasses import replace

from tests.row import method

GPTQ = "PEFT has it on GPTQ layers only: see tests/methods/test_qalora.py"
OPTIONS = {"r": 4, "use_qalora": True, "qalora_group_size": 4}
PLACES = "Linear Conv1D attention parameter experts"
ROWS = [replace(row, oracle=GPTQ) for row in method("LORA", OPTIONS, sites=PLACES, label="QA-LoRA")]
