"""Signals that ask a job to stop: at once, or after what is deferred; a second one ends the process."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from diffusion.training import signals
from diffusion.training.signals import STOP_SIGNALS, Stopped, listening

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_signal_ends_work_at_once(number):
    with listening() as stop:
        with pytest.raises(Stopped) as stopped:
            os.kill(os.getpid(), number)
        assert stop.asked == number
    assert stopped.value.status == 128 + number
    assert Stopped(number, goes_on=True).status == (130 if number == signal.SIGINT else 75)
    assert Stopped().status == 75  # of a process beside the one that was told


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_deferred_work_goes_on_and_can_ask(number, capfd):
    with listening() as stop, stop.deferred():
        assert not stop.asked
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)  # the same request, told twice
        assert stop.asked == number
    assert capfd.readouterr().err.count("Ctrl-C once more") == (number == signal.SIGINT)


def test_within_deferred_work_a_part_may_end_at_once():
    with listening() as stop, stop.deferred():
        with pytest.raises(Stopped), stop.deferred(False):
            os.kill(os.getpid(), signal.SIGTERM)
        done = []
        with pytest.raises(Stopped), stop.deferred(False):  # asked before it began
            done.append("begun")
        assert done == []


def test_handlers_are_put_back():
    before = [signal.getsignal(number) for number in STOP_SIGNALS]
    with listening():
        assert [signal.getsignal(number) for number in STOP_SIGNALS] != before
    assert [signal.getsignal(number) for number in STOP_SIGNALS] == before


def test_who_listens_within_another_hears_the_same_request_once():
    with listening() as stop:
        with pytest.raises(Stopped), listening() as inner:
            os.kill(os.getpid(), signal.SIGTERM)
        assert inner is stop
        os.kill(os.getpid(), signal.SIGUSR1)  # told once more while things are cleared away


def test_no_error_handling_swallows_a_stop():
    with listening(), pytest.raises(Stopped):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except Exception:
            pytest.fail("taken for an error")


def test_a_process_in_the_background_of_a_shell_does_not_hear_its_ctrl_c():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with listening() as stop:
            os.kill(os.getpid(), signal.SIGINT)
            assert stop.asked is None
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_second_signal_ends_the_process(number):
    code = (
        "import time\n"
        "from diffusion.training import signals\n"
        "signals.SAME_REQUEST = 0.05\n"
        "with signals.listening() as stop, stop.deferred():\n"
        "    print('ready', flush=True)\n"
        "    while not stop.asked: time.sleep(0.01)\n"
        "    print('asked', flush=True)\n"
        "    time.sleep(60)\n"
    )
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, text=True, **pipes)
    for said in ("ready\n", "asked\n"):
        assert process.stdout.readline() == said
        time.sleep(0.1)
        process.send_signal(number)
    process.communicate(timeout=20)
    assert process.returncode == -number
    assert signals.SAME_REQUEST >= 1
