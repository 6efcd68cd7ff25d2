"""Which model `alignloop chat` opens."""

import pytest

from tests.pipeline.toy_house import World


@pytest.mark.parametrize("target", ["runs/toy", "{step}", "{step}/model"])
def test_chat_accepts_a_run_a_step_or_a_model(target, tmp_path):
    world = World(tmp_path)
    (world.command.parent / "commands").mkdir()
    (world.command.parent / "commands" / "chat.py").write_text("import sys; print(sys.argv[1:])")
    world.run()
    step = f"runs/toy/{world.folder('round-1.dpo').name}"
    code, out, _ = world.call("chat", target.format(step=step), "--prompt", "hi", "--temperature", "0")
    assert code == 0
    options = ["--prompt=hi", "--temperature=0.0", "--top_p=1.0", "--max_new_tokens=256", "--seed=0", "--dtype=auto"]
    assert out == f"{[f'{step}/model', *options]}\n"
