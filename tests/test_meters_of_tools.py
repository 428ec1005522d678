"""CodeCarbon and Zeus as meters: what they read, what they guess, and neither."""

import itertools
import os
import socket
import sys
import time
from types import ModuleType, SimpleNamespace

import pytest

from adaprec_jax.cli import main
from adaprec_jax.meters import Protocol, codecarbon, measure, summary, zeus
from adaprec_jax.meters.meter import between
from adaprec_jax.runs import measured as steps
from adaprec_jax.runs.load import load


class GPU:
    pass


def tracker_of(*hardware):
    """A CodeCarbon in which the processor takes 0.001 kWh between two readings."""

    class Tracker:
        def __init__(self, *, output_handlers, **asked):
            Tracker.asked = asked
            self._hardware = hardware
            self.handlers = output_handlers
            self.reading = 0

        def start(self):
            pass

        def flush(self):
            self.reading += 1
            now = SimpleNamespace(
                cpu_energy=0.001 * self.reading,
                ram_energy=0.002 * self.reading,
                gpu_energy=0.004 * self.reading,
            )
            for handler in self.handlers:
                handler.out(now, now)

    return SimpleNamespace(OfflineEmissionsTracker=Tracker)


def once(meter):
    return between(meter, meter.read(), meter.read())


@pytest.mark.parametrize(
    ("hardware", "kind", "kwh", "boundary"),
    [
        ([SimpleNamespace(_mode="cpu_load")], "tdp_estimate", 0.003, "guessed"),
        ([SimpleNamespace(_mode="constant")], "tdp_estimate", 0.003, "guessed"),
        ([SimpleNamespace()], "tdp_estimate", 0.003, "guessed"),
        ([SimpleNamespace(_mode="intel_rapl")], "measured", 0.001, "packages"),
        ([SimpleNamespace(_mode="cpu_load"), GPU()], "measured", 0.004, "GPUs"),
        ([SimpleNamespace(_mode="intel_rapl"), GPU()], "measured", 0.005, "and GPUs"),
    ],
)
def test_what_codecarbon_guesses_is_never_added_to_what_it_reads(
    hardware, kind, kwh, boundary
):
    meter = codecarbon(tracker_of(*hardware))
    assert once(meter) == pytest.approx(kwh * 3.6e6)  # 1 kWh is 3.6 MJ
    assert meter.kind == kind
    assert boundary in meter.boundary


def test_a_guess_stays_one_in_all_that_comes_of_it():
    ticks = iter(range(1000))
    found = measure(
        {"a": lambda: None}, codecarbon(tracker_of()), Protocol(repeats=2),
        clock=lambda: float(next(ticks)), sleep=lambda _: None,
    )  # fmt: skip
    assert found.kind == "tdp_estimate"
    assert summary(found, "a").energy.kind == "tdp_estimate"
    assert summary(found, "a").latency.kind == "measured"


def test_codecarbon_is_told_to_stay_offline_and_write_nothing():
    library = tracker_of()
    codecarbon(library)
    asked = library.OfflineEmissionsTracker.asked
    assert asked["output_methods"] == []
    assert asked["emissions_endpoint"] is None
    assert asked["force_carbon_intensity_g_co2e_kwh"] is not None
    assert asked["pue"] == 1.0


def test_a_codecarbon_that_reads_nothing_is_no_meter():
    library = tracker_of()
    library.OfflineEmissionsTracker.flush = lambda self: None
    assert codecarbon(library).name == "none"


class Counters:
    """What Zeus makes of two devices, of which the second may have no counter."""

    def __init__(self, reading, *, counts=(True, True), names=("package-0", "psys")):
        self.reading, self.counts, self.steps = reading, counts, 0
        self.cpus = [SimpleNamespace(rapl_file=SimpleNamespace(name=n)) for n in names]

    def __len__(self):
        return 2

    def supports_get_total_energy_consumption(self, index):
        return self.counts[index]

    def get_total_energy_consumption(self, index):
        self.steps += 1
        return self.reading(self.steps)


def absent():
    raise RuntimeError("no counter")


def test_zeus_reads_millijoules_of_what_has_a_counter():
    gpus = Counters(lambda step: 1000 * step, counts=(True, False))
    library = SimpleNamespace(get_gpus=lambda: gpus, get_cpus=absent)
    meter = zeus(library)
    assert set(meter.read()) == {"gpu0"}
    assert once(meter) == pytest.approx(1.0)
    assert (meter.kind, meter.boundary) == ("measured", "GPUs with their memory")


@pytest.mark.parametrize(
    ("dram", "joules"), [(None, 2.0), (500, 2.0 + 0.5)], ids=["no memory", "memory"]
)
def test_zeus_adds_packages_and_memory_but_not_the_platform(dram, joules):
    cpus = Counters(
        lambda step: SimpleNamespace(
            cpu_mj=2000 * step, dram_mj=None if dram is None else dram * step
        )
    )
    meter = zeus(SimpleNamespace(get_gpus=absent, get_cpus=lambda: cpus))
    assert once(meter) == pytest.approx(joules)


def test_zeus_without_a_counter_is_no_meter_rather_than_zero():
    assert zeus(SimpleNamespace(get_gpus=absent, get_cpus=absent)).name == "none"


def said(monkeypatch, capsys, *options):
    command = ["adaprec", "measure", "digits-int8", *options]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as ended:
        main()
    out, err = capsys.readouterr()
    return ended.value.code or 0, out, err


@pytest.mark.parametrize(("name", "package"), [("codecarbon",) * 2, ("zeus",) * 2])
def test_a_tool_that_is_not_installed_is_named_with_its_extra(
    name, package, monkeypatch, capsys
):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setitem(sys.modules, f"{package}.device", None)
    code, _, err = said(monkeypatch, capsys, "--meter", name)
    assert code == 2
    assert f"pip install 'adaprec-jax[{name}]'" in err


def nothing_done(experiment, meter, protocol):
    """Four calls of nothing in each window, by a clock that goes on when it is read."""
    ticks = itertools.count()
    ways = dict.fromkeys((experiment.name, steps.PLAIN), lambda: None)
    return measure(
        ways, meter, protocol, emulated=[experiment.name],
        clock=lambda: float(next(ticks)), sleep=lambda _: None,
    )  # fmt: skip


def test_a_meter_that_nobody_knows_is_refused(monkeypatch, capsys):
    code, _, err = said(monkeypatch, capsys, "--meter", "watts")
    assert code == 2
    assert "--meter must be one of nvml, rapl, codecarbon, zeus, none: 'watts'." in err


def test_the_command_says_of_a_guess_that_it_is_one(monkeypatch, capsys):
    module = ModuleType("codecarbon")
    module.OfflineEmissionsTracker = tracker_of().OfflineEmissionsTracker
    monkeypatch.setitem(sys.modules, "codecarbon", module)
    monkeypatch.setattr(steps, "measured", nothing_done)
    code, out, _ = said(monkeypatch, capsys, "--meter", "codecarbon")
    assert code == 0
    # 0.003 kWh between two readings; a call is a dispatch of steps.
    steps_done = 4 * load("digits-int8").steps_per_dispatch
    assert out.count(f"{0.003 * 3.6e6 / steps_done:.4g} (tdp_estimate)") == 2
    assert "guessed from rated power and load" in out


@pytest.mark.extras
def test_the_real_codecarbon_calls_nobody_and_writes_nothing(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)

    def refused(*_):
        raise AssertionError("CodeCarbon looked for the network.")

    monkeypatch.setattr(socket.socket, "connect", refused)
    monkeypatch.setattr(socket, "getaddrinfo", refused)
    meter = codecarbon()
    joules = once(meter._replace(read=lambda: slept(meter)))
    assert os.listdir(tmp_path) == []
    assert capsys.readouterr().out == ""
    counters = os.path.isdir("/sys/class/powercap/intel-rapl:0")
    if not counters and not os.path.exists("/dev/nvidia0"):
        assert meter.kind == "tdp_estimate"
        assert joules > 0


def slept(meter):
    """A reading at least as late as CodeCarbon takes a new one, 0.05 s."""
    time.sleep(0.1)
    return meter.read()


@pytest.mark.extras
def test_the_real_zeus_says_nothing_where_it_reads_nothing(capsys):
    meter = zeus()
    counters = os.path.isdir("/sys/class/powercap/intel-rapl:0")
    if not counters and not os.path.exists("/dev/nvidia0"):
        assert meter.name == "none"
        assert meter.read() is None
    else:
        assert once(meter) is not None
    assert capsys.readouterr().out == ""
