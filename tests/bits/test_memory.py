"""The memory model of arXiv 2606.08078 against the numbers of its table."""

from __future__ import annotations

import pytest

from sottovoce.bits.memory import memory_table
from sottovoce.errors import BadInput

SPEAKERS = 5994


def test_a_table_worked_out_by_hand():
    [row] = memory_table(
        {"a": (3, 5), "b": (2, 4, 1)}, [3], norm_values=7, biases=3, classifier=(10, 2)
    )  # 23 codes in groups of 8 take 9 bytes, 5 channels have 8 levels of 2 bytes
    assert (row.index, row.codebook, row.other, row.classifier) == (9, 80, 34, 80)
    assert (row.network, row.total) == (123, 203)
    assert row.mib()["total"] == 203 / 2**20


def test_a_width_that_does_not_exist_is_refused():
    with pytest.raises(BadInput, match="5 bits"):
        memory_table({"a": (3, 5)}, [5])


def test_the_table_of_the_paper_from_the_network_itself():
    """Index, codebooks, total with the classifier, total without: MiB at 4, 3 and 2 bits."""
    torch = pytest.importorskip("torch", reason="the shapes are those of a network")
    from sottovoce import networks, quant

    with torch.device("meta"):
        network = networks.build("resnet36-d")
    shapes = quant.quantizable(network)
    norms = [layer for layer in network.modules() if isinstance(layer, torch.nn.modules.batchnorm._BatchNorm)]
    biases = [network.get_submodule(name).bias for name in shapes]
    table = memory_table(
        shapes,
        norm_values=sum(4 * norm.num_features for norm in norms),
        biases=sum(bias.numel() for bias in biases if bias is not None),
        classifier=(SPEAKERS, 256),
    )
    found = [tuple(row.mib()[name] for name in ("index", "codebook", "total", "network")) for row in table]
    assert [tuple(f"{value:.{digits}f}" for value, digits in zip(row, (3, 4, 2, 2), strict=True)) for row in found] == [
        ("7.102", "0.3711", "13.54", "7.68"),
        ("5.327", "0.1855", "11.57", "5.72"),
        ("3.551", "0.0928", "9.71", "3.85"),
    ]
