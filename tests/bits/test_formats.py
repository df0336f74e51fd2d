"""Formats as values, and codes in bytes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sottovoce.bits.formats import FORMATS, WIDTHS, Coded, pack, packed_size, unpack
from sottovoce.bits.plan import Spec
from sottovoce.errors import BadInput


@st.composite
def codes_of_a_width(draw):
    bits = draw(st.sampled_from(WIDTHS))
    codes = draw(st.lists(st.integers(0, 2**bits - 1), max_size=70))
    return bits, np.array(codes, dtype=np.uint8)


@settings(deadline=None)
@given(codes_of_a_width())
def test_unpack_inverts_pack(drawn):
    bits, codes = drawn
    packed = pack(codes, bits)
    assert packed.dtype == np.uint8
    assert packed.shape == (packed_size(len(codes), bits),)
    np.testing.assert_array_equal(unpack(packed, bits, len(codes)), codes)


@pytest.mark.parametrize(
    ("bits", "codes", "expected"),
    [
        (1, [1, 0, 1, 1, 0, 0, 0, 0, 1], [0b00001101, 0b00000001]),
        (2, [0, 1, 2, 3, 3], [0b11100100, 0b00000011]),
        (4, [0x1, 0x2, 0xF], [0x21, 0x0F]),
        (8, [0, 7, 255], [0, 7, 255]),
        (3, [1, 2, 3, 4, 5, 6, 7, 0], [0b11_010_001, 0b01_100_011, 0b00_110_101]),  # codes 6, 7: 0b000_111 → 11, 01, 00
        (3, [0, 0, 0, 0, 0, 0, 0, 5], [0b00_000_000, 0b10_000_000, 0b10_000_000]),  # codes 6, 7: 0b101_000 → 00, 10, 10
        (3, [7], [7, 0, 0]),
    ],
)
def test_pack_writes_these_bytes(bits, codes, expected):
    assert pack(np.array(codes, np.uint8), bits).tolist() == expected


@pytest.mark.parametrize("bits", WIDTHS)
def test_a_tensor_is_packed_in_c_order_of_its_logical_shape(bits):
    codes = (np.arange(24) % 2**bits).astype(np.uint8).reshape(2, 3, 4)
    turned = np.asfortranarray(codes)
    np.testing.assert_array_equal(pack(turned, bits), pack(codes.reshape(-1), bits))


@pytest.mark.parametrize(("count", "bits", "size"), [(0, 3, 0), (1, 3, 3), (8, 3, 3), (9, 3, 6), (9, 1, 2), (5, 4, 3)])
def test_packed_size_counts_whole_groups(count, bits, size):
    assert packed_size(count, bits) == size


def test_unusable_codes_and_bytes_are_refused():
    with pytest.raises(BadInput, match="code 4 does not fit in 2 bits"):
        pack(np.array([4], np.uint8), 2)
    with pytest.raises(BadInput, match="int64"):
        pack(np.array([1]), 2)
    with pytest.raises(BadInput, match="codes of 5 bits"):
        packed_size(3, 5)
    with pytest.raises(BadInput, match="9 codes of 3 bits take 6 bytes"):
        unpack(np.zeros(5, np.uint8), 3, 9)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_uniform_levels_are_equation_2(bits):
    """{0, ±1/(2^(b-1)-1), …, ±1} times alpha: all multiples of one step, 2^b - 1 of them (arXiv 2210.17326)."""
    steps = 2 ** (bits - 1) - 1
    equation = sorted({sign * k / steps for k in range(steps + 1) for sign in (-1, 1)})
    levels = FORMATS[f"uniform{bits}"].levels
    assert [level / steps for level in levels] == equation
    assert len(levels) == 2**bits - 1


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_powers_of_two_are_equation_3(bits):
    """{0, ±2^(-2^(b-1)+2), …, ±2^-1, ±1} times alpha (arXiv 2210.17326)."""
    levels = FORMATS[f"pot{bits}"].levels
    powers = [2.0**-k for k in range(2 ** (bits - 1) - 1)]
    assert [level / levels[-1] for level in levels] == sorted({0.0, *powers, *(-power for power in powers)})


def test_additive_powers_are_those_of_the_authors_code():
    assert [level for level in FORMATS["apot4"].levels if level >= 0] == [0, 1, 2, 3, 4, 6, 8, 10]
    assert [level for level in FORMATS["apot3"].levels if level >= 0] == [0, 1, 2, 4]
    assert FORMATS["pot8"].levels == FORMATS["pot4"].levels
    assert FORMATS["lsq4"].levels == tuple(range(-8, 8))


def test_each_row_decodes_from_its_own_levels():
    books = np.array([[-127, -30, 31, 120], [-4, -3, 5, 6]], np.int8)
    found = coded(spec=Spec("kmeans2", "codebook"), levels=books)
    assert found.integers().tolist() == [[-127, -30, 31], [6, 6, -4]]
    np.testing.assert_array_equal(found.decode(), found.integers() * np.float32([[0.5], [0.1]]))
    with pytest.raises(BadInput, match="row of levels"):
        coded(levels=np.zeros((3, 4), np.int8))


@pytest.mark.parametrize("name", FORMATS)
def test_a_format_fits_its_bits_and_the_int8_grid(name):
    entry = FORMATS[name]
    assert entry.name == name
    assert 2 ** (entry.bits - 1) <= entry.size <= 2**entry.bits or name in ("pot8", "apot8")  # the grid has fewer
    if entry.levels is not None:
        assert list(entry.levels) == sorted(set(entry.levels))
        assert -128 <= entry.levels[0] <= entry.levels[-1] <= 127


def coded(**changes):
    parts = {
        "spec": Spec("kmeans2"),
        "shape": (2, 3),
        "codes": np.array([[0, 1, 2], [3, 3, 0]], np.uint8),
        "levels": np.array([-127, -30, 31, 120], np.int8),
        "scale": np.array([0.5, 0.1], np.float32),
    }
    return Coded(**{**parts, **changes})


def test_decode_is_level_times_scale_of_the_row():
    expected = [[-63.5, -15.0, 15.5], [12.0, 12.0, -12.7]]
    np.testing.assert_array_equal(coded().decode(), (np.array(expected)).astype(np.float32))
    assert coded().decode().dtype == np.float32
    assert coded(scale=np.array([2], np.float32)).decode()[0, 0] == -254
    assert coded().packed_bytes == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"codes": np.zeros((3, 2), np.uint8)}, "expected uint8"),
        ({"codes": np.zeros((2, 3), np.int64)}, "expected uint8"),
        ({"codes": np.full((2, 3), 4, np.uint8)}, "code 4 has no level"),
        ({"levels": np.array([3, 1, 2, 4], np.int8)}, "ascending"),
        ({"scale": np.array([1, 0], np.float32)}, "above 0"),
        ({"scale": np.array([1, np.nan], np.float32)}, "above 0"),
        ({"scale": np.array([1, 1, 1], np.float32)}, "one per row"),
    ],
)
def test_parts_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(BadInput, match=message):
        coded(**changes)
