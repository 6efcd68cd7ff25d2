"""Rotary positions for longer rows, before a model is pretrained further on them.

A larger base (arXiv 2309.16039, Llama 3's 500,000) or a scaling (linear, NTK, YaRN, Llama 3.1's) slows the rotation of
the positions, so that a longer row has angles which the model has seen.
"""

import math
from collections.abc import Mapping
from typing import Any

from transformers import PretrainedConfig

from data_schemas.errors import ConfigError
from engine.tokens.positions import SCALES_ITS_LIMIT, has_rotary_positions


def change_rotary_positions(
    config: PretrainedConfig, *, theta: float | None, scaling: Mapping[str, Any] | None, num_tokens: int
) -> None:
    """Sets the base and the scaling of a model's rotary positions, in place, and lets it have rows of `num_tokens`.

    None leaves the model's own. Raises ConfigError for a model without rotary positions, or with different ones in its
    layers, and for a scaling that transformers refuses.
    """
    text = config.get_text_config()
    rope = dict(getattr(text, "rope_parameters", None) or {})
    if not has_rotary_positions(config) or not rope:
        raise ConfigError(f"rope_theta: the model ({config.model_type}) has no rotary positions; leave it out")
    if any(isinstance(value, dict) for value in rope.values()):
        raise ConfigError(
            f"rope_theta: the layers of the model ({config.model_type}) have different rotary positions, which it "
            "cannot set; leave it out, and edit rope_parameters in the model's config.json"
        )
    if scaling is not None:
        kept = {name: rope[name] for name in ("rope_theta", "partial_rotary_factor") if name in rope}
        rope = {**kept, **scaling}
    if theta is not None:
        rope["rope_theta"] = theta
    text.rope_parameters = rope
    text.standardize_rope_params()  # while max_position_embeddings is still that of the model's pretraining
    try:
        text.validate_rope()
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"rope_scaling={dict(scaling or {})}: {' '.join(str(error.args[0]).split())[:300]}"
        ) from error
    scales = text.rope_parameters.get("rope_type") in SCALES_ITS_LIMIT
    factor = float(text.rope_parameters.get("factor") or 1) if scales else 1.0
    text.max_position_embeddings = max(text.max_position_embeddings, math.ceil(num_tokens / factor))
