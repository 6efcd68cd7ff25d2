"""Every recipe that the alignment benchmark runs can be planned: a variation that can't ends hours of measurement."""

from pathlib import Path

import pytest

from benchmarks.alignment import curation, llm_judge, real_model, reinforcement, run
from benchmarks.alignment.report import ROOT
from pipeline.launch.loading import load_checked

ENDPOINT = {"base_url": "http://127.0.0.1:9", "model": "gold"}


class Checked(Exception):
    """The recipe can be run."""


@pytest.fixture(autouse=True)
def checked(monkeypatch):
    """In place of the runs, the recipes are checked, as before a run."""

    def check(settings, *, recipe="configs/demo.yaml", core=None):
        _, steps = load_checked(Path(ROOT / recipe), settings)
        assert steps[-1].stage == "evaluate_policy"
        raise Checked

    for module in (curation, llm_judge, real_model, reinforcement, run):
        monkeypatch.setattr(module, "alignloop", check)


@pytest.mark.parametrize("name", run.SETTINGS)
def test_variations_of_the_world(name, tiny_model):
    with pytest.raises(Checked):
        run.run_variations(0, [name], tiny_model, core=0)


@pytest.mark.parametrize("name", real_model.settings())
def test_variations_of_the_real_model(name, tiny_model):
    with pytest.raises(Checked):
        real_model.run(str(tiny_model), [name])


@pytest.mark.parametrize("name", reinforcement.SETTINGS)
def test_reinforcement(name, tiny_model):
    with pytest.raises(Checked):
        reinforcement.run(0, name, tiny_model, core=0)


def test_curation(monkeypatch, tiny_model):
    parts = []

    def one_after_the_other(run_part, given):
        for part in given:
            with pytest.raises(Checked):
                run_part(part, 0)
            parts.append(part)

    monkeypatch.setattr(curation, "make_base", lambda: tiny_model)
    monkeypatch.setattr(curation, "on_cores", one_after_the_other)
    curation.run([0])
    assert parts == [(0, name) for name in curation.SETTINGS]


def test_the_llm_judge(tiny_model):
    with pytest.raises(Checked):
        llm_judge.run(0, tiny_model, ENDPOINT, core=0)
