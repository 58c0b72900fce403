"""Blocks in parallel, and cells on their way to the host."""

import threading

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from scgen_diffusion.generation._generator import in_parallel
from scgen_diffusion.generation._rows import csr_of, rows_of

CPU = torch.device("cpu")


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_results_come_in_order_and_from_threads_of_one_thread_each(two_threads):
    def make(number):
        return number, torch.get_num_threads(), threading.current_thread() is threading.main_thread()

    made = list(in_parallel(make, range(7), CPU, 3))

    assert made == [(number, 1, False) for number in range(7)]
    assert torch.get_num_threads() == 2


def test_one_thread_needs_no_others():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    main = list(in_parallel(lambda _: threading.current_thread() is threading.main_thread(), range(3), CPU, 3))
    torch.set_num_threads(before)

    assert main == [True] * 3


def test_few_items_are_in_the_works_at_once(two_threads):
    started = []
    blocks = in_parallel(started.append, range(100), CPU, 100)

    next(blocks)

    assert len(started) <= 5
    blocks.close()
    assert len(started) <= 5
    assert torch.get_num_threads() == 2


def test_an_error_in_a_thread_is_raised_and_threads_are_given_back(two_threads):
    def make(number):
        if number == 3:
            msg = "the third"
            raise RuntimeError(msg)
        return number

    with pytest.raises(RuntimeError, match="the third"):
        list(in_parallel(make, range(9), CPU, 3))
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("density", [0.0, 0.3, 1.0])
def test_sparse_cells_are_those_that_scipy_makes(density):
    values = np.random.default_rng(0).poisson(3.0, (17, 41)) * (np.random.default_rng(1).random((17, 41)) < density)
    values = values.astype(np.float32)

    for dense in (values, np.asfortranarray(values)):
        made, expected = csr_of(dense), sp.csr_matrix(values)
        assert made.dtype == np.float32
        assert made.indices.dtype == expected.indices.dtype
        for name in ("data", "indices", "indptr"):
            np.testing.assert_array_equal(getattr(made, name), getattr(expected, name))


def test_cells_of_another_device_lose_their_zeros_there(monkeypatch):
    values = torch.tensor([[0.0, 2.0, 0.0], [1.0, 0.0, 3.0], [0.0, 0.0, 0.0]])

    class Elsewhere(torch.Tensor):
        """Says that it is not on the CPU."""

        device = torch.device("meta")

    found = rows_of(values.as_subclass(Elsewhere), sparse=True)

    np.testing.assert_array_equal(found.toarray(), values.numpy())


def test_dense_cells_stay_dense():
    assert isinstance(rows_of(torch.ones(2, 3, dtype=torch.bfloat16), sparse=False), np.ndarray)
