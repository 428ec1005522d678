import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure

from adaprec_jax.report.figure import Course, figure, groups, mean_cost, save

OPERANDS = (
    "forward.activation", "forward.weight", "dgrad.gradient",
    "dgrad.weight", "wgrad.gradient", "wgrad.activation",
)  # fmt: skip
STEPS = 20
NAME = "a $x_1$ <b> & \n日本"


def course(forward, *, name="x", steps=STEPS, gradient=8, starts=None) -> Course:
    """A course whose forward bits are given, by change and layer."""
    forward = np.asarray(forward)
    if forward.ndim == 1:
        forward = forward[:, None]
    changes, layers = forward.shape
    starts = np.arange(changes) if starts is None else np.asarray(starts)
    roles = {"activation": forward, "weight": forward}
    roles["gradient"] = np.broadcast_to(gradient, forward.shape)
    bits = np.stack([roles[each.partition(".")[2]] for each in OPERANDS], -1)
    return Course(
        name=name, steps=steps, starts=starts,
        layers=tuple(f"Dense_{i}" for i in range(layers)),
        operands=OPERANDS, bits=bits, cost=forward.mean(1) / 100.0,
        rate_steps=np.arange(steps), rates=np.linspace(2e-3, 1e-3, steps),
    )  # fmt: skip


def written_out(axes: Axes, line: int) -> np.ndarray:
    """The value of each step that a line of steps shows."""
    assert axes.lines[line].get_drawstyle() == "steps-post"
    x, y = axes.lines[line].get_data()
    return np.repeat(y[:-1], np.diff(x).astype(int))


def meshes(drawn: Figure) -> list[QuadMesh]:
    """Heat maps; the colour bar, which comes last, is a mesh, too."""
    *panels, _ = drawn.axes
    return [m for axes in panels for m in axes.collections if isinstance(m, QuadMesh)]


def labels(axes: Axes) -> list[str]:
    return [text.get_text() for text in axes.get_legend().get_texts()]


def test_bits_are_a_line_that_changes_where_they_do():
    bits, rate, cost = figure([course([3, 5, 8], starts=[0, 4, 10])]).axes
    np.testing.assert_array_equal(written_out(bits, 0), [3] * 4 + [5] * 6 + [8] * 10)
    assert len(bits.lines) == 1
    assert labels(bits) == ["activation, weight"]
    assert bits.get_title(loc="left") == "x (gradient 8 bits)"
    np.testing.assert_array_equal(rate.lines[0].get_ydata()[:STEPS],
                                  np.linspace(2e-3, 1e-3, STEPS))  # fmt: skip
    expected = np.array([0.03] * 4 + [0.05] * 6 + [0.08] * 10)
    np.testing.assert_allclose(written_out(cost, 0), expected)
    assert labels(cost) == [f"mean {expected.mean():.4f}"]


def test_the_panels_share_their_steps():
    *_, cost = axes = figure([course([3, 8])]).axes
    assert {each.get_xlim() for each in axes} == {(0, STEPS)}
    assert cost.get_xlabel() == "step"


def test_layers_that_differ_are_a_heat_map():
    bits = np.array([[3, 8, 4], [4, 8, 4]])
    drawn = figure([course(bits, starts=[0, 15])])
    [mesh] = meshes(drawn)
    np.testing.assert_array_equal(mesh.get_array(), bits.T)
    x = mesh.get_coordinates()[0, :, 0]
    np.testing.assert_array_equal(x, [0, 15, STEPS])
    axes = mesh.axes
    assert [t.get_text() for t in axes.get_yticklabels()] == [
        "Dense_0", "Dense_1", "Dense_2",
    ]  # fmt: skip
    assert axes.get_ylim() == (2.5, -0.5)  # the first on top
    assert axes.get_title(loc="left") == "x: activation, weight (gradient 8 bits)"


def test_the_colour_bar_has_a_colour_for_each_width_there_is():
    drawn = figure([course([[3, 8], [4, 32]]), course([[3, 16], [3, 16]], name="y")])
    first, second = meshes(drawn)
    bar = drawn.axes[-1]
    assert [t.get_text() for t in bar.get_yticklabels()] == ["3", "4", "8", "16", "32"]
    assert bar.get_ylabel() == "bits"
    shades = {
        int(width): tuple(np.round(mesh.cmap(mesh.norm(width)), 6))
        for mesh in (first, second)
        for width in (3, 4, 8, 16, 32)
    }
    assert len(set(shades.values())) == 5
    assert first.cmap(first.norm(3)) == second.cmap(second.norm(3))


def test_courses_are_overlaid_where_their_layers_agree_and_stacked_where_not():
    drawn = figure([
        course([3, 5], name="a"), course([[3, 8]], name="b"), course([8], name="c"),
        course([[4, 6]], name="d"),
    ])  # fmt: skip
    lines, *_ = drawn.axes
    assert labels(lines) == ["a (gradient 8 bits)", "c"]
    assert [each.axes.get_title(loc="left")[0] for each in meshes(drawn)] == ["b", "d"]
    cost = drawn.axes[4]
    assert [label[0] for label in labels(cost)] == ["a", "b", "c", "d"]
    colours = {line.get_color() for line in cost.lines}
    assert len(colours) == 4
    assert lines.lines[1].get_color() == cost.lines[2].get_color()  # "c" in both


def test_lines_upon_each_other_can_all_be_seen():
    bits, _, cost = figure([course([8], name=name) for name in "abc"]).axes
    for axes in (bits, cost):
        widths = [line.get_linewidth() for line in axes.lines]
        assert widths == sorted(set(widths), reverse=True)
        looks = [(line.get_color(), line.get_linestyle()) for line in axes.lines]
        assert len(set(looks)) == 3


def test_ten_courses_have_ten_looks():
    *_, cost = figure([course([k], name=f"c{k}") for k in range(2, 12)]).axes
    looks = [(line.get_color(), line.get_linestyle()) for line in cost.lines]
    assert len(set(looks)) == 10
    assert labels(cost) == [f"c{k}: mean {k / 100:.4f}" for k in range(2, 12)]


def test_more_than_three_courses_have_a_panel_each():
    moving = course([4, 16], gradient=np.array([[8], [16]]), name="d")
    all_eight = course([8], name="b")
    given = [course([3, 5], name="a"), all_eight, course([2], name="c"), moving]
    *panels, rate, cost = figure(given).axes
    assert [axes.get_title(loc="left") for axes in panels] == [
        "a (gradient 8 bits)", "b", "c (gradient 8 bits)", "d",
    ]  # fmt: skip
    assert [labels(axes) for axes in panels] == [
        ["activation, weight"], ["all operands"], ["activation, weight"],
        ["activation, weight", "gradient"],
    ]  # fmt: skip
    np.testing.assert_array_equal(written_out(panels[0], 0), [3] + [5] * (STEPS - 1))
    np.testing.assert_array_equal(written_out(panels[3], 1), [8] + [16] * (STEPS - 1))
    assert len({axes.get_ylim() for axes in panels}) == 1  # heights can be compared
    assert {each.get_xlim() for each in (*panels, rate, cost)} == {(0, STEPS)}
    colours = [axes.lines[0].get_color() for axes in panels]
    assert colours == [line.get_color() for line in cost.lines]
    three = figure(given[:3]).axes
    assert labels(three[0]) == ["a (gradient 8 bits)", "b", "c (gradient 8 bits)"]
    assert len(three) == 3


def test_a_learning_rate_that_never_changes_is_a_note():
    steady = [
        course([k], name=f"c{k}")._replace(rates=np.full(STEPS, 2e-3)) for k in (3, 5)
    ]
    _, cost = figure(steady).axes
    assert cost.get_xlabel() == "step (learning rate 0.002)"
    other = steady[1]._replace(rates=np.full(STEPS, 1e-3))
    _, rate, cost = figure([steady[0], other]).axes
    assert [line.get_ydata()[0] for line in rate.lines] == [2e-3, 1e-3]
    assert cost.get_xlabel() == "step"


def test_gradients_that_move_are_drawn_beside_others_too():
    moving = course([4, 8], gradient=np.array([[8], [16]]), name="a")
    bits, *_ = figure([moving, course([8], name="b")]).axes
    assert labels(bits) == ["a", "a: gradient", "b"]
    np.testing.assert_array_equal(written_out(bits, 1), [8] + [16] * (STEPS - 1))


@pytest.mark.parametrize(
    ("bits", "names"),
    [
        ([8, 8, 8, 8, 8, 8], ["all operands"]),
        ([4, 4, 8, 4, 8, 4], ["activation, weight", "gradient"]),
        ([4, 8, 8, 8, 8, 4], ["activation", "gradient, weight"]),
        ([16, 16, 8, 8, 8, 8], ["forward", "dgrad, wgrad"]),
        (
            [16, 16, 8, 4, 8, 4],
            ["forward", "gradient", "dgrad weight, wgrad activation"],
        ),
        ([2, 3, 4, 5, 6, 7], [each.replace(".", " ") for each in OPERANDS]),
    ],
)
def test_operands_with_the_same_bits_go_by_one_name(bits, names):
    one = course([8])._replace(bits=np.array(bits).reshape(1, 1, 6))
    found = groups(one)
    assert [group.name for group in found] == names
    assert [int(group.bits[0, 0]) for group in found] == list(dict.fromkeys(bits))


def test_the_mean_cost_counts_each_step_once():
    assert mean_cost(course([4, 8], starts=[0, 5])) == pytest.approx(
        (5 * 0.04 + 15 * 0.08) / 20
    )
    assert mean_cost(course([4])._replace(cost=None)) is None


def test_a_cost_that_was_not_counted_and_no_learning_rate_are_not_drawn():
    nothing = np.zeros(0)
    bare = course([4])._replace(
        cost=None, rate_steps=nothing.astype(int), rates=nothing
    )
    _, cost = figure([bare]).axes
    assert len(cost.lines) == 0
    assert cost.get_xlabel() == "step"


@pytest.mark.parametrize(("layers", "changes"), [(1, 1), (200, 300), (200, 1)])
@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
def test_any_size_is_drawn_and_the_same_bytes_twice(tmp_path, layers, changes, suffix):
    rng = np.random.default_rng(0)
    bits = rng.integers(2, 9, (changes, layers))
    odd = tuple(f"{NAME}{'long' * 30}{i}" for i in range(layers))
    one = course(bits, steps=changes, name=NAME)._replace(layers=odd)
    written = []
    for name in ("a", "b"):
        path = tmp_path / (name + suffix)
        save(figure([one]), path)
        written.append(path.read_bytes())
    assert written[0] == written[1]
    assert len(written[0]) > 1000


def test_many_layers_are_named_as_far_as_there_is_room():
    names = tuple(f"Block_{i}/attention/query_key_value/kernel@{i}" for i in range(200))
    drawn = figure([course(np.arange(400).reshape(2, 200))._replace(layers=names)])
    [mesh] = meshes(drawn)
    ticks = mesh.axes.get_yticks()
    shown = [text.get_text() for text in mesh.axes.get_yticklabels()]
    assert len(shown) <= 40
    for tick, text in zip(ticks, shown, strict=True):
        begin, end = text.split("…")
        assert names[tick].startswith(begin)
        assert names[tick].endswith(end)
    drawn.draw_without_rendering()
    room = mesh.axes.get_window_extent().height / len(shown)
    assert all(t.get_window_extent().height < room for t in mesh.axes.get_yticklabels())


def test_nothing_is_cut_off_at_the_edge():
    names = tuple("n" * 60 + str(i) for i in range(9))
    wide = course(np.arange(2, 11)[None], name="n" * 64)._replace(layers=names)
    drawn = figure([wide, course([4], name="n" * 64), course([5], name="o" * 64)])
    drawn.draw_without_rendering()
    whole = drawn.bbox
    for text in drawn.findobj(mpl.text.Text):
        if text.get_text() and text.get_visible():
            box = text.get_window_extent()
            assert box.x0 >= whole.x0 - 1, text
            assert box.x1 <= whole.x1 + 1, text
            assert box.y1 <= whole.y1 + 1, text


def test_the_layout_has_no_digits_that_differ_from_run_to_run():
    drawn = figure([course([3, 8]), course([[3, 4], [8, 3]], name="y")])
    for axes in drawn.axes:
        bounds = np.array(axes.get_position(original=True).bounds)
        np.testing.assert_allclose(bounds, bounds.round(6), rtol=0, atol=1e-14)
    assert not drawn.get_layout_engine().execute(drawn)  # the solver has no say left


def test_the_users_settings_are_neither_read_nor_changed(tmp_path):
    plain, styled = tmp_path / "plain.svg", tmp_path / "styled.svg"
    save(figure([course([3, 8])]), plain)
    with mpl.rc_context({"font.size": 30, "lines.color": "red", "axes.grid": True}):
        before = dict(mpl.rcParams)
        save(figure([course([3, 8])]), styled)
        assert dict(mpl.rcParams) == before
    assert plain.read_bytes() == styled.read_bytes()
