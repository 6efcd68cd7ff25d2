"""The two loops that many tests read, each run once a session. Used by `pytest_plugins = ("tests.loop_fixtures",)`."""

import shutil
from collections.abc import Iterator

import pytest

from tests.loop_recipes import DATA_AND_BASE, LORA, Place, wait_until
from tests.patience import PATIENCE


@pytest.fixture(scope="session")
def place(tmp_path_factory, request) -> Iterator[Place]:
    """The plain two-round loop, run once: `runs/loop`. Nothing may change it; see `Place.begin_with`.

    The loop with LoRA, if a test needs it, starts as early as possible: most of a tiny stage's time is imports, so
    two loops in parallel take little longer than one.
    """
    made = Place(tmp_path_factory.mktemp("loop"))
    process = made.start("run", *made.words())
    lora = None
    try:
        if any("lora" in getattr(item, "fixturenames", ()) for item in request.session.items):
            base = made.work / "runs" / "loop" / "steps" / "prepare_base"
            wait_until(
                (base / "artifact.json").exists,
                seconds=PATIENCE,
                what="prepare_base of the plain loop",
                process=process,
            )
            made.begin_with(*DATA_AND_BASE, name="lora")
            lora = made.lora = made.start("run", *made.words(*LORA, name="lora"))
        out, err = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, f"{out[-3000:]}\n{err[-3000:]}"
        (made.work / "first_output.txt").write_text(out)
        shutil.copy(made.work / "runs" / "loop" / "summary.json", made.work / "first_summary.json")
        yield made
    finally:
        for started in (process, lora):
            if started is not None and started.poll() is None:
                started.terminate()
                started.communicate()


@pytest.fixture(scope="session")
def lora(place) -> Place:
    """Two rounds with adapters, `runs/lora`, with a judge under which the first policy stays the best."""
    out, err = place.lora.communicate(timeout=PATIENCE)
    assert place.lora.returncode == 0, f"{out[-2000:]}\n{err[-3000:]}"
    return place
