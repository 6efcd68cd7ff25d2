"""Preference rows without waste: answers to one prompt share its tokens, and short rows share a row.

A packed row holds what two or more sequences begin with, without its last token, and then for each sequence a copy of
that token and all that follows. The branches do not see each other, and their positions go on where the shared part
ends, so every token is predicted from what it is predicted from in a row of its own: nothing is approximated. The copy
is what makes TRL's shifted, fused LM head work as it is (sharing the prompt: frankxwang/dpo-prefix-sharing).

A trainer's batch keeps its padded form, which TRL's losses read; only the model is called on packed rows, and what it
says is put back into the padded form.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import Trainer

from engine.saved import TOLERANCES
from engine.template import IGNORED

# Shapes: N = sequences, T = tokens of the longest, R = packed rows, L = their tokens.

PREFIX = "shared_"  # of the tensors' names in a batch
PER_TOKEN = ("log_probs", "entropy", "log_sum_sq_probs", "mean_logits", "is_top1")
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SharedRows:
    """Sequences in packed rows. `source_NT[n, t]` is where token t of sequence n stands, counted over all rows, and
    what predicts it stands before it: of the copies of the last shared token that is the first branch's."""

    ids_RL: torch.Tensor
    positions_RL: torch.Tensor
    groups_RL: torch.Tensor  # which sequences a token is of; padding has a group of its own
    branches_RL: torch.Tensor  # 0 is the shared part
    source_NT: torch.Tensor

    @classmethod
    def of(cls, sequences: Sequence[Sequence[int]], groups: Sequence[int]) -> "SharedRows":
        """Packs sequences, of which those of one group may share what they begin with."""
        members: dict[int, list[int]] = {}
        for place, group in enumerate(groups):
            members.setdefault(group, []).append(place)
        pieces = {group: _Piece.of([sequences[place] for place in places]) for group, places in members.items()}
        width = max(len(piece.ids) for piece in pieces.values())
        rows: list[list[int]] = []  # of groups, first fit by falling length
        free: list[int] = []
        for group in sorted(pieces, key=lambda group: (-len(pieces[group].ids), group)):
            length = len(pieces[group].ids)
            row = next((number for number, space in enumerate(free) if space >= length), len(rows))
            if row == len(rows):
                rows.append([])
                free.append(width)
            rows[row].append(group)
            free[row] -= length
        longest = max(map(len, sequences))
        packed = torch.zeros(4, len(rows), width, dtype=torch.long)
        packed[2] = -1
        source_NT = torch.zeros(len(sequences), longest, dtype=torch.long)
        for number, row in enumerate(rows):
            start = 0
            for group in row:
                piece = pieces[group]
                end = start + len(piece.ids)
                packed[:, number, start:end] = torch.tensor(
                    [piece.ids, piece.positions, [group] * len(piece.ids), piece.branches]
                )
                for place, source in zip(members[group], piece.sources, strict=True):
                    source_NT[place, : len(source)] = torch.tensor(source) + number * width + start
                start = end
        return cls(packed[0], packed[1], packed[2], packed[3], source_NT)

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

    def visible(self, *, additive: torch.dtype | None = None) -> torch.Tensor:
        """What each token attends to, [R, 1, L, L]: booleans for SDPA, or 0 and the lowest number to be added."""
        order = torch.arange(self.ids_RL.size(1), device=self.ids_RL.device)
        groups, branches = self.groups_RL, self.branches_RL
        same_group = groups[:, :, None] == groups[:, None, :]
        branch_q, branch_k = branches[:, :, None], branches[:, None, :]
        visible = (order[:, None] >= order[None, :]) & same_group & ((branch_k == 0) | (branch_k == branch_q))
        visible = visible[:, None]
        if additive is None:
            return visible
        return torch.zeros_like(visible, dtype=additive).masked_fill(~visible, torch.finfo(additive).min)

    def inputs_of(self, model: Any) -> dict[str, Any]:
        """What the model is called with."""
        additive = None if _config_of(model)._attn_implementation == "sdpa" else next(iter(model.parameters())).dtype
        return {"input_ids": self.ids_RL, "attention_mask": self.visible(additive=additive),
                "position_ids": self.positions_RL}  # fmt: skip

    def log_probs(self, model: Any, labels_NT: torch.Tensor, **options: Any) -> Any:
        """What TRL's fused LM head says of the sequences with these labels, [N, T - 1], from packed rows."""
        seen_NT = labels_NT[:, 1:] != IGNORED
        labels = torch.full_like(self.ids_RL, IGNORED).flatten()
        labels[self.source_NT[:, 1:][seen_NT]] = labels_NT[:, 1:][seen_NT]
        outputs = model(**self.inputs_of(model), labels=labels.view_as(self.ids_RL), **options)
        before_NT = (self.source_NT[:, 1:] - 1).clamp(min=0)
        for name in PER_TOKEN:
            value = outputs.get(name)
            if value is not None:
                whole = torch.nn.functional.pad(value, (0, 1)).flatten()
                outputs[name] = whole[before_NT] * seen_NT if value.is_floating_point() else whole[before_NT] & seen_NT
        return outputs

    def last_scores(self, model: Any, lengths_N: torch.Tensor, **options: Any) -> torch.Tensor:
        """A reward model's score at the last token of each sequence, [N]."""
        scores: list[torch.Tensor] = []
        head = next(module for name, module in model.named_modules() if name.rpartition(".")[2] == "score")
        hook = head.register_forward_hook(lambda module, inputs, output: scores.append(output))
        try:
            model(**self.inputs_of(model), **options)
        finally:
            hook.remove()
        last_N = self.source_NT.gather(1, lengths_N[:, None] - 1)[:, 0]
        return scores[-1].flatten()[last_N]


class OnSharedRows(Trainer):
    """Goes before a TRL trainer in the bases: takes a batch's packed rows where the model goes with them."""

    shared_rows_are_of_rewards = False
    _kinds_that_go: dict[type, bool]

    def shared_rows_of(self, model: Any, inputs: dict[str, Any]) -> SharedRows | None:
        """The packed rows, taken out of `inputs`; None where there are none, or where the model does not go with them.

        A model of each kind is tried once: a reference may be of another than the policy. All processes call this.
        """
        rows = SharedRows.taken_from(inputs)
        if rows is None:
            return None
        self.__dict__.setdefault("_kinds_that_go", {})
        kind = type(_unwrapped(model))
        if kind not in self._kinds_that_go:
            precision = "bfloat16" if self.args.bf16 else "float16" if self.args.fp16 else "float32"
            self._kinds_that_go[kind] = goes_with(
                model, self.args.device, precision=precision, is_reward_model=self.shared_rows_are_of_rewards
            )
            if not self._kinds_that_go[kind]:
                log.warning("this model does not go with shared rows: its rows are padded, which is slower")
        return rows if self._kinds_that_go[kind] else None


def goes_with(model: Any, device: torch.device, *, precision: str = "float32", is_reward_model: bool = False) -> bool:
    """Whether the model says of packed rows what it says of rows of their own: tried on two short ones.

    Not where its attention can't take the mask (flash attention, a state instead of attention), nor where its loss
    counts the rows' tokens (a mixture of experts). `precision` is what the trainer computes in.
    """
    config = _config_of(model)
    if config._attn_implementation not in ("sdpa", "eager") or hasattr(config, "output_router_logits"):
        return False
    some = [token for token in range(3, 20) if token != config.pad_token_id]  # a reward is read before the padding
    sequences = [some[:4] + some[4:9], some[:4] + some[9:14]]
    rows = SharedRows.of(sequences, [0, 0]).to(device)
    ids_NT = torch.tensor(sequences, device=device)
    mask_NT = torch.ones_like(ids_NT)
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            if is_reward_model:
                wanted = model(input_ids=ids_NT, attention_mask=mask_NT, use_cache=False).logits[:, 0].float()
                found = rows.last_scores(model, mask_NT.sum(1), use_cache=False).float()
            else:
                fused = {"fused_lm_head": True, "use_cache": False}
                wanted = model(input_ids=ids_NT, attention_mask=mask_NT, labels=ids_NT, **fused).log_probs.float()
                found = rows.log_probs(model, ids_NT, **fused).log_probs.float()
    except (TypeError, ValueError, RuntimeError, KeyError) as error:
        log.info("shared rows: %s", error)
        return False
    finally:
        model.train(was_training)
    weights = str(next(iter(model.parameters())).dtype).removeprefix("torch.")
    tolerance = max(TOLERANCES[precision], TOLERANCES.get(weights, 0.0))
    return float((wanted - found).abs().max()) <= tolerance * float(wanted.abs().max())


def _unwrapped(model: Any) -> Any:
    while hasattr(model, "module"):  # DistributedDataParallel, DeepSpeed's engine
        model = model.module
    return model


def _config_of(model: Any) -> Any:
    return _unwrapped(model).config.get_text_config()


@dataclass(frozen=True)
class _Piece:
    """One group, as it stands in a row."""

    ids: list[int]
    positions: list[int]
    branches: list[int]
    sources: list[list[int]]  # of each sequence: where its tokens stand

    @classmethod
    def of(cls, sequences: Sequence[Sequence[int]]) -> "_Piece":
        shared = _shared_length(sequences)
        first = sequences[0]
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
    if len(sequences) == 1:
        return 1
    limit = min(map(len, sequences)) - 1
    first = sequences[0]
    shared = next((at for at in range(limit) if any(other[at] != first[at] for other in sequences[1:])), limit)
    return max(1, shared)
