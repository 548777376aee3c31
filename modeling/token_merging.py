"""Token merging: tokens that say much the same become one, and what is left costs less ("Token Merging: Your ViT But
Faster", Bolya et al., 2023).

Between attention and MLP every layer but the last, after which no token sees another, merges r pairs of patches, found
by bipartite soft matching (Section 3). The image's tokens are never copied into a matrix of who is in whom: an index
says where each has gone, so that merging is a sum by index, and undoing it a look-up.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch.nn import functional as F


class MergedTokens(NamedTuple):
    """Which tokens of an image have become one: of T that entered the first layer t are left.

    Attributes:
        place: (B, T) int64, where among those left each has gone; the tokens before the patches stay where they are.
        size: (B, t) float32, how many each of those left is made of; they sum to T ("Tracking Token Size", Section 3).
    """

    place: torch.Tensor
    size: torch.Tensor

    @property
    def attention_bias(self) -> torch.Tensor:
        """log s of the paper's Eq. 1, (B, 1, 1, t): a key weighs as much as all the tokens that it is made of."""
        return self.size.log()[:, None, None]

    def mean(self, tokens: torch.Tensor) -> torch.Tensor:
        """What of all T tokens is left when they are merged, (T, D) or (B, T, D) -> (B, t, D)."""
        weights = 1 / self.size.gather(1, self.place)
        return sum_by_place(tokens * weights[..., None], self.place, self.size.shape[1]).to(tokens.dtype)

    def unmerged(self, tokens: torch.Tensor) -> torch.Tensor:
        """Every token as what it has become, (B, t, ...) -> (B, T, ...)."""
        rows = _rows(self.place, self.size.shape[1])
        return tokens.flatten(0, 1).index_select(0, rows).view(*self.place.shape, *tokens.shape[2:])


def merge_tokens(
    tokens: torch.Tensor, key: torch.Tensor, merged: MergedTokens | None, pairs: int, prefix: int
) -> tuple[torch.Tensor, MergedTokens | None]:
    """Merges the likest pairs of patches into their means, weighted by size (Section 3).

    Args:
        tokens: (B, t, D), between attention and MLP.
        key: (B, k, t, D/k), by which that attention knew them.
        merged: what earlier layers have merged; None for nothing.
        pairs: r; where that is more than half of the patches, which is as many as one matching can merge, that half.
        prefix: how many tokens stand before the patches; they are never merged.

    Returns:
        the tokens that are left, (B, t - r, D), in the order of the paper's code: those before the patches, the rest
        of A, and B; and what is merged by now.
    """
    batch, count, _ = tokens.shape
    pairs = min(pairs, (count - prefix) // 2)
    if not pairs:
        return tokens, merged
    if merged is None:
        places = torch.arange(count, device=tokens.device).expand(batch, -1)
        merged = MergedTokens(places, tokens.new_ones(batch, count, dtype=torch.float32))
    place = match(key, pairs, prefix)
    size = sum_by_place(merged.size[..., None], place, count - pairs)[..., 0]
    weights = merged.size / size.gather(1, place)
    means = sum_by_place(tokens * weights[..., None], place, count - pairs).to(tokens.dtype)
    return means, MergedTokens(place.gather(1, merged.place), size)


@torch.no_grad()
def match(key: torch.Tensor, pairs: int, prefix: int) -> torch.Tensor:
    """Bipartite soft matching (Section 3): the patches alternate between the sets A and B, each of A chooses the one of
    B with the most similar key, and the `pairs` most similar of these merge.

    Args:
        key: (B, k, t, D/k); similar are those whose mean over the heads has a large cosine ("Token Similarity").
        pairs: r, at most the size of A, half of the patches rounded down.
        prefix: how many tokens stand before the patches and belong to neither set.

    Returns:
        (B, t) int64, where among the t - r tokens that are left each token goes.
    """
    casts = torch.amp.is_autocast_available(key.device.type)  # and bfloat16 cannot tell the likest apart
    with torch.autocast(key.device.type, enabled=False) if casts else nullcontext():
        directions = F.normalize(key.float().mean(1)[:, prefix:], dim=-1)
        b, a = directions[:, ::2], directions[:, 1::2]
        similarity, nearest = (a @ b.transpose(1, 2)).max(dim=-1)  # (B, |A|)
    likest = similarity.topk(pairs, sorted=False).indices
    merges = torch.zeros_like(similarity, dtype=torch.bool).scatter(1, likest, True)
    first_of_b = prefix + a.shape[1] - pairs
    place_of_a = torch.where(merges, first_of_b + nearest, prefix + (~merges).cumsum(1) - 1)
    place_of_b = (first_of_b + torch.arange(b.shape[1], device=key.device)).expand(key.shape[0], -1)
    before = torch.arange(prefix, device=key.device).expand(key.shape[0], -1)
    patches = torch.arange(key.shape[2] - prefix, device=key.device)
    alternating = patches // 2 + patches % 2 * b.shape[1]
    return torch.cat((before, torch.cat((place_of_b, place_of_a), 1).index_select(1, alternating)), 1)


def sum_by_place(tokens: torch.Tensor, place: torch.Tensor, count: int) -> torch.Tensor:
    """Adds up the tokens that go to the same place, (B, T, D) and (B, T) -> (B, count, D)."""
    batch, _, width = tokens.shape
    sums = tokens.new_zeros(batch * count, width)
    return sums.index_add(0, _rows(place, count), tokens.flatten(0, 1)).view(batch, count, width)


def _rows(place: torch.Tensor, count: int) -> torch.Tensor:
    """Places among each image's `count` tokens as places among those of the whole batch, (B, T) -> (B T,).

    Whole rows are copied by them several times as fast as `gather` and `scatter_add` go through every number.
    """
    images = torch.arange(place.shape[0], device=place.device)[:, None]
    return (images * count + place).flatten()
