"""Blocks in parallel, and cells on their way to the host."""

import threading

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from scgen_diffusion.generation._generator import in_parallel
from scgen_diffusion.generation._rows import rows_of

CPU = torch.device("cpu")


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    assert torch.get_num_threads() == 2  # whatever was done, they are given back
    torch.set_num_threads(before)


def where(number):
    return number, torch.get_num_threads(), threading.current_thread() is threading.main_thread()


def test_results_come_in_order_and_from_threads_of_one_thread_each(two_threads):
    assert list(in_parallel(where, range(7), CPU, 3)) == [(number, 1, False) for number in range(7)]


def test_few_items_are_in_the_works_at_once(two_threads):
    started = []
    blocks = in_parallel(started.append, range(100), CPU, 100)

    next(blocks)

    assert len(started) <= 5
    blocks.close()
    assert len(started) <= 5


def test_an_error_in_a_thread_is_raised(two_threads):
    with pytest.raises(ZeroDivisionError):
        list(in_parallel(lambda number: 1 / (number - 3), range(9), CPU, 3))


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("density", [0.0, 0.3, 1.0])
def test_sparse_cells_are_those_that_scipy_makes(density, order):
    values = np.random.default_rng(0).poisson(3.0, (17, 41)) * (np.random.default_rng(1).random((17, 41)) < density)
    values = values.astype(np.float32, order=order)

    made, expected = rows_of(torch.from_numpy(values), sparse=True), sp.csr_matrix(values)

    assert rows_of(torch.from_numpy(values).bfloat16(), sparse=False).dtype == np.float32
    for name in ("data", "indices", "indptr"):
        assert getattr(made, name).dtype == getattr(expected, name).dtype
        np.testing.assert_array_equal(getattr(made, name), getattr(expected, name))
