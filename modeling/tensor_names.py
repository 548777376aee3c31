"""Tensors by other people's names: one table of modules per origin, read in both directions."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch


_PLACE = re.compile(r"\{(\+1)?\}")


def rename(state_dict: Mapping[str, torch.Tensor], modules: Mapping[str, str]) -> dict[str, torch.Tensor]:
    """Gives tensors the names of another code.

    Args:
        state_dict: tensors by name.
        modules: new names of modules or tensors by old ones, with `{}` for every index, or `{+1}` on the side that
            counts from 1. The longest old name with which a tensor's name begins decides; what follows it stays.

    Returns:
        the tensors by their new names; a name that no entry begins stays as it is.
    """
    entries = [(_pattern(old), _PLACE.findall(old), new) for old, new in modules.items()]
    return {_renamed(name, entries): tensor for name, tensor in state_dict.items()}


def inverted(modules: Mapping[str, str]) -> dict[str, str]:
    """The same table, read from right to left."""
    return {new: old for old, new in modules.items()}


def _pattern(name: str) -> re.Pattern[str]:
    return re.compile(r"(\d+)".join(re.escape(part) for part in _PLACE.split(name)[::2]) + r"(?![^.])")


def _renamed(name: str, entries: list[tuple[re.Pattern[str], list[str], str]]) -> str:
    matches = [(match, places, new) for pattern, places, new in entries if (match := pattern.match(name))]
    if not matches:
        return name
    match, places, new = max(matches, key=lambda found: found[0].end())
    indices = iter([int(index) - bool(place) for index, place in zip(match.groups(), places)])
    return _PLACE.sub(lambda place: str(next(indices) + bool(place[1])), new) + name[match.end() :]
