"""The packed row of a batch: how its tensors are laid out, how a model is called on it, and the mixin for trainers.

A trainer's batch keeps its padded tensors, which TRL's losses read. Only the model is called on the packed row, and its
outputs are put back into the padded form. The language model's head, which is as large as the vocabulary, is applied
only at tokens that have a label. See the package's docstring for segments, prefixes and branches.
"""

import contextlib
import functools
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, cast

import torch
from transformers import PretrainedConfig, PreTrainedModel, Trainer
from transformers.utils import ModelOutput
from trl.trainer import utils as trl_utils
from trl.trainer.utils import FusedCausalLMOutput

from engine.models.loading import ordinary_tokens
from engine.models.precision import TOLERANCES
from engine.packing import row_attention
from engine.packing.attention_calls import RowSegments
from engine.packing.segments import Segment
from engine.runtime import notices
from engine.tokens.template import IGNORED

# Shapes: N = sequences, T = tokens of the longest, S = tokens of the packed row, P = its segments, M = labelled tokens.

HEAD_TOKENS = 1024  # of the vocabulary at a time: TRL's 32,768, which no cache holds, took 1.7 times as long
PREFIX = "shared_"  # of the names that the tensors have in a batch
PER_TOKEN = ("log_probs", "entropy", "log_sum_sq_probs", "mean_logits", "is_top1")  # outputs of TRL's fused LM head
Batch = dict[str, torch.Tensor]
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SharedRows:
    """The sequences of a batch in one packed row."""

    ids_1S: torch.Tensor
    positions_1S: torch.Tensor  # of each token in its own sequence
    branches_1S: torch.Tensor  # 0 for the shared prefix of a segment
    lengths_P: torch.Tensor  # tokens of each segment, in the row's order: the longest comes first
    predictors_NT: torch.Tensor  # [n, t]: the index in the row of the token that predicts token t + 1 of sequence n
    last_N: torch.Tensor  # the index in the row of each sequence's last token

    @classmethod
    def of(cls, sequences: Sequence[Sequence[int]], groups: Sequence[int]) -> "SharedRows":
        """Packs the sequences. Those with the same number in `groups` share the tokens that they begin with."""
        members: dict[int, list[int]] = {}
        for number, group in enumerate(groups):
            members.setdefault(group, []).append(number)
        segments = [(numbers, Segment.of([sequences[n] for n in numbers])) for numbers in members.values()]
        segments.sort(key=lambda both: (-len(both[1].ids), both[0]))
        indices: list[list[int]] = [[] for _ in sequences]  # in the row, of each sequence's tokens
        start = 0
        for numbers, segment in segments:
            for number, token_indices in zip(numbers, segment.token_indices, strict=True):
                indices[number] = [start + index for index in token_indices]
            start += len(segment.ids)
        # The token before in the row is the predictor: after the last shared token it is the branch's own copy of it.
        predictors = [[index - 1 for index in own[1:]] for own in indices]
        return cls._of_segments([segment for _, segment in segments], predictors, [own[-1] for own in indices])

    @classmethod
    def of_parts(cls, sequences: Sequence[Sequence[Sequence[int]]]) -> "SharedRows":
        """Packs sequences that consist of parts which do not see each other, such as the documents of a block.

        The first token of a part is predicted from the last token of the part before it.
        """
        parts = [(number, part) for number, parts in enumerate(sequences) for part in parts]
        order = sorted(range(len(parts)), key=lambda at: (-len(parts[at][1]), at))
        starts, start = [0] * len(parts), 0
        for at in order:
            starts[at] = start
            start += len(parts[at][1])
        indices: list[list[int]] = [[] for _ in sequences]
        for (number, part), start in zip(parts, starts, strict=True):
            indices[number] += range(start, start + len(part))
        segments = [Segment.of([parts[at][1]]) for at in order]
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
    def taken_from(cls, inputs: Batch) -> "SharedRows | None":
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

    def inputs_of(self, model: torch.nn.Module) -> dict[str, torch.Tensor | RowSegments]:
        """The arguments of the model. The attention mask of four dimensions keeps it from building its own."""
        row_attention.enable(_config_of(model))
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
        seen_NT = labels_NT[:, 1:] != IGNORED
        predictors_M, labels_M = self.predictors_NT[seen_NT], labels_NT[:, 1:][seen_NT]
        if not len(labels_M):  # the head does not accept an empty row, so it gets one token that is ignored
            predictors_M, labels_M = predictors_M.new_zeros(1), labels_M.new_full((1,), IGNORED)
        with _head_only_at(model, predictors_M):
            outputs = model(**self.inputs_of(model), shift_labels=labels_M[None], **options)
        for name in PER_TOKEN:
            value = outputs.get(name)
            if value is not None:
                outputs[name] = value.new_zeros(seen_NT.shape).masked_scatter(seen_NT, value)
        outputs["label_mask"] = seen_NT
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

    On a CPU the head computes the logits of HEAD_TOKENS tokens of the vocabulary at a time.
    """
    plain = _unwrapped(model)
    backbone = getattr(plain, "get_base_model", lambda: plain)().base_model  # a LoRA model wraps the model once more

    def select(module: torch.nn.Module, inputs: tuple[object, ...], output: ModelOutput) -> ModelOutput:
        output["last_hidden_state"] = output["last_hidden_state"][:, indices_M]
        return output

    hook = backbone.register_forward_hook(select)
    before = trl_utils._CHUNKED_LOGPROB_CHUNK_SIZE
    if indices_M.device.type == "cpu":
        trl_utils._CHUNKED_LOGPROB_CHUNK_SIZE = HEAD_TOKENS
    try:
        yield
    finally:
        hook.remove()
        trl_utils._CHUNKED_LOGPROB_CHUNK_SIZE = before


class SharedRowsMixin(Trainer):
    """Comes before a TRL trainer in the bases: calls the model on a batch's packed row if the model supports it."""

    is_reward_model_trainer = False

    @functools.cached_property
    def _supported_types(self) -> dict[type, bool]:
        """The result of `supports_shared_rows` for each class of model; a reference may be of another class."""
        return {}

    def shared_rows_of(self, model: torch.nn.Module, inputs: Batch) -> SharedRows | None:
        """Takes the packed row out of `inputs`; None where there is none, or where the model does not support it.

        The first call with each class of model runs the model, so all processes have to call this.
        """
        rows = SharedRows.taken_from(inputs)
        if rows is None:
            return None
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
        """Called once for each class of model that does not support packed rows. A subclass may raise an error."""
        notices.warn(log, "this model does not support packed rows; its rows are padded, which is slower")

    def on_shared_rows(self, model: torch.nn.Module, inputs: Batch) -> Callable[..., Any]:
        """A function that is called like the language model and runs it on the packed row of `inputs`.

        Returns the model itself where there is no packed row or the model does not support it.
        """
        shared = self.shared_rows_of(model, inputs)
        if shared is None:
            return model

        def call(
            *, input_ids: torch.Tensor, attention_mask: torch.Tensor, labels: torch.Tensor, **options: object
        ) -> FusedCausalLMOutput:
            return shared.log_probs(model, labels, **options)

        return call


def supports_shared_rows(
    model: torch.nn.Module, device: torch.device, *, precision: str = "float32", is_reward_model: bool = False
) -> bool:
    """Whether the model gives the same outputs for a packed row as for padded rows, tried on two short sequences.

    It does not where its attention can't be computed by segments (flash attention, attention sinks, a state instead of
    attention), and where its loss counts the tokens of a row (a mixture of experts). `precision` is the one that the
    trainer computes in. Leaves the model unchanged where the answer is no.
    """
    config = _config_of(model)
    if hasattr(config, "output_router_logits") or not row_attention.enable(config):
        return False
    tokens = ordinary_tokens(config, 14)
    sequences = [tokens[:4] + tokens[4:9], tokens[:4] + tokens[9:14]]
    rows = SharedRows.of(sequences, [0, 0]).to(device)
    ids_NT = torch.tensor(sequences, device=device)
    mask_NT = torch.ones_like(ids_NT)
    was_training, is_supported = model.training, False
    model.eval()
    try:
        with torch.no_grad():
            if is_reward_model:
                expected = model(input_ids=ids_NT, attention_mask=mask_NT, use_cache=False).logits[:, 0].float()
                packed = rows.last_scores(model, use_cache=False).float()
            else:
                fused = {"fused_lm_head": True, "use_cache": False}
                expected = model(input_ids=ids_NT, attention_mask=mask_NT, labels=ids_NT, **fused).log_probs.float()
                packed = rows.log_probs(model, ids_NT, **fused)["log_probs"].float()
        weights = str(next(iter(model.parameters())).dtype).removeprefix("torch.")
        tolerance = max(TOLERANCES[precision], TOLERANCES.get(weights, 0.0))
        is_supported = float((expected - packed).abs().max()) <= tolerance * float(expected.abs().max())
    except (TypeError, ValueError, RuntimeError, KeyError, AttributeError) as error:
        log.info("packed rows are not supported: %s", error)
    finally:
        model.train(was_training)
        if not is_supported:
            row_attention.disable(config)
    return is_supported


def _unwrapped(model: torch.nn.Module) -> PreTrainedModel:
    while hasattr(model, "module"):  # DistributedDataParallel, DeepSpeed's engine
        model = cast(torch.nn.Module, model.module)
    return cast(PreTrainedModel, model)


def _config_of(model: torch.nn.Module) -> PretrainedConfig:
    return _unwrapped(model).config.get_text_config()
