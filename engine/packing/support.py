"""Whether a model can be called on packed rows: decided by a trial, in float32, so that rounding does not decide it."""

import contextlib
import logging
from collections.abc import Iterator

import torch
from trl.trainer.utils import add_fused_lm_head

from engine.models.loading import ordinary_tokens, outside_zero3
from engine.packing import row_attention
from engine.packing.shared_rows import SharedRows, base_model_of, config_of
from engine.packing.small_copy import small_copy

# Shapes: N = sequences, T = tokens of the longest.

SAME_OUTPUT = 1e-3  # allowed difference in float32, as a share of the largest output; a wrong mask makes 0.1 and more
PADDED = (  # with the tokens of a padded batch as a multiple of the packed row's
    "this model does not support packed rows (see docs/packing.md): its rows are padded, which is about %.1f times "
    "slower for the first batch"
)
log = logging.getLogger(__name__)


def supports_shared_rows(model: torch.nn.Module, device: torch.device, *, is_reward_model: bool = False) -> bool:
    """Whether the model gives the same outputs for a packed row as for padded rows, tried on two short sequences.

    It does not where its attention can't be computed by segments (flash attention, attention sinks, a state instead of
    attention), and where its loss counts the tokens of a row (a mixture of experts). The outputs are compared in
    float32, where rounding is far below the effect of a wrong mask: on a small copy of the architecture
    (small_copy.py), and on the model itself if its weights are float32. In the precision of training the model only
    has to accept the packed row. Leaves the model unchanged where the answer is no.

    The copy is complete under ZeRO-3 too: TRL's head would read its weights as divided ones, and the copy of a reward
    model would be divided, for which a process that scores alone waits forever.
    """
    plain, config = base_model_of(model), config_of(model)
    if hasattr(config, "output_router_logits") or not row_attention.enable(config):
        return False
    was_training, is_supported = model.training, False
    model.eval()
    try:
        with outside_zero3():
            copy = small_copy(plain, device)
            if copy is not None:
                if not is_reward_model:
                    add_fused_lm_head(copy)
                row_attention.enable(config_of(copy))
                is_supported = _gives_same_outputs(copy, device, is_reward_model=is_reward_model)
        has_rounding = any(
            weight.is_floating_point() and weight.dtype != torch.float32 for weight in plain.parameters()
        )
        if is_supported or copy is None:
            is_supported = _gives_same_outputs(
                model, device, is_reward_model=is_reward_model, only_runs=has_rounding and copy is not None
            )
    except (TypeError, ValueError, RuntimeError, KeyError, AttributeError) as error:
        is_supported = False
        log.info("packed rows are not supported: %s", error)
    finally:
        model.train(was_training)
        if not is_supported:
            row_attention.disable(config)
    return is_supported


@contextlib.contextmanager
def _own_forward(model: torch.nn.Module) -> Iterator[None]:
    """Calls of the model are without the wrapper of accelerate, which turns autocast on inside the call."""
    original = vars(model).get("_original_forward")
    if original is None:
        yield
        return
    wrapper = model.forward
    model.forward = original
    try:
        yield
    finally:
        model.forward = wrapper


def _gives_same_outputs(
    model: torch.nn.Module, device: torch.device, *, is_reward_model: bool, only_runs: bool = False
) -> bool:
    """Compares the outputs for two sequences that begin alike, packed and padded, without autocast.

    With `only_runs` the packed row is computed in the precision around the call, and its values are not compared.
    Raises what the model raises.
    """
    tokens = ordinary_tokens(config_of(model), 14)
    sequences = [tokens[:4] + tokens[4:9], tokens[:4] + tokens[9:14]]
    rows = SharedRows.of(sequences, [0, 0]).to(device)
    ids_NT = torch.tensor(sequences, device=device)
    mask_NT = torch.ones_like(ids_NT)

    def outputs_of(packed: bool) -> torch.Tensor:
        if is_reward_model:
            if packed:
                return rows.last_scores(model, use_cache=False).float()
            return model(input_ids=ids_NT, attention_mask=mask_NT, use_cache=False).logits[:, 0].float()
        fused = {"fused_lm_head": True, "use_cache": False}
        if packed:
            return rows.log_probs(model, ids_NT, **fused)["log_probs"].float()
        return model(input_ids=ids_NT, attention_mask=mask_NT, labels=ids_NT, **fused).log_probs.float()

    with torch.no_grad():
        if only_runs:
            return outputs_of(packed=True).shape == ids_NT[:, 1:].shape[: 1 if is_reward_model else 2]
        with torch.autocast(device.type, enabled=False), _own_forward(model):
            expected = outputs_of(packed=False)
            difference = (outputs_of(packed=True) - expected).abs().max()
    return float(difference) <= SAME_OUTPUT * float(expected.abs().max())
