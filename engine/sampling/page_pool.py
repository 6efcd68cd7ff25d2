"""Pages that hold the keys and values of prompts and answers, in every layer of a model.

A prompt has one page, which is as wide as the longest prompt; an answer has as many pages of PAGE tokens as it needs.
Batched products read the first pages of a buffer, all of each: a CPU would first copy a part of every matrix, at every
step. So the last pages are moved into the gaps that finished answers leave.
"""

import itertools
from dataclasses import dataclass, field

import torch

# Shapes: R = pages, S = tokens of a page, J = heads of keys, D = width of a head, L = tokens that are written.
PAGE = 32  # tokens; matrices of odd sizes take three times as long


@dataclass(eq=False)
class CachedTokens:
    """A prompt whose keys and values are in the cache."""

    length: int = 0
    pages: list[int] = field(default_factory=list)


@dataclass(eq=False)
class CachedAnswer(CachedTokens):
    """An answer that is being generated; all of its tokens but the last are in the cache."""

    prompt: CachedTokens = field(kw_only=True)


class PagePool:
    """Pages of keys and values in every layer, and the owner of each: prompts or answers."""

    def __init__(self) -> None:
        self.size = PAGE  # tokens of a page
        self.owners: list[CachedTokens | None] = []
        self.layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}  # keys and values, with room for more pages

    def fit(self, tokens: int = 0) -> None:
        """Makes one page large enough for so many tokens, and for the longest owner."""
        longest = max([tokens, *(owner.length for owner in self.owners if owner)])
        self.size = -(-longest // PAGE) * PAGE

    def add(self, owner: CachedTokens, count: int) -> None:
        """Assigns pages to the owner for `count` more tokens."""
        owner.length += count
        while len(owner.pages) * self.size < owner.length:
            page = next((page for page, other in enumerate(self.owners) if other is None), len(self.owners))
            self.owners[page : page + 1] = [owner]
            owner.pages.append(page)

    def remove(self, owner: CachedTokens) -> None:
        """Frees the owner's pages."""
        for page in owner.pages:
            self.owners[page] = None

    def close_gaps(self) -> None:
        """Moves the last pages into free ones, so that the pages in use are the first."""
        count = sum(owner is not None for owner in self.owners)
        targets = [page for page in range(count) if self.owners[page] is None]
        sources = [page for page in range(count, len(self.owners)) if self.owners[page] is not None]
        for source, target in zip(sources, targets, strict=True):
            owner = self.owners[target] = self.owners[source]
            assert owner is not None
            owner.pages[owner.pages.index(source)] = target
        del self.owners[count:]
        for tensor in itertools.chain.from_iterable(self.layers.values()) if sources else ():
            tensor[targets] = tensor[sources]

    def write(
        self, layer: int, key_LJD: torch.Tensor, value_LJD: torch.Tensor, place_2L: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Writes tokens to their (page, slot) in a layer; returns keys and values of all its pages, [R, J, S, D]."""
        if layer not in self.layers:
            self.layers[layer] = (key_LJD[:0, :, None], value_LJD[:0, :, None])
        key_RJSD, value_RJSD = self.read(layer)
        page_L, slot_L = place_2L
        key_RJSD[page_L, :, slot_L] = key_LJD
        value_RJSD[page_L, :, slot_L] = value_LJD
        return key_RJSD, value_RJSD

    def read(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of all pages in a layer, [R, J, S, D]."""
        keys, values = self.layers[layer]
        count = len(self.owners)
        if len(keys) < count or keys.size(2) != self.size:
            room = len(keys) if len(keys) >= count else count * 3 // 2
            # The keys of a head are stored transposed, [D, S]: products read them twice as fast.
            keys = _resized(keys.mT, room, keys.size(-1), self.size).mT
            values = _resized(values, room, self.size, values.size(-1))
            self.layers[layer] = (keys, values)
        return keys[:count], values[:count]


def _resized(old: torch.Tensor, count: int, rows: int, columns: int) -> torch.Tensor:
    """A copy as [count, J, rows, columns], cut off or filled with zeros: masked numbers are multiplied as well."""
    new = old.new_zeros(count, old.size(1), rows, columns)
    kept = tuple(slice(min(sizes)) for sizes in zip(old.shape, new.shape, strict=True))
    new[kept] = old[kept]
    return new
