"""`kbench cache`: what the cache of images and activations holds."""

from __future__ import annotations

from typing import Any

from kbench.data.images.cache import cache_entries, clear_cache
from kbench.workspace import find_workspace


def cache(*, clear: bool) -> dict[str, Any]:
    """Return what the cache of images and activations holds, after clearing it if asked."""
    folder = find_workspace().cache()
    freed = clear_cache(folder) if clear else 0
    rows = [
        {"key": entry.key, "what": entry.what, "images": entry.rows, "size": " x ".join(map(str, entry.resize[1:])),
         "how": entry.resize[0], "MB": round(entry.bytes / 1e6, 1)}
        for entry in cache_entries(folder)
    ]  # fmt: skip
    return {"folder": str(folder), "rows": rows, "freed_mb": round(freed / 1e6, 1)}
