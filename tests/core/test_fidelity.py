"""Fidelity at the end of the network; against patched copies of a model: `test_held_out.py`."""

import pytest
import toy

from iteris_core import CalibrationError, Task
from iteris_core.report.fidelity import fidelity


def test_outputs_that_are_not_finite_are_refused():
    net = toy.build("stack")
    network = net.network(lambda rows: toy.run(net.model, rows) * float("nan"))
    tasks = [Task("a", net.samples(1), {0: 1.0})]
    with pytest.raises(CalibrationError, match=r"task 'a'.*not finite"):
        fidelity(network, [net.adapter()], toy.compared(tasks), net.adapter(), row_key=id)


def test_a_model_that_writes_all_its_outputs_into_one_tensor_is_compared_with_itself_no_more():
    net = toy.build("stack")
    adapters = [net.adapter("a"), net.adapter("b")]
    tasks = [Task("a", net.samples(2), {0: 1.0})]
    buffer = toy.run(net.model, [sample.teacher for sample in tasks[0].samples])

    def into_one(rows):
        return buffer[: len(rows)].copy_(toy.run(net.model, rows))

    whole = toy.compared(tasks)
    found, expected = (
        fidelity(
            net.network(forward), adapters, whole, adapters[1], row_key=id, samples_per_chunk=1
        )
        for forward in (into_one, None)
    )
    assert found == expected
