"""Tests of how a scan is read for prediction: each slice once, the right ones in each slab, memory bounded."""

import dataclasses
import types

import chest
import fake_network
import numpy as np
import pytest
import SimpleITK as sitk

from auxseg.base.classes import AIR_HU
from auxseg.base.errors import InputError
from auxseg.ct import body, checks, scans
from auxseg.ct.geometry import Geometry
from auxseg.prediction import batches, segment
from auxseg.prediction.view import View
from auxseg.runs import masks, networks
from auxseg.runs.networks import Network

SIZE = (8, 8)
VIEW = View(body.Box((0, 0), SIZE), masks.Field(SIZE, SIZE, (0, 0)), SIZE)


def _scan(num_slices=10):
    """Returns a scan whose slice k is k everywhere, and the list of what was read of it."""
    seen = []

    def read(start, stop):
        seen.extend(range(start, stop))
        return np.broadcast_to(np.arange(start, stop, dtype=np.int16)[:, None, None], (stop - start, *SIZE))

    geometry = Geometry((*SIZE, num_slices), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0))
    scan = types.SimpleNamespace(geometry=geometry, has_geometry=True, num_slices=num_slices, read=read)
    scan.name, scan.path = "a", "a.npz"
    return scan, seen


def _read(scan, start, stop, forms, batch_size=4):
    pictures, volume = [], np.full((stop - start, *SIZE), -1, np.int16)
    found = list(
        batches.read_batches(scan, start, stop, batch_size, forms, VIEW, pictures=pictures, volume=volume)
    )
    return found, pictures, volume


def _network(slab, step_mm):
    return Network("n", SIZE, "0" * 64, "anatomy", None, slab=slab, slab_step_mm=step_mm)


@pytest.mark.parametrize("batch_size", [1, 4, 16])
def test_a_whole_scan_is_read_once(batch_size):
    scan, seen = _scan()
    alone, slab = (batches.find_form(one, scan, VIEW) for one in (_network(1, 0.0), _network(3, 2.0)))
    assert (slab.apart, slab.reach, alone.reach) == (2, 2, 0)
    found, pictures, volume = _read(scan, 0, 10, {alone, slab}, batch_size)
    assert seen == list(range(10)) and len(pictures) == 10
    assert volume[:, 0, 0].tolist() == list(range(10))
    assert [first for first, _, _ in found] == list(range(0, 10, batch_size))
    rows = np.concatenate([inputs[slab][:count, 0, 0] for _, inputs, count in found])
    expected = [[max(0, k - 2), k, min(9, k + 2)] for k in range(10)]
    assert rows.tolist() == expected
    assert np.concatenate([inputs[alone][:count, 0, 0] for _, inputs, count in found]).tolist() == list(
        range(10)
    )


def test_a_fixed_scale_is_as_large_as_the_scan_makes_it():
    """8 pixels of 1 mm are 13 of 0.6 mm, and air fills up to a multiple of 8, by which windows of 24 pixels divide."""
    scan, _ = _scan(2)
    network = dataclasses.replace(_network(1, 0.0), size_yx=(24, 24), scale=0.6)
    form = batches.find_form(network, scan, VIEW)
    assert (form.filled_yx, form.size_yx) == ((13, 13), (16, 16))
    (_, inputs, _) = _read(scan, 0, 2, {form})[0][0]
    assert (inputs[form][1, :13, :13] == 1).all() and (inputs[form][1, 13:] == AIR_HU).all()
    own = batches.find_form(dataclasses.replace(network, scale="own"), scan, VIEW)
    assert own.sizes == ((8, 8), (8, 8))


def test_a_scan_of_unknown_spacing_is_refused_by_a_scale_in_mm():
    scan, _ = _scan(2)
    scan.has_geometry = False
    network = dataclasses.replace(_network(1, 0.0), scale=0.6)
    with pytest.raises(InputError, match="got 0.6, but the pixel spacing of 1 of 1 in a.npz is not known"):
        batches.find_form(network, scan, VIEW)
    assert batches.find_form(dataclasses.replace(network, scale="own"), scan, VIEW).filled_yx == SIZE


def test_the_last_batch_is_filled_up_with_air():
    scan, _ = _scan(5)
    form = batches.Form(SIZE, 3, 1)
    (_, _, four), (first, inputs, count) = _read(scan, 0, 5, {form})[0]
    assert (four, first, count) == (4, 4, 1) and inputs[form].shape == (4, *SIZE, 3)
    assert inputs[form][0, 0, 0].tolist() == [3, 4, 4] and (inputs[form][1:] == AIR_HU).all()


def test_one_slice_reads_its_neighbours_alone():
    scan, seen = _scan()
    form = batches.Form(SIZE, 5, 1)
    ((first, inputs, count),), pictures, volume = _read(scan, 4, 5, {form})
    assert (first, count, len(pictures)) == (4, 1, 1) and seen == [2, 3, 4, 5, 6]
    assert inputs[form][0, 0, 0].tolist() == [2, 3, 4, 5, 6] and (volume == 4).all()


def test_what_is_kept_does_not_grow_with_the_scan(monkeypatch):
    """A window of a batch, a block more, and the reach on either side."""
    scan, _ = _scan(200)
    sizes, stack = [], batches._stack_all
    monkeypatch.setattr(
        batches, "_stack_all", lambda window, *rest: sizes.append(len(window)) or stack(window, *rest)
    )
    _read(scan, 0, 200, {batches.Form(SIZE, 5, 2)})
    assert max(sizes) <= 3 * 4 + 2 * 4


def test_a_network_of_slabs_segments_a_scan_like_one_of_slices(tmp_path):
    """A network that looks at the middle of its slab alone marks what it marks without the neighbours."""
    image = sitk.GetImageFromArray(chest.draw())
    image.SetSpacing((6.0, 6.0, 6.0))
    sitk.WriteImage(image, str(tmp_path / "a.mha"))
    alone = fake_network.create((56, 56))
    slab = Network(
        "slab", (56, 56), "0" * 64, "anatomy", lambda images: alone.forward(images[..., 2]), slab=5
    )
    for slices in ("all", "middle"):
        options = segment.Options(slices=slices, batch_size=5)
        expected = segment.segment(tmp_path / "a.mha", [alone], options=options)
        found = segment.segment(tmp_path / "a.mha", [slab], options=options)
        np.testing.assert_array_equal(found.masks, expected.masks)
        both = segment.segment(tmp_path / "a.mha", [slab, alone], options=options)
        np.testing.assert_array_equal(both.masks, expected.masks)


def test_the_3d_network_segments_a_real_scan_and_reads_each_slice_once(real_data, tmp_path, monkeypatch):
    """Untrained, so that it is not measured: beyond the sample that is checked no slice is read twice."""
    from test_bundles import _trained

    (source,) = scans.find_scans(real_data / "scans" / "LIDC-IDRI-0001")
    scan, reads = scans.open_scan(source, tmp_path), []

    def read(start, stop):
        reads.extend(range(start, stop))
        return scan.read(start, stop)

    network = networks.create_network(_trained(name="unet3d", slab=5, base_width=2))
    options = segment.Options(force=True, clean_lungs=False)
    monkeypatch.setattr(segment.measure, "measure", lambda *_, **__: [])
    found = segment.segment_scan(dataclasses.replace(scan, read=read), [network], options, tmp_path)
    assert found.masks.shape == (133, 512, 512) and len(found.pictures) == 133
    counts = np.bincount(reads, minlength=133)
    checked = checks.pick_slices(133, segment.NUM_CHECKED)
    np.testing.assert_array_equal(counts, 1 + np.isin(np.arange(133), checked))
