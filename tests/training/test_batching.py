"""Order, padding and placement of batches."""

import dataclasses
import tracemalloc

import fakes
import jax
import numpy as np
import pytest

from auxseg.base.errors import InputError
from auxseg.devices import parallel
from auxseg.models import interface
from auxseg.training import batching, facts, references
from configs import base


def batches_of(feed, rows):
    return [parallel.fetch_rows(batch) for batch, _ in batching.read_batches(feed, rows)]


def test_order_is_a_function_of_seed_and_epoch():
    indices = np.arange(5, 45)
    one = batching.epoch_order(indices, seed=3, epoch=2)
    np.testing.assert_array_equal(one, batching.epoch_order(indices, seed=3, epoch=2))
    np.testing.assert_array_equal(np.sort(one), indices)
    for seed, epoch in ((3, 3), (4, 2), (2, 3)):
        assert (one != batching.epoch_order(indices, seed=seed, epoch=epoch)).any()


@pytest.mark.parametrize("fraction", [0.0, 0.25, 0.5, 1.0])
def test_an_epoch_has_the_share_of_nodule_slices_that_was_asked_for(fraction):
    indices, has_nodule = np.arange(40) * 3, np.arange(40) < 4

    def order(epoch):
        return batching.epoch_order(
            indices, seed=1, epoch=epoch, has_nodule=has_nodule, nodule_fraction=fraction
        )

    one = order(1)
    with_nodule = np.isin(one, indices[has_nodule])
    assert len(one) == 40 and with_nodule.sum() == round(fraction * 40)
    np.testing.assert_array_equal(one, order(1))
    assert (one != order(2)).any()
    for some in (with_nodule, ~with_nodule):  # nothing comes back before all had their turn
        counts = np.unique(one[some], return_counts=True)[1]
        assert not len(counts) or counts.max() - counts.min() <= 1


def test_a_share_that_the_cases_cannot_give_is_refused():
    for fraction, has_nodule, message in (
        (1.5, [True, False], "expected 0 to 1"),
        (0.5, [False, False], "no training slice is with a nodule"),
        (0.5, [True, True], "no training slice is without a nodule"),
    ):
        with pytest.raises(InputError, match=message):
            batching.epoch_order(
                np.arange(2), seed=1, epoch=1, has_nodule=np.array(has_nodule), nodule_fraction=fraction
            )


def test_last_batch_is_filled_with_weight_zero():
    rows = list(batching.padded_rows(np.arange(10, 17), 3, 4))
    assert [r[0].tolist() for r in rows] == [[10, 11, 12, 0], [13, 14, 15, 0], [16, 0, 0, 0]]
    assert [r[1].tolist() for r in rows] == [[1, 1, 1, 0], [1, 1, 1, 0], [1, 0, 0, 0]]
    assert batching.num_batches(7, 3) == 3


@pytest.mark.parametrize("num_devices", [1, 4])
def test_device_and_stream_give_the_same_batches(num_devices):
    data, devices = fakes.two_discs(11), parallel.choose_devices(num_devices)
    kept = np.array([1, 2, 4, 5, 7, 8, 9, 10])
    order = batching.epoch_order(kept, seed=1, epoch=1)
    rows = list(batching.padded_rows(order, 3, 4))
    got = {}
    for placement in ("device", "stream"):
        feed = batching.create_feed(data, kept, placement=placement, devices=devices)
        assert feed.placement == placement
        got[placement] = batches_of(feed, rows)
    assert len(got["device"]) == 3
    for here, there, (indices, weights) in zip(got["device"], got["stream"], rows, strict=True):
        real = weights > 0
        for a, b in zip(here, there, strict=True):
            assert a.dtype == b.dtype
            np.testing.assert_array_equal(a[real], b[real])
        images, masks = data.read(indices[real])
        np.testing.assert_array_equal(here.images[real], images)
        np.testing.assert_array_equal(here.masks[real], masks)
        np.testing.assert_array_equal(here.indices, indices)
        np.testing.assert_array_equal(here.weights, weights)


def test_auto_streams_what_does_not_fit(monkeypatch):
    data, devices = fakes.two_discs(4), parallel.choose_devices(1)
    monkeypatch.setattr(batching, "_memory_budget_bytes", lambda device: 4 * 16 * 16 * 3)
    feed = batching.create_feed(data, np.arange(4), placement="auto", devices=devices)
    assert feed.placement == "device"
    feed = batching.create_feed(data, np.arange(5) % 4, placement="auto", devices=devices)
    assert feed.placement == "stream"
    with pytest.raises(InputError, match="data.placement: got 'gpu'"):
        batching.create_feed(data, np.arange(4), placement="gpu", devices=devices)


def test_stream_hands_on_what_a_reader_raises():
    def read(indices):
        raise InputError(f"record {indices[0]} is damaged")

    data = dataclasses.replace(fakes.two_discs(4), read=read)
    feed = batching.create_feed(data, np.arange(4), placement="stream", devices=parallel.choose_devices(1))
    with pytest.raises(InputError, match="record 2 is damaged"):
        batches_of(feed, batching.padded_rows(np.array([2, 3]), 2, 2))


def test_window_and_labels():
    hu = np.array([-3024, -1000, -300, 400, 3000], np.int16)
    np.testing.assert_allclose(interface.normalise_hu(hu, (-1000.0, 400.0)), [0, 0, 0.5, 1, 1])
    masks = np.array([[[0, 1], [1, 0]], [[3, 3], [3, 3]]], np.uint8)
    np.testing.assert_array_equal(references.label_vectors(masks, 4), [[1, 1, 0, 0], [0, 0, 0, 1]])
    raw = batching.RawBatch(np.zeros((2, 2, 2), np.int16), masks, np.arange(2), np.ones(2))
    batch = jax.device_get(batching.to_batch(raw, window_hu=(-1000.0, 1000.0), num_classes=4))
    assert batch.images.shape == (2, 2, 2, 1) and batch.images.dtype == np.float32
    np.testing.assert_allclose(batch.images, 0.5)


def test_shuffled_labels_stay_in_their_split_and_belong_to_nobody():
    data = fakes.two_discs(90)
    members = {"train": np.arange(0, 60), "val": np.arange(60, 90)}
    labels = data.table.labels
    one = facts.shuffle_labels(labels, members, seed=1)
    assert one.dtype == np.float32 and (one != labels).any()
    for rows in members.values():
        np.testing.assert_array_equal(one[rows].sum(axis=0), labels[rows].sum(axis=0))
    np.testing.assert_array_equal(one, facts.shuffle_labels(labels, members, seed=1))
    assert (one != facts.shuffle_labels(labels, members, seed=2)).any()
    # a third of the cases has a nodule: by chance alone 5 of 9 pairs agree
    assert 0.4 < np.mean(one[:, 3] == labels[:, 3]) < 0.75


def test_a_batch_takes_the_shuffled_labels_of_its_own_cases():
    data = fakes.two_discs(4)
    images, masks = data.read(np.array([2, 0]))
    raw = batching.RawBatch(images, masks, np.array([2, 0]), np.ones(2, np.float32))
    told = np.arange(16, dtype=np.float32).reshape(4, 4)
    settings = {"window_hu": (-1000.0, 400.0), "num_classes": 4}
    batch = batching.to_batch(raw, facts=facts.CaseFacts(told), **settings)
    np.testing.assert_array_equal(batch.labels, told[[2, 0]])
    own = batching.to_batch(raw, **settings)
    np.testing.assert_array_equal(own.labels, data.table.labels[[2, 0]])
    np.testing.assert_array_equal(own.masks, batch.masks)


def test_the_placebo_is_off_unless_asked_for():
    data, members, config = fakes.two_discs(30), {"train": np.arange(30)}, base.get_config()
    assert facts.read_facts(config, data, members) == (None,) * 5
    config.loss.shuffle_aux_labels = True
    found = facts.read_facts(config, data, members).aux_labels
    np.testing.assert_array_equal(found, facts.shuffle_labels(data.table.labels, members, seed=config.seed))


def test_a_streamed_set_is_never_in_memory():
    """786 MB of slices go by; no more than a few batches are held at a time, on the host or on the devices."""
    size, count, batch_size, limit = 256, 4000, 40, 60e6
    devices, live = parallel.choose_devices(2), []

    def read(indices):
        images = np.empty((len(indices), size, size), np.int16)
        images[:] = (indices % 1000)[:, None, None]
        return images, np.zeros(images.shape, np.uint8)

    data = dataclasses.replace(fakes.two_discs(4), size_yx=(size, size), read=read)
    feed = batching.create_feed(data, np.arange(count), placement="stream", devices=devices)
    order = batching.epoch_order(np.arange(count), seed=1, epoch=1)
    rows = batching.padded_rows(order, batch_size, batch_size)
    before = sum(array.nbytes for array in jax.live_arrays())
    tracemalloc.start()
    for number, (batch, seconds) in enumerate(batching.read_batches(feed, rows)):
        first = order[number * batch_size] % 1000
        assert batch.images[0, 0, 0, 0] == first and seconds >= 0
        live.append(sum(array.nbytes for array in jax.live_arrays()) - before)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(live) == count // batch_size and max(live) < limit and peak < limit


def test_no_more_than_the_prefetch_is_read_ahead():
    asked = []
    data = fakes.two_discs(4)
    feed = batching.create_feed(
        dataclasses.replace(data, read=lambda i: asked.append(len(i)) or data.read(i % 4)),
        np.arange(60),
        placement="stream",
        devices=parallel.choose_devices(1),
    )
    for taken, _ in enumerate(batching.read_batches(feed, batching.padded_rows(np.arange(60), 2, 2))):
        assert len(asked) <= taken + 1 + batching.PREFETCH_BATCHES
    assert len(asked) == 30


def test_data_must_fit_the_host_as_well(monkeypatch):
    device = parallel.choose_devices(1)[0]
    host = batching._memory_budget_bytes(device)
    monkeypatch.setattr(parallel, "device_memory_bytes", lambda _: (1 << 50, None))
    gpu = dataclasses.make_dataclass("Device", ["platform"])("gpu")
    assert batching._memory_budget_bytes(gpu) == host
    monkeypatch.setattr(parallel, "device_memory_bytes", lambda _: (4000, None))
    assert batching._memory_budget_bytes(gpu) == 1000


def test_labels_that_are_not_known_stay_so_when_they_are_shuffled():
    labels = np.array([[1, 0, 255, 0], [1, 0, 255, 0]], np.uint8)
    shuffled = facts.shuffle_labels(labels, {"train": np.arange(2)}, seed=1)
    np.testing.assert_array_equal(shuffled, [[1, 0, -1, 0], [1, 0, -1, 0]])


def test_a_batch_of_a_mixture_has_each_source_s_share():
    sources = np.array(["a"] * 10 + ["b"] * 3)
    rows = np.arange(100, 113)
    turn = {"sources": sources, "shares": {"a": 2, "b": 2}, "seed": 1}
    one = batching.mixed_order(rows, **turn, epoch=1)
    batches = one.reshape(-1, 4)
    assert len(batches) == batching.num_batches(13, 4) == 4
    assert ((batches < 110).sum(axis=1) == 2).all()
    counts = np.bincount(one - 100, minlength=13)
    # Eight of the ten of a once each; the three of b come back, none before the others had their turn.
    assert counts[:10].max() == 1 and counts[:10].sum() == 8 and set(counts[10:]) == {2, 3}
    np.testing.assert_array_equal(one, batching.mixed_order(rows, **turn, epoch=1))
    assert (one != batching.mixed_order(rows, **turn, epoch=2)).any()
    with pytest.raises(InputError, match="data.sources.c: none of its cases trains"):
        batching.mixed_order(rows, seed=1, epoch=1, sources=sources, shares={"a": 1, "c": 1})


def test_cases_that_train_are_read_as_they_train():
    data = fakes.two_discs(4)
    images, masks = data.read(np.arange(4))
    assert facts.for_training(data, np.array([1])) is data
    data = dataclasses.replace(data, read_train=lambda i: (images[i] + 1, masks[i] + 128))
    found_images, found_masks = facts.for_training(data, np.array([1, 3])).read(np.array([3, 0, 1]))
    np.testing.assert_array_equal(
        found_masks, masks[[3, 0, 1]] + np.array([128, 0, 128], np.uint8)[:, None, None]
    )
    np.testing.assert_array_equal(found_images[1], images[0])


def test_one_run_has_one_kind_of_target():
    config = base.get_config().data
    assert facts.asks_readers(config) is None
    config.target = "reader"
    assert facts.asks_readers(config) == "reader"
    with config.unlocked():
        config.sources = {"a": {"target": "share"}, "b": {"name": "npz"}}
    with pytest.raises(InputError, match="data.target: got reader, share in one run"):
        facts.asks_readers(config)
