"""The record of metrics survives a checkpoint."""

from __future__ import annotations

from types import SimpleNamespace

import torch

from scgen_diffusion.train import HistoryRecorder


def record(recorder, epoch, **metrics):
    trainer = SimpleNamespace(current_epoch=epoch, callback_metrics={k: torch.tensor(v) for k, v in metrics.items()})
    recorder.on_train_epoch_end(trainer, SimpleNamespace(log_training=lambda: None, check_loss=lambda metrics: None))


def test_each_metric_is_a_table_indexed_by_epoch():
    recorder = HistoryRecorder()
    record(recorder, 0, loss_train=2.0)
    recorder.on_validation_epoch_end(None, None)
    record(recorder, 1, loss_train=1.0, loss_validation=3.0)
    record(recorder, 2, loss_train=0.5, loss_validation=3.0)  # Lightning repeats what the last validation found

    frames = recorder.as_frames()

    assert frames["loss_train"]["loss_train"].to_dict() == {0: 2.0, 1: 1.0, 2: 0.5}
    assert frames["loss_validation"]["loss_validation"].to_dict() == {1: 3.0}
    assert frames["loss_train"].index.name == "epoch"


def test_a_resumed_record_goes_on_where_the_first_ended():
    first, second = HistoryRecorder(), HistoryRecorder()
    record(first, 0, loss=2.0)
    record(first, 1, loss=1.0)

    second.load_state_dict(first.state_dict())
    record(second, 2, loss=0.5)

    assert second.as_frames()["loss"]["loss"].tolist() == [2.0, 1.0, 0.5]


def test_an_epoch_that_is_repeated_after_an_interruption_is_recorded_once():
    recorder = HistoryRecorder()
    for epoch, loss in [(0, 2.0), (1, 1.0), (1, 0.5)]:
        record(recorder, epoch, loss=loss)

    assert recorder.as_frames()["loss"]["loss"].to_dict() == {0: 2.0, 1: 0.5}
