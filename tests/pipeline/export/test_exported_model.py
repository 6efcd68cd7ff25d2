"""An exported policy in plain transformers, in a process without our packages: the same logits and answers."""

import json
import subprocess
import sys
from pathlib import Path

from engine.models.card import CARD
from pipeline.export.card import UNKNOWN, Card
from pipeline.export.folder import check_model, find_model, write_folder
from pipeline.state.lineage import lineage_of
from tests.patience import PATIENCE
from tests.stage_runs import run_here

CODE = """
import json, sys
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

results = []
for folder in sys.argv[1:]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    dialog = [{"role": "user", "content": "What is the capital of France?"}]
    batch = tokenizer.apply_chat_template(dialog, add_generation_prompt=True, return_dict=True, return_tensors="pt")
    with torch.no_grad():
        results.append((model(**batch).logits, model.generate(**batch, max_new_tokens=4, do_sample=False)))
(logits, answer), (exported_logits, exported_answer) = results
ours = {"data_schemas", "engine", "stages", "pipeline"} & {name.partition(".")[0] for name in sys.modules}
print(json.dumps({
    "ours": sorted(ours),
    "shape": list(logits.shape[::2]),
    "is_random": bool(logits.std() > 0),
    "equal": torch.equal(logits, exported_logits) and torch.equal(answer, exported_answer),
}))
"""


def test_the_exported_folder_has_the_logits_of_the_steps_model(tmp_path, tiny_model, rows):
    run, step = tmp_path / "run", "sft-00000000"
    record = run_here(
        "sft",
        run / step,
        model_name_or_path=tiny_model,
        train_data=[rows / "conversations.jsonl"],
        eval_data=[rows / "conversations_eval.jsonl"],
        max_steps=1,
        step="sft",
    )
    entry = {"name": "sft", "stage": "sft", "round": None, "folder": step, "fingerprint": record.fingerprint}
    entry |= {"state": "ran", "seconds": 1.0, "metrics": record.metrics}
    summary = {"name": "one", "state": "done", "steps": [entry], "rounds": [], "best_policy": None}
    (run / "summary.json").write_text(json.dumps(summary))

    exported = find_model(run, None)  # without a judge the last policy is the best
    check_model(exported)
    text = Card(exported, lineage_of(run, exported.folder), "mine", UNKNOWN).text()
    assert "No judge compared the policies.\n\n| model | held-out loss before | after |" in text
    write_folder(exported, tmp_path / "out", text)
    assert (tmp_path / "out" / "README.md").read_text() == text
    words = [sys.executable, "-c", CODE, str(run / step / "model"), str(tmp_path / "out")]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    vocabulary = json.loads((tmp_path / "out" / "config.json").read_text())["vocab_size"]
    assert found == {"ours": [], "shape": [1, vocabulary], "is_random": True, "equal": True}
    for card in (tmp_path / "out" / "README.md", run / step / "model" / CARD):
        runs_as_written(card)


def runs_as_written(card: Path) -> None:
    """The card's program runs in the folder of the card, in a process without our packages."""
    code = card.read_text().split("```python\n")[1].split("```")[0]
    words = [sys.executable, "-c", code]
    done = subprocess.run(words, cwd=card.parent, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
