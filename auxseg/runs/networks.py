"""Trained networks to predict with: from a run's folder, or from an exported bundle.

A bundle is a folder that says by itself what it is:

    bundle.json         size, window, classes, settings, versions, how it was checked, checksums
    model.stablehlo     jax.export's program for CPU and GPU         (kind 'stablehlo')
    model.onnx          graph for ONNX Runtime                       (kind 'onnx')
    weights.npz         parameters and batch statistics by name      (kind 'saved')
    run.py              a few lines that segment a slice without auxseg (not for 'saved')
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import pathlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from auxseg import models
from auxseg.base import files, npz
from auxseg.base.classes import CLASS_NAMES, check_classes, classes_of
from auxseg.base.errors import InputError, check_choice
from auxseg.datasets import check_size, check_slab, check_slab_step, scale
from auxseg.devices import programs
from auxseg.models import inference, interface
from auxseg.models.kernels import build
from auxseg.runs import checkpoints, run_folder

FILE = "bundle.json"
KINDS = {"stablehlo": "model.stablehlo", "onnx": "model.onnx", "saved": "weights.npz"}
"""Kinds of bundle and the file that each holds its network in."""
_FORMAT = "auxseg-bundle-1"


@dataclasses.dataclass(frozen=True, repr=False)
class Network:
    """A trained network as `predict` uses it.

    Attributes:
        name: for reports, such as 'seed1 (epoch 24)'.
        size_yx: rows and columns that it takes; at a fixed scale, those of the windows that it was trained on.
        checksum: SHA-256 of the weights.
        labels: 'anatomy', or 'airway_as_nodule' for a network whose third class is the airway.
        forward: images [N, H, W] in HU, or slabs [N, H, W, slab], int16 or float32 -> (mask probabilities float32
            [N, H, W, C], probabilities float32 [N, C] that each class is in the slice, or None where nobody asked).
        field: 'scan' where it sees whole slices, 'body' where it sees the square around the body (`ct.body`).
        classes: C names by mask value.
        slab: slices that it sees together, the one that it marks in the middle; 1: that one alone.
        slab_step_mm: wanted between them, as in `datasets.slabs`.
        scale: mm a pixel, 'own', or None where it takes slices of `size_yx` (`datasets.scale`).
        doubt: a line on the scale at which it sees whole slices, or ''.
    """

    name: str
    size_yx: tuple[int, int]
    checksum: str
    labels: str
    forward: Callable
    field: str = "scan"
    classes: tuple[str, ...] = CLASS_NAMES
    slab: int = 1
    slab_step_mm: float = 0.0
    scale: float | str | None = None
    doubt: str = ""

    def __repr__(self):
        rows, columns = self.size_yx if self.scale is None else ("H", "W")
        slices = f", {self.slab}" if self.slab > 1 else ""
        return (
            f"<Network {self.name}: images in HU [N, {rows}, {columns}{slices}] -> probabilities of "
            f"{', '.join(self.classes)}>"
        )

    def __call__(self, images):
        """Returns the mask probabilities of images that somebody hands in, NumPy float32 [N, H, W, C].

        Args:
            images: HU [N, H, W], or [H, W] of one, of the size of the network and seen as it was trained (`field`); at a
                fixed scale, of its scale and any multiple of `step`; of a network that sees slabs [N, H, W, slab], or
                [H, W, slab].

        Raises:
            InputError: another size or type, values that are not finite, or scaled to 1.
        """
        images = np.asarray(images)
        num_dims = 3 if self.slab > 1 else 2
        images = images[None] if images.ndim == num_dims else images
        if images.ndim != num_dims + 1 or not self._takes(images.shape[1:]) or not len(images):
            slices = f", {self.slab}" if self.slab > 1 else ""
            rows, columns = self.size_yx if self.scale is None else (f"multiple of {self.step}",) * 2
            raise InputError(
                f"images: got shape {images.shape}, expected [N, {rows}, {columns}{slices}]; "
                "auxseg.segment takes scans of any size"
            )
        if images.dtype == np.uint8 or images.dtype.kind not in "iuf" or not np.isfinite(images).all():
            raise InputError(f"images: got {images.dtype}, expected finite numbers in HU")
        if images.dtype.kind == "f" and images.min() >= -1 and images.max() <= 1:
            raise InputError(
                f"images: got values from {images.min():.3g} to {images.max():.3g}, scaled to 1; expected HU, "
                "in which air is -1000"
            )
        images = images if images.dtype == np.int16 else images.astype(np.float32)
        return np.asarray(self.probabilities(images))

    def get_ready(self, batch_size):
        """Makes the program for so many slices of a scan at once; does nothing where sizes follow from the scan."""
        if isinstance(self.forward, _KeptForward) and self.scale is None:
            slab = (self.slab,) if self.slab > 1 else ()
            self.forward.kept.get_ready((batch_size, *self.size_yx, *slab), np.int16)

    @property
    def step(self):
        """Rows and columns of images at a fixed scale are multiples of it."""
        return scale.step_of(self.size_yx)

    def _takes(self, shape):
        """Returns whether images may have this shape, [H, W] or [H, W, slab]."""
        size, slices = shape[:2], shape[2:]
        fits = size == tuple(self.size_yx) if self.scale is None else not any(n % self.step for n in size)
        return fits and slices == ((self.slab,) if self.slab > 1 else ()) and 0 not in size

    def probabilities(self, images):
        """Returns the mask probabilities of images in HU, float32 [N, H, W, C]."""
        return self.forward(images)[0]


@dataclasses.dataclass(frozen=True)
class _KeptForward:
    """`Network.forward` without the auxiliary head, by programs that are kept."""

    kept: programs.Kept

    def __call__(self, images):
        return self.kept(images), None


@dataclasses.dataclass(frozen=True)
class Trained:
    """A trained network with all that an export needs.

    Attributes:
        name: for reports.
        config: its settings, a ConfigDict.
        variables: {'params': ..., 'batch_stats': ...} of NumPy arrays.
    """

    name: str
    config: object
    variables: dict


def load_network(path):
    """Returns the `Network` of a run's workdir or of a bundle's folder.

    Raises:
        InputError: neither, damaged, or in need of a package that is not installed.
    """
    path = pathlib.Path(path)
    if path.name == FILE:
        path = path.parent
    if (path / FILE).is_file():
        return read_bundle(path)
    if not (path / "config.json").is_file():
        raise InputError(f"--workdir: {path} holds neither a run (config.json) nor a bundle ({FILE})")
    return create_network(_read_run(path))


def read_trained(path):
    """Returns the `Trained` of a run's workdir or of a 'saved' bundle's folder.

    Raises:
        InputError: neither, damaged, or a bundle of another kind, which holds a program and no weights.
    """
    path = pathlib.Path(path)
    return read_saved(path) if (path / FILE).is_file() else _read_run(path)


def read_best(workdir):
    """Returns (settings, weights of the best epoch, what is stored with them, such as that epoch) of a run.

    Raises:
        InputError: no run there, no intact checkpoint, or weights of another network than the settings'.
    """
    workdir = pathlib.Path(workdir)
    config = run_folder.read_config(workdir)
    variables, found = checkpoints.restore_best(workdir)
    images = jax.ShapeDtypeStruct((1, *config.data.size, config.data.slab), np.float32)
    model = models.create_model(config.model, num_classes=len(classes_of(config.data)))
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)
    return config, checkpoints.match_variables(variables, dict(shapes), where=str(workdir)), found


def _read_run(workdir):
    config, variables, found = read_best(workdir)
    return Trained(f"{workdir.resolve().name} (epoch {found['epoch']})", config, variables)


def create_network(trained, *, classes=False):
    """Returns the `Network` of trained weights, compiled for this machine's devices.

    Args:
        trained: `Trained`.
        classes: also give the probabilities of the auxiliary head, which nothing but an export's check needs;
            without, batch norm is folded into the convolutions, which is faster.
    """
    config = trained.config
    forward = _create_forward_with_classes(trained) if classes else _create_folded_forward(trained)
    checksum = weights_checksum(trained.variables)
    size_yx, labels = tuple(config.data.size), config.data.labels
    return Network(
        trained.name,
        size_yx,
        checksum,
        labels,
        forward,
        read_field(config),
        classes_of(config.data),
        config.data.slab,
        check_slab_step(config.data),
        *scale.seen_scale(config.data),
    )


def read_field(config):
    """Returns `data.field` of a run's settings; runs of before this setting see whole slices."""
    return config.data.get("field", "scan")


def _create_forward_with_classes(trained):
    forward = jax.jit(create_forward(trained.config, trained.variables))
    return lambda images: forward(jnp.asarray(images))


def _create_folded_forward(trained):
    """Returns a `forward`; of a network that folds, nothing is built where its program is kept from before."""
    config, variables = trained.config, trained.variables
    window_hu, num_classes = tuple(config.data.window_hu), len(classes_of(config.data))
    check_choice("model.name", config.model.name, models.NAMES)
    settings = models.create_settings(config.model, num_classes)

    def create():
        model = models.create_model(config.model, num_classes=num_classes)
        return models.create_predict(model, variables, window_hu=window_hu)[0]

    def made_of():
        said = (config.model.to_json(), settings, window_hu, classes_of(config.data))
        return repr(said).encode() + read_sources()

    folds = config.model.name in inference.FOLDED
    weights = inference.fold_batch_norm(variables, settings.bn_epsilon) if folds else variables
    return _KeptForward(programs.Kept(create, weights, made_of=made_of, calls=build.TARGETS))


@functools.cache
def read_sources():
    """Returns the checksum of the code of networks and of what multiplies bfloat16 here: what compiled programs are made of."""
    digest = hashlib.sha256(build.find_unit().encode())
    for path in sorted(pathlib.Path(models.__file__).parent.rglob("*.*")):
        if path.suffix in (".py", ".cc", ".h"):
            digest.update(path.read_bytes())
    return digest.digest()


def create_forward(config, variables):
    """Returns the network with its weights, for inference, as a pure function of HU.

    Args:
        config: the run's settings.
        variables: the run's weights.

    Returns:
        (images [N, H, W] or slabs [N, H, W, slices] in HU) -> (mask probabilities float32 [N, H, W, C], probabilities float32 [N, C]
        that each class is in the slice; zeros without the auxiliary head).
    """
    model = models.create_model(config.model, num_classes=len(classes_of(config.data)))
    window = tuple(config.data.window_hu)
    variables = jax.tree.map(jnp.asarray, variables)

    def forward(images):
        outputs = model.apply(variables, interface.to_input(images, window))
        masks = jax.nn.softmax(outputs.mask_logits.astype(jnp.float32), axis=-1)
        if outputs.class_logits is None:
            return masks, jnp.zeros((images.shape[0], masks.shape[-1]), jnp.float32)
        return masks, jax.nn.sigmoid(outputs.class_logits.astype(jnp.float32))

    return forward


def flatten(variables):
    """Returns {'params/encoder_0/...': float32 array} in the order of the names."""
    leaves = jax.tree_util.tree_leaves_with_path(dict(variables))
    named = {"/".join(str(key.key) for key in path): np.asarray(leaf) for path, leaf in leaves}
    return dict(sorted(named.items()))


def unflatten(named):
    """Returns the variables of {'params/...': array}; the inverse of `flatten`."""
    tree = {}
    for name, array in named.items():
        *parents, last = name.split("/")
        functools.reduce(lambda node, key: node.setdefault(key, {}), parents, tree)[last] = array
    return tree


def weights_checksum(variables):
    """Returns the SHA-256 of weights: of their names, shapes and float32 values."""
    digest = hashlib.sha256()
    for name, array in flatten(variables).items():
        digest.update(f"{name} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array, "<f4").tobytes())
    return digest.hexdigest()


def file_checksum(path):
    """Returns the SHA-256 of a file."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def describe(trained, kind):
    """Returns what `bundle.json` says of a network, JSON types; without files and checks."""
    config = trained.config
    (rows, columns), classes, slab = config.data.size, classes_of(config.data), config.data.slab
    mm_per_pixel, doubt = scale.seen_scale(config.data)
    if mm_per_pixel is not None:
        rows, columns = "H", "W"
    shape = f"[N, {rows}, {columns}]" if slab == 1 else f"[N, {rows}, {columns}, {slab}]"
    return {
        "format": _FORMAT,
        "kind": kind,
        "name": trained.name,
        "task": "lungs and lung nodules on transverse chest CT; for research, not for clinical use",
        "size_yx": list(config.data.size),
        "mm_per_pixel": mm_per_pixel,
        "multiple": scale.step_of(config.data.size),
        "scale_doubt": doubt,
        "window_hu": list(config.data.window_hu),
        "classes": list(classes),
        "labels": config.data.labels,
        "field": read_field(config),
        "slab": slab,
        "slab_step_mm": check_slab_step(config.data),
        "input": {
            "images": f"float32 {shape}, HU; the window is applied inside",
            "orientation": "rows from anterior to posterior, columns from the patient's right to the left",
            "resizing": "antialiased bilinear (triangle filter); outside the field of view -1024",
            "size": _describe_size(config.data.size, mm_per_pixel),
        },
        "output": {
            "mask_probabilities": f"float32 [N, {rows}, {columns}, {len(classes)}], in the order "
            "of the classes",
            "class_probabilities": f"float32 [N, {len(classes)}]: is the class in the slice?",
        },
        "config": run_folder.config_to_dict(config),
        "weights_sha256": weights_checksum(trained.variables),
    }


def _describe_size(size_yx, mm_per_pixel):
    """Returns in words how a slice is brought to what the network takes."""
    if mm_per_pixel is None:
        return "slices, made as high as wide in mm, are resized to size_yx"
    return (
        f"slices at {scale.describe(mm_per_pixel)}, -1024 below and to the right up to multiples of "
        f"{scale.step_of(size_yx)}; size_yx is that of the windows it was trained on"
    )


def read_bundle(path):
    """Returns the `Network` of a bundle's folder, after comparing the checksums of its files.

    Raises:
        InputError: damaged, of another format, or in need of a package that is not installed.
    """
    path = pathlib.Path(path)
    about = _read_description(path)
    read = {"stablehlo": _read_stablehlo, "onnx": _read_onnx, "saved": _read_saved}[about["kind"]]
    size_yx, checksum = tuple(about["size_yx"]), about["weights_sha256"]
    forward, field = read(path, about), about.get("field", "scan")
    slab, step_mm = about.get("slab", 1), check_slab_step(about)
    return Network(
        about["name"],
        size_yx,
        checksum,
        about["labels"],
        forward,
        field,
        tuple(about["classes"]),
        check_slab(slab),
        step_mm,
        scale.read_scale(about),
        str(about.get("scale_doubt", "")),
    )


def _read_description(path):
    about = files.read_object(path / FILE, hint="export it again")
    if about.get("format") != _FORMAT:
        raise InputError(f"{path / FILE}: expected a bundle of format {_FORMAT!r}; export it again")
    missing = {
        "kind",
        "name",
        "size_yx",
        "weights_sha256",
        "labels",
        "classes",
        "files",
        "config",
    } - about.keys()
    if missing:
        raise InputError(f"{path / FILE}: lacks {sorted(missing)}; export it again")
    check_classes(about["classes"], where=f"{path / FILE}: classes")
    check_size(about["size_yx"])
    check_choice(f"{path / FILE}: kind", about["kind"], tuple(KINDS))
    for name, checksum in about["files"].items():
        file = path / pathlib.PurePath(name).name
        if not file.is_file() or file_checksum(file) != checksum:
            raise InputError(f"{file}: missing or changed since the export (SHA-256); export it again")
    if KINDS[about["kind"]] not in about["files"]:
        raise InputError(f"{path / FILE}: names no {KINDS[about['kind']]}; export it again")
    return about


def _read_stablehlo(path, about):
    from jax import export

    try:
        program = export.deserialize(bytearray((path / KINDS["stablehlo"]).read_bytes()))
    except Exception as error:  # flatbuffers and MLIR raise whatever they like
        raise InputError(f"{path}: this jax {jax.__version__} cannot read the program: {error}") from error
    backend = jax.default_backend()
    if {"gpu": "cuda"}.get(backend, backend) not in program.platforms:
        raise InputError(
            f"{path}: made for {', '.join(program.platforms)}, not for {backend}; export it again"
        )
    call = jax.jit(program.call)
    return lambda images: call(jnp.asarray(images, jnp.float32))


def _read_onnx(path, about):
    try:
        import onnxruntime
    except ImportError as error:
        raise InputError(f"{path}: needs onnxruntime: pip install 'auxseg[onnx]'") from error
    try:
        session = onnxruntime.InferenceSession(path / KINDS["onnx"], providers=_providers(onnxruntime))
    except Exception as error:  # its exceptions share no base class
        raise InputError(f"{path}: onnxruntime cannot read the graph: {error}") from error
    names = ["mask_probabilities", "class_probabilities"]
    return lambda images: tuple(session.run(names, {"images": np.ascontiguousarray(images, np.float32)}))


def _providers(onnxruntime):
    wanted = ("CUDAExecutionProvider", "CPUExecutionProvider")
    return [name for name in wanted if name in onnxruntime.get_available_providers()]


def _read_saved(path, about):
    return create_network(read_saved(path, about)).forward


def read_saved(path, about=None):
    """Returns a 'saved' bundle as `Trained`.

    Raises:
        InputError: damaged, or the weights are no match for the settings beside them.
    """
    about = about or _read_description(pathlib.Path(path))
    if about["kind"] != "saved":
        raise InputError(
            f"{path}: a bundle of kind {about['kind']!r}, which holds a program and no weights to go on from; "
            "give a run's workdir or a bundle of --format=saved"
        )
    file = pathlib.Path(path) / KINDS["saved"]
    try:
        variables = unflatten(npz.read_npz(file, most_bytes=checkpoints.MOST_BYTES))
    except npz.UNREADABLE as error:
        raise InputError(f"{file}: damaged: {error}; export it again") from error
    if weights_checksum(variables) != about["weights_sha256"]:
        raise InputError(f"{file}: the weights are not those of {FILE}; export it again")
    config = run_folder.check_settings(run_folder.to_config(about["config"]), where=f"{path}/{FILE}")
    return Trained(about["name"], config, variables)
