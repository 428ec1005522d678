"""What became of a program: the optimised HLO, read."""

import re
from collections.abc import Iterator
from typing import NamedTuple

# Operations that multiply matrices, or a kernel's name begins with these.
_MULTIPLIES = ("dot", "convolution", "ragged-dot", "scaled-dot")
_KERNELS = ("__cublas", "__cudnn", "__triton_gemm", "__onednn$matmul", "__onednn$conv")
# In these devices speak with each other; "-start" begins an asynchronous one.
_COLLECTIVES = (
    "all-reduce", "all-gather", "reduce-scatter", "all-to-all", "ragged-all-to-all",
    "collective-permute", "collective-broadcast",
)  # fmt: skip
_INSTRUCTION = re.compile(
    r"^\s*(?:ROOT )?%(?P<name>\S+) = (?P<shape>\(.*?\)|\S+) "
    r"(?P<operation>[\w-]+)\((?P<operands>.*?)\)(?:, |$)"
)


def scope(product: str, contraction: str) -> str:
    """Returns what `op_name` holds of whatever one product becomes.

    >>> scope("wgrad", "Dense_0")
    'wgrad:Dense_0;'
    """
    return f"{product}:{contraction};"


class Product(NamedTuple):
    """A multiplication in the optimised HLO.

    Attributes:
        kernel: The library's kernel, or the HLO operation.
        dtypes: Of its operands, as HLO names them.
        op_name: Where it comes from, as JAX tells XLA.
    """

    kernel: str
    dtypes: tuple[str, str]
    op_name: str

    def is_of(self, contraction: str, product: str) -> bool:
        """Returns whether it is this product ("wgrad") of this contraction.

        >>> Product("dot", ("f32", "f32"), "jvp(wgrad:a/b;)/dot").is_of("a/b", "wgrad")
        True
        """
        return scope(product, contraction) in self.op_name


class Collective(NamedTuple):
    """An operation in which devices speak with each other.

    Attributes:
        operation: As HLO names it, such as "all-reduce".
        results: What each device has afterwards, such as "f32[8,16]".
        op_name: Where it comes from; XLA may have put several into one.
    """

    operation: str
    results: tuple[str, ...]
    op_name: str


class Compiled(NamedTuple):
    """What an optimised program holds.

    Attributes:
        products: In the order of the text.
        casts: Conversions to or from a float8 or integer dtype of 8 bits or fewer.
        transposes: Computations that end in one, so that its result is written.
        collectives: In the order of the text; none on a single device.
    """

    products: tuple[Product, ...]
    casts: int
    transposes: int
    collectives: tuple[Collective, ...] = ()


def read(text: str) -> Compiled:
    """Returns what the text of an optimised HLO module holds.

    >>> text = '''
    ... ENTRY %main (a: f8e4m3fn[4,8], b: f8e4m3fn[8,2]) -> f32[4,2] {
    ...   %a = f8e4m3fn[4,8]{1,0} parameter(0)
    ...   %b = f8e4m3fn[8,2]{1,0} parameter(1)
    ...   ROOT %d = f32[4,2]{1,0} dot(%a, %b), metadata={op_name="f/wgrad:w;/dot"}
    ... }'''
    >>> read(text).products[0]
    Product(kernel='dot', dtypes=('f8e4m3fn', 'f8e4m3fn'), op_name='f/wgrad:w;/dot')
    """
    products: list[Product] = []
    collectives: list[Collective] = []
    casts = transposes = 0
    for computation in _computations(text):
        dtypes: dict[str, str] = {}
        for line in computation:
            match = _INSTRUCTION.match(line)
            if not match:
                continue
            dtypes[match["name"]] = match["shape"].lstrip("(").split("[")[0]
            operands = re.findall(r"%([^\s,()]+)", match["operands"])
            kinds = [dtypes.get(name, "") for name in operands]
            operation = match["operation"]
            if operation == "convert":
                casts += any(map(_narrow, (dtypes[match["name"]], *kinds)))
            last = line.lstrip().startswith("ROOT")
            transposes += operation == "transpose" and last
            if operation.removesuffix("-start") in _COLLECTIVES:
                collectives.append(_collective(operation, match["shape"], line))
            kernel = _kernel(operation, line)
            if kernel:
                products.append(_product(kernel, kinds, line))
    return Compiled(tuple(products), casts, transposes, tuple(collectives))


def _computations(text: str) -> Iterator[list[str]]:
    """Yields the lines of each computation without its head and its brace."""
    lines: list[str] = []
    for line in text.splitlines():
        if line.startswith(("%", "ENTRY")):
            lines = []
        elif line.startswith("}"):
            yield lines
        else:
            lines.append(line)


def _kernel(operation: str, line: str) -> str:
    """Returns what multiplies in this line, "" if nothing does."""
    if operation in _MULTIPLIES:
        return operation
    target = re.search(r'custom_call_target="([^"]+)"', line)
    if operation == "custom-call" and target and target[1].startswith(_KERNELS):
        return target[1]
    return ""


def _product(kernel: str, kinds: list[str], line: str) -> Product:
    left, right = (*kinds, "", "")[:2]
    return Product(kernel, (left, right), _op_name(line))


def _collective(operation: str, shape: str, line: str) -> Collective:
    """Returns a collective; one that begins may list its operands before its results.

    >>> line = '%a = (f32[2], f32[8]) all-gather-start(%x), op_name="step/w"'
    >>> _collective("all-gather-start", "(f32[2], f32[8])", line)
    Collective(operation='all-gather', results=('f32[8]',), op_name='step/w')
    """
    shapes = re.findall(r"[a-z]\w*\[[\d,]*\]", shape)
    name = operation.removesuffix("-start")
    if name != operation and name != "all-reduce":
        # A permutation has two counters of its own after them.
        shapes = (
            shapes[1:2] if name == "collective-permute" else shapes[len(shapes) // 2 :]
        )
    return Collective(name, tuple(shapes), _op_name(line))


def _op_name(line: str) -> str:
    where = re.search(r'op_name="([^"]*)"', line)
    return where[1] if where else ""


def _narrow(dtype: str) -> bool:
    return dtype.startswith(("f8", "f4")) or dtype in ("s8", "s4", "u8", "u4")
