"""What became of a program: the optimised HLO, read."""

import re
from collections.abc import Iterator
from typing import NamedTuple

# Operations that multiply matrices, or a kernel's name begins with these.
_MULTIPLIES = ("dot", "convolution", "ragged-dot", "scaled-dot")
_KERNELS = ("__cublas", "__cudnn", "__triton_gemm", "__onednn$matmul", "__onednn$conv")
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


class Compiled(NamedTuple):
    """What an optimised program holds.

    Attributes:
        products: In the order of the text.
        casts: Conversions to or from a float8 or integer dtype of 8 bits or fewer.
        transposes: Computations that end in one, so that its result is written.
    """

    products: tuple[Product, ...]
    casts: int
    transposes: int


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
            kernel = _kernel(operation, line)
            if kernel:
                products.append(_product(kernel, kinds, line))
    return Compiled(tuple(products), casts, transposes)


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
    where = re.search(r'op_name="([^"]*)"', line)
    left, right = (*kinds, "", "")[:2]
    return Product(kernel, (left, right), where[1] if where else "")


def _narrow(dtype: str) -> bool:
    return dtype.startswith(("f8", "f4")) or dtype in ("s8", "s4", "u8", "u4")
