"""Poly: the task of a row decides, so the model is called with `task_ids`."""

import torch
from tests.row import method

OPTIONS = {"r": 2, "n_tasks": 3, "n_skills": 3, "n_splits": 2}
REFUSED = "Conv1D"
SAMPLED = {"": {"rows, training": "skills are sampled anew"}}
ROWS = method(
    "POLY", OPTIONS, REFUSED, sites="Linear Conv1D", without=SAMPLED, call={"task_ids": torch.tensor([0, 2, 1, 0])}
)
