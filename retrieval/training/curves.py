"""The course of a training, as a table and as a picture."""

from __future__ import annotations

import csv
import logging
from collections.abc import Sequence
from pathlib import Path

__all__ = ["write_curve_picture", "write_curve_table"]

logger = logging.getLogger(__name__)


def write_curve_table(history: Sequence[dict[str, float]], path: Path) -> None:
    """Write a CSV file with a row a step; validation stands in the rows where it took place."""
    columns = list(dict.fromkeys(name for row in history for name in row))
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        writer.writerows(history)


def write_curve_picture(
    history: Sequence[dict[str, float]], path: Path, *, best_step: int | None = None
) -> None:
    """Draw the loss, and validation recall where there is any, over the steps, as a PNG file."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        # The model is trained by now; a drawing is no reason to fail.
        logger.warning("%s is not drawn: %s", path, error)
        return

    # Not through pyplot: its figures and its choice of a window system belong to the process.
    figure = Figure(figsize=(9, 4), layout="constrained")
    FigureCanvasAgg(figure)
    measured = [row for row in history if any("R@" in name for name in row)]
    axes = figure.subplots(1, 2 if measured else 1, squeeze=False)[0]
    # A single point has no line.
    point = "." if len(history) == 1 else None
    axes[0].plot([row["step"] for row in history], [row["loss"] for row in history], marker=point)
    axes[0].set(xlabel="step", ylabel="loss", title="Training loss")
    if measured:
        for name in (name for name in measured[0] if "R@" in name):
            rows = [row for row in measured if name in row]
            style = "-" if name.startswith("text") else "--"
            axes[1].plot(
                [row["step"] for row in rows],
                [row[name] for row in rows],
                style,
                marker=".",
                label=name,
            )
        if best_step:
            axes[1].axvline(best_step, color="grey", linewidth=0.8)
        axes[1].set(xlabel="step", ylabel="recall in %", title="Validation", ylim=(0, 100))
        axes[1].legend(fontsize="small")
    figure.savefig(path, dpi=120, metadata={"Software": None})
