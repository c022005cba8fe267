"""Versions of model stores: published in one piece, named by aliases, read when damaged."""

import gc
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import msgspec
import pytest

from morpheus.errors import ModelCorruptedError, TransientError, UsageError
from morpheus.models import versions as module
from morpheus.models.store import ModelIndex, ModelStore, commit_index, put_model
from morpheus.models.versions import (
    CANDIDATE,
    CHAMPION,
    Manifest,
    NewVersion,
    StagingFolder,
    StoredVersion,
    VersionedStore,
    find_models,
    save_models,
    split_location,
)
from morpheus.storage.atomic import LocalStore, start_cleanup
from people import day, fingerprint


@pytest.fixture(scope="module")
def old():
    return fingerprint()


@pytest.fixture(scope="module")
def new():
    return fingerprint(day(500, seed=1))


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "models"


def named(user, model):
    return replace(model, card=msgspec.structs.replace(model.card, user=user))


def publish(folder, users, model, **options):
    return VersionedStore.open(folder).publish([named(user, model) for user in users], **options)


def events_by_user(folder, which):
    cards = VersionedStore.open(folder).open_version(which).cards
    return {user: cards[user].events for user in cards}


def test_first_version_is_the_champion_and_loads_unchanged(folder, old):
    number = publish(folder, ["ann"], old, note="first")
    store = VersionedStore.open(folder)
    back = store.load("ann")
    assert number == store.resolve(CHAMPION) == store.resolve(CANDIDATE) == 1
    assert msgspec.structs.replace(back.card, size=0, sha256="", version=0) == old.card
    assert (back.card.version, store.versions()[0].note) == (1, "first")
    assert store.load("bob") is None


def test_next_version_has_the_files_of_changed_users_only(folder, old, new):
    publish(folder, ["ann", "bob"], old)
    publish(folder, ["ann"], new)
    small, large = sorted(path.stat().st_size for path in (folder / "packs").iterdir())
    version = VersionedStore.open(folder).versions()[1]
    assert small < large
    assert (version.users, version.changed, version.parent) == (2, 1, 1)
    assert events_by_user(folder, 1) == {"ann": 400, "bob": 400}
    assert events_by_user(folder, 2) == {"ann": 500, "bob": 400}
    opened = VersionedStore.open(folder).open_version(2)
    assert {user: card.version for user, card in opened.cards.items()} == {"ann": 2, "bob": 1}


def test_unchanged_fingerprint_keeps_its_version(folder, old, new):
    publish(folder, ["ann", "bob"], old)
    store = VersionedStore.open(folder)
    number = store.publish([store.load("bob"), named("ann", new)])
    assert store.load("bob", number).card.version == 1
    assert store.versions()[-1].changed == 1


def test_candidate_is_not_used_before_it_is_promoted(folder, old, new):
    publish(folder, ["ann"], old)
    publish(folder, ["ann"], new)
    store = VersionedStore.open(folder)
    assert store.load("ann").card.events == 400
    assert store.promote() == 2
    assert store.load("ann").card.events == 500
    assert store.rollback() == 1
    assert store.load("ann").card.events == 400


def test_users_are_promoted_and_rolled_back_alone(folder, old, new):
    publish(folder, ["ann", "bob", "eve"], old)
    publish(folder, ["ann", "bob", "eve"], new)
    store = VersionedStore.open(folder)
    assert store.promote(["ann", "bob"]) == 3
    assert events_by_user(folder, CHAMPION) == {"ann": 500, "bob": 500, "eve": 400}
    assert store.load("ann").card.version == 2
    assert store.rollback(["bob"]) == 4
    assert events_by_user(folder, CHAMPION) == {"ann": 500, "bob": 400, "eve": 400}
    assert store.load("bob").card.version == 1
    assert store.rollback() == 3


def test_rollback_returns_through_all_former_champions_and_then_says_so(folder, old, new):
    for model in (old, new, fingerprint(day(450, seed=2))):
        publish(folder, ["ann"], model, alias=CHAMPION)
    store = VersionedStore.open(folder)
    assert [store.rollback(), store.rollback()] == [2, 1]
    with pytest.raises(UsageError, match=r"the champion is version 1, and no other version was"):
        store.rollback()
    with pytest.raises(UsageError, match=r"no version before 1 has an earlier .* of 'ann'. `morph"):
        store.rollback(["ann"])


@pytest.fixture
def four(folder, old, new):
    """A store whose champions 1 to 4 have fingerprints of Ann of 400, 500, 450 and 460 events."""
    later = [fingerprint(day(number, seed=number)) for number in (450, 460)]
    for model in (old, new, *later):
        publish(folder, ["ann", "bob"], model, alias=CHAMPION)
    return VersionedStore.open(folder)


def roll_back(store, user="ann"):
    """Roll a user back until there is nothing before; return the events of each fingerprint."""
    events = []
    try:
        while len(events) < 9 and store.rollback([user]):
            events.append(store.load(user).card.events)
    except UsageError as error:
        assert "has an earlier fingerprint" in str(error)  # noqa: PT017 - after any number of calls
    return events


def test_repeated_rollbacks_of_a_user_return_through_all_fingerprints_of_the_user(four):
    assert roll_back(four) == [450, 500, 400]
    assert four.load("bob").card.events == 460
    assert roll_back(four, "bob") == [450, 500, 400], "rollbacks of others do not count"


def test_a_rollback_of_a_user_takes_back_a_promotion_of_an_older_version(four):
    assert four.rollback(["ann"]) == 5
    four.promote(["ann"], source=1)
    four.rollback(["bob"])
    assert four.load("ann").card.events == 400
    assert roll_back(four) == [450, 500, 400]


def test_a_version_of_a_rollback_that_is_promoted_again_is_taken_back_as_any_other(four, folder):
    four.rollback(["ann"])
    publish(folder, ["ann"], fingerprint(day(480, seed=5)), alias=CHAMPION)
    four.promote(source=5)
    assert four.load("ann").card.events == 450
    assert roll_back(four) == [480, 450, 500, 400]


def test_what_a_user_gets_after_a_rollback_is_taken_back_first(four, folder):
    four.rollback(["ann"])
    publish(folder, ["ann"], fingerprint(day(480, seed=5)), alias=CHAMPION)
    assert roll_back(four) == [450, 500, 400]


def test_users_who_were_rolled_back_apart_are_rolled_back_together(four, folder):
    four.rollback(["ann"])
    four.rollback(["ann", "bob"])
    assert events_by_user(folder, CHAMPION) == {"ann": 500, "bob": 450}


def test_a_rollback_returns_past_fingerprints_whose_versions_were_pruned(four):
    four.rollback(["ann"])
    four.rollback(["ann"])
    four._change(  # noqa: SLF001 - `prune` keeps versions of the last 60 days
        lambda manifest: msgspec.structs.replace(
            manifest, versions=tuple(each for each in manifest.versions if each.number != 2)
        )
    )
    assert roll_back(four) == [400]


def test_unknown_version_alias_or_user_is_named(folder, old):
    store = VersionedStore.open(folder)
    with pytest.raises(UsageError, match=r"has no versions. Publish one with `train-ae"):
        store.resolve(CHAMPION)
    publish(folder, ["ann"], old)
    with pytest.raises(UsageError, match=r"there is no version 7. There are `champion`"):
        store.resolve(7)
    with pytest.raises(UsageError, match=r"no alias `champoin`. Did you mean `champion`\?"):
        store.resolve("champoin")
    with pytest.raises(UsageError, match=r"version 1 has no fingerprint of 'bob'"):
        store.promote(["bob"], source=1)
    with pytest.raises(UsageError, match=r"`9lives` is no alias"):
        store.set_alias("9lives", 1)


def test_many_versions_keep_few_indexes_and_all_users(folder, old):
    for number in range(2 * module.MAX_INDEXES + 2):
        publish(folder, [f"user{number}"], old, alias=CHAMPION)
    store = VersionedStore.open(folder)
    assert max(len(each.indexes) for each in store.versions()) <= module.MAX_INDEXES
    assert len(store.open_version().cards) == 2 * module.MAX_INDEXES + 2
    assert store.load("user3").card.version == 4


def test_folder_without_versions_is_version_1_and_is_adopted(folder, old, new):
    commit_index(folder, ModelIndex.from_cards({"ann": put_model(folder, old)}))
    store = VersionedStore.open(folder)
    assert [each.number for each in store.versions()] == [1]
    assert store.load("ann").card.version == store.load("ann", 1).card.version == 1
    assert not (folder / "store.json").exists()
    assert store.publish([named("bob", new)]) == 2
    assert not (folder / "index.json").exists()
    assert events_by_user(folder, 1) == {"ann": 400}
    assert events_by_user(folder, 2) == {"ann": 400, "bob": 500}


def test_key_protects_the_manifest(folder, old):
    key, other = b"k" * 32, b"o" * 32
    VersionedStore.open(folder, key).publish([old])
    assert VersionedStore.open(folder, key).load("ann") is not None
    with pytest.raises(UsageError, match=r"store.json: was signed with another key"):
        VersionedStore.open(folder, other).versions()
    with pytest.raises(UsageError, match=r"store.json: is signed, and no key was given"):
        VersionedStore.open(folder).versions()
    with pytest.raises(UsageError, match=r"store.json: was signed with another key"):
        VersionedStore.open(folder, other).publish([old])


def test_folder_signed_without_versions_needs_its_key(folder, old):
    key = b"k" * 32
    index = ModelIndex.from_cards({"ann": put_model(folder, old)})
    commit_index(folder, index, key=key)
    with pytest.raises(UsageError, match=r"is signed, and no key was given"):
        VersionedStore.open(folder).versions()
    store = VersionedStore.open(folder, key)
    store.publish([named("bob", old)])
    assert store.load("ann").card.events == 400


def flip(path, at=-1):
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(bytes(content))


def pack_of(folder, user, which):
    store = VersionedStore.open(folder)
    return folder / "packs" / f"{store.open_version(which).find_placed(user).pack}.pack"


def test_damaged_fingerprint_is_replaced_by_the_version_before(folder, old, new, caplog):
    publish(folder, ["ann", "bob"], old)
    publish(folder, ["ann"], new, alias=CHAMPION)
    flip(pack_of(folder, "ann", 2))
    version = VersionedStore.open(folder).open_version()
    assert version.load("ann").card.version == 1
    assert [(each.user, each.damaged, each.used) for each in version.replaced] == [("ann", 2, 1)]
    assert "fingerprint of 'ann' of version 2 does not match its checksum" in caplog.text
    assert "Version 1 is used instead" in caplog.text
    assert version.load("bob").card.version == 1


def test_damaged_version_is_replaced_by_the_version_before(folder, old, new, caplog):
    publish(folder, ["ann"], old)
    publish(folder, ["ann"], new, alias=CHAMPION)
    newest = VersionedStore.open(folder).versions()[1].indexes[0]
    (folder / "indexes" / f"{newest}.json").unlink()
    version = VersionedStore.open(folder).open_version()
    assert (version.number, version.load("ann").card.events) == (1, 400)
    assert [(each.damaged, each.used) for each in version.replaced] == [(2, 1)]
    assert "index of version 2 cannot be read" in caplog.text


def test_a_damaged_version_does_not_become_the_champion_and_is_not_copied(
    folder, old, new, tmp_path
):
    for model in (old, new):
        publish(folder, ["ann", "bob"], model, alias=CHAMPION)
    publish(folder, ["ann"], old, alias=CHAMPION)
    store = VersionedStore.open(folder)
    flip(folder / "indexes" / f"{store.read_manifest().find(2).indexes[0]}.json")
    before = store.read_manifest()
    for act in (
        lambda: store.promote(source=2),
        lambda: store.promote(["ann"], source=2),
        store.rollback,
        lambda: store.export(tmp_path / "copy", 2),
    ):
        with pytest.raises(ModelCorruptedError, match="index of version 2"):
            act()
    assert store.read_manifest() == before
    assert not (tmp_path / "copy").exists()


def test_a_damaged_fingerprint_is_not_published_for_a_user_alone(folder, old, new):
    for model in (old, new):
        publish(folder, ["ann"], model, alias=CHAMPION)
    flip(pack_of(folder, "ann", 1))
    store = VersionedStore.open(folder)
    for act in (lambda: store.promote(["ann"], source=1), lambda: store.rollback(["ann"])):
        with pytest.raises(ModelCorruptedError, match="fingerprint of 'ann' of version 1"):
            act()
    assert store.resolve(CHAMPION) == 2


def test_an_empty_or_a_missing_manifest_is_damage_and_not_an_empty_store(folder, old):
    publish(folder, ["ann"], old)
    (folder / "store.json").write_bytes(b"")
    for act in (VersionedStore.open(folder).versions, lambda: publish(folder, ["bob"], old)):
        with pytest.raises(ModelCorruptedError, match="is empty"):
            act()
    (folder / "store.json").unlink()
    with pytest.raises(ModelCorruptedError, match="is missing, but there are files of versions"):
        VersionedStore.open(folder).open_version()
    with pytest.raises(ModelCorruptedError, match="is missing, but there are files of versions"):
        publish(folder, ["bob"], old)
    with pytest.raises(ModelCorruptedError, match="is missing, but there are files of versions"):
        VersionedStore.open(folder).reserve()
    assert len(list((folder / "packs").iterdir())) == 2, "that of the user whose version failed"


def test_files_that_prune_has_removed_are_in_no_new_version(folder, old, new):
    for model in (old, new, fingerprint(day(450, seed=2))):
        publish(folder, ["ann"], model, alias=CHAMPION, base=None)
    store = VersionedStore.open(folder)
    placed = store.open_version(1).placed["ann"]
    age(folder, [400, 200, 100])
    assert store.prune(keep=0) == [1]
    with pytest.raises(TransientError, match="was removed while"):
        store.publish_placed(NewVersion([placed]), CHAMPION)
    assert store.resolve(CHAMPION) == 3


def test_damage_without_an_earlier_version_is_an_error(folder, old):
    publish(folder, ["ann"], old)
    flip(pack_of(folder, "ann", 1))
    with pytest.raises(
        ModelCorruptedError, match=r"'ann' of version 1 does not match.*train again"
    ):
        VersionedStore.open(folder).load("ann")


def test_flipped_byte_in_the_manifest_is_detected(folder, old):
    publish(folder, ["ann"], old)
    for at in range(0, (folder / "store.json").stat().st_size, 7):
        flip(folder / "store.json", at)
        with pytest.raises(ModelCorruptedError):
            VersionedStore.open(folder).versions()
        flip(folder / "store.json", at)


def test_index_cannot_point_outside_the_folder(folder, old):
    publish(folder, ["ann"], old)
    store = VersionedStore.open(folder)
    bad = module._Index(("../../secret",), {})  # noqa: SLF001 - an index that morpheus does not write
    digest = store._write_index(bad)  # noqa: SLF001 - the same
    version = StoredVersion(9, "2026-01-01T00:00:00+00:00", (digest,), 0, 0)
    store._change(lambda manifest: Manifest(10, (*manifest.versions, version), {CHAMPION: 9}))  # noqa: SLF001 - the same
    with pytest.raises(ModelCorruptedError, match=r"is damaged.*packs"):
        store.open_version(9)


PUBLISH = """
import sys
sys.path[:0] = sys.argv[2:]
from dataclasses import replace
import msgspec
from morpheus.models.versions import VersionedStore
store = VersionedStore.open(sys.argv[1])
known = store.load("ann", 1)
print("ready", flush=True)
while True:
    for seed in range(3, 1000):
        card = msgspec.structs.replace(known.card, seed=seed, sha256="")
        cards = [msgspec.structs.replace(card, user=f"u{n}") for n in range(40)]
        users = [replace(known, card=each) for each in cards]
        store.publish(users, alias="champion", base=1)
"""


def test_kill_during_publishing_leaves_the_version_before_or_the_new_one(folder, old):
    publish(folder, ["ann"], old)
    for wait in (0.0, 0.01, 0.03, 0.05, 0.08, 0.11):
        process = subprocess.Popen(
            [sys.executable, "-c", PUBLISH, str(folder), *sys.path],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout.readline() == "ready\n"
        time.sleep(wait)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        store = VersionedStore.open(folder)
        for version in store.versions():
            opened = store.open_version(version.number)
            assert len(opened.cards) == version.users == (1 if version.number == 1 else 41)
            assert all(opened.load(user) is not None for user in opened.cards)
            assert not opened.replaced


APPEND = """
import sys
sys.path[:0] = sys.argv[4:]
from dataclasses import replace
import msgspec
from morpheus.models.versions import VersionedStore
store = VersionedStore.open(sys.argv[1])
known = store.load("ann", 1)
for number in range(int(sys.argv[3])):
    user = f"{sys.argv[2]}{number}"
    store.publish([replace(known, card=msgspec.structs.replace(known.card, user=user))],
                  alias="champion")
"""


def test_two_publishers_lose_nothing(folder, old):
    publish(folder, ["ann"], old)
    running = [
        subprocess.Popen([sys.executable, "-c", APPEND, str(folder), name, "8", *sys.path])
        for name in ("x", "y")
    ]
    assert [process.wait() for process in running] == [0, 0]
    store = VersionedStore.open(folder)
    assert [each.number for each in store.versions()] == list(range(1, 18))
    names = {f"{name}{number}" for name in "xy" for number in range(8)} | {"ann"}
    assert set(store.open_version().cards) == names


def test_reserved_number_is_used_and_never_given_twice(folder, old):
    store = VersionedStore.open(folder)
    assert publish(folder, ["bob"], old) == 1
    assert store.reserve() == 2
    assert publish(folder, ["eve"], old) == 3
    assert store.publish([named("ann", old)], number=2, base=None) == 2
    assert [each.number for each in store.versions()] == [1, 2, 3]
    assert publish(folder, ["joe"], old) == 4


def age(folder, days):
    """Make versions older, from the first: days before now."""
    store = VersionedStore.open(folder)

    def change(manifest):
        ages = dict(zip((each.number for each in manifest.versions), days, strict=True))
        aged = tuple(
            msgspec.structs.replace(
                each, created=(datetime.now(UTC) - timedelta(days=ages[each.number])).isoformat()
            )
            for each in manifest.versions
        )
        return msgspec.structs.replace(manifest, versions=aged)

    store._change(change)  # noqa: SLF001 - the clock of the store


def test_prune_keeps_aliases_the_former_champion_anchors_and_the_latest(folder, old):
    for number in range(8):
        publish(folder, [f"u{number}"], old, alias=CHAMPION if number < 4 else CANDIDATE)
    store = VersionedStore.open(folder)
    store.set_alias("audited", 1)
    age(folder, [400, 200, 100, 9, 8, 7, 6, 5])
    store.promote(source=5)
    reasons = store.find_kept(keep=1)
    assert reasons[1] == "audited"
    assert reasons[3] == "anchor"
    assert (reasons[4], reasons[5]) == ("champion before", "champion")
    removed = store.prune(keep=1)
    assert 2 in removed
    assert set(removed) == set(range(1, 9)) - reasons.keys()
    for version in store.versions():
        opened = store.open_version(version.number)
        assert all(opened.load(user) is not None for user in opened.cards)


def until(model, last):
    return replace(model, card=msgspec.structs.replace(model.card, last=last))


SPRING, SUMMER = datetime(2026, 4, 1, tzinfo=UTC), datetime(2026, 7, 1, tzinfo=UTC)


def test_an_anchor_has_learned_nothing_since_a_time_for_any_user(folder, old, new):
    early, late = until(old, "2026-03-01T00:00:00Z"), until(new, "2026-06-01T00:00:00Z")
    publish(folder, ["ann", "bob"], early, alias=CHAMPION)
    publish(folder, ["ann", "bob"], late, alias=CHAMPION)
    store = VersionedStore.open(folder)
    assert store.rollback(["ann"]) == 3, "Bob's fingerprint is still the late one"
    publish(folder, ["cid"], early, alias=CHAMPION)
    assert store.find_anchor(SPRING).number == 1
    assert store.find_anchor(SUMMER).number == 4
    assert store.find_anchor(SPRING - timedelta(days=300)).number == 1, "the first one, if none is"


def test_a_version_that_was_never_champion_or_was_taken_back_is_no_anchor(folder, old, new):
    publish(folder, ["ann"], until(old, "2026-02-01T00:00:00Z"), alias=CHAMPION)
    publish(folder, ["ann"], until(new, "2026-03-01T00:00:00Z"), alias=CANDIDATE)
    store = VersionedStore.open(folder)
    assert store.find_anchor(SPRING).number == 1
    store.promote()
    assert store.find_anchor(SPRING).number == 2
    store.rollback()
    assert store.find_anchor(SPRING).number == 1


def test_prune_keeps_an_anchor_that_was_champion_though_later_versions_were_not(folder, old):
    for number in range(4):
        publish(folder, [f"u{number}"], old, alias=CHAMPION if number in {0, 3} else CANDIDATE)
    age(folder, [200, 100, 50, 40])
    store = VersionedStore.open(folder)
    publish(folder, ["u4"], old, alias=CHAMPION)
    assert store.find_kept(keep=0)[1] == "anchor"


def test_prune_keeps_the_version_in_which_a_person_accepted_a_user(folder, old, new):
    accepted = replace(old, card=msgspec.structs.replace(old.card, accepted_until="2026-05-01"))
    later = replace(new, card=msgspec.structs.replace(new.card, accepted_until="2026-05-01"))
    for model in (old, old, accepted, later, later, later):
        publish(folder, ["ann"], model, alias=CHAMPION)
    age(folder, [90, 27, 27, 27, 27, 1])  # all in one period of anchors
    store = VersionedStore.open(folder)
    before = store.find_accepted(store.open_version().cards)
    assert before == {"ann": 3}
    assert store.find_kept(keep=0)[3] == "anchor of accepted users"
    assert 4 in store.prune(keep=0)
    assert store.find_accepted(store.open_version().cards) == before
    age(folder, [90, 80, 75, 70, 61][-len(store.versions()) :])
    assert 3 not in store.find_kept(keep=0), "a later anchor has learned what was accepted"


def test_a_champion_that_another_run_has_made_meanwhile_is_not_replaced(folder, old, new):
    publish(folder, ["ann"], old)
    number = publish(folder, ["ann"], new, alias=CANDIDATE)
    publish(folder, ["bob"], new, alias=CHAMPION)
    store = VersionedStore.open(folder)
    assert not store.replace_champion(number, expected=1)
    assert store.resolve(CHAMPION) == 3
    assert store.replace_champion(number, expected=3)
    assert store.resolve(CHAMPION) == number


def test_two_runs_that_train_the_same_have_files_of_their_own(folder, old):
    store = VersionedStore.open(folder)
    runs = [StagingFolder(store) for _ in range(2)]
    cards = [put_model(run.open(), old, durable=False) for run in runs]
    for run, card in zip(runs, cards, strict=True):
        placed = list(store.take_files([card], run.open()))
        store.publish_placed(NewVersion(placed), CHAMPION)
        run.close()
    assert [each.number for each in store.versions()] == [1, 2]
    assert store.load("ann", 1) is not None
    assert store.load("ann", 2) is not None
    assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == ["indexes", "packs"]


def test_first_runs_at_the_same_time_have_numbers_of_their_own(folder, old):
    runs = [StagingFolder(VersionedStore.open(folder)) for _ in range(2)]
    assert [run.reserve() for run in runs] == [1, 2]
    for number in (2, 1):
        publish(folder, [f"u{number}"], old, number=number)
    assert [each.number for each in VersionedStore.open(folder).versions()] == [1, 2]


@pytest.mark.parametrize("there", [False, True])
def test_first_runs_that_fail_together_never_share_a_number(folder, old, there):
    folder.mkdir() if there else None
    first, second = (StagingFolder(VersionedStore.open(folder)) for _ in range(2))
    for run in (first, second):
        run.reserve()
        run.open()
    del second, run
    gc.collect()
    third = StagingFolder(VersionedStore.open(folder))
    assert third.reserve() == 2, "the first run still has number 1"
    del first
    gc.collect()
    del third
    gc.collect()
    assert sorted(path.name for path in folder.iterdir()) == [".store.json.lock", "store.json"]
    assert VersionedStore.open(folder).versions() == ()
    assert publish(folder, ["ann"], old) == 2, "1 was not given back, because 2 was taken"


@pytest.mark.parametrize("there", [False, True])
def test_a_first_run_that_fails_alone_leaves_nothing(folder, there):
    folder.mkdir() if there else None
    run = StagingFolder(VersionedStore.open(folder))
    assert run.reserve() == 1
    run.open()
    del run
    gc.collect()
    assert folder.exists() == there
    assert not there or not list(folder.iterdir())


def test_a_first_run_that_was_killed_takes_no_number(folder, old):
    code = """
import os, signal, sys
sys.path[:0] = sys.argv[2:]
from morpheus.models.versions import StagingFolder, VersionedStore
run = StagingFolder(VersionedStore.open(sys.argv[1]))
print(run.reserve())
os.kill(os.getpid(), signal.SIGKILL)
"""
    words = [sys.executable, "-c", code, str(folder), *sys.path]
    killed = [subprocess.run(words, stdout=subprocess.PIPE, check=False) for _ in range(2)]
    assert [run.returncode for run in killed] == [-signal.SIGKILL] * 2
    start_cleanup()
    run = StagingFolder(VersionedStore.open(folder))
    assert run.reserve() == 1
    assert publish(folder, ["ann"], old, number=1) == 1
    assert VersionedStore.open(folder).reserve(lambda: True) == 2, "there is a version"


def test_a_lock_whose_file_was_removed_excludes_others_nevertheless(folder):
    store, held = LocalStore(folder), []

    def hold(name):
        with store.exclusive("store.json"):
            held.append(name)
            assert held == [name]
            time.sleep(0.05)
            held.remove(name)
            if name % 2:
                (folder / store.name_lock("store.json")).unlink()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(hold, range(8)))


def test_prune_removes_the_files_that_no_other_version_needs(folder, old, new):
    for model in (old, new, fingerprint(day(450, seed=2))):
        publish(folder, ["ann"], model, alias=CHAMPION, base=None)
    packs = [pack_of(folder, "ann", number) for number in (1, 2, 3)]
    age(folder, [400, 200, 1])
    assert VersionedStore.open(folder).prune(keep=1) == [1]
    assert [path.exists() for path in packs] == [False, True, True]
    assert len(list((folder / "indexes").iterdir())) == 2


def test_erased_users_are_in_no_file_of_any_version(folder, old, new):
    publish(folder, ["ann", "mallory"], old)
    publish(folder, ["ann", "mallory"], new)
    store = VersionedStore.open(folder)
    store.erase(["mallory"])
    assert [(each.users, each.changed) for each in store.versions()] == [(1, 1), (1, 1)]
    assert [store.load("ann", number).card.events for number in (1, 2)] == [400, 500]
    assert store.load("ann", 2).card.version == 2
    for path in folder.rglob("*"):
        assert path.is_dir() or b"mallory" not in path.read_bytes(), path


def test_exported_version_is_a_store_of_its_own(folder, old, new, tmp_path):
    publish(folder, ["ann"], old)
    publish(folder, ["bob"], new, note="with bob")
    store = VersionedStore.open(folder)
    assert store.export(tmp_path / "copy", CANDIDATE) == 2
    copy = VersionedStore.open(tmp_path / "copy")
    assert [(each.number, each.note) for each in copy.versions()] == [(2, "with bob")]
    assert [copy.load(user).card.version for user in ("ann", "bob")] == [1, 2]
    with pytest.raises(UsageError, match=r"has versions already"):
        store.export(tmp_path / "copy", CANDIDATE)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("models", ("models", "")),
        ("models@candidate", ("models", "candidate")),
        ("/a@b/models@12", ("/a@b/models", "12")),
        ("/a@b/models", ("/a@b/models", "")),
        ("s3://soc/models@champion", ("s3://soc/models", "champion")),
        ("a@B.example/", ("a@B.example/", "")),
        ("a@B.example/@candidate", ("a@B.example/", "candidate")),
    ],
)
def test_location_can_name_a_version(text, parts):
    assert split_location(text) == parts


@pytest.mark.parametrize("which", ["CHAMP", "Candidate", "v1.2", "", "-1", "1 "])
@pytest.mark.parametrize("store", ["models", "s3://soc/models", "mlflow:people", "/a@b/models"])
def test_a_location_with_neither_an_alias_nor_a_number_is_rejected(store, which, tmp_path):
    with pytest.raises(UsageError, match="is neither an alias nor a number"):
        split_location(f"{store}@{which}")
    folder = tmp_path / f"models@{which}"
    folder.mkdir()
    assert split_location(str(folder)) == (str(folder), ""), "a folder of this name"


def test_a_location_of_a_version_is_no_store(folder, old):
    with pytest.raises(UsageError, match="names a version, but this takes a whole store"):
        VersionedStore.open(f"{folder}@candidate")
    publish(folder, ["ann"], old)
    store = VersionedStore.open(folder)
    with pytest.raises(UsageError, match="names version 3, but a run publishes a new version"):
        save_models(store.open_version(), f"{folder}@3")
    assert save_models(store.open_version(), f"{folder}@candidate") == 2
    assert (store.resolve(CHAMPION), store.resolve(CANDIDATE)) == (1, 2)


def test_files_can_be_read_by_their_owner_only(folder, old):
    publish(folder, ["ann"], old)
    for path in folder.rglob("*"):
        assert path.stat().st_mode & 0o077 == 0, path
    assert not list((folder / "packs").glob("*.part"))


def test_store_without_versions_opens_as_a_model_store(folder, old):
    publish(folder, ["ann"], old)
    assert isinstance(find_models(f"{folder}@1"), ModelStore)
    assert find_models(str(folder.parent / "other")) is None


def test_the_global_model_is_a_part_of_every_version(folder, old, new):
    publish(folder, ["ann", ""], old)
    publish(folder, ["ann"], new, alias=CHAMPION)
    publish(folder, [""], new, alias=CHAMPION)
    store = VersionedStore.open(folder)
    found = [store.load("joe", number).card for number in (1, 2, 3)]
    assert [(card.user, card.events, card.version) for card in found] == [
        ("", 400, 1),
        ("", 400, 1),
        ("", 500, 3),
    ]


def test_the_next_publication_removes_the_index_of_a_killed_run(folder, old, new):
    publish(folder, ["ann"], old)
    (folder / "indexes" / f"{'0' * 64}.json").write_text("{}")
    publish(folder, ["ann"], new)
    assert len(list((folder / "indexes").iterdir())) == 2
    assert events_by_user(folder, 2) == {"ann": 500}
