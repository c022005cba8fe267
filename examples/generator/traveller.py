"""Travellers: people with much benign variety, who raise many alerts.

A traveller is a person whose work changes when the scored days begin: other places, programs with
new versions, temporary keys, machines and sessions with new names, and work at any hour. The
networks, programs and services are few. So what is unusual on one day is like what was unusual on
other days, although most of its values are new.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import date, timedelta
from random import Random

from generator.calls import assume
from generator.events import Call, Task, Tool, at
from generator.office import Member, Span, address, call, chance, key
from generator.person import Errand, Person, Stay, Work

NETWORKS, PROJECTS, CLIENTS = 5, 6, 4
"""Numbers of networks to work from, of services of the projects, and of clients."""
TYPES = (
    "m5.xlarge",
    "m6i.large",
    "c5.2xlarge",
    "r5.large",
    "g4dn.xlarge",
    "c7g.large",
    "m7i.large",
)
PLATFORM = {
    "kinesis": "Stream StreamConsumer Shards ResourcePolicy StreamSummary",
    "firehose": "DeliveryStream DeliveryStreamTags DeliveryStreamEncryption",
    "states": "StateMachine Execution MapRun Activity ExecutionHistory",
    "batch": "JobQueue JobDefinition ComputeEnvironment SchedulingPolicy Job",
    "sagemaker": "TrainingJob Endpoint Model NotebookInstance FeatureGroup Pipeline",
    "redshift": "Cluster ClusterSnapshot ClusterParameterGroup ScheduledAction",
    "elasticmapreduce": "JobFlow Step InstanceGroup SecurityConfiguration Studio",
    "kafka": "Cluster ClusterV2 Configuration BootstrapBrokers Replicator",
    "quicksight": "Dashboard DataSet DataSource Analysis Template",
    "es": "Domain DomainConfig Package VpcEndpoint",
    "databrew": "Recipe Job Project Schedule Ruleset",
    "transfer": "Server Connector Workflow Profile Agreement",
}
"""Services of data platforms, with the things that their calls are about."""
VERBS = ("Describe", "List", "Get", "Create", "Update", "Start", "Stop", "Tag")
AGENTS = (
    "aws-cli/2.{version}.{patch} md/awscrt#0.22.0 ua/2.0 os/{system} lang/python#3.12.6",
    "Boto3/1.{version}.{patch} md/Botocore#1.{version}.{patch} ua/2.0 os/{system}",
    "APN/1.0 HashiCorp/1.0 Terraform/1.{version}.{patch} aws-sdk-go-v2/1.30.3 os/{system}",
)
SYSTEM = "Darwin/24.3.0"


@dataclass(frozen=True)
class Travels:
    """What a traveller does besides the usual work.

    Attributes:
        region: The region of the work.
        networks: The first three numbers of the addresses of the places.
        days: The days.
        random: Source of random values.
    """

    region: str
    networks: Sequence[str]
    days: Sequence[date]
    random: Random

    def stays(self) -> Iterator[Stay]:
        """Draw stays of a few days, each with a new address in one of the networks."""
        day = self.days[0]
        while day <= self.days[-1]:
            last = day + timedelta(days=self.random.randint(0, 2))
            yield Stay(day, last, self._address())
            # Between two journeys, the traveller is at home or in the office.
            day = last + timedelta(days=self.random.choice((1, 1, 2)))

    def projects(self, weight: float) -> Iterator[Work]:
        """Draw work on a few services, each day with other calls and the latest program.

        Args:
            weight: Weight of all usual work.
        """
        random = self.random
        services = random.sample(list(PLATFORM), PROJECTS)
        agents = {service: random.choice(AGENTS) for service in services}
        version = random.randint(15, 30)
        for day in self.days:
            service = random.choice(services)
            version += chance(0.4, random)
            names = [f"{verb}{noun}" for noun in PLATFORM[service].split() for verb in VERBS]
            calls = {
                call(service, name, self.region, fails=random.choice((0.0, 0.0, 0.1, 0.3))): 1.0
                for name in random.sample(names, random.randint(2, 6))
            }
            todo = Task(calls, (2, 6), random.choice((20.0, 60.0)), retry=True)
            share = random.uniform(0.02, 0.1)
            yield Work(todo, self._tool(agents[service], version), weight * share, day, day)

    def experiments(self) -> Iterator[Errand]:
        """Draw machines that are started, tagged and stopped, and visits to clients."""
        random = self.random
        roles = [f"client-{n}" for n in range(CLIENTS)]
        types, agents = random.sample(TYPES, 5), random.sample(AGENTS, 2)
        version = random.randint(15, 30)
        for day in self.days:
            if chance(0.25, random):
                continue
            version += chance(0.4, random)
            tool = self._tool(random.choice(agents), version)
            calls = self._experiment(random.choice(types), random.choice(roles))
            todo = Task(dict.fromkeys(calls, 1.0), in_order=True)
            yield Errand(at(day, random.uniform(0, 22)), todo, tool, self._address())

    def _experiment(self, machine_type: str, role: str) -> Iterator[Call]:
        """Draw the calls of an experiment. The machine and the session have new names."""
        if chance(0.5, self.random):
            yield assume(role)
        machine = (f"i-0{self.random.getrandbits(64):016x}",)
        details = (
            ("requestParametersinstanceType", (machine_type,)),
            ("responseElementsinstancesSetitems", machine),
            ("responseElementsreservationId", ("r-0{new}",)),
        )
        yield call("ec2", "RunInstances", self.region, details)
        for name in ("CreateTags", "DescribeInstanceStatus", "StopInstances"):
            if chance(0.5, self.random):
                named = (("requestParametersinstancesSetitems", machine),)
                yield call("ec2", name, self.region, named)

    def _tool(self, agent: str, version: int) -> Tool:
        patch = self.random.randint(0, 40)
        return Tool(agent.format(version=version, patch=patch, system=SYSTEM), key(self.random))

    def _address(self) -> str:
        return f"{self.random.choice(self.networks)}.{self.random.randint(1, 254)}"


def travel(member: Member, since: date, span: Span, random: Random) -> Member:
    """Return a person who starts to travel on a day.

    Args:
        member: The person.
        since: First day of the travels.
        span: All days.
        random: Source of random values.
    """
    life = member.life
    if not isinstance(life, Person):
        raise TypeError(f"{member.name} is a machine, which cannot travel")
    networks = [address(random).rpartition(".")[0] for _ in range(NETWORKS)]
    last = span.first + timedelta(days=span.days - 1)
    days = [since + timedelta(days=n) for n in range((last - since).days + 1)]
    travels = Travels(member.habits.region, networks, days, random)
    travelling = replace(
        life,
        stays=(*life.stays, *travels.stays()),
        work=(*life.work, *travels.projects(sum(work.weight for work in life.work))),
        errands=(*life.errands, *travels.experiments()),
    )
    return replace(member, life=travelling, lease=1)
