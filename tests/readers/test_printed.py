"""A line that was seen before in its shape is read by memory, and means the same."""

from hypothesis import example, given, settings
from hypothesis import strategies as st

from trainwatch.foreign import printed

WORDS = st.sampled_from(
    ["step", "loss", "loss_l2", "val loss", "Epoch", "epoch", "lr", "acc", "nan", "inf", "took", "iteration", "batch",
     "kl", "(mean)", "at", "of", "Rank", "INFO", "model.py", "0x", "e"]
)  # fmt: skip
NUMBERS = (
    st.integers(0, 10**9).map(str) | st.floats(0, 1e6).map(str) | st.sampled_from(["0.00", "1e-05", "1,234", "007"])
)
SIGNS = st.sampled_from([" ", ": ", "=", " | ", "/", "[", "]", ", ", "-", ":", "%|", "(", ")", ".", "\t", "; "])
LINES = st.lists(st.one_of(WORDS, NUMBERS, SIGNS), max_size=25).map("".join)


def by_expressions(line):
    said = printed._said(line)
    found = printed.Printed(between=said.between, alone=said.alone)
    for pair in said.pairs:
        printed._take(found, *pair)
    return found


def values(found):
    return repr((found.values, found.totals, found.split, found.blurred, found.alone))


@settings(max_examples=500, deadline=None)
@given(line=LINES, other=st.integers(1, 9))
@example(line="Epoch 3/20: [12/173] loss: 0.5000 (0.6) lr=1e-05 acc 98.5%", other=4)
@example(line="[2026-01-01 00:00:00] iteration 100/ 500 | lm loss: 6.7E+00 | grad norm: nan |", other=7)
def test_a_line_of_a_known_shape_reads_as_a_new_one(line, other):
    """Any line, and the same line with other digits, of which the first is remembered."""
    changed = "".join(str((int(sign) + other) % 10) if sign.isascii() and sign.isdigit() else sign for sign in line)
    for one in (line, changed):
        assert values(printed.scan(one)) == values(by_expressions(one))


def test_shapes_are_forgotten_in_time():
    """A log without end has shapes without end."""
    for index in range(printed.REMEMBERED + 10):
        printed.scan(f"{'x' * (index % 60)}{'y' * (index // 60)} loss 0.5")
    assert len(printed._shapes) <= printed.REMEMBERED
