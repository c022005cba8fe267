"""Nothing is lost in silence: each letter is taken, refused or kept, and counted."""

import json
import logging

import pytest

from morpheus.errors import RecordError, TransientError
from morpheus.sinks.delivery import (
    Clock,
    DeadLetterFile,
    Delivery,
    DeliveryStats,
    OutboundEvent,
    RetryPolicy,
    SendResult,
)
from services.listener import Fast


def letters(number, start=0):
    return [
        OutboundEvent(f"id-{n}", "ann", float(n), json.dumps({"n": n}).encode())
        for n in range(start, start + number)
    ]


class Receiver:
    """Takes letters, unless `rule` answers otherwise."""

    to = "`there`"

    def __init__(self, rule=lambda _letters: SendResult()):
        self.rule, self.closed = rule, False
        self.taken, self.tries = [], []

    def carry(self, some):
        answer = self.rule(some)
        self.tries.append(len(some))
        if not answer.sort_into_buckets:
            gone = answer.refused.keys() | answer.later.keys()
            self.taken += [one.id for place, one in enumerate(some) if place not in gone]
        return answer

    def close(self):
        self.closed = True


def later(some, reason="503 busy", **about):
    return SendResult.from_failure(some, reason, **about)


def taken(_some):
    return SendResult()


def in_turn(*rules):
    """One rule for each try."""
    rules = iter(rules)

    def rule(some):
        return next(rules)(some)

    return rule


def delivered(receiver, parcels, *, size=3, refuge=None, at_once=False):
    fast, tally = Fast(), DeliveryStats()
    delivery = Delivery(
        "to-http",
        receiver,
        tally,
        batch_size=size,
        retry_policy=RetryPolicy(2, 1.0, 60.0),
        dead_letters=refuge,
        clock=Clock(fast.now, fast.sleep),
    )
    for _ in delivery.deliver_through(iter(parcels), lambda parcel: parcel, flush_each=at_once):
        pass
    assert receiver.closed
    return tally, fast.slept


def ids(number, start=0):
    return [f"id-{n}" for n in range(start, start + number)]


def test_letters_travel_together_in_their_order():
    receiver = Receiver()
    tally, _ = delivered(receiver, [letters(2), letters(5, 2), []])
    assert receiver.taken == ids(7)
    assert receiver.tries == [3, 3, 1]
    assert (tally.received, tally.taken, tally.unsent, tally.error_message) == (7, 7, 0, "")


def test_a_stream_without_end_waits_for_nobody():
    receiver = Receiver()
    delivered(receiver, [letters(1), letters(4, 1)], at_once=True)
    assert receiver.tries == [1, 3, 1]


def test_a_busy_receiver_is_tried_again_ever_later():
    receiver = Receiver(in_turn(later, later, taken))
    tally, slept = delivered(receiver, [letters(2)])
    assert receiver.taken == ids(2)
    assert slept == [1.0, 2.0]
    assert tally.taken == 2


def test_a_receiver_may_say_how_long_it_wants_to_be_left_alone():
    receiver = Receiver(in_turn(lambda some: later(some, wait=17.0), taken))
    assert delivered(receiver, [letters(1)])[1] == [17.0]


def test_only_what_was_not_taken_is_sent_again():
    answers = iter([SendResult(retryable={1: "429"}), SendResult()])
    receiver = Receiver(lambda _: next(answers))
    delivered(receiver, [letters(3)])
    assert receiver.tries == [3, 1]
    assert receiver.taken == ["id-0", "id-2", "id-1"]


def test_one_bad_letter_does_not_condemn_the_others():
    def picky(some):
        return (
            SendResult(split_reason="400 bad")
            if any(one.id == "id-5" for one in some)
            else SendResult()
        )

    receiver = Receiver(picky)
    tally, _ = delivered(receiver, [letters(8)], size=8)
    assert sorted(receiver.taken) == [one for one in ids(8) if one != "id-5"]
    assert (tally.taken, tally.refused, tally.unsent) == (7, 1, 0)
    assert "took 7 of 8 events; 1 refused. The first reason: 400 bad." in tally.error_message


def test_a_receiver_that_takes_nothing_ends_the_run_with_counts():
    receiver = Receiver(lambda some: SendResult() if some[0].id == "id-0" else later(some))
    with pytest.raises(
        TransientError,
        match=r"to-http: `there` took 3 of 7 events; 4 not handed over. The first reason: 503 busy."
        r".*--dead_letters=letters.jsonl",
    ):
        delivered(receiver, [letters(7)])
    assert receiver.tries == [3, 3, 3, 3]


def test_what_somebody_has_to_mend_is_not_tried_again():
    receiver = Receiver(lambda some: later(some, "401 who are you", hopeless=True))
    with pytest.raises(TransientError, match="401 who are you"):
        delivered(receiver, [letters(2)])
    assert receiver.tries == [2]


def test_with_a_file_the_run_goes_on_and_nothing_is_lost(tmp_path):
    refuge = DeadLetterFile(tmp_path / "deep" / "letters.jsonl")
    receiver = Receiver(later)
    tally, slept = delivered(receiver, [letters(7)], refuge=refuge)
    kept = [json.loads(line) for line in refuge.path.read_text().splitlines()]
    assert [one["id"] for one in kept] == ids(7)
    assert kept[4] == {
        "id": "id-4",
        "user": "ann",
        "time": 4.0,
        "reason": "503 busy",
        "body": {"n": 4},
    }
    assert "took 0 of 7 events; 7 not handed over. The first reason" in tally.error_message
    assert f"kept in `{refuge.path}`" in tally.error_message
    # Once patience was lost, the rest gets a single try.
    assert receiver.tries == [3, 3, 3, 3, 1]
    assert len(slept) == 2


def test_patience_comes_back_with_the_receiver(tmp_path):
    receiver = Receiver(in_turn(later, later, later, taken, later, taken))
    tally, _ = delivered(receiver, [letters(9)], refuge=DeadLetterFile(tmp_path / "a"))
    assert receiver.taken == ids(6, 3)
    assert tally.unsent == 3


def test_the_next_run_sends_what_was_kept_and_first(tmp_path):
    refuge = DeadLetterFile(tmp_path / "letters.jsonl")
    delivered(Receiver(later), [letters(4)], refuge=refuge)
    receiver = Receiver()
    tally, _ = delivered(receiver, [letters(2, 4)], refuge=refuge)
    assert receiver.taken == ids(6)
    assert tally.error_message == ""
    assert list(tmp_path.iterdir()) == []


def test_what_is_refused_again_is_kept_again(tmp_path):
    refuge = DeadLetterFile(tmp_path / "letters.jsonl")
    for parcels in ([letters(4)], []):
        tally, _ = delivered(Receiver(later), parcels, refuge=refuge)
        assert len(refuge.path.read_text().splitlines()) == 4
        assert tally.unsent == 4


def test_a_run_that_breaks_off_while_sending_what_was_kept_loses_nothing(tmp_path):
    refuge = DeadLetterFile(tmp_path / "letters.jsonl")
    delivered(Receiver(later), [letters(4)], refuge=refuge)

    def killed(_some):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        delivered(Receiver(killed), [], refuge=refuge)
    refuge.add([(letters(1, 4)[0], "another run's")])
    receiver = Receiver()
    delivered(receiver, [], refuge=refuge)
    assert receiver.taken == ids(5)


def test_a_file_of_something_else_is_refused_with_its_line(tmp_path):
    path = tmp_path / "letters.jsonl"
    path.write_text('{"id": 7}\n')
    with pytest.raises(RecordError, match=r"letters.jsonl.again:1: this line is no letter"):
        delivered(Receiver(), [], refuge=DeadLetterFile(path))


def test_a_disk_that_refuses_the_file_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    refuge = DeadLetterFile(tmp_path / "file" / "letters.jsonl")
    with pytest.raises(
        TransientError, match=r"--dead_letters: cannot write .*(File exists|Not a dir)"
    ):
        delivered(Receiver(later), [letters(1)], refuge=refuge)


def test_who_stops_the_run_is_told_what_had_arrived(caplog):
    def stream():
        yield letters(4)
        raise KeyboardInterrupt

    receiver = Receiver()
    with caplog.at_level(logging.WARNING), pytest.raises(KeyboardInterrupt):
        delivered(receiver, stream())
    assert "`there` took 3 events; 1 more had come, and are not known" in caplog.text
    assert receiver.closed


def test_who_stops_the_run_finds_the_rest_in_the_file(tmp_path):
    def stream():
        yield letters(5)
        raise KeyboardInterrupt

    refuge = DeadLetterFile(tmp_path / "letters.jsonl")
    with pytest.raises(KeyboardInterrupt):
        delivered(Receiver(), stream(), refuge=refuge)
    receiver = Receiver()
    delivered(receiver, [], refuge=refuge)
    assert receiver.taken == ids(2, 3)


def test_when_the_input_fails_it_is_told_what_had_arrived(caplog):
    def stream():
        yield letters(4)
        raise RecordError("it is not JSON", file="a.json", line=7)

    with caplog.at_level(logging.WARNING), pytest.raises(RecordError):
        delivered(Receiver(), stream())
    assert "took 3 events; 1 more had come" in caplog.text


def test_what_a_receiver_says_is_shown_short_and_without_tricks(caplog):
    hostile = "\x1b[2J" + "x" * 1000
    with caplog.at_level(logging.WARNING):
        delivered(Receiver(in_turn(lambda some: later(some, hostile), taken)), [letters(1)])
    assert "\x1b" not in caplog.text
    assert len(caplog.text) < 600
