"""A program for launchers that writes the evaluation numbers of three stages by batch size to `table-<processes>.json`.

python tests/evaluation_table.py CONFIG     # a JSON file: output_dir, rows, models, reference, batch_sizes
"""

import json
import os
import sys
from pathlib import Path

from engine.runtime.stage import Stage
from engine.runtime.tracking import Tracker
from stages.average_models import AverageModelsArguments, Evaluation


def table(config: dict) -> dict[str, dict[str, float]]:
    """{"<stage> <batch size>": its evaluation numbers}."""
    found, rank = {}, int(os.environ.get("RANK", "0"))
    for name, folder in config["models"].items():
        out = Path(config["output_dir"]) / name
        (out / "checkpoints").mkdir(parents=True, exist_ok=True)
        arguments = AverageModelsArguments(
            models=[folder],
            averaged_stage=name,
            reference_model=config["reference"] if name == "dpo" else None,
            eval_data=[config["rows"][name]],
            stage_keys={"max_length": None, "bf16": config.get("bf16", False)},
            use_cpu=True,
        )
        evaluate = Evaluation(Stage(name, out, {}, Tracker(out, active=False), rank == 0), arguments)
        for batch_size in config["batch_sizes"]:
            evaluate.values["per_device_eval_batch_size"] = batch_size
            found[f"{name} {batch_size}"] = evaluate(folder)
    return found


if __name__ == "__main__":
    given = json.loads(Path(sys.argv[1]).read_text())
    made = table(given)
    if os.environ.get("RANK", "0") == "0":
        (Path(given["output_dir"]) / "table.json").write_text(json.dumps(made))
