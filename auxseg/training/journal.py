"""What a run says while it trains: lines, times and memory."""

import dataclasses
import resource
import sys

import numpy as np

from auxseg.devices import parallel
from auxseg.devices.processes import num_processes
from auxseg.training import validation


@dataclasses.dataclass(frozen=True)
class Timing:
    steps: int
    examples: int
    seconds: float
    first_step_seconds: float
    waited_seconds: float

    @property
    def images_per_second(self):
        """Of the steps after the first, which may compile."""
        if self.steps < 2:
            return self.examples / self.seconds if self.seconds else 0.0
        later = self.examples * (self.steps - 1) / self.steps
        return later / (self.seconds - self.first_step_seconds)


def divide_sums(sums, classes):
    weight, cases = float(sums.weight), np.asarray(sums.dice_cases, np.float64)
    dice = [float(d / n) if n else None for d, n in zip(sums.dice, cases, strict=True)]
    return {
        "loss": float(sums.loss) / weight,
        "segmentation_loss": float(sums.segmentation) / weight,
        "auxiliary_loss": float(sums.auxiliary) / weight,
        "accuracy": float(sums.accuracy) / weight,
        "pooled_dsc": float(sums.accuracy) / weight,
        "dice": validation.by_class(dice, classes),
        "dice_cases": validation.by_class(map(int, cases), classes),
    }


def peak_memory(device):
    _, peak = parallel.device_memory_bytes(device)
    if peak is not None and device.platform != "cpu":
        return {"peak_memory_mb": peak / 1e6, "memory_of": "device"}
    return {
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3,
        "memory_of": "process",
    }


def print_header(setup, position):
    sizes = ", ".join(f"{name} {len(rows)}" for name, rows in setup.members.items())
    device, processes = setup.devices[0], num_processes()
    of = f" of {processes} processes" if processes > 1 else ""
    print(
        f"{setup.dataset.name}: {sizes} cases; {len(setup.devices)} x {device.device_kind} ({device.platform}){of}, "
        f"data on the {'device' if setup.feed.placement == 'device' else 'disk'}; workdir {setup.workdir}",
        flush=True,
    )
    if position.epoch == 0:
        print("the first step compiles the network; this takes up to a minute", file=sys.stderr, flush=True)


def print_row(setup, row, position):
    val = row["val"]
    dice = "  ".join(
        f"{name.replace('_', ' ')} {'-' if value is None else f'{value:.3f}'} ({val['dice_cases'][name]})"
        for name, value in val["dice"].items()
        if name != "background"
    )
    streamed = setup.feed.placement == "stream"
    waited = f"  waited for data {row['waited_for_data']:.0%}" if streamed else ""
    best = "  best" if position.schedule.best_epoch == row["epoch"] else ""
    print(
        f"epoch {row['epoch']}/{setup.config.train.num_epochs}  loss {row['train']['loss']:.4f}  "
        f"val {val['loss']:.4f}  Dice {dice}  lr {row['learning_rate']:g}  {row['seconds']:.1f} s  "
        f"{row['images_per_second']:.1f} images/s{waited}{best}",
        flush=True,
    )
