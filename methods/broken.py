"""The errors that libraries raise when they read a broken file, listed only here."""

import csv
import lzma
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pickle import UnpicklingError

from safetensors import SafetensorError

from methods.errors import SetupError

BROKEN: tuple[type[Exception], ...] = (
    OSError, EOFError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, AssertionError,
    RuntimeError, struct.error, csv.Error, zlib.error, lzma.LZMAError, zipfile.BadZipFile, UnpicklingError,
    SafetensorError,
)  # fmt: skip
"""Unicode, JSON, Arrow and pandas raise ValueErrors. Endless nesting raises RecursionError, which is a RuntimeError."""


@contextmanager
def reading(told: Callable[[BaseException], Exception], *more: type[Exception]) -> Iterator[None]:
    """Inside the `with`, replace every error that a broken file causes by the error that `told` makes of it.

    A SetupError passes as it is. more: errors that a reader raises besides BROKEN; `Exception` for a library whose
    errors are not known. The panic of a Rust library, which is not an Exception, also counts as such an error.
    """
    try:
        yield
    except SetupError:
        raise
    except (*BROKEN, *more) as error:
        raise told(error) from error
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise told(error) from error
