"""The progress file of a toy stage."""

import json

from data_schemas.progress import PROGRESS

TRAINING = {"name": "training", "done": 40, "total": 200, "unit": "steps", "per_second": 1.6, "loss": 0.51234}
EVALUATING = {"name": "evaluating", "done": 64, "total": 300, "unit": "rows", "per_second": 81.0}


def write_progress(folder, *activities, started=1000.0):
    (folder / PROGRESS).write_text(json.dumps({"started": started, "activities": activities}))
