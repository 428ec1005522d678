"""Small models of every kind that the walk must carry, each `(fn, params, inputs)`."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array


class Model(NamedTuple):
    """`fn(params, *inputs)` is an array or a tree of arrays."""

    fn: Callable[..., Any]
    params: Any
    inputs: tuple[Any, ...]


def normal(seed: int, *shape: int) -> Array:
    """Half normal numbers, from NumPy, which compiles nothing."""
    numbers = np.random.default_rng(seed).standard_normal(shape)
    return jnp.asarray(0.5 * numbers, jnp.float32)


def filled(shapes: Any) -> Any:
    """Parameters of the given shapes, the same for every run."""
    leaves, tree = jax.tree.flatten(shapes)
    return tree.unflatten(normal(i, *x.shape) for i, x in enumerate(leaves))


def linen(module: nn.Module, *inputs: Any) -> Model:
    shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)
    return Model(module.apply, filled(shapes), inputs)


def of_nnx(make: Callable[[nnx.Rngs], nnx.Module], *inputs: Any) -> Model:
    model = nnx.eval_shape(lambda: make(nnx.Rngs(0)))
    graph, params, rest = nnx.split(model, nnx.Param, ...)

    def fn(params: Any, *inputs: Any) -> Any:
        return nnx.merge(graph, params, rest)(*inputs)

    return Model(fn, filled(params), inputs)


class Mlp(nn.Module):
    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = nn.relu(nn.Dense(8)(x))
        return nn.Dense(3, name="head")(x)


class Cnn(nn.Module):
    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = nn.relu(nn.Conv(4, (3, 3))(x))
        x = nn.max_pool(x, (2, 2), strides=(2, 2))
        x = nn.relu(nn.GroupNorm(2)(nn.Conv(4, (3, 3))(x)))
        return nn.Dense(3)(x.reshape(x.shape[0], -1))


class Block(nn.Module):
    @nn.compact
    def __call__(self, x: Array, _: None = None) -> tuple[Array, None]:
        h = nn.LayerNorm()(x)
        x = x + nn.MultiHeadDotProductAttention(num_heads=2, name="attention")(h, h)
        h = nn.gelu(nn.Dense(8, name="up")(nn.LayerNorm()(x)))
        return x + nn.Dense(x.shape[-1], name="down")(h), None


class Transformer(nn.Module):
    scanned: bool = True
    width: int = 4

    @nn.compact
    def __call__(self, tokens: Array) -> Array:
        embed = nn.Embed(7, self.width, name="embed")
        x = embed(tokens)
        if self.scanned:
            block = nn.remat(Block, prevent_cse=False)
            axes, rngs = {"params": 0}, {"params": True}
            scan = nn.scan(block, variable_axes=axes, split_rngs=rngs, length=3)
            x, _ = scan(name="blocks")(x, None)
        else:
            for i in range(2):
                x, _ = Block(name=f"block_{i}")(x)
        return embed.attend(nn.LayerNorm()(x))


class Recurrent(nn.Module):
    cell: Callable[..., nn.RNNCellBase]

    @nn.compact
    def __call__(self, x: Array) -> Array:
        return nn.Dense(2)(nn.RNN(self.cell(3))(x))


class Twice(nn.Module):
    @nn.compact
    def __call__(self, x: Array) -> Array:
        dense = nn.Dense(x.shape[-1], name="shared")
        return dense(nn.tanh(dense(x)))


class LowRank(nn.Module):
    """A dense layer with an adapter: the weight is W + A B."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        init = nn.initializers.normal(0.3)
        kernel = self.param("kernel", init, (x.shape[-1], 5))
        a = self.param("a", init, (x.shape[-1], 2))
        b = self.param("b", init, (2, 5))
        return x @ (kernel + a @ b)


class Ensemble(nn.Module):
    """Three members with parameters of their own, each with its own input."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        mapped = nn.vmap(Mlp, variable_axes={"params": 0}, split_rngs={"params": True})
        return mapped(name="members")(x)


class Stochastic(nn.Module):
    """Both branches of a conditional hold a layer."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        left, right = nn.Dense(4, name="left"), nn.Dense(4, name="right")
        if self.is_initializing():
            return left(x) + right(x)
        params = self.variables["params"]
        branches = [lambda x, name=name: x @ params[name]["kernel"]
                    for name in ("left", "right")]  # fmt: skip
        return lax.cond(x[0, 0] > 0, *branches, x)


def experts() -> Model:
    def fn(p: Any, x: Array) -> Array:
        h = jax.nn.silu(jnp.einsum("etd,edf->etf", x, p["up"]))
        return jnp.einsum("etf,efd->etd", h, p["down"])

    return Model(
        fn,
        {"up": normal(1, 3, 4, 6), "down": normal(2, 3, 6, 4)},
        (normal(0, 3, 5, 4),),
    )


def ragged() -> Model:
    def fn(p: Any, x: Array) -> Array:
        return lax.ragged_dot(x, p["experts"], jnp.array([2, 0, 4]))

    return Model(fn, {"experts": normal(1, 3, 4, 5)}, (normal(0, 6, 4),))


def plain_list() -> Model:
    def fn(p: Any, x: Array) -> Array:
        for w, b in p:
            x = jnp.tanh(jnp.dot(x, w) + jnp.broadcast_to(b, (x.shape[0], b.size)))
        return x

    p = [(normal(i, 4, 4), normal(9 + i, 4)) for i in range(2)]
    return Model(fn, p, (normal(0, 5, 4),))


def layers_in_time() -> Model:
    """At each step of time a stack of layers; their states are carried over time."""

    def fn(p: Any, x: Array) -> Array:
        def layer(h: Array, wc: Any) -> tuple[Array, Array]:
            w, c = wc
            c = jnp.tanh(h @ w["in"] + c @ w["rec"])
            return c, c

        def step(cs: Array, x: Array) -> tuple[Array, Array]:
            y, cs = lax.scan(layer, x, (p, cs))
            return cs, y

        return lax.scan(step, jnp.zeros((2, 3, 4)), x)[1]

    p = {"in": normal(1, 2, 4, 4), "rec": normal(2, 2, 4, 4)}
    return Model(fn, p, (normal(0, 5, 3, 4),))


def time_in_layers() -> Model:
    """Layer by layer, each a loop over time."""

    def fn(p: Any, x: Array) -> Array:
        def layer(xs: Array, w: Any) -> tuple[Array, None]:
            def step(c: Array, x: Array) -> tuple[Array, Array]:
                c = jnp.tanh(x @ w["in"] + c @ w["rec"])
                return c, c

            return lax.scan(step, jnp.zeros((3, 4)), xs)[1], None

        return lax.scan(layer, x, p)[0]

    return layers_in_time()._replace(fn=fn)


def remat_with_policy() -> Model:
    """Results of products are kept, and those of a given name."""
    policies = jax.checkpoint_policies
    policy = policies.save_from_both_policies(
        policies.dots_saveable, policies.save_only_these_names("sum")
    )

    def fn(p: Any, x: Array) -> Array:
        @functools.partial(jax.checkpoint, policy=policy)
        def layer(x: Array, w: Array) -> tuple[Array, None]:
            x = checkpoint_name(x + jnp.tanh(x @ w), "sum")
            return x @ w.T, None

        return lax.scan(layer, x, p)[0]

    return Model(fn, normal(1, 3, 4, 4), (normal(0, 5, 4),))


def low_dtype() -> Model:
    """A model that itself computes in bfloat16, with bfloat16 parameters."""
    dtype = jnp.bfloat16
    module = nn.Sequential([
        nn.Dense(8, dtype=dtype, param_dtype=dtype), nn.relu,
        nn.Dense(4, dtype=dtype, param_dtype=dtype),
    ])  # fmt: skip
    model = linen(module, normal(0, 5, 4))
    return model._replace(params=jax.tree.map(lambda w: w.astype(dtype), model.params))


def cell_of(name: str) -> Callable[..., nn.RNNCellBase]:
    return getattr(nn, name)


class NnxMlp(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.up = nnx.Linear(4, 8, rngs=rngs)
        self.norm = nnx.LayerNorm(8, rngs=rngs)
        self.down = nnx.Linear(8, 4, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        return self.down(nnx.relu(self.norm(self.up(x))))


class NnxStack(nnx.Module):
    """Layers made by vmap and run by scan."""

    def __init__(self, rngs: nnx.Rngs):
        @nnx.split_rngs(splits=3)
        @nnx.vmap(in_axes=0, out_axes=0)
        def make(rngs: nnx.Rngs) -> NnxMlp:
            return NnxMlp(rngs)

        self.layers = make(rngs)

    def __call__(self, x: Array) -> Array:
        @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        def run(x: Array, layer: NnxMlp) -> Array:
            return x + layer(x)

        return run(x, self.layers)


class NnxEnsemble(NnxStack):
    """The same layers side by side."""

    def __call__(self, x: Array) -> Array:
        return nnx.vmap(lambda layer, x: layer(x), in_axes=(0, 0))(self.layers, x)


class NnxRecurrent(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.cell = nnx.SimpleCell(4, 3, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        return nnx.RNN(self.cell)(x, initial_carry=jnp.zeros((x.shape[0], 3)))


class NnxTied(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.embed = nnx.Embed(7, 4, rngs=rngs)
        self.adapted = nnx.LoRALinear(4, 4, lora_rank=2, rngs=rngs)

    def __call__(self, tokens: Array) -> Array:
        return self.embed.attend(self.adapted(self.embed(tokens)))


def equinox() -> Model:
    model = eqx.nn.MLP(4, 3, 8, 2, key=jax.random.key(0))
    params, static = eqx.partition(model, eqx.is_array)

    def fn(params: Any, x: Array) -> Array:
        return jax.vmap(eqx.combine(params, static))(x)

    return Model(fn, params, (normal(0, 5, 4),))


CONVOLUTIONS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "same": (nn.Conv(4, (3, 3)), (2, 5, 5, 3)),
    "valid strides": (nn.Conv(4, (3, 3), strides=2, padding="VALID"), (2, 6, 6, 3)),
    "circular": (nn.Conv(4, (3, 3), padding="CIRCULAR"), (2, 5, 5, 3)),
    "dilation": (nn.Conv(4, (3, 3), kernel_dilation=2), (2, 6, 6, 3)),
    "groups": (nn.Conv(6, (3, 3), feature_group_count=3), (2, 5, 5, 3)),
    "one axis": (nn.Conv(4, (3,)), (2, 6, 3)),
    "three axes": (nn.Conv(2, (2, 2, 2)), (1, 4, 4, 4, 3)),
    "local": (nn.ConvLocal(2, (2, 2)), (1, 3, 3, 2)),
    "transposed": (nn.ConvTranspose(4, (3, 3), strides=(2, 2)), (2, 4, 4, 3)),
    "transposed kernel": (
        nn.ConvTranspose(4, (3,), strides=(2,), transpose_kernel=True), (2, 4, 4),
    ),
}  # fmt: skip

TOKENS = jnp.array([[1, 2, 3, 0, 5], [6, 5, 4, 3, 2]])

MODELS: dict[str, Callable[[], Model]] = {
    "mlp": lambda: linen(Mlp(), normal(0, 5, 4)),
    "cnn": lambda: linen(Cnn(), normal(0, 2, 6, 6, 3)),
    "dense general": lambda: linen(
        nn.DenseGeneral((2, 3), axis=(-2, -1)), normal(0, 5, 4, 2)
    ),
    "einsum": lambda: linen(nn.Einsum((4, 2, 3), "bd,dhk->bhk"), normal(0, 5, 4)),
    **{
        f"conv {name}": functools.partial(
            lambda module, shape: linen(module, normal(0, *shape)), *case
        )
        for name, case in CONVOLUTIONS.items()
    },
    **{
        cell: functools.partial(
            lambda cell: linen(Recurrent(cell_of(cell)), normal(0, 2, 5, 4)), cell
        )
        for cell in ("LSTMCell", "GRUCell", "SimpleCell")
    },
    "scanned transformer": lambda: linen(Transformer(), TOKENS),
    "remat with policy": remat_with_policy,
    "bfloat16": low_dtype,
    "twice": lambda: linen(Twice(), normal(0, 5, 4)),
    "low rank": lambda: linen(LowRank(), normal(0, 5, 4)),
    "ensemble": lambda: linen(Ensemble(), normal(0, 3, 5, 4)),
    "conditional": lambda: linen(Stochastic(), normal(0, 5, 4)),
    "experts": experts,
    "ragged": ragged,
    "list": plain_list,
    "layers in time": layers_in_time,
    "time in layers": time_in_layers,
    "nnx mlp": lambda: of_nnx(NnxMlp, normal(0, 5, 4)),
    "nnx conv": lambda: of_nnx(
        lambda rngs: nnx.Conv(3, 4, (3, 3), rngs=rngs), normal(0, 2, 5, 5, 3)
    ),
    "nnx attention": lambda: of_nnx(
        lambda rngs: nnx.MultiHeadAttention(2, 4, decode=False, rngs=rngs),
        normal(0, 2, 5, 4),
    ),
    "nnx recurrent": lambda: of_nnx(NnxRecurrent, normal(0, 2, 5, 4)),
    "nnx stack": lambda: of_nnx(NnxStack, normal(0, 5, 4)),
    "nnx ensemble": lambda: of_nnx(NnxEnsemble, normal(0, 3, 5, 4)),
    "nnx tied and adapted": lambda: of_nnx(NnxTied, TOKENS),
    "equinox": equinox,
}
