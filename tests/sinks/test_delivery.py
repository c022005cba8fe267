"""Each event is accepted, rejected or kept, and counted."""

import json
import logging
from contextlib import suppress
from itertools import chain, repeat

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
from services.listener import FakeClock


def make_events(number, start=0):
    return [
        OutboundEvent(f"id-{n}", "ann", float(n), json.dumps({"n": n}).encode())
        for n in range(start, start + number)
    ]


class Receiver:
    """A transport that accepts events, unless `rule` says otherwise."""

    destination = "`there`"

    def __init__(self, rule=lambda _events: SendResult()):
        self.rule, self.closed = rule, False
        self.accepted, self.attempts = [], []

    def send(self, events):
        result = self.rule(events)
        self.attempts.append(len(events))
        if not result.split_reason:
            failed = result.rejected.keys() | result.retryable.keys()
            self.accepted += [e.id for position, e in enumerate(events) if position not in failed]
        return result

    def close(self):
        self.closed = True


def busy(events, reason="503 busy", **options):
    return SendResult.from_failure(events, reason, **options)


def accept(_events):
    return SendResult()


def in_turn(*rules):
    """One rule for each attempt."""
    rules = iter(rules)

    def rule(events):
        return next(rules)(events)

    return rule


def deliver(receiver, batches, *, size=3, dead_letters=None, flush_each=False):
    """Deliver batches; return the counts, and the delays before retries."""
    clock, stats = FakeClock(), DeliveryStats()
    delivery = Delivery(
        "to-http",
        receiver,
        stats,
        batch_size=size,
        retry_policy=RetryPolicy(2, 1.0, 60.0),
        dead_letters=dead_letters,
        clock=Clock(clock.now, clock.sleep),
    )
    with delivery.open():
        for batch in batches:
            delivery.send(batch, at_once=flush_each)
        delivery.finish()
    assert receiver.closed
    return stats, clock.slept


def ids(number, start=0):
    return [f"id-{n}" for n in range(start, start + number)]


def test_events_are_sent_in_batches_and_in_order():
    receiver = Receiver()
    stats, _ = deliver(receiver, [make_events(2), make_events(5, 2), []])
    assert receiver.accepted == ids(7)
    assert receiver.attempts == [3, 3, 1]
    assert (stats.received, stats.accepted, stats.unsent, stats.error_message) == (7, 7, 0, "")


def test_unbounded_input_is_delivered_at_once():
    receiver = Receiver()
    deliver(receiver, [make_events(1), make_events(4, 1)], flush_each=True)
    assert receiver.attempts == [1, 3, 1]


def test_retries_back_off_exponentially():
    receiver = Receiver(in_turn(busy, busy, accept))
    stats, slept = deliver(receiver, [make_events(2)])
    assert receiver.accepted == ids(2)
    assert slept == [1.0, 2.0]
    assert stats.accepted == 2


def test_retry_after_is_respected():
    receiver = Receiver(in_turn(lambda events: busy(events, retry_after=17.0), accept))
    assert deliver(receiver, [make_events(1)])[1] == [17.0]


def test_only_failed_events_are_retried():
    results = iter([SendResult(retryable={1: "429"}), SendResult()])
    receiver = Receiver(lambda _: next(results))
    deliver(receiver, [make_events(3)])
    assert receiver.attempts == [3, 1]
    assert receiver.accepted == ["id-0", "id-2", "id-1"]


def test_one_bad_event_does_not_reject_the_others():
    def picky(events):
        bad = any(event.id == "id-5" for event in events)
        return SendResult(split_reason="400 bad") if bad else SendResult()

    receiver = Receiver(picky)
    stats, _ = deliver(receiver, [make_events(8)], size=8)
    assert sorted(receiver.accepted) == [event_id for event_id in ids(8) if event_id != "id-5"]
    assert (stats.accepted, stats.rejected, stats.unsent) == (7, 1, 0)
    assert "accepted 7 of 8 events; 1 rejected. The first reason: 400 bad." in stats.error_message


def test_receiver_that_accepts_nothing_ends_the_run_with_counts():
    receiver = Receiver(lambda events: SendResult() if events[0].id == "id-0" else busy(events))
    with pytest.raises(
        TransientError,
        match=r"`there` accepted 3 of 7 events; 4 not delivered. The first reason: 503 busy."
        r".*--dead_letters=letters.jsonl",
    ):
        deliver(receiver, [make_events(7)])
    assert receiver.attempts == [3, 3, 3, 3]


def test_fatal_failures_are_not_retried():
    receiver = Receiver(lambda events: busy(events, "401 who are you", fatal=True))
    with pytest.raises(TransientError, match="401 who are you"):
        deliver(receiver, [make_events(2)])
    assert receiver.attempts == [2]


def test_with_dead_letters_the_run_continues_and_nothing_is_lost(tmp_path):
    dead_letters = DeadLetterFile(tmp_path / "deep" / "letters.jsonl")
    receiver = Receiver(busy)
    stats, slept = deliver(receiver, [make_events(7)], dead_letters=dead_letters)
    kept = [json.loads(line) for line in dead_letters.path.read_text().splitlines()]
    assert [event["id"] for event in kept] == ids(7)
    assert kept[4] == {
        "id": "id-4",
        "user": "ann",
        "time": 4.0,
        "reason": "503 busy",
        "body": {"n": 4},
    }
    assert "accepted 0 of 7 events; 7 not delivered. The first reason" in stats.error_message
    assert f"kept in `{dead_letters.path}`" in stats.error_message
    # Once retries were exhausted, the rest gets one attempt, and the first events one at the end.
    assert receiver.attempts == [3, 3, 3, 3, 1, 3]
    assert len(slept) == 2


def test_kept_events_are_sent_again_when_the_receiver_recovers(tmp_path):
    receiver = Receiver(in_turn(busy, busy, busy, accept, accept, accept))
    stats, _ = deliver(receiver, [make_events(9)], dead_letters=DeadLetterFile(tmp_path / "a"))
    assert receiver.accepted == [*ids(3, 3), *ids(3), *ids(3, 6)]
    assert (stats.accepted, stats.received, stats.error_message) == (9, 9, "")
    assert list(tmp_path.iterdir()) == []


def test_kept_events_are_sent_again_at_the_end_of_the_run(tmp_path):
    receiver = Receiver(in_turn(busy, busy, busy, accept))
    stats, _ = deliver(receiver, [make_events(3)], dead_letters=DeadLetterFile(tmp_path / "a"))
    assert receiver.accepted == ids(3)
    assert (stats.accepted, stats.error_message) == (3, "")


def test_events_rejected_for_good_are_kept_but_not_sent_again_in_the_run(tmp_path):
    def reject(_events):
        return SendResult(rejected={0: "400"}, retryable={1: "503"})

    receiver = Receiver(in_turn(reject, busy, busy, accept))
    dead_letters = DeadLetterFile(tmp_path / "a")
    stats, _ = deliver(receiver, [make_events(2)], size=2, dead_letters=dead_letters)
    assert receiver.accepted == ids(1, 1)
    assert (stats.accepted, stats.rejected, stats.unsent) == (1, 1, 0)
    [kept] = [json.loads(line) for line in dead_letters.path.read_text().splitlines()]
    assert (kept["id"], kept["rejected"]) == ("id-0", True)


def test_retries_end_with_the_total_time_even_if_the_receiver_asks_for_more():
    clock, stats = FakeClock(), DeliveryStats()
    receiver = Receiver(lambda events: busy(events, retry_after=40.0))
    allowed, send = [], receiver.send

    def send_in_time(events, seconds):
        allowed.append(seconds)
        return send(events)

    receiver.send = send_in_time
    delivery = Delivery(
        "to-http",
        receiver,
        stats,
        batch_size=3,
        retry_policy=RetryPolicy(9, 1.0, 60.0),
        clock=Clock(clock.now, clock.sleep, lambda: sum(clock.slept)),
        total_timeout=100.0,
    )
    with pytest.raises(TransientError), delivery.open():
        delivery.send(make_events(1), at_once=True)
    assert clock.slept == [40.0, 40.0]
    assert allowed == [100.0, 60.0, 20.0]


def deliver_in_silence(answers, number, *, dead_letters=None, silence_limit=60.0):
    """Deliver batches to a receiver that takes 30 seconds for no answer; return what it took."""
    clock, stats = FakeClock(), DeliveryStats()
    rules = chain(answers, repeat(answers[-1]))

    def answer(events):
        rule = next(rules)
        if rule is not None:
            return rule(events)
        clock.slept.append(30.0)
        return busy(events, "no answer", silent=True)

    receiver = Receiver(answer)
    send = receiver.send
    receiver.send = lambda events, _: send(events)
    delivery = Delivery(
        "to-http",
        receiver,
        stats,
        batch_size=3,
        retry_policy=RetryPolicy(9, 1.0, 60.0),
        dead_letters=dead_letters,
        clock=Clock(clock.now, clock.sleep, lambda: sum(clock.slept)),
        total_timeout=300.0,
        silence_limit=silence_limit,
    )
    with suppress(TransientError), delivery.open():
        for start in range(number):
            delivery.send(make_events(3, 3 * start), at_once=True)
        delivery.finish()
    return stats, sum(clock.slept)


@pytest.mark.parametrize("number", [1, 40])
def test_a_receiver_that_never_answers_holds_a_run_up_for_a_bounded_time(tmp_path, number):
    stats, seconds = deliver_in_silence([None], number)
    assert (seconds, stats.accepted) == (61.0, 0)
    letters = DeadLetterFile(tmp_path / "letters.jsonl")
    stats, seconds = deliver_in_silence([None], number, dead_letters=letters)
    assert seconds <= 91.0
    assert stats.unsent == stats.received == 3 * number
    assert len(letters.path.read_text().splitlines()) == 3 * number
    assert "no answer" in stats.error_message


def test_a_receiver_that_answers_late_or_is_busy_gets_all_retries():
    assert deliver_in_silence([None, accept], 1)[0].accepted == 3
    stats, seconds = deliver_in_silence([None, busy, None, None, accept], 1)
    assert (stats.accepted, seconds) == (3, 30 * 3 + 1 + 2 + 4 + 8)
    assert deliver_in_silence([None], 1, silence_limit=None)[1] > 200


def test_events_that_were_kept_in_a_silence_are_sent_at_the_end(tmp_path):
    letters = DeadLetterFile(tmp_path / "letters.jsonl")
    stats, _ = deliver_in_silence([None, None, accept], 5, dead_letters=letters)
    assert (stats.accepted, stats.error_message) == (15, "")
    assert not letters.path.exists()


def test_a_clock_that_is_set_does_not_end_retries():
    jumps = iter(range(0, 10**9, 10**6))
    clock, stats = FakeClock(), DeliveryStats()
    receiver = Receiver(in_turn(busy, busy, accept))
    send = receiver.send
    receiver.send = lambda events, _: send(events)
    delivery = Delivery(
        "to-http",
        receiver,
        stats,
        batch_size=3,
        retry_policy=RetryPolicy(9, 1.0, 60.0),
        clock=Clock(lambda: next(jumps), clock.sleep),
        total_timeout=100.0,
    )
    with delivery.open():
        delivery.send(make_events(1), at_once=True)
    assert stats.accepted == 1


def test_events_that_wait_in_a_state_file_are_no_failure_but_rejected_ones_are():
    DeliveryStats(received=2, accepted=1, error_message="503").raise_if_undelivered(waits=True)
    with pytest.raises(TransientError, match="400"):
        DeliveryStats(rejected=1, error_message="400").raise_if_undelivered(waits=True)
    with pytest.raises(TransientError, match="503"):
        DeliveryStats(received=2, accepted=1, error_message="503").raise_if_undelivered()


def test_next_run_sends_dead_letters_first(tmp_path):
    dead_letters = DeadLetterFile(tmp_path / "letters.jsonl")
    deliver(Receiver(busy), [make_events(4)], dead_letters=dead_letters)
    receiver = Receiver()
    stats, _ = deliver(receiver, [make_events(2, 4)], dead_letters=dead_letters)
    assert receiver.accepted == ids(6)
    assert stats.error_message == ""
    assert list(tmp_path.iterdir()) == []


def test_dead_letters_that_fail_again_are_kept_again(tmp_path):
    dead_letters = DeadLetterFile(tmp_path / "letters.jsonl")
    for batches in ([make_events(4)], []):
        stats, _ = deliver(Receiver(busy), batches, dead_letters=dead_letters)
        assert len(dead_letters.path.read_text().splitlines()) == 4
        assert stats.unsent == 4


def test_interrupt_while_replaying_dead_letters_loses_nothing(tmp_path):
    dead_letters = DeadLetterFile(tmp_path / "letters.jsonl")
    deliver(Receiver(busy), [make_events(4)], dead_letters=dead_letters)

    def interrupt(_events):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        deliver(Receiver(interrupt), [], dead_letters=dead_letters)
    dead_letters.add([(make_events(1, 4)[0], "another run's")])
    receiver = Receiver()
    deliver(receiver, [], dead_letters=dead_letters)
    assert receiver.accepted == ids(5)


def test_invalid_dead_letter_is_rejected_with_its_line(tmp_path):
    path = tmp_path / "letters.jsonl"
    path.write_text('{"id": 7}\n')
    with pytest.raises(RecordError, match=r"letters.jsonl.again:1: this line is not an event of"):
        deliver(Receiver(), [], dead_letters=DeadLetterFile(path))


def test_unwritable_dead_letter_file_is_reported(tmp_path):
    (tmp_path / "file").write_text("")
    dead_letters = DeadLetterFile(tmp_path / "file" / "letters.jsonl")
    with pytest.raises(
        TransientError, match=r"--dead_letters: cannot write .*(File exists|Not a dir)"
    ):
        deliver(Receiver(busy), [make_events(1)], dead_letters=dead_letters)


def test_interrupt_logs_how_many_events_arrived(caplog):
    def stream():
        yield make_events(4)
        raise KeyboardInterrupt

    receiver = Receiver()
    with caplog.at_level(logging.WARNING), pytest.raises(KeyboardInterrupt):
        deliver(receiver, stream())
    assert "`there` accepted 3 events; 1 more may not have arrived" in caplog.text
    assert receiver.closed


def test_interrupt_keeps_buffered_events_as_dead_letters(tmp_path):
    def stream():
        yield make_events(5)
        raise KeyboardInterrupt

    dead_letters = DeadLetterFile(tmp_path / "letters.jsonl")
    with pytest.raises(KeyboardInterrupt):
        deliver(Receiver(), stream(), dead_letters=dead_letters)
    receiver = Receiver()
    deliver(receiver, [], dead_letters=dead_letters)
    assert receiver.accepted == ids(2, 3)


def test_failed_input_logs_how_many_events_arrived(caplog):
    def stream():
        yield make_events(4)
        raise RecordError("it is not JSON", file="a.json", line=7)

    with caplog.at_level(logging.WARNING), pytest.raises(RecordError):
        deliver(Receiver(), stream())
    assert "accepted 3 events; 1 more may not have arrived" in caplog.text


def test_responses_are_logged_short_and_escaped(caplog):
    hostile = "\x1b[2J" + "x" * 1000
    with caplog.at_level(logging.WARNING):
        deliver(Receiver(in_turn(lambda events: busy(events, hostile), accept)), [make_events(1)])
    assert "\x1b" not in caplog.text
    assert len(caplog.text) < 600
