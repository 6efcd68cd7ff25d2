"""Shows the rows that training stages would train on, each token trained or not, what is wrong with them, and which
precision would be faster on this device.

    alignloop check configs/demo.yaml

Reads what pipeline/checking.py asks for, loads a tokenizer and no model. Exits with 2 where a stage could not train.
"""

import importlib
import itertools
import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.text import Text
from transformers import AutoConfig
from transformers.utils import logging as transformers_logging

from data_schemas.errors import ConfigError, UserError
from data_schemas.reading import read_documents
from data_schemas.stage_keys import with_defaults
from data_schemas.text import printable
from engine.models import precision
from engine.models.loading import read_config, read_tokenizer
from engine.runtime.keys import fill
from engine.runtime.process import trust_code, use_all_cores
from engine.runtime.stage import Stage
from engine.runtime.tracking import Tracker
from engine.tokens.inspection import encode_all
from engine.tokens.token_rows import TokenRow
from stages.prepare_base import prepare_tokenizer
from stages.pretrain import train_tokenizer

MAX_ROWS = 10_000  # looked at of each side: what is wrong with a data set is seldom in one row of it
MARKS = ("⟦", "⟧")  # around what is trained, where there are no colours


def load_tokenizer(asked: dict[str, Any], console: Console) -> Any:
    """The tokenizer as every stage will have it, and what is said of its end and pad tokens."""
    if "documents" in asked:
        texts = [row.text for row in read_documents(asked["documents"], on_bad_row="set_aside").rows]
        tokenizer: Any = train_tokenizer(texts, vocab_size=asked["vocab_size"], special_tokens=asked["special_tokens"])
    else:
        trust_code(asked["trust_remote_code"])
        tokenizer = read_tokenizer(asked["path"], revision=asked.get("revision", "main"))
    pad, end = tokenizer.pad_token, tokenizer.eos_token
    if asked["is_prepared"]:
        console.print(f"tokenizer: {len(tokenizer)} tokens; a turn ends in {end}, pad is {pad}", markup=False)
        return tokenizer
    prepare_tokenizer(tokenizer, asked["chat_template"])
    before = "missing" if pad is None else "the end token"
    own = "as it came" if tokenizer.pad_token == pad else f"new, since it was {before}"
    console.print(
        f"tokenizer: {len(tokenizer)} tokens; a turn ends in {tokenizer.eos_token}, "
        f"pad is {tokenizer.pad_token} ({own}); padding is masked by length",
        markup=False,
    )
    return tokenizer


def check_step(asked: dict[str, Any], tokenizer: Any, scratch: Path, console: Console, *, show: int) -> None:
    """Prints what one training step's rows are. Raises ConfigError where it could not train on them."""
    module = importlib.import_module(f"stages.{asked['stage']}")
    values = with_defaults(asked["stage"], asked["keys"])
    arguments = fill(module.ARGUMENTS[:1], asked["keys"], {})[0]
    stage = Stage(asked["step"], scratch, asked["keys"], Tracker(scratch, active=False), is_main=True)
    train, held_out, dropped = module.read_rows(stage, arguments, seed=values["seed"])
    encode, _ = module.encoder(tokenizer, arguments)
    console.rule(Text(f"{asked['step']} ({asked['stage']})", style="bold"), align="left")
    shown: list[TokenRow] = []
    for side, rows in (("train", train), ("eval", held_out)):
        found, report = encode_all(
            side, rows[:MAX_ROWS], encode, tokenizer, max_length=values["max_length"], on_long_row=arguments.on_long_row
        )
        of_all = f" (of {len(rows)}: the first {MAX_ROWS} are looked at)" if len(rows) > MAX_ROWS else ""
        console.print(f"{side}: {report.summary}{of_all}", markup=False)
        for line in report.warnings():
            console.print(Text(f"  {side}: {line}", style="yellow"))
        if not found:
            raise ConfigError(f"{side}: nothing is left of {len(rows)} rows")
        shown = shown or found[:show]
    if dropped:
        console.print(f"dropped: {', '.join(f'{name} {count}' for name, count in dropped.items())}", markup=False)
    for number, row in enumerate(shown, 1):
        for name, ids, trained in zip(row.names, row.sequences, row.trained, strict=True):
            console.print(Text(f"row {number}, {name}:" if name else f"row {number}:", style="bold"))
            console.print(coloured(tokenizer, ids, trained, marked=not console.is_terminal), soft_wrap=True)


def read_layer(asked: dict[str, Any]) -> precision.Layer | None:
    """The model's sizes; None where its configuration is not to be had, which the step that loads it will say."""
    try:
        if "path" in asked:
            return precision.Layer.of(read_config(asked["path"], revision=asked.get("revision", "main")))
        keys = dict(asked["architecture"])
        return precision.Layer.of(AutoConfig.for_model(keys.pop("model_type", "llama"), **keys))
    except Exception as error:
        logging.getLogger(__name__).info("no sizes of the model: %s", error)
        return None


def advise(layer: precision.Layer, asked: list[dict[str, Any]], console: Console) -> None:
    """Prints a line for each precision of the recipe that another would be faster than, on this machine's device."""
    speeds: dict[Any, dict[str, float]] = {}
    on_cpu = [how for how in asked if how["device"] == "cpu"]
    if on_cpu and (load := precision.cpu_load_warning()):
        console.print(f"precision is not measured: this machine is busy ({load})", markup=False)
        asked = [how for how in asked if how not in on_cpu]
    for how in asked:
        if how["device"] == "gpu" and not torch.cuda.is_available():
            continue  # these steps run elsewhere
        device = torch.device("cuda" if how["device"] == "gpu" else "cpu")
        what = device.type, how["use"], how["tokens"]
        if what not in speeds:
            speeds[what] = precision.measure(layer, device, how["use"], tokens=how["tokens"])
        line = precision.advice(speeds[what], chosen=how["chosen"], key=how["key"], by_default=how["by_default"])
        if line:
            console.print(Text(f"{', '.join(how['stages'])}: {line}", style="yellow"))


def coloured(tokenizer: Any, ids: list[int], trained: list[bool], *, marked: bool) -> Text:
    """The text of the tokens, trained ones in green (or between marks), the others dim."""
    text = Text()
    for is_trained, part in _parts(ids, trained):
        piece = printable(tokenizer.decode(part, skip_special_tokens=False, clean_up_tokenization_spaces=False))
        if is_trained and marked:
            piece = piece.join(MARKS)
        text.append(piece, style="bold green" if is_trained else "dim")
    return text


def _parts(ids: list[int], trained: list[bool]) -> Iterator[tuple[bool, list[int]]]:
    for is_trained, group in itertools.groupby(zip(trained, ids, strict=True), key=lambda both: both[0]):
        yield is_trained, [token for _, token in group]


def main() -> int:
    request = json.loads(Path(sys.argv[1]).read_text())
    transformers_logging.set_verbosity_error()
    logging.disable(logging.INFO)
    console = Console(highlight=False, soft_wrap=True)
    failed = False
    try:
        tokenizer = load_tokenizer(request["tokenizer"], console)
    except UserError as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        return 2
    use_all_cores()
    if layer := read_layer(request["model"]):
        advise(layer, request["precisions"], console)
    for asked in request["steps"]:
        try:
            check_step(asked, tokenizer, Path(sys.argv[1]).parent, console, show=request["show"])
        except UserError as error:
            failed = True
            sys.stdout.flush()
            message = printable(str(error)).removeprefix(f"{asked['step']}: ")
            print(f"error: {asked['step']}: {message}", file=sys.stderr)
    if request["missing"]:
        console.print(f"not made yet: rows of {', '.join(request['missing'])}", markup=False, soft_wrap=True)
    return 2 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
