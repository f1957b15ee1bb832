"""How ``mnist_12k`` was chosen: forms of exactly 12,000 parameters, judged on training images.

    python -m benchmarks.choose_mnist_12k --list              # widths that give 12,000
    python -m benchmarks.choose_mnist_12k --seeds 0 1         # train each form, judge it

Widths come from the closed formula of the parameter count; forms are trained on 50,000 of the
training images and judged on the other 10,000, always the same ones. The test set is never read.
"""

import argparse
import itertools
import json
import re
import sys
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from torch import nn

from constrained_cnn import models, recipes
from constrained_cnn.blocks import ConvBNDrop, GAPHead, MaxPool2d, Transition1x1
from constrained_cnn.record import write_atomically

TARGET = 12_000
P_DROP = 0.069
HELD_OUT = 10_000
RESULTS = Path(__file__).parent / "results" / "choose_mnist_12k.json"


@dataclass(frozen=True)
class Form:
    """Two stages of three 3x3 blocks with a pool after each, and what stands before the head.

    Attributes:
        name: What it is called.
        stage_1: Widths before the first pool.
        consolidated: Width of the 1x1 block after it.
        stage_2: Widths before the second pool.
        mixed: Width of a 1x1 block after the second pool; None for none.
        last: Width of the plain last convolution.
        last_kernel: Its kernel size: 3, or 1.
    """

    name: str
    stage_1: tuple[int, ...]
    consolidated: int
    stage_2: tuple[int, ...]
    mixed: int | None
    last: int
    last_kernel: int

    @property
    def parameters(self) -> int:
        """The closed formula: k * k * in * out for a convolution, 2 * out for its batch norm."""
        total, channels = 0, 1
        blocks = [(w, 9) for w in self.stage_1] + [(self.consolidated, 1)]
        blocks += [(w, 9) for w in self.stage_2] + ([(self.mixed, 1)] if self.mixed else [])
        for width, taps in blocks:
            total += taps * channels * width + 2 * width
            channels = width
        return total + self.last_kernel**2 * channels * self.last + 10 * self.last + 10

    def build(self) -> nn.Module:
        """Return the network with new random weights."""
        channels = 1

        def block(width: int, kernel: int) -> nn.Module:
            nonlocal channels
            before, channels = channels, width
            if kernel == 1:
                return Transition1x1(before, width, p_drop=P_DROP)
            return ConvBNDrop(before, width, padding=1, p_drop=P_DROP)

        parts: OrderedDict[str, nn.Module] = OrderedDict()
        parts["stage_1"] = nn.Sequential(*(block(width, 3) for width in self.stage_1))
        parts["pool_1"] = MaxPool2d(2)
        parts["consolidate"] = block(self.consolidated, 1)
        parts["stage_2"] = nn.Sequential(*(block(width, 3) for width in self.stage_2))
        parts["pool_2"] = MaxPool2d(2)
        if self.mixed:
            parts["mix"] = block(self.mixed, 1)
        padding = self.last_kernel // 2
        parts["last"] = nn.Conv2d(
            channels, self.last, self.last_kernel, padding=padding, bias=False
        )
        parts["head"] = GAPHead(self.last, 10)
        return nn.Sequential(parts)


# One choice of widths for each form, of all that `--list` gives: a plain pyramid.
FORMS = (
    Form("3+3+1", (8, 12, 16), 9, (16, 17, 22), None, 9, 3),
    Form("3+3, 1x1, plain 3x3", (8, 12, 16), 10, (14, 18, 23), 14, 10, 3),
    Form("3+3, 1x1, plain 1x1", (8, 12, 16), 12, (15, 20, 22), 16, 10, 1),
)


def widths(form: Form) -> Iterator[Form]:
    """Yield every form of exactly 12,000 parameters within two channels of ``form``."""
    near = [range(width - 2, width + 3) for width in (*form.stage_1, *form.stage_2)]
    for one in itertools.product(*near, range(form.consolidated - 2, form.consolidated + 3)):
        candidate = replace(form, stage_1=one[:3], stage_2=one[3:6], consolidated=one[6])
        if candidate.parameters == TARGET:
            yield candidate


def judge(form: Form, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Train ``form`` on 50,000 images by the reference recipe; return how it does on the rest."""
    slug = re.sub(r"\W+", "_", f"form {form.name}")

    def build() -> nn.Module:
        return form.build()

    build.__name__ = build.__qualname__ = slug
    if slug not in models.list_models():
        models.register_model(build)
    recipe = replace(recipes.get_recipe("mnist-12k"), name=slug, model=slug)
    folder = options.runs / slug / f"seed-{seed}"
    record = recipes.run(
        recipe,
        seed,
        data_name="mnist",
        data_dir=options.data_dir,
        device=options.device,
        held_out=HELD_OUT,
        out=folder,
        resume=(folder / "checkpoint.pt").exists(),
    )
    return {
        **asdict(form),
        "seed": seed,
        "accuracy": record.result["validation_accuracy"],
        "loss": record.result["validation_loss"],
        "config": record.config,
        "environment": record.environment,
    }


def main() -> int:
    """Train and judge every form, or list widths."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--forms", nargs="+", choices=[form.name for form in FORMS])
    parser.add_argument("--data-dir")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--runs", type=Path, default=Path("runs/choose"), help="folder of the runs")
    parser.add_argument("--list", action="store_true", help="list widths and train nothing")
    options = parser.parse_args()
    forms = [form for form in FORMS if options.forms is None or form.name in options.forms]
    if options.list:
        for form in forms:
            for found in widths(form):
                print(found.name, *found.stage_1, "|", found.consolidated, *found.stage_2)
        return 0
    rows = [judge(form, seed, options) for form in forms for seed in options.seeds]
    write_atomically(RESULTS, (json.dumps(rows, indent=1) + "\n").encode())
    table = Table("form", "seed", "held-out accuracy", "held-out loss")
    for row in rows:
        table.add_row(row["name"], str(row["seed"]), f"{row['accuracy']:.2f}", f"{row['loss']:.4f}")
    Console().print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
