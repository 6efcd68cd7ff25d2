"""Bad calls of `alignloop export` and `compare`, and bad selections of steps for `run` and `plan`."""

import json
from collections.abc import Callable
from pathlib import Path

from data_schemas.files import digest_record
from tests.bad_inputs.cases import Call, Case, Place
from tests.pipeline.export.toy_run import write_run


def selected(*words: str, command: str = "plan") -> Callable[[Place], Call]:
    return lambda place: place.alignloop(command, *place.recipe(), *words)


def export(*words: str, spoil: Callable[[Path], None] = lambda folder: None) -> Callable[[Place], Call]:
    """The export of a valid run; `spoil` changes the folder of its best policy."""

    def make(place: Place) -> Call:
        folders = write_run(place.folder / "runs" / "toy")
        place.write("full/a.txt", "")
        spoil(folders["round-1.dpo"])
        return place.alignloop("export", "runs/toy", *words)

    return make


def record(**changes: object) -> Callable[[Path], None]:
    """A record with other fields, and the digest of itself. A mapping is added to that of the record."""

    def spoil(folder: Path) -> None:
        path = folder / "artifact.json"
        content = json.loads(path.read_text())
        del content["digest"]
        for name, value in changes.items():
            content[name] = content[name] | value if isinstance(value, dict) and value else value
        path.write_text(json.dumps(content | {"digest": digest_record(content)}))

    return spoil


def as_adapter(folder: Path) -> None:
    (folder / "model" / "adapter_config.json").write_text("{}")
    empty = "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
    record(files={"model/adapter_config.json": 2}, sha256={"model/adapter_config.json": empty})(folder)


def as_adapter_of_nothing(folder: Path) -> None:
    as_adapter(folder)
    (folder / "model" / "adapter_base.json").write_text("{}")
    empty = "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
    record(files={"model/adapter_base.json": 2}, sha256={"model/adapter_base.json": empty})(folder)


def not_converted(place: Place) -> Call:
    place.write("convert.py", "raise SystemExit('no such architecture')")
    return export("out", "--gguf", "convert.py")(place)


def compared(*steps: str) -> Callable[[Place], Call]:
    """A comparison of a valid run with itself."""

    def make(place: Place) -> Call:
        write_run(place.folder / "runs" / "toy")
        return place.alignloop("compare", "runs/toy", "runs/toy", *steps)

    return make


CASES = [
    Case("comparison of one step", compared("round-1.dpo"), "compare: found 1 step; expected two, one of each run"),
    Case(
        "comparison of a policy that is not evaluated",
        compared("round-1.dpo", "round-1.dpoo"),
        "runs/toy has no evaluated policy 'round-1.dpo'; expected one of",
    ),
    Case(
        "selection by two options",
        selected("--until", "dpo", "--from", "sft"),
        "--until and --from are not supported together; give one",
    ),
    Case(
        "selection of no step",
        selected("--until", "round-1.dop", command="run"),
        "--until 'round-1.dop': the plan has no such step, round or section; did you mean 'round-1.dpo'?",
    ),
    Case(
        "selection of nothing that is near",
        selected("--only", "x"),
        "--only 'x': the plan has no such step, round or section; `plan` lists the steps",
    ),
    Case(
        "selection whose input is not finished",
        selected("--only", "dpo", command="run"),
        "--only dpo needs round-1.sft, which is not finished (not run yet); --until round-1.sft runs it",
    ),
    Case(
        "selection with an unfinished step before it",
        selected("--from", "round-1.sft"),
        "--from round-1.sft needs prepare_data, which is not finished (not run yet)",
    ),
    Case("export under a blank license", export("out", "--license", " "), "--license is empty; expected a value"),
    Case("export of no run", lambda place: place.alignloop("export", ".", "out"), ". has no summary.json; expected"),
    Case(
        "export of a step that is none",
        export("out", "--policy", "round-1.dop"),
        "--policy 'round-1.dop': runs/toy has no such step; did you mean 'round-1.dpo'?",
    ),
    Case(
        "export of a step that is not finished",
        export("out", spoil=lambda folder: (folder / "artifact.json").unlink()),
        "round-1.dpo of runs/toy has no record, so it is not finished; `run` with --until round-1.dpo finishes it",
    ),
    Case(
        "export of rows",
        export("out", "--policy", "prepare_data"),
        "prepare_data of runs/toy wrote no model; expected a step that trains one, as in round-1.dpo",
    ),
    Case(
        "export of another step's folder",
        export("out", spoil=record(fingerprint="0" * 64)),
        " is not the round-1.dpo of runs/toy/summary.json; run the recipe again to rewrite it",
    ),
    Case(
        "export of a record that names files elsewhere",
        export("out", spoil=record(files={"model/../../x": 1})),
        ": its record names 'model/../../x', which is outside of the folder; do not use it",
    ),
    Case(
        "export of a record without hashes",
        export("out", spoil=record(sha256={})),
        ": its record does not have the hash of every file, as it is of an older version; move the folder away",
    ),
    Case(
        "export of a changed model",
        export("out", spoil=lambda folder: (folder / "model" / "model.safetensors").unlink()),
        ": model/model.safetensors is missing; move the folder away, and `run` runs the step again",
    ),
    Case(
        "export of an adapter",
        export("out", spoil=as_adapter),
        "/model is a LoRA adapter; expected a complete model: merge it into its base first",
    ),
    Case(
        "export of an adapter without a base",
        export("out", spoil=as_adapter_of_nothing),
        "/model is a LoRA adapter without a valid adapter_base.json, which names the model it was trained on; merge it",
        1,
    ),
    Case("export into a file", export("full/a.txt"), "full/a.txt exists and is not a folder; give a folder that"),
    Case("export into the run", export("runs/toy/out"), "runs/toy/out is inside of the run runs/toy; give a folder"),
    Case("export below a file", export("full/a.txt/out"), "full/a.txt/out cannot be created (File exists); give a"),
    Case("export into a full folder", export("full"), "full exists and is not empty; give a folder that does not"),
    Case(
        "export with a converter that is not there",
        export("out", "--gguf", "gone.py"),
        "--gguf gone.py is no file; expected llama.cpp's convert_hf_to_gguf.py",
    ),
    Case(
        "export whose conversion fails",
        not_converted,
        "convert.py did not convert out (no such architecture); the export without GGUF is kept",
        1,
    ),
    Case("export to no repository", export("out", "--push", "a/b/c"), "--push 'a/b/c': Repo id must be in the form"),
    Case(
        "export to a hub that cannot be reached",
        export("out", "--push", "acme/mine"),
        "; the export is kept: `hf upload acme/mine out` pushes it",
        1,
    ),
]
