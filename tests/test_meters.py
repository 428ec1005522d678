"""Meters and windows: constant power, wrapped counters, and what is not known."""

import itertools

import pytest

from adaprec_jax.meters import Protocol, fake, measure, none, nvml, rapl, summary
from adaprec_jax.meters.meter import Meter, between


class Clock:
    """Time that goes on when somebody works or sleeps."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


def measured(meter_of, ways, emulated=(), **protocol):
    clock = Clock()
    done = []

    def work(name, seconds):
        def once():
            done.append(name)
            clock.sleep(seconds)

        return once

    found = measure(
        {name: work(name, seconds) for name, seconds in ways.items()},
        meter_of(clock), Protocol(**protocol), emulated=emulated,
        clock=clock, sleep=clock.sleep,
    )  # fmt: skip
    return found, done


def test_constant_power_gives_power_times_time():
    found, _ = measured(lambda c: fake(7.0, c), {"a": 0.5, "b": 2.0}, repeats=3)
    assert summary(found, "a").energy.value == pytest.approx(7 * 0.5)
    assert summary(found, "b").energy.value == pytest.approx(7 * 2.0)
    assert summary(found, "b").energy.kind == "measured"
    assert found.idle_watts == pytest.approx(7.0)
    assert summary(found, "a").latency.value == 0.5
    assert summary(found, "a").throughput == 2.0
    assert summary(found, "a").device_hours == pytest.approx(3 * 5 / 3600)
    assert all(w.seconds >= 5 for ws in found.windows.values() for w in ws)


def test_ways_take_turns_after_the_warm_up():
    _, done = measured(none_of, {"a": 5.0, "b": 5.0}, repeats=2, warm_up=1)
    assert done == ["a", "b", "a", "b", "a", "b"]
    _, done = measured(none_of, {"a": 2.5, "b": 5.0}, repeats=2, warm_up=0)
    assert [name for name, _ in itertools.groupby(done)] == ["a", "b", "a", "b"]


def none_of(clock):
    del clock
    return none()


def test_without_a_meter_the_energy_is_unknown_and_not_zero():
    found, _ = measured(none_of, {"a": 1.0}, repeats=1)
    told = summary(found, "a")
    assert told.energy is None
    assert told.emulation_cost is None
    assert found.idle_watts is None
    assert told.latency.value == 1.0


def test_what_an_emulated_way_took_is_the_cost_of_emulation_alone():
    found, _ = measured(
        lambda c: fake(7.0, c), {"a": 0.5, "b": 2.0}, emulated=["b"], repeats=1
    )
    assert summary(found, "b").energy is None
    assert summary(found, "b").emulation_cost.value == pytest.approx(14.0)
    assert summary(found, "a").energy is not None


def test_a_window_shorter_than_a_tick_tells_nothing():
    found, _ = measured(lambda c: fake(7.0, c, tick=6.0), {"a": 5.0}, repeats=1)
    assert summary(found, "a").energy is None


def test_a_counter_that_wraps_around_goes_on():
    meter = Meter("m", "b", lambda: None, {"x": 100.0})
    assert between(meter, {"x": 90.0}, {"x": 5.0}) == 15.0
    unknown = meter._replace(wraps={})
    assert between(unknown, {"x": 90.0}, {"x": 5.0}) is None
    assert between(meter, {"x": 90.0}, {"y": 95.0}) is None
    assert between(meter, {}, {}) is None


def domain(root, name, said, energy, limit=1_000_000):
    folder = root / name
    folder.mkdir()
    (folder / "name").write_text(f"{said}\n")
    (folder / "energy_uj").write_text(f"{energy}\n")
    (folder / "max_energy_range_uj").write_text(f"{limit}\n")
    return folder / "energy_uj"


def test_rapl_counts_packages_and_their_memory_once(tmp_path):
    package = domain(tmp_path, "intel-rapl:0", "package-0", 900_000)
    domain(tmp_path, "intel-rapl:0:0", "core", 500_000)
    memory = domain(tmp_path, "intel-rapl:0:1", "dram", 0)
    domain(tmp_path, "intel-rapl:1", "psys", 990_000)  # holds the package
    domain(tmp_path, "intel-rapl-mmio:0", "package-0", 900_000)
    meter = rapl(tmp_path)
    before = meter.read()
    assert before == {
        "intel-rapl:0 package-0": pytest.approx(0.9),
        "intel-rapl:0:1 dram": 0.0,
    }
    package.write_text("100000")  # wrapped at 1 J
    memory.write_text("250000")
    assert between(meter, before, meter.read()) == pytest.approx(0.2 + 0.25)
    memory.unlink()
    assert meter.read() is None
    assert between(meter, before, None) is None


def test_nvml_reads_millijoules():
    class Library:
        energy = 5000

        def nvmlInit(self):
            pass

        def nvmlDeviceGetCount(self):
            return 2

        def nvmlDeviceGetHandleByIndex(self, index):
            return index

        def nvmlDeviceGetTotalEnergyConsumption(self, handle):
            return self.energy + handle

    library = Library()
    meter = nvml(library)
    before = meter.read()
    library.energy = 8000
    assert between(meter, before, meter.read()) == pytest.approx(2 * 3.0)
    assert nvml(object()).name == "none"


@pytest.mark.parametrize(
    ("protocol", "fault"),
    [
        ({"seconds": 1.0}, "A window must last at least 5 s, got 1."),
        ({"repeats": 0}, "at least one way and one repeat"),
    ],
)
def test_what_cannot_be_measured_well_is_refused(protocol, fault):
    with pytest.raises(ValueError, match=fault):
        measured(none_of, {"a": 1.0}, **protocol)
    with pytest.raises(ValueError, match="which are not measured"):
        measured(none_of, {"a": 1.0}, emulated=["b"])
