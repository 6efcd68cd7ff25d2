"""The packed row of a batch: how its tensors are laid out, and how a model is called on it.

A trainer's batch keeps its padded tensors, which TRL's losses read. Only the model is called on the packed row, and its
outputs are put back into the padded form. The language model's head, which is as large as the vocabulary, is applied
only at tokens that have a label. See the package's docstring for segments, prefixes and branches.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import cast

import torch
from transformers import PretrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput
from trl.trainer import utils as trl_utils
from trl.trainer.utils import FusedCausalLMOutput

from engine.packing import row_attention
from engine.packing.attention_calls import RowSegments
from engine.packing.segments import Segment
from engine.tokens.template import IGNORED

# Shapes, as suffixes of names: N = sequences, T = tokens of the longest, S = tokens of the packed row,
# P = its segments, M = labelled tokens.

VOCABULARY_CHUNK = 1024  # tokens of the vocabulary at a time; with TRL's 32,768 a CPU took 1.7 times as long
PREFIX = "shared_"  # of the names of the packed tensors in a batch
PER_TOKEN = ("log_probs", "entropy", "log_sum_sq_probs", "mean_logits", "is_top1")  # outputs of TRL's fused LM head
Batch = dict[str, torch.Tensor]


@dataclass(frozen=True)
class SharedRows:
    """The sequences of a batch in one packed row."""

    ids_1S: torch.Tensor
    positions_1S: torch.Tensor  # of each token in its own sequence
    branches_1S: torch.Tensor  # 0 for the shared prefix of a segment
    lengths_P: torch.Tensor  # tokens of each segment, in the row's order: the longest comes first
    predictors_NT: (
        torch.Tensor
    )  # [N, T - 1]; [n, t]: the index in the row of the token that predicts token t + 1 of sequence n
    last_N: torch.Tensor  # the index in the row of each sequence's last token

    @classmethod
    def of(cls, sequences: Sequence[Sequence[int]], groups: Sequence[int]) -> "SharedRows":
        """Packs the sequences. Those with the same number in `groups` share the tokens that they begin with."""
        members: dict[int, list[int]] = {}
        for number, group in enumerate(groups):
            members.setdefault(group, []).append(number)
        segments = [(numbers, Segment.of([sequences[n] for n in numbers])) for numbers in members.values()]
        segments.sort(key=lambda item: (-len(item[1].ids), item[0]))
        indices: list[list[int]] = [[] for _ in sequences]  # in the row, of each sequence's tokens
        start = 0
        for numbers, segment in segments:
            for number, token_indices in zip(numbers, segment.token_indices, strict=True):
                indices[number] = [start + index for index in token_indices]
            start += len(segment.ids)
        # A token is predicted from its left neighbour in the row; after the shared tokens that is the branch's copy.
        predictors = [[index - 1 for index in own[1:]] for own in indices]
        return cls._of_segments([segment for _, segment in segments], predictors, [own[-1] for own in indices])

    @classmethod
    def of_parts(cls, sequences: Sequence[Sequence[Sequence[int]]]) -> "SharedRows":
        """Packs sequences that consist of parts which do not see each other, such as the documents of a block.

        The first token of a part is predicted from the last token of the part before it.
        """
        parts = [(number, part) for number, parts in enumerate(sequences) for part in parts]
        order = sorted(range(len(parts)), key=lambda i: (-len(parts[i][1]), i))
        starts, start = [0] * len(parts), 0
        for i in order:
            starts[i] = start
            start += len(parts[i][1])
        indices: list[list[int]] = [[] for _ in sequences]
        for (number, part), start in zip(parts, starts, strict=True):
            indices[number] += range(start, start + len(part))
        segments = [Segment.of([parts[i][1]]) for i in order]
        return cls._of_segments(segments, [own[:-1] for own in indices], [own[-1] for own in indices])

    @classmethod
    def _of_segments(
        cls, segments: Sequence[Segment], predictors: Sequence[Sequence[int]], last: Sequence[int]
    ) -> "SharedRows":
        predictors_NT = torch.zeros(len(predictors), max(map(len, predictors)), dtype=torch.long)
        for number, own in enumerate(predictors):
            predictors_NT[number, : len(own)] = torch.tensor(own, dtype=torch.long)
        return cls(
            ids_1S=torch.tensor([[token for segment in segments for token in segment.ids]]),
            positions_1S=torch.tensor([[position for segment in segments for position in segment.positions]]),
            branches_1S=torch.tensor([[branch for segment in segments for branch in segment.branches]]),
            lengths_P=torch.tensor([len(segment.ids) for segment in segments]),
            predictors_NT=predictors_NT,
            last_N=torch.tensor(last),
        )

    @classmethod
    def pop_from(cls, inputs: Batch) -> "SharedRows | None":
        """Removes the packed row's tensors from a batch; None where it has none."""
        names = [field.name for field in fields(cls) if f"{PREFIX}{field.name}" in inputs]
        return cls(**{name: inputs.pop(f"{PREFIX}{name}") for name in names}) if names else None

    def to(self, device: torch.device) -> "SharedRows":
        return SharedRows(**{name: tensor.to(device) for name, tensor in self._tensors().items()})

    def as_inputs(self) -> Batch:
        """The tensors under the names that they have in a batch."""
        return {f"{PREFIX}{name}": tensor for name, tensor in self._tensors().items()}

    def _tensors(self) -> Batch:
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def times_as_many_tokens(self, padded_NT: torch.Tensor) -> float:
        """How many times as many tokens the padded batch has as the packed row."""
        return padded_NT.numel() / self.ids_1S.numel()

    def inputs_of(self, model: torch.nn.Module) -> dict[str, torch.Tensor | RowSegments]:
        """The arguments of the model. A dummy mask of four dimensions keeps transformers from building one."""
        row_attention.enable(config_of(model))
        return {
            "input_ids": self.ids_1S,
            "attention_mask": torch.zeros(1, 1, 1, 1, device=self.ids_1S.device),
            "position_ids": self.positions_1S,
            "row_segments": RowSegments(self.lengths_P.tolist(), self.branches_1S, self.positions_1S),
        }

    def log_probs(self, model: torch.nn.Module, labels_NT: torch.Tensor, **options: object) -> FusedCausalLMOutput:
        """The output of TRL's fused LM head for the sequences with these labels.

        Its tensors are [N, T - 1], as for padded rows, and 0 where there is no label. The model gets the `options`.
        """
        labelled_NT = labels_NT[:, 1:] != IGNORED
        predictors_M, labels_M = self.predictors_NT[labelled_NT], labels_NT[:, 1:][labelled_NT]
        if not len(labels_M):  # the head does not accept an empty row, so it gets one token that is ignored
            predictors_M, labels_M = predictors_M.new_zeros(1), labels_M.new_full((1,), IGNORED)
        with _head_only_at(model, predictors_M):
            outputs = model(**self.inputs_of(model), shift_labels=labels_M[None], **options)
        for name in PER_TOKEN:
            value = outputs.get(name)
            if value is not None:
                outputs[name] = value.new_zeros(labelled_NT.shape).masked_scatter(labelled_NT, value)
        outputs["label_mask"] = labelled_NT
        return outputs

    def last_scores(self, model: torch.nn.Module, **options: object) -> torch.Tensor:
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
def _head_only_at(model: torch.nn.Module, indices_M: torch.Tensor) -> Iterator[None]:
    """Within this context the model's head gets only the hidden states at these indices of the row, [1, M, hidden].

    On a CPU the head computes the logits of VOCABULARY_CHUNK tokens of the vocabulary at a time.
    """
    backbone = base_model_of(model).base_model

    def select(module: torch.nn.Module, inputs: tuple[object, ...], output: ModelOutput) -> ModelOutput:
        output["last_hidden_state"] = output["last_hidden_state"][:, indices_M]
        return output

    hook = backbone.register_forward_hook(select)
    before = trl_utils._CHUNKED_LOGPROB_CHUNK_SIZE
    if indices_M.device.type == "cpu":
        trl_utils._CHUNKED_LOGPROB_CHUNK_SIZE = VOCABULARY_CHUNK
    try:
        yield
    finally:
        hook.remove()
        trl_utils._CHUNKED_LOGPROB_CHUNK_SIZE = before


def unwrapped(model: torch.nn.Module) -> PreTrainedModel:
    while hasattr(model, "module"):  # DistributedDataParallel, DeepSpeed's engine
        model = cast(torch.nn.Module, model.module)
    return cast(PreTrainedModel, model)


def base_model_of(model: torch.nn.Module) -> PreTrainedModel:
    """The transformers model inside the wrappers of several processes and of LoRA."""
    plain = unwrapped(model)
    return cast(PreTrainedModel, getattr(plain, "get_base_model", lambda: plain)())


def config_of(model: torch.nn.Module) -> PretrainedConfig:
    return unwrapped(model).config.get_text_config()
