"""Draw the pictures of the concept pages: ``python -m docs.make_images``."""

from dataclasses import replace
from pathlib import Path

import torch

from constrained_cnn import (
    create_model,
    data,
    effective_receptive_field,
    measure_budget,
    measure_receptive_field,
    plots,
    trace,
)

IMAGES = Path(__file__).parent / "images"


def main() -> None:
    """Write every picture into ``docs/images``."""
    _, test = data.load_digits()
    image = test.images[2, 0].numpy()
    model = create_model("mnist_12k", weights="mnist")
    graph = replace(trace(model, (1, 28, 28)), model="mnist_12k")
    budget = measure_budget(graph)
    torch.manual_seed(0)
    source = replace(trace(create_model("mnist_12k_source"), (1, 28, 28)), model="mnist_12k_source")
    used = effective_receptive_field(model, (1, 28, 28), images=test.images[:32] / 255 - 0.13)
    figures = {
        "receptive-field": plots.receptive_field_growth(
            measure_receptive_field(graph), image=image
        ),
        "source-field": plots.receptive_field_growth(measure_receptive_field(source)),
        "layer-costs": plots.layer_costs(budget),
        "memory": plots.memory_timeline(budget),
        "effective-field": plots.effective_field(used),
    }
    for name, figure in figures.items():
        print(plots.save_figure(figure, IMAGES / f"{name}.png"))


if __name__ == "__main__":
    main()
