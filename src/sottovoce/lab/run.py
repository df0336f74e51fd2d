"""The run folder: recipe, log and state of one training, safe against being killed at any moment.

recipe.json         what runs here; another recipe in the same folder is refused
log.jsonl           one line per step; lines after the last saved state are dropped when a run resumes
state.safetensors   everything that training needs to go on, written atomically
model.safetensors   the result, there only when training has ended
head.safetensors    the classifier it was trained with, from which quantized training goes on
cache/              decoded recordings
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from sottovoce.errors import BadRecipe
from sottovoce.lab.recipe import Recipe


class Run:
    """One run folder."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.state = self.folder / "state.safetensors"
        self.model = self.folder / "model.safetensors"
        self.cache = self.folder / "cache"
        self._log = self.folder / "log.jsonl"

    def open(self, recipe: Recipe) -> None:
        """Claim the folder for a recipe. Raises BadRecipe when another recipe lives there."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / "recipe.json"
        if path.exists() and not recipe.same(path.read_text(encoding="utf-8")):
            raise BadRecipe(f"{self.folder} belongs to another recipe ({path}); name a new run folder")
        write_text(path, recipe.text())

    def log(self, **entry: Any) -> None:
        """Append one line to the log."""
        with open(self._log, "a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")

    def rewind(self, step: int) -> None:
        """Drop log lines of steps that will be run again, and a line that was cut off."""
        if not self._log.exists():
            return
        kept = []
        for line in self._log.read_text(encoding="utf-8").splitlines():
            try:
                if json.loads(line)["step"] < step:
                    kept.append(line + "\n")
            except (ValueError, KeyError):
                continue
        write_text(self._log, "".join(kept))

    def entries(self) -> list[dict[str, Any]]:
        """All lines of the log."""
        return [json.loads(line) for line in self._log.read_text(encoding="utf-8").splitlines()]


def write_text(path: Path, text: str) -> None:
    """Write a text file under a temporary name, then rename."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)
