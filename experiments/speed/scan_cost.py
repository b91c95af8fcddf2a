"""Time and peak memory of segmenting a whole scan, beside the network's own time on as many slices.

    python -m experiments.speed.scan_cost [--slices=60,240]
    python -m experiments.speed.scan_cost --box=SCAN [--slices=275,1000] --out=experiments/results/scan_stages.json

The second command measures `auxseg predict` with the networks in the box on a real scan, all outputs, each stage by
its own clock, and with `--lungmask=40` lungmask, where it is installed, on so many slices; another number of slices is made by repeating or leaving out slices, as thinner or thicker ones would be.
The first measures what the rest costs beside the network:

Writes `experiments/results/predict_cost.json`. The scan is a phantom chest of 512x512 pixels, stored
compressed; the network is the paper's, untrained, at 320x320. Both are measured in one process with the
network compiled: half of the network's batches, the whole prediction, the other half, so that what else the
machine does falls on both. `ratio` is everything (reading, resizing, checks, measurements, mask,
pictures, report) over the network alone. CPU seconds are those of all threads. Peaks are the resident memory
that the kernel reports, before and after the scan, so that their difference is what the scan costs.
"""

import json
import os
import pathlib
import tempfile
import time

from absl import flags

from auxseg.base import command, files
from experiments.made_by import made_by
from experiments.speed import machine

BATCH_SIZE = 8
RESULT = pathlib.Path(__file__).parents[1] / "results" / "predict_cost.json"
MODULE = "experiments.speed.scan_cost"
LUNGMASK = "experiments.speed.peers.run_lungmask"


def main(argv):
    """Measures each number of slices in a process of its own and writes the result."""
    del argv
    if flags.FLAGS.measure:
        given = flags.FLAGS.box
        return measure_box(given, flags.FLAGS.measure) if given else measure(flags.FLAGS.measure)
    numbers = [int(each) for each in flags.FLAGS.slices]
    rows = [measure_apart(MODULE, num_slices, flags.FLAGS.box) for num_slices in numbers]
    asked = f"python -m {MODULE} --slices={','.join(map(str, numbers))}"
    if flags.FLAGS.box:
        if flags.FLAGS.lungmask:
            asked += f" --lungmask={flags.FLAGS.lungmask}"
            rows.append(measure_apart(LUNGMASK, flags.FLAGS.lungmask, flags.FLAGS.box))
        data = "a real scan (LIDC-IDRI-0314, 275 slices of 512x512 of 1 mm), its slices repeated"
        origin = made_by(f"{asked} --box=FOLDER", data=data, seeds=())
        report = {"made_by": origin, "machine": machine.describe_machine(), "rows": rows}
        files.write_json(pathlib.Path(flags.FLAGS.out), report)
        return 0
    result = {
        "made_by": made_by(asked, data="a phantom chest of 512x512 pixels", seeds=(0,)),
        "matrix": 512,
        "network": [320, 320],
        "batch_size": BATCH_SIZE,
        "machine": machine.describe_machine(),
        "rows": rows,
    }
    files.write_json(pathlib.Path(flags.FLAGS.out), result)
    return 0


def measure_apart(module, num_slices, scan):
    """Returns the row that a module prints, measured in a process of its own; a scan of so many slices is made before."""
    with tempfile.TemporaryDirectory(prefix="predict-cost-") as name:
        more = [f"--box={repeat_slices(scan, num_slices, pathlib.Path(name))}"] if scan else []
        row = machine.measure_apart(module, num_slices, more=more)
    print(json.dumps(row), flush=True)
    return row


def measure(num_slices):
    """Prints one row: the network alone, then `predict` on a scan of as many slices."""
    import numpy as np

    from auxseg.prediction import outputs, segment

    network = create_network()
    images = np.random.default_rng(0).integers(-1000, 300, (BATCH_SIZE, *network.size_yx)).astype(np.int16)
    np.asarray(network.probabilities(images))  # compiles
    with tempfile.TemporaryDirectory(prefix="predict-cost-") as name:
        scan = write_scan(pathlib.Path(name), num_slices)
        half = num_slices // BATCH_SIZE // 2

        def run_network():
            return [np.asarray(network.probabilities(images)) for _ in range(half)]

        first = timed(run_network)
        before = machine.peak_mib()
        options = segment.Options(batch_size=BATCH_SIZE, force=True)
        whole = timed(lambda: outputs.predict(scan, pathlib.Path(name) / "out", [network], options=options))
        after = machine.peak_mib()
        second = timed(run_network)
    alone = [(one + other) * num_slices / (2 * half * BATCH_SIZE) for one, other in zip(first, second)]
    row = {
        "num_slices": num_slices,
        "network_seconds": alone[0],
        "predict_seconds": whole[0],
        "ratio": whole[0] / alone[0],
        "network_cpu_seconds": alone[1],
        "predict_cpu_seconds": whole[1],
        "cpu_ratio": whole[1] / alone[1],
        "peak_mib_before": before,
        "peak_mib_after": after,
    }
    print(json.dumps({key: round(value, 3) for key, value in row.items()}))


def measure_box(scan, num_slices):
    """Prints one row: seconds, processor seconds and peak memory of `predict` with the box, and its stages."""
    from auxseg.prediction import box, outputs
    from experiments.speed import stages

    with tempfile.TemporaryDirectory(prefix="predict-cost-") as name:
        machine.forget_peak()
        start, cpu = time.perf_counter(), time.process_time()
        inside = box.load_box()
        with stages.measured() as clocks, machine.own_memory() as own:
            outputs.predict(scan, pathlib.Path(name) / "out", [inside.lungs], box=inside)
        row = {
            "program": "auxseg predict, networks in the box",
            "num_slices": num_slices,
            "seconds": time.perf_counter() - start,
            "cpu_seconds": time.process_time() - cpu,
            "peak_mib": machine.peak_mib(),
            "own_mib": own[-1],
            "load": os.getloadavg()[0],
            "stages": stages.to_rows(clocks),
        }
    print(json.dumps(row))


def repeat_slices(scan, num_slices, folder):
    """Returns the scan itself where it has so many slices, else one of so many over the same length, as MetaImage."""
    import numpy as np
    import SimpleITK as sitk

    from auxseg.ct import find, scans

    (source,) = find.survey(scan).sources
    with tempfile.TemporaryDirectory(prefix="predict-cost-") as scratch:
        opened = scans.open_scan(source, scratch)
        if opened.num_slices == num_slices:
            return scan
        images = np.asarray(opened.read(0, opened.num_slices))
        thickness, *in_plane = opened.geometry.spacing_zyx_mm
    chosen = np.arange(num_slices) * len(images) // num_slices
    image = sitk.GetImageFromArray(images[chosen])
    image.SetSpacing([*reversed(in_plane), thickness * len(images) / num_slices])
    sitk.WriteImage(image, str(folder / "scan.mha"))
    return folder / "scan.mha"


def timed(work):
    """Returns (seconds, CPU seconds) of a call."""
    start, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - start, time.process_time() - cpu


def create_network():
    """Returns the paper's network with weights drawn from a seed."""
    import jax
    import numpy as np

    from auxseg import models
    from auxseg.runs import networks
    from configs import base

    config = base.get_config()
    model = models.create_model(config.model)
    sample = jax.ShapeDtypeStruct((1, *config.data.size, 1), np.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), sample)
    random = np.random.default_rng(0)

    def draw(shape):
        if len(shape) == 1:
            return np.float32(random.uniform(0.5, 1.5, shape))
        return np.float32(random.normal(0, 1.0 / np.sqrt(np.prod(shape[:-1])), shape))

    variables = jax.tree.map(lambda one: draw(one.shape), dict(shapes))
    return networks.create_network(networks.Trained("untrained", config, variables))


def write_scan(folder, num_slices):
    """Writes a phantom chest as compressed MetaImage; returns its path."""
    import SimpleITK as sitk

    from auxseg.datasets.phantom import drawing
    from configs import base

    settings = base.get_config().data.phantom
    with settings.unlocked():
        settings.update({"num_scans": 1, "num_slices": num_slices, "matrix": 512, "prone_fraction": 0.0})
    (path,) = drawing.ensure(folder / "phantom", settings).glob("subset*/*.mhd")
    sitk.WriteImage(sitk.ReadImage(str(path)), str(folder / "scan.mha"), useCompression=True)
    return folder / "scan.mha"


if __name__ == "__main__":
    flags.DEFINE_list("slices", ["60", "240"], "numbers of slices, with commas")
    flags.DEFINE_string("box", None, "scan to segment with the networks in the box, stage by stage")
    flags.DEFINE_integer("lungmask", 0, "slices that lungmask is given beside it; 0: leave it out")
    flags.DEFINE_string("out", str(RESULT), "JSON file to write")
    flags.DEFINE_integer("measure", None, "of the command's own processes: measure this number here")
    command.run(main)
