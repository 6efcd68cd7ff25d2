"""Shows the rows that training stages would train on, with the trained tokens marked, and what is wrong with them; and
recommends the faster precision on this device.

    alignloop check configs/demo.yaml

Reads the request that pipeline/launch/preview.py writes. It loads a tokenizer and no model. Exits with 2 if a stage
could not train.
"""

import itertools
import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from rich.console import Console
from rich.text import Text
from transformers import AutoConfig, PretrainedConfig, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from data_schemas.check_request import CheckRequest, ModelSource, Precision, RewardBase, TokenizerSource, TrainingRows
from data_schemas.errors import UserError
from data_schemas.reading import read_documents
from data_schemas.stage_keys import with_defaults
from data_schemas.text import printable
from data_schemas.unexpected import guarded
from engine.models import precision
from engine.models.loading import read_config, read_tokenizer
from engine.runtime.keys import fill
from engine.runtime.process import trust_code, use_all_cores
from engine.runtime.stage import Stage, format_counts
from engine.runtime.tracking import Tracker
from engine.tokens.inspection import check_rows_left, encode_all
from engine.tokens.positions import max_positions
from engine.tokens.token_rows import TokenRow
from engine.training.method import Method
from stages.dpo import METHOD as DPO
from stages.prepare_base import prepare_tokenizer
from stages.pretrain import train_tokenizer
from stages.reward_model import METHOD as REWARD_MODEL
from stages.sft import METHOD as SFT

METHODS: dict[str, Method] = {"sft": SFT, "reward_model": REWARD_MODEL, "dpo": DPO}
MAX_ROWS = 10_000  # of each side that are checked: a fault in a data set is seldom in only one of its rows
MARKS = ("⟦", "⟧")  # around trained tokens if the output has no colours
log = logging.getLogger(__name__)


def load_tokenizer(request: TokenizerSource, console: Console, *, name: str = "tokenizer") -> PreTrainedTokenizerBase:
    """The tokenizer as every stage will have it; prints its end and pad tokens after `name`."""
    if "path" in request:
        trust_code(request.get("trust_remote_code", False))
        tokenizer = read_tokenizer(request["path"], revision=request.get("revision", "main"))
    else:
        texts = [row.text for row in read_documents(request.get("documents", []), on_bad_row="set_aside").rows]
        tokenizer = train_tokenizer(
            texts, vocab_size=request.get("vocab_size", 0), special_tokens=request.get("special_tokens", [])
        )
    pad, end = tokenizer.pad_token, tokenizer.eos_token
    notes = prepare_tokenizer(
        tokenizer,
        None if request.get("is_prepared") else request.get("chat_template"),
        date=request.get("template_date"),
        needs_system=request.get("needs_system_role", False),
    )
    for note in notes:
        console.print(Text(f"{name}: {printable(note)}", style="yellow"))
    if request.get("is_prepared"):
        console.print(printable(f"{name}: {len(tokenizer)} tokens; a turn ends in {end}, pad is {pad}"), markup=False)
        return tokenizer
    replaced = "missing" if pad is None else "the end token"
    origin = "the tokenizer's own" if tokenizer.pad_token == pad else f"new, because it was {replaced}"
    console.print(
        printable(
            f"{name}: {len(tokenizer)} tokens; a turn ends in {tokenizer.eos_token}, "
            f"pad is {tokenizer.pad_token} ({origin}); padding is masked by length"
        ),
        markup=False,
    )
    return tokenizer


def check_step(
    request: TrainingRows,
    tokenizer: PreTrainedTokenizerBase,
    scratch: Path,
    console: Console,
    *,
    show: int,
    max_positions: int | None = None,
) -> None:
    """Prints a report on one training step's rows and the first `show` of them.

    Raises UserError if the step could not train on them.
    """
    name, keys, method = request["step"], request["keys"], METHODS[request["stage"]]
    values = with_defaults(request["stage"], keys)
    arguments = fill(method.arguments[:1], keys, {})[0]
    stage = Stage(name, scratch, keys, Tracker(scratch, active=False), is_main=True)
    rows = method.read_rows(stage, arguments, seed=values["seed"])
    encode, _ = method.encoder(tokenizer, arguments)
    console.rule(Text(f"{name} ({request['stage']})", style="bold"), align="left")
    shown: list[TokenRow] = []
    for side, of_side in (("train", rows.train), ("eval", rows.held_out)):
        encoded, report = encode_all(
            side,
            of_side[:MAX_ROWS],
            encode,
            tokenizer,
            max_length=values["max_length"],
            on_long_row=arguments.on_long_row,
            on_bad_row=arguments.on_bad_row,
            max_positions=max_positions,
        )
        of_all = f" (the first {MAX_ROWS} of {len(of_side)} rows are checked)" if len(of_side) > MAX_ROWS else ""
        console.print(f"{side}: {report.summary}{of_all}", markup=False)
        for line in report.warnings():
            console.print(Text(printable(f"  {side}: {line}"), style="yellow"))
        check_rows_left(side, encoded, len(of_side), report.counts(side))
        shown = shown or encoded[:show]
    if rows.dropped:
        console.print(f"dropped: {format_counts(rows.dropped)}", markup=False)
    for number, row in enumerate(shown, 1):
        for name, ids, trained in zip(row.names, row.sequences, row.trained, strict=True):
            console.print(Text(f"row {number}{', ' if name else ''}{name}:", style="bold"))
            console.print(coloured(tokenizer, ids, trained, marked=not console.is_terminal), soft_wrap=True)


def read_model_config(request: ModelSource) -> PretrainedConfig | None:
    """The model's configuration; None if it cannot be read, which the loading step will report."""
    try:
        if "path" in request:
            return read_config(request["path"], revision=request.get("revision", "main"))
        keys = dict(request.get("architecture", {}))
        return AutoConfig.for_model(keys.pop("model_type", "llama"), **keys)
    except Exception as error:
        log.info("no configuration of the model: %s", error)
        return None


def read_layer(request: ModelSource) -> precision.Layer | None:
    """The sizes of the model's layers; None if its configuration cannot be read."""
    try:
        config = read_model_config(request)
        return precision.Layer.of(config) if config is not None else None
    except Exception as error:
        log.info("no sizes of the model: %s", error)
        return None


def advise(layer: precision.Layer, requests: list[Precision], console: Console) -> None:
    """Prints a line for each precision of the recipe that is slower than another one on this machine's device."""
    speeds: dict[tuple[str, str, int], dict[str, float]] = {}
    on_cpu = [request for request in requests if request["device"] == "cpu"]
    if on_cpu and (load := precision.cpu_load_warning()):
        console.print(f"precision is not measured: this machine is busy ({load})", markup=False)
        requests = [request for request in requests if request not in on_cpu]
    for request in requests:
        if request["device"] == "gpu" and not torch.cuda.is_available():
            continue  # these steps run on another machine
        device = torch.device("cuda" if request["device"] == "gpu" else "cpu")
        measured = device.type, request["use"], request["tokens"]
        if measured not in speeds:
            speeds[measured] = precision.measure(layer, device, request["use"], tokens=request["tokens"])
        line = precision.advice(
            speeds[measured], chosen=request["chosen"], key=request["key"], by_default=request["by_default"]
        )
        if line:
            console.print(Text(f"{', '.join(request['stages'])}: {line}", style="yellow"))


def coloured(tokenizer: PreTrainedTokenizerBase, ids: list[int], trained: list[bool], *, marked: bool) -> Text:
    """The text of the tokens: trained ones in green, or between MARKS if `marked`, the others dim."""
    text = Text()
    for is_trained, part in _runs(ids, trained):
        piece = printable(str(tokenizer.decode(part, skip_special_tokens=False, clean_up_tokenization_spaces=False)))
        if is_trained and marked:
            piece = piece.join(MARKS)
        text.append(piece, style="bold green" if is_trained else "dim")
    return text


def _runs(ids: list[int], trained: list[bool]) -> Iterator[tuple[bool, list[int]]]:
    """The tokens in runs that are trained, or not."""
    for is_trained, group in itertools.groupby(zip(trained, ids, strict=True), key=lambda both: both[0]):
        yield is_trained, [token for _, token in group]


def load_base(
    base: CheckRequest | RewardBase, console: Console, *, name: str
) -> tuple[PreTrainedTokenizerBase, int | None]:
    """The tokenizer of a model that steps start from, and the most positions of its rows; None: not known."""
    tokenizer = load_tokenizer(base["tokenizer"], console, name=name)
    config = read_model_config(base["model"])
    return tokenizer, max_positions(config) if config is not None else None


def main() -> int:
    path = Path(sys.argv[1])
    request: CheckRequest = json.loads(path.read_text())
    transformers_logging.set_verbosity_error()
    logging.disable(logging.INFO)
    console = Console(highlight=False, soft_wrap=True)
    failed = False
    reward_base = request.get("reward_base")
    try:
        base = load_base(request, console, name="tokenizer")
        other = load_base(reward_base, console, name="tokenizer of reward_model_from") if reward_base else base
    except UserError as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        return 2
    for note in request["notes"]:
        console.print(Text(printable(note), style="yellow"))
    use_all_cores()
    if layer := read_layer(request["model"]):
        advise(layer, request["precisions"], console)
    for step in request["steps"]:
        tokenizer, limit = other if step.get("from_reward_base") else base
        try:
            check_step(step, tokenizer, path.parent, console, show=request["show"], max_positions=limit)
        except UserError as error:
            failed = True
            sys.stdout.flush()
            message = printable(str(error)).removeprefix(f"{step['step']}: ")
            print(f"error: {step['step']}: {message}", file=sys.stderr)
    if request["missing"]:
        console.print(
            f"not checked, since these steps have not run yet: {', '.join(request['missing'])}",
            markup=False,
            soft_wrap=True,
        )
    return 2 if failed else 0


if __name__ == "__main__":
    sys.exit(guarded(main))
