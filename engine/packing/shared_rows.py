"""Rows without waste: no padding, and answers to one prompt share its tokens.

The sequences of a batch stand end to end in one long row. Those that begin alike are one piece of it: what they share,
without its last token, and then for each sequence a branch, which is a copy of that token and all that follows. The
pieces do not see each other, nor do branches, and a branch's positions go on where the shared part ends: every token is
predicted from what it is predicted from in a row of its own. Nothing is approximated. (The copy of the last shared
token, and sharing the prompt in DPO: frankxwang/dpo-prefix-sharing.)

A trainer's batch keeps its padded form, which TRL's losses read; only the model is called on the long row, and what it
says is put back into the padded form. The language model's head is applied where a label is, and nowhere else.
"""

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import Trainer
from trl.trainer import utils as trl_utils

from engine.models.loading import ordinary_tokens
from engine.models.precision import TOLERANCES
from engine.packing import row_attention
from engine.packing.row_attention import Pieces
from engine.tokens.template import IGNORED

# Shapes: N = sequences, T = tokens of the longest, S = tokens of the long row, P = its pieces, M = labelled tokens.

HEAD_TOKENS = 1024  # of the vocabulary at a time: TRL's 32,768, which no cache holds, took 1.7 times as long
PREFIX = "shared_"  # of the tensors' names in a batch
PER_TOKEN = ("log_probs", "entropy", "log_sum_sq_probs", "mean_logits", "is_top1")
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SharedRows:
    """Sequences in one long row.

    `before_NT[n, t]` is where the token stands that token t + 1 of sequence n is predicted from, `last_N[n]` where the
    sequence ends; `lengths_P` are the pieces' lengths in the row's order, falling.
    """

    ids_1S: torch.Tensor
    positions_1S: torch.Tensor
    branches_1S: torch.Tensor  # 0 is the shared part of a piece
    lengths_P: torch.Tensor
    before_NT: torch.Tensor
    last_N: torch.Tensor

    @classmethod
    def of(cls, sequences: Sequence[Sequence[int]], groups: Sequence[int]) -> "SharedRows":
        """Sequences, of which those of one group share what they begin with."""
        members: dict[int, list[int]] = {}
        for place, group in enumerate(groups):
            members.setdefault(group, []).append(place)
        pieces = [(places, _Piece.of([sequences[place] for place in places])) for places in members.values()]
        pieces.sort(key=lambda both: (-len(both[1].ids), both[0]))
        places: list[list[int]] = [[] for _ in sequences]  # of each sequence's tokens
        start = 0
        for own, piece in pieces:
            for place, source in zip(own, piece.sources, strict=True):
                places[place] = [start + at for at in source]
            start += len(piece.ids)
        # Of the copies of the last shared token, it is the one that the next token follows.
        before = [[at - 1 for at in own[1:]] for own in places]
        return cls._of_pieces([piece for _, piece in pieces], before, [own[-1] for own in places])

    @classmethod
    def of_parts(cls, sequences: Sequence[Sequence[Sequence[int]]]) -> "SharedRows":
        """Sequences made of parts that do not see each other: documents in a block. The first token of a part is
        predicted from the end of the part before it."""
        parts = [(number, at, part) for number, parts in enumerate(sequences) for at, part in enumerate(parts)]
        order = sorted(range(len(parts)), key=lambda place: (-len(parts[place][2]), place))
        starts, start = [0] * len(parts), 0
        for place in order:
            starts[place] = start
            start += len(parts[place][2])
        places: list[list[int]] = [[] for _ in sequences]
        for (number, _, part), start in zip(parts, starts, strict=True):
            places[number] += range(start, start + len(part))
        pieces = [_Piece.of([parts[place][2]]) for place in order]
        return cls._of_pieces(pieces, [own[:-1] for own in places], [own[-1] for own in places])

    @classmethod
    def _of_pieces(
        cls, pieces: "Sequence[_Piece]", before: Sequence[Sequence[int]], last: Sequence[int]
    ) -> "SharedRows":
        before_NT = torch.zeros(len(before), max(map(len, before)), dtype=torch.long)
        for number, own in enumerate(before):
            before_NT[number, : len(own)] = torch.tensor(own, dtype=torch.long)
        return cls(
            torch.tensor([[token for piece in pieces for token in piece.ids]]),
            torch.tensor([[position for piece in pieces for position in piece.positions]]),
            torch.tensor([[branch for piece in pieces for branch in piece.branches]]),
            torch.tensor([len(piece.ids) for piece in pieces]),
            before_NT,
            torch.tensor(last),
        )

    @classmethod
    def taken_from(cls, inputs: dict[str, Any]) -> "SharedRows | None":
        """Those of a batch, taken out of it; None where it has none."""
        names = [f"{PREFIX}{name}" for name in cls.__dataclass_fields__]
        found = [inputs.pop(name, None) for name in names]
        return None if found[0] is None else cls(*found)

    def to(self, device: torch.device) -> "SharedRows":
        return SharedRows(*(getattr(self, name).to(device) for name in self.__dataclass_fields__))

    def as_inputs(self) -> dict[str, torch.Tensor]:
        """The tensors as a batch carries them."""
        return {f"{PREFIX}{name}": getattr(self, name) for name in self.__dataclass_fields__}

    def inputs_of(self, model: Any) -> dict[str, Any]:
        """What the model is called with. The mask, of four dimensions, keeps it from making one of its own."""
        row_attention.enable(_config_of(model))
        pieces = Pieces(self.lengths_P.tolist(), self.branches_1S, self.positions_1S)
        return {
            "input_ids": self.ids_1S,
            "attention_mask": torch.zeros(1, 1, 1, 1, device=self.ids_1S.device),
            "position_ids": self.positions_1S,
            "row_pieces": pieces,
        }

    def log_probs(self, model: Any, labels_NT: torch.Tensor, **options: Any) -> Any:
        """What TRL's fused LM head says of the sequences with these labels, [N, T - 1]. Its tensors are of the
        labelled tokens alone, put back into the padded form."""
        seen_NT = labels_NT[:, 1:] != IGNORED
        before_M, labels_M = self.before_NT[seen_NT], labels_NT[:, 1:][seen_NT]
        if not len(labels_M):  # one that is ignored: the head takes no empty row
            before_M, labels_M = before_M.new_zeros(1), labels_M.new_full((1,), IGNORED)
        with _head_only_at(model, before_M):
            outputs = model(**self.inputs_of(model), shift_labels=labels_M[None], **options)
        for name in PER_TOKEN:
            value = outputs.get(name)
            if value is not None:
                outputs[name] = value.new_zeros(seen_NT.shape).masked_scatter(seen_NT, value)
        outputs["label_mask"] = seen_NT
        return outputs

    def last_scores(self, model: Any, **options: Any) -> torch.Tensor:
        """A reward model's score at the last token of each sequence, [N]."""
        scores: list[torch.Tensor] = []
        head = next(module for name, module in model.named_modules() if name.rpartition(".")[2] == "score")
        hook = head.register_forward_hook(lambda module, inputs, output: scores.append(output))
        try:
            model(**self.inputs_of(model), **options)
        finally:
            hook.remove()
        return scores[-1].flatten()[self.last_N]


@contextlib.contextmanager
def _head_only_at(model: Any, places_M: torch.Tensor) -> Iterator[None]:
    """Within, the model's head meets the hidden states of these places of the row alone, [1, M, hidden].

    On a CPU it makes the logits of HEAD_TOKENS of the vocabulary at a time.
    """
    model = _unwrapped(model)
    backbone = (model.get_base_model() if hasattr(model, "get_base_model") else model).base_model

    def keep(module: torch.nn.Module, inputs: Any, output: Any) -> Any:
        output.last_hidden_state = output.last_hidden_state[:, places_M]
        return output

    hook = backbone.register_forward_hook(keep)
    before = trl_utils._CHUNKED_LOGPROB_CHUNK_SIZE
    if places_M.device.type == "cpu":
        trl_utils._CHUNKED_LOGPROB_CHUNK_SIZE = HEAD_TOKENS
    try:
        yield
    finally:
        hook.remove()
        trl_utils._CHUNKED_LOGPROB_CHUNK_SIZE = before


class SharedRowsMixin(Trainer):
    """Goes before a TRL trainer in the bases: takes a batch's long row where the model goes with it."""

    is_reward_model_trainer = False
    _supported_types: dict[type, bool]

    def shared_rows_of(self, model: Any, inputs: dict[str, Any]) -> SharedRows | None:
        """The long row, taken out of `inputs`; None where there is none, or where the model does not go with it.

        A model of each kind is tried once: a reference may be of another than the policy. All processes call this.
        """
        rows = SharedRows.taken_from(inputs)
        if rows is None:
            return None
        self.__dict__.setdefault("_supported_types", {})
        kind = type(_unwrapped(model))
        if kind not in self._supported_types:
            precision = "bfloat16" if self.args.bf16 else "float16" if self.args.fp16 else "float32"
            self._supported_types[kind] = supports_shared_rows(
                model, self.args.device, precision=precision, is_reward_model=self.is_reward_model_trainer
            )
            if not self._supported_types[kind]:
                self.without_shared_rows()
        return rows if self._supported_types[kind] else None

    def without_shared_rows(self) -> None:
        """What is said, once, of a model that does not go with them."""
        log.warning("this model does not go with shared rows: its rows are padded, which is slower")

    def on_shared_rows(self, model: Any, inputs: dict[str, Any]) -> Callable[..., Any]:
        """The language model, called on the long row that is taken out of `inputs`, where there is one and it goes."""
        shared = self.shared_rows_of(model, inputs)
        if shared is None:
            return model

        def call(*, input_ids: Any, attention_mask: Any, labels: torch.Tensor, **options: Any) -> Any:
            return shared.log_probs(model, labels, **options)

        return call


def supports_shared_rows(
    model: Any, device: torch.device, *, precision: str = "float32", is_reward_model: bool = False
) -> bool:
    """Whether the model says of a long row what it says of rows of their own: tried on two short sequences.

    Not where its attention does not go piece by piece (flash attention, sinks, a state instead of attention), nor where
    its loss counts the rows' tokens (a mixture of experts). `precision` is what the trainer computes in.
    """
    config = _config_of(model)
    if hasattr(config, "output_router_logits") or not row_attention.enable(config):
        return False
    some = ordinary_tokens(config, 14)
    sequences = [some[:4] + some[4:9], some[:4] + some[9:14]]
    rows = SharedRows.of(sequences, [0, 0]).to(device)
    ids_NT = torch.tensor(sequences, device=device)
    mask_NT = torch.ones_like(ids_NT)
    was_training, goes = model.training, False
    model.eval()
    try:
        with torch.no_grad():
            if is_reward_model:
                wanted = model(input_ids=ids_NT, attention_mask=mask_NT, use_cache=False).logits[:, 0].float()
                found = rows.last_scores(model, use_cache=False).float()
            else:
                fused = {"fused_lm_head": True, "use_cache": False}
                wanted = model(input_ids=ids_NT, attention_mask=mask_NT, labels=ids_NT, **fused).log_probs.float()
                found = rows.log_probs(model, ids_NT, **fused).log_probs.float()
        weights = str(next(iter(model.parameters())).dtype).removeprefix("torch.")
        tolerance = max(TOLERANCES[precision], TOLERANCES.get(weights, 0.0))
        goes = float((wanted - found).abs().max()) <= tolerance * float(wanted.abs().max())
    except (TypeError, ValueError, RuntimeError, KeyError, AttributeError) as error:
        log.info("shared rows: %s", error)
    finally:
        model.train(was_training)
        if not goes:
            row_attention.disable(config)
    return goes


def _unwrapped(model: Any) -> Any:
    while hasattr(model, "module"):  # DistributedDataParallel, DeepSpeed's engine
        model = model.module
    return model


def _config_of(model: Any) -> Any:
    return _unwrapped(model).config.get_text_config()


@dataclass(frozen=True)
class _Piece:
    """Sequences that share what they begin with, as they stand in a row."""

    ids: list[int]
    positions: list[int]
    branches: list[int]
    sources: list[list[int]]  # of each sequence: where its tokens stand

    @classmethod
    def of(cls, sequences: Sequence[Sequence[int]]) -> "_Piece":
        first = sequences[0]
        if len(sequences) == 1:  # no branch: plain causal attention, which is faster
            order = list(range(len(first)))
            return cls(list(first), order, [0] * len(first), [order])
        shared = _shared_length(sequences)
        ids, branches = list(first[: shared - 1]), [0] * (shared - 1)
        positions, sources = list(range(shared - 1)), []
        for number, sequence in enumerate(sequences, 1):
            start = len(ids)
            own = list(sequence[shared - 1 :])  # the last shared token is each branch's first
            ids += own
            branches += [number] * len(own)
            positions += range(shared - 1, len(sequence))
            sources.append([*range(shared), *range(start + 1, start + len(own))])
        return cls(ids, positions, branches, sources)


def _shared_length(sequences: Sequence[Sequence[int]]) -> int:
    """Tokens that all begin with; each has one more at least."""
    limit = min(map(len, sequences)) - 1
    first = sequences[0]
    shared = next((at for at in range(limit) if any(other[at] != first[at] for other in sequences[1:])), limit)
    return max(1, shared)
