"""The ledger: what runs never holds more than there is, and nothing waits for ever."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncflow.backends.resources import Ledger
from asyncflow.description import Resources


class Claim:
    """What asks for resources."""

    def __init__(self, cores: int = 1, gpus: int = 0, memory: int = 0) -> None:
        self.request = Resources(cores, gpus, memory)
        self.gpus: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"<Claim {self.request}>"


def ledger(cores: int = 4, gpus: int = 2, memory: int = 100) -> Ledger[Claim]:
    return Ledger(Resources(cores, gpus, memory), tuple(str(number) for number in range(gpus)))


def offered(book: Ledger[Claim], *claims: Claim) -> list[Claim]:
    """Offer claims and admit what fits."""
    for claim in claims:
        book.offer(claim)
    return book.admit()


def test_what_fits_is_admitted_in_its_order() -> None:
    claims = [Claim() for _ in range(6)]
    book = ledger(cores=4)
    assert offered(book, *claims) == claims[:4]
    assert len(book) == 2
    assert book.admit() == []
    book.release(claims[1])
    assert book.admit() == [claims[4]]


@pytest.mark.parametrize("claim", [Claim(cores=4), Claim(0, gpus=2), Claim(0, memory=100)])
def test_every_kind_of_resource_is_held(claim: Claim) -> None:
    book = ledger()
    again = Claim(claim.request.cores, claim.request.gpus, claim.request.memory)
    assert offered(book, claim, again) == [claim]
    book.release(claim)
    assert book.admit() == [again]


def test_each_claim_has_gpus_of_its_own() -> None:
    book = ledger(cores=8, gpus=3)
    one, two, more = Claim(gpus=1), Claim(gpus=2), Claim(gpus=1)
    assert offered(book, one, two) == [one, two]
    assert offered(book, more) == []
    assert sorted([*one.gpus, *two.gpus]) == ["0", "1", "2"]
    book.release(one)
    assert one.gpus == ()
    assert book.admit() == [more]
    assert len(more.gpus) == 1
    assert not set(more.gpus) & set(two.gpus)


def test_a_large_claim_is_not_starved_by_small_ones() -> None:
    book = ledger(cores=4)
    running = deque(offered(book, *(Claim() for _ in range(4))))
    large = Claim(cores=4)
    book.offer(large)
    for _ in range(20):
        book.offer(Claim())
        book.release(running.popleft())
        running += book.admit()
        if large in running:
            break
    assert large in running


def test_a_claim_that_waits_for_a_gpu_does_not_hold_up_those_that_need_none() -> None:
    book = ledger(cores=4, gpus=1)
    first, waiting = Claim(gpus=1), Claim(gpus=1)
    others = [Claim() for _ in range(3)]
    assert offered(book, first, waiting, *others) == [first, *others[:2]], "one core is kept for who waits"


def test_a_queued_claim_may_be_withdrawn() -> None:
    book = ledger(cores=1)
    first, second, third = Claim(), Claim(), Claim()
    assert offered(book, first, second, third) == [first]
    assert book.withdraw(second)
    assert not book.withdraw(second)
    assert not book.withdraw(first), "it is not queued any more"
    book.release(first)
    assert book.admit() == [third]
    assert not book.withdraw(Claim(cores=3))


def test_drain_takes_out_what_is_queued() -> None:
    book = ledger(cores=1)
    first, second, third = Claim(), Claim(), Claim(gpus=1)
    offered(book, first, second, third)
    assert book.drain() == [second, third]
    assert len(book) == 0
    book.release(first)
    assert book.admit() == []


_CLAIMS = st.builds(Claim, st.integers(0, 4), st.integers(0, 2), st.integers(0, 100))


@given(st.lists(_CLAIMS, max_size=25), st.lists(st.integers(0, 100), max_size=25))
def test_it_never_gives_out_more_than_there_is_and_serves_everyone(claims: list[Claim], choices: list[int]) -> None:
    """`choices` say which of the running claims ends next."""
    total = Resources(4, 2, 100)
    book = ledger()
    running: list[Claim] = []
    served = 0
    waiting = deque(claims)
    turn = iter([*choices, *[0] * len(claims)])
    while waiting or running or len(book):
        if waiting:
            book.offer(waiting.popleft())
        admitted = book.admit()
        served += len(admitted)
        running += admitted
        gpus = [gpu for claim in running for gpu in claim.gpus]
        assert len(gpus) == len(set(gpus)) == sum(claim.request.gpus for claim in running)
        held = Resources(sum(c.request.cores for c in running), len(gpus), sum(c.request.memory for c in running))
        assert held.shortfalls(total) == []
        if running and not (waiting and next(turn, 0) % 2):
            book.release(running.pop(next(turn, 0) % len(running)))
    assert served == len(claims)
