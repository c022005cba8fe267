"""Batches as sinks receive them: scored, explained, of several users and kinds of log."""

from contextlib import ExitStack
from dataclasses import replace

from morpheus.core.batch import Losses, OutputRows, RunMetrics, Table
from morpheus.core.stage import PipelineOptions
from morpheus.runtime.chain import Segment
from morpheus.stages.add_scores import AddScores
from morpheus.stages.explain import Explain
from morpheus.testing import make_events, make_scored, run_stage
from people import fingerprint

CLOUDTRAIL = PipelineOptions(source="from-cloudtrail")
USUAL = {"action": "get", "address": "office", "agent": "web", "kind": "user"}
TRAIL = {
    "eventID": "5bd1f2c7-3c9a-4c9b-8a31-5f2e36e5f3a1",
    "eventName": "CreateAccessKey",
    "eventSource": "iam.amazonaws.com",
    "sourceIPAddress": "203.0.113.7",
    "userAgent": "Boto3/1.34 </script>\x1b[2J",
    "recipientAccountId": "012345678901",
    "awsRegion": "eu-west-1",
    "errorCode": "AccessDenied",
    "errorMessage": "not authorized",
}
SIGN_IN = {
    "id": "c3d1",
    "appDisplayName": "Office 365",
    "ipAddress": "2001:db8::7",
    "locationcity": "Iasi",
    "locationcountryOrRegion": "RO",
    "statuserrorCode": "0",
}


def explained(rows, *, seconds=None, user="ann", labels=("risk", "pvalue"), prefix=""):
    """A batch of Ann's events after `explain`."""
    model = fingerprint()
    rows = [USUAL | row for row in rows]
    columns = {
        name: [row.get(name) for row in rows] for name in {n: 0 for row in rows for n in row}
    }
    frame = make_events(range(len(rows)) if seconds is None else seconds, **columns)
    encoded = model.encoder.encode(frame)
    losses = model.losses(encoded)[encoded.inverse]
    context = {"user": user, "fingerprint": model, "card": model.card, "encoded": encoded}
    batch = Losses(table=Table(frame), losses=losses, **context)
    return run_stage(Explain(prefix=prefix), run_stage(AddScores(label=labels), [batch]))[0]


def plain(rows, *, seconds=None, user="ann"):
    """A batch of events with a score and nothing else."""
    columns = {name: [row.get(name) for row in rows] for name in rows[0]}
    return make_scored(make_events(seconds or range(len(rows)), **columns), user=user)


def days(number):
    """A batch of one event on each of some days, after `serialize`."""
    rows = [TRAIL | {"eventID": str(n)} for n in range(number)]
    return plain(rows, seconds=[86_400 * n for n in range(number)])


def many(number, *, user="ann"):
    """A batch of `number` rows with different ids, after `serialize`."""
    frame = make_events(range(number), eventID=[f"{user}-{n}" for n in range(number)])
    return OutputRows(user=user, table=Table(frame))


def iterate(stage, batches, *, unbounded=False):
    """Run a stage lazily: yield each batch before the next one is requested."""
    with ExitStack() as resources:
        segment = Segment.from_stages([stage], unbounded=unbounded).open(resources=resources)
        yield from segment.run(iter(batches))


def sent(stage, batches, options=CLOUDTRAIL):
    """Pass batches through a sink, to the end of the run."""
    stage = replace(stage, options=options)
    stage.validate()
    out = run_stage(stage, batches)
    assert [batch.table.to_frame() for batch in out] == [
        batch.table.to_frame() for batch in batches
    ] or all(
        after.table.to_frame().equals(before.table.to_frame())
        for after, before in zip(out, batches, strict=True)
    )
    stage.commit(RunMetrics())
    return out
