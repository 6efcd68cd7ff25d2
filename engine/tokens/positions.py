"""How many tokens a model has positions for, and rows that are longer.

A model with learned positions (GPT-2) fails on a longer row; one with rotary positions computes on, at positions that
it has never seen.
"""

from collections.abc import Sequence

from transformers import PretrainedConfig

from data_schemas.errors import ConfigError

SCALES_ITS_LIMIT = ("linear", "dynamic")  # the kinds of scaling whose model's own limit is that before scaling


def max_positions(config: PretrainedConfig) -> int | None:
    """Tokens of the longest sequence that the model's positions cover, with the scaling of rotary positions; None where
    there is no limit."""
    text = config.get_text_config()
    limit = getattr(text, "max_position_embeddings", None) or getattr(text, "n_positions", None)
    if not isinstance(limit, int) or limit <= 0:
        return None
    scaling = getattr(text, "rope_parameters", None) or getattr(text, "rope_scaling", None) or {}
    factor, original = scaling.get("factor"), scaling.get("original_max_position_embeddings")
    if not isinstance(factor, int | float):
        return limit
    if scaling.get("rope_type", scaling.get("type")) in SCALES_ITS_LIMIT:
        return int(limit * factor)
    return max(limit, int((original or 0) * factor))


def has_rotary_positions(config: PretrainedConfig) -> bool:
    """Whether the model computes on beyond its limit; one with learned positions fails there."""
    text = config.get_text_config()
    return any(getattr(text, name, None) for name in ("rope_parameters", "rope_scaling", "rope_theta"))


def check_positions(name: str, lengths: Sequence[int], limit: int | None) -> None:
    """Raises ConfigError where one of `lengths`, in tokens, is over the model's limit."""
    too_long = sum(length > limit for length in lengths) if limit else 0
    if too_long:
        raise ConfigError(
            f"{name}: {too_long} of {len(lengths)} rows are longer than the model's {limit} positions, the longest has "
            f"{max(lengths)} tokens; set max_length: {limit} or less"
        )
