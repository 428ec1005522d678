"""What a correct copy of each data set hashes to; imports neither JAX nor Flax.

Digests are of contents, not of containers: mirrors and distributions recompress.
"""

import hashlib
from collections.abc import Iterable

# sha256 of the pixels as uint8 and of the labels as uint8, in scikit-learn's order.
DIGITS = {
    "images": "8f26b2bd9d135c256808f68f14fdabddde6d9c7f869ae419704b051f0f14b3b3",
    "labels": "8ba4f891220f5e4c9c819638d1602d74b83618f167043c6da52a2a247841ddf0",
}

# sha256 of the decompressed IDX files.
FASHION_MNIST = {
    "train-images-idx3-ubyte.gz": (
        "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888"
    ),
    "train-labels-idx1-ubyte.gz": (
        "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9"
    ),
    "t10k-images-idx3-ubyte.gz": (
        "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b"
    ),
    "t10k-labels-idx1-ubyte.gz": (
        "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34"
    ),
}

# sha256 of the texts joined in the order of their file names.
SHAKESPEARE = {
    "text": "da68ca4e8201d41a12c1d5e82d967bda85105f1dabe823d5735138bccabdd387",
}


def fingerprint(digests: Iterable[str]) -> str:
    """Returns one sha256 for a data set of several parts.

    Args:
        digests: The parts' digests, in a fixed order.

    >>> fingerprint(DIGITS.values())[:12]
    '5c3945570a14'
    """
    return hashlib.sha256("".join(digests).encode()).hexdigest()
