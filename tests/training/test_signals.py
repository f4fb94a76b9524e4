"""Signals that ask a run to stop."""

import os
import signal

import pytest

from tfdecouple.training.signals import InterruptedRunError, StopRequest


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_stop_request_notes_the_signal_and_restores_its_handler(number):
    before = signal.getsignal(number)
    with StopRequest() as stop:
        assert stop.reason is None
        os.kill(os.getpid(), number)
        assert stop.reason == number.name
    assert signal.getsignal(number) == before


def test_second_interrupt_stops_a_training_at_once():
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.reason == "SIGINT"
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_training_under_nohup_ignores_hangups():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopRequest() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop.reason is None
    finally:
        signal.signal(signal.SIGHUP, before)


def test_signal_ends_an_evaluation_at_once():
    with StopRequest() as stop:
        with pytest.raises(InterruptedRunError, match="stopped by SIGTERM in a test"), stop.stop_at_once("in a test"):
            os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(InterruptedRunError, match="SIGTERM"), stop.stop_at_once("in a test"):
            pytest.fail("the signal came before")
