"""Embeddings of texts: the mean of a model's last hidden states over the tokens of a text.

Those of the base model itself need no download.
Legend: N = texts, D = width of the model, B = texts of a batch, T = tokens.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from engine.models.loading import load_encoder, read_tokenizer
from engine.runtime import progress

MAX_TOKENS = 512  # of a text, from its start
TOKENS_OF_BATCH = 8192  # padded


@torch.no_grad()
def embed(path: str, texts: Sequence[str], device: torch.device) -> NDArray[np.float16]:
    """The embedding of each text, [N, D]. A batch holds texts of similar lengths, whose padding is not seen.

    Raises ConfigError or DataError where the folder holds no model or tokenizer.
    """
    tokenizer = read_tokenizer(path)
    model = load_encoder(path, dtype="float32" if device.type == "cpu" else "auto")
    model.eval().to(device)  # pyright: ignore[reportArgumentType]
    ids = [tokenizer(text, truncation=True, max_length=MAX_TOKENS)["input_ids"] or [0] for text in texts]
    embedded_ND = np.zeros((len(texts), model.config.hidden_size), dtype=np.float16)
    with progress.activity("embedding rows", total=len(texts), unit="rows"):
        for places in _batches([len(of_text) for of_text in ids]):
            longest = len(ids[places[-1]])
            tokens_BT = torch.tensor([ids[place] + [0] * (longest - len(ids[place])) for place in places])
            mask_BT = torch.tensor([[1] * len(ids[place]) + [0] * (longest - len(ids[place])) for place in places])
            hidden_BTD = model(input_ids=tokens_BT.to(device), attention_mask=mask_BT.to(device)).last_hidden_state
            sums_BD = (hidden_BTD.float() * mask_BT.to(device)[..., None]).sum(dim=1)
            means_BD = sums_BD / mask_BT.to(device).sum(dim=1, keepdim=True)
            embedded_ND[places] = torch.nn.functional.normalize(means_BD, dim=1).cpu().numpy()
            progress.advance(len(places))
    return embedded_ND


def _batches(lengths: Sequence[int]) -> list[list[int]]:
    """The texts in batches of at most TOKENS_OF_BATCH padded tokens, shortest first."""
    batches: list[list[int]] = [[]]
    for place in sorted(range(len(lengths)), key=lambda place: lengths[place]):
        if batches[-1] and (len(batches[-1]) + 1) * lengths[place] > TOKENS_OF_BATCH:
            batches.append([])
        batches[-1].append(place)
    return [batch for batch in batches if batch]
