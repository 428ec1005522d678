"""What a notebook shows of formats, plans and tables of contractions."""

import html.parser

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from adaprec_jax import contraction_table, formats, plan as plans
from adaprec_jax.contractions import NotReached, Table
from adaprec_jax.display import Shown, html_table, text_table
from adaprec_jax.formats import Format
from adaprec_jax.precision import SharedPrecision, separate
from adaprec_jax.testing import table


class Reader(html.parser.HTMLParser):
    """Collects the cells of each row, and fails on what is not closed."""

    def __init__(self):
        super().__init__()
        self.rows, self.open, self.caption = [], [], ""

    def handle_starttag(self, tag, attributes):
        if tag == "br":
            return
        self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data
        if self.open and self.open[-1] == "caption":
            self.caption += data


def read(shown: str) -> Reader:
    reader = Reader()
    reader.feed(shown)
    reader.close()
    assert reader.open == []
    return reader


def rows(shown) -> list[list[str]]:
    found = shown._repr_html_()
    assert found is not None
    return read(found).rows


def test_texts_are_shown_as_they_are_and_never_as_html():
    evil = '<script>alert("x")</script> & <b>'
    reader = read(html_table([evil], [[evil]], caption=f"{evil}\n{evil}"))
    assert reader.rows == [[evil], [evil]]
    assert reader.caption == evil * 2  # with a line break between them


def test_numbers_stand_on_the_right_and_empty_columns_are_left_out():
    shown = html_table(["name", "n", "note"], [["a", 1234567, ""], ["b", 0.5, ""]])
    assert read(shown).rows == [["name", "n"], ["a", "1,234,567"], ["b", "0.5"]]
    assert shown.count("text-align:right") == 3
    text = text_table(["name", "n", "note"], [["a", 1234567, ""], ["b", 0.5, ""]])
    assert text.splitlines() == [
        "name          n",
        "a     1,234,567",
        "b           0.5",
    ]


@pytest.mark.parametrize("name", ["float8_e4m3fn", "float4_e2m1fn", "bfloat16"])
def test_a_format_shows_what_ml_dtypes_says_of_it(name: str):
    head, cells = rows(formats.get(name))
    shown = dict(zip(head, cells, strict=True))
    info = ml_dtypes.finfo(name)
    assert shown["format"] == name
    assert shown["bits"] == str(info.bits)
    assert shown["range"] == f"±{float(info.max):.5g}"
    assert shown["smallest"] == f"2^{int(np.log2(float(info.smallest_subnormal)))}"
    assert shown["smallest normal"] in (f"2^{info.minexp}", "1")
    assert shown["spacing at 1"] == f"2^-{info.nmant}"


def test_a_format_without_a_name_shows_the_arguments_that_make_it():
    (_, cells) = rows(formats.fixed_point(8, 4))
    assert cells[:3] == ["fixed<8,4>", "8", "-8 to 7.9375"]


def test_stacked_formats_are_counted():
    stacked = formats.integer(jnp.array([[4, 8, 4], [4, 4, 4]]))
    head, *lines = rows(stacked)
    assert head[-1] == "times"
    assert [(line[0], line[-1]) for line in lines] == [("int4", "5"), ("int8", "1")]
    shown = formats.integer(np.arange(1, 25))._repr_html_()
    assert shown is not None
    assert read(shown).caption == "formats over axes (24,), 20 of 24"


def test_traced_fields_and_those_of_no_format_are_left_as_text():
    seen = []

    def look(bits):
        fmt = formats.integer(bits)
        entry = SharedPrecision(fmt, fmt, fmt)
        seen.append((fmt._repr_html_(), rows(entry), plans.show({"a": entry})))
        return bits

    jax.jit(look)(4)
    jax.vmap(look)(jnp.arange(2, 5))
    for shown, entry, plan in seen:
        assert shown is None
        assert entry[1] == ["activation", "traced"]
        assert repr(plan) == "a: activation traced, weight traced, gradient traced"
    garbage = (None, "x", jnp.nan, -(2**31), 2**30, object())
    assert [Format(*[each] * 7)._repr_html_() for each in garbage] == [None] * 6
    assert jax.eval_shape(formats.integer, jnp.int32(4))._repr_html_() is None


def test_an_entry_shows_the_format_of_each_operand():
    entry = plans.integers(4, 8)
    assert rows(entry)[1:] == [
        ["activation", "int4"], ["weight", "int4"], ["gradient", "int8"]
    ]  # fmt: skip
    assert rows(separate(entry))[1] == ["forward.activation", "int4"]
    assert len(rows(separate(entry))) == 7


def test_a_plan_shows_a_line_for_each_contraction():
    plan = plans.uniform(table(), plans.integers(4, 8))
    layers = plans.fill(table().contractions[2], plans.integers(jnp.arange(4, 7), 8))
    shown = plans.show(plan | {"Block/Dense_0": layers})
    assert repr(shown) == plans.describe(plan | {"Block/Dense_0": layers})
    assert rows(shown) == [
        ["contraction", "activation", "weight", "gradient"],
        ["Dense_0", "int4", "int4", "int8"],
        ["Attention", "int4", "int4", "int8"],
        ["Block/Dense_0", "[int4, int5, int6]", "[int4, int5, int6]", "int8"],
    ]


def test_a_plan_of_both_kinds_of_entry_shows_all_six_operands():
    plan = {"a": plans.integers(4, 8), "b": separate(plans.integers(5, 8))}
    head, *lines = rows(plans.show(plan))
    assert head[1:4] == ["forward.activation", "forward.weight", "dgrad.gradient"]
    assert lines == [
        ["a", "int4", "int4", "int8", "int4", "int8", "int4"],
        ["b", "int5", "int5", "int8", "int5", "int8", "int5"],
    ]


def test_an_empty_plan_is_shown():
    assert plans.show({}) == Shown("", html_table(["contraction"], []))


def test_the_table_shows_what_is_multiplied_and_what_no_plan_reaches():
    name = "<b>layer"

    def twice(params, x):
        return jax.lax.scan(lambda h, w: (h @ w, None), x, params[name])[0]

    params = {name: jnp.zeros((2, 4, 4))}
    found = contraction_table(twice, params, jnp.zeros((3, 4)))
    head, line = rows(found)
    assert head == [
        "contraction", "einsum", "operands", "shapes", "plan axes", "executions",
        "multiply-accumulates each",
    ]  # fmt: skip
    assert line == [
        name, "ab,bc->ac", "activation x weight", "(3, 4) x (4, 4) -> (3, 4)", "2", "2",
        "48",
    ]  # fmt: skip
    missed = found._replace(not_reached=(NotReached("here", "sort", "why <not>"),))
    assert rows(missed)[2:] == [
        ["where", "what", "reason"],
        ["here", "sort", "why <not>"],
    ]
    assert rows(Table((), ()))[1:] == []


def test_a_loop_of_unknown_length_is_shown_as_such():
    def until_large(params, x):
        return jax.lax.while_loop(
            lambda h: jnp.sum(h) < 1e3, lambda h: h @ params["w"], x
        )

    found = contraction_table(until_large, {"w": jnp.eye(2)}, jnp.ones((2, 2)))
    shown = dict(zip(*rows(found)[:2], strict=True))
    assert (shown["executions"], shown["note"]) == ("unknown", "forward only")
