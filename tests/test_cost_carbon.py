"""Carbon and money against published figures."""

import pytest

from adaprec_jax.cost import carbon
from adaprec_jax.cost.carbon import Grid
from adaprec_jax.cost.quantity import Quantity


def energy(kilowatt_hours, kind="measured"):
    joules = kilowatt_hours * 3.6e6
    return Quantity(joules, "J", joules, joules, kind, "published")


@pytest.mark.parametrize(
    ("kilowatt_hours", "pue", "intensity", "tonnes"),
    [
        # GPT-3: 10,000 V100 for 14.8 days at 330 W (Patterson et al. 2021).
        (10_000 * 14.8 * 24 * 0.330, 1.10, 429, 552),
        # BLOOM: 1,082,990 hours at 400 W (Luccioni et al. 2022).
        (1_082_990 * 0.4, 1.0, 57, 24.69),
        # Llama 2 70B: 1,720,320 hours at 400 W; its intensity follows from the tonnes.
        (1_720_320 * 0.4, 1.0, 423.5, 291.42),
        (1.562e-4, 1.0, 56.039, 8.7547e-9),
    ],
)
def test_published_footprints_come_out(kilowatt_hours, pue, intensity, tonnes):
    where = Grid("given", intensity, "2020", "published")
    found = carbon.operational(energy(kilowatt_hours), pue, where)
    assert found.value / 1e6 == pytest.approx(tonnes, rel=3e-3)
    assert found.kind == "measured"


def test_what_is_not_known_stays_unknown():
    where = carbon.grid("NOR")
    assert carbon.operational(None, 1.2, where) is None
    made = carbon.embodied(3600, whole=1e6, years=4, kind="modelled")
    assert carbon.sci(None, made, 1.0, "run") is None
    assert carbon.spent(None, carbon.price("1:EUR:2026-01-01")) is None


def test_intensity_of_a_kind_does_not_mix_with_another():
    grams = carbon.operational(energy(1.0), 1.0, carbon.grid("FRA"))
    made = carbon.embodied(3600, whole=1e6, years=4, kind="modelled")
    with pytest.raises(ValueError, match="measured and one that is modelled cannot"):
        carbon.sci(grams, made, 1.0, "run")
    alike = carbon.embodied(3600, whole=1e6, years=4, kind="measured")
    assert carbon.sci(grams, alike, 2.0, "run").value == pytest.approx(
        (56.039 + 28.539) / 2, rel=1e-4
    )


@pytest.mark.parametrize(
    ("call", "fault"),
    [
        (lambda: carbon.grid("120"), "or INTENSITY:YEAR:SOURCE in gCO2e/kWh"),
        (lambda: carbon.grid("-1:2024:me"), "grid must be one of FRA"),
        (lambda: carbon.price("2:USD"), "price must be PER_HOUR:CURRENCY:DATE"),
        (lambda: carbon.operational(energy(1.0), 0.9, carbon.grid("FRA")),
         "pue must be a number from 1 on"),
        (lambda: carbon.embodied(1, whole=1.0, years=0, kind="modelled"),
         "years above 0"),
        (lambda: carbon.sci(None, None, 0.0, "run"), "A functional unit is needed"),
        (lambda: carbon.model_card(energy(1.0), training_type="pre-training",
                                   location="x", hardware="y"), "states grams, got J"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told(call, fault):
    with pytest.raises(ValueError, match=fault):
        call()


def test_every_grid_has_a_year_and_a_source():
    for name in carbon.grid_names():
        found = carbon.grid(name)
        assert found.year
        assert found.source
        assert found.intensity > 0
