"""lungmask's own network and program on a scan, as `scan_cost` runs it in a process of its own.

Its trained weights have to be fetched, so the weights are drawn here, the last layer's such that all is background:
its post-processing then finds nothing to do, which is the least time that it can take.
"""

import json
import os
import pathlib
import tempfile
import time

from absl import flags

from auxseg.base import command
from experiments.speed import machine


def main(_):
    """Prints one row, JSON: seconds, processor seconds and peak memory of `LMInferer.apply`, the file read first."""
    import SimpleITK as sitk
    import torch
    from lungmask import mask

    given = flags.FLAGS
    with tempfile.TemporaryDirectory(prefix="lungmask-cost-") as name:
        folder = pathlib.Path(name)
        network = mask.UNet(
            n_classes=3, padding=True, depth=5, up_mode="upsample", batch_norm=True, residual=False
        )
        state = network.state_dict()
        last = [key for key in state if state[key].ndim][-2:]
        for key in last:
            state[key].zero_()
        state[last[1]][0] = 1.0
        torch.save(state, folder / "weights.pth")
        machine.forget_peak()
        start, cpu = time.perf_counter(), time.process_time()
        torch.set_num_threads(len(os.sched_getaffinity(0)))
        inferer = mask.LMInferer(modelpath=str(folder / "weights.pth"), force_cpu=True, tqdm_disable=True)
        with machine.own_memory() as own:
            found = inferer.apply(_read(sitk, given.box))
        row = {
            "program": "lungmask",
            "num_slices": int(found.shape[0]),
            "marked_voxels": int((found > 0).sum()),
            "seconds": time.perf_counter() - start,
            "cpu_seconds": time.process_time() - cpu,
            "peak_mib": machine.peak_mib(),
            "own_mib": own[-1],
            "load": os.getloadavg()[0],
        }
    print(json.dumps(row))


def _read(sitk, scan):
    if pathlib.Path(scan).is_dir():
        return sitk.ReadImage(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(scan)))
    return sitk.ReadImage(str(scan))


if __name__ == "__main__":
    flags.DEFINE_string("box", None, "scan", required=True)
    flags.DEFINE_integer("measure", None, "slices of it, which its row counts again", required=True)
    command.run(main)
