"""Transports and backends that are wrong, each in one way that somebody could get wrong."""

from __future__ import annotations

import time
from typing import Any

from taskline.backends.memory import MemoryBackend
from taskline.transports.memory import MemoryTransport


class AcksWhatItLost(MemoryTransport):
    def ack(self, deliveries, outcomes=()):
        for delivery in super().ack(deliveries, outcomes):
            entry = self._store.entries.get(delivery.id)
            if entry is not None and entry.token:
                self._store.leases.pop(entry.token, None)
                self._store.remove(entry)
        return []


class SaysNothingOfWhatItLost(MemoryTransport):
    def ack(self, deliveries, outcomes=()):
        super().ack(deliveries, outcomes)
        return []


class ReleasesWhatItLost(MemoryTransport):
    def release(self, deliveries, delay=0.0):
        for delivery in super().release(deliveries, delay):
            entry = self._store.entries.get(delivery.id)
            if entry is not None and self._store.leases.pop(entry.token, None):
                self._store.put_back(entry)
        return []


class ExtendsForTheNewHolder(MemoryTransport):
    def extend(self, deliveries, lease):
        lost = super().extend(deliveries, lease)
        for delivery in lost:
            entry = self._store.entries.get(delivery.id)
            if entry is not None:
                entry.lease_end = self.clock.monotonic() + lease
        return lost


class BuriesWhatItLost(MemoryTransport):
    def bury(self, burials):
        lost = super().bury(burials)
        for delivery, letter in burials:
            if delivery in lost:
                self._store.dead[letter.id] = (letter, delivery.deliveries)
        return lost


class StoresTheSuccessorOfWhatItLost(MemoryTransport):
    def replace(self, pairs):
        lost = super().replace(pairs)
        self.send([successor for delivery, successor in pairs if delivery in lost])
        return lost


class StopsAtTheFirstLost(MemoryTransport):
    def ack(self, deliveries, outcomes=()):
        for number, delivery in enumerate(deliveries):
            if super().ack([delivery]):
                return list(deliveries[number:])
        return []


class TakesTheCountForAReceipt(MemoryTransport):
    """The message of an id's second life has the same count as that of its first."""

    def receive(self, queues, limit, lease, wait, consumer):
        taken = super().receive(queues, limit, lease, wait, consumer)
        for delivery in taken:
            delivery.receipt = (delivery.id, delivery.deliveries)
        return taken

    def ack(self, deliveries, outcomes=()):
        real = []
        for delivery in deliveries:
            entry = self._store.entries.get(delivery.receipt[0])
            held = entry is not None and entry.deliveries == delivery.receipt[1]
            real.append(_with_receipt(delivery, entry.token if held else None))
        lost = {delivery.id for delivery in super().ack(real)}
        return [delivery for delivery in deliveries if delivery.id in lost]


def _with_receipt(delivery: Any, receipt: Any) -> Any:
    return type(delivery)(
        delivery.id,
        delivery.queue,
        delivery.frame,
        delivery.deliveries,
        delivery.lost,
        receipt,
    )


class TrustsTheIdOfAReceipt(MemoryTransport):
    def ack(self, deliveries, outcomes=()):
        entries = [self._store.entries.get(delivery.id) for delivery in deliveries]
        real = [
            _with_receipt(delivery, entry.token if entry else None)
            for delivery, entry in zip(deliveries, entries, strict=True)
        ]
        return super().ack(real)


class HandsOverTwice(MemoryTransport):
    """Looks, lets others look too, and only then takes."""

    def receive(self, queues, limit, lease, wait, consumer):
        taken = super().receive(queues, limit, lease, wait, consumer)
        store = self._store
        with store.changed:
            number, again = getattr(store, "number", 0), getattr(store, "again", [])
            store.number = number + 1
            store.again = taken if number % 3 == 0 else []
        return taken + (again if number % 3 == 1 and len(again) + len(taken) <= limit else [])


class CountsAReleaseAsLost(MemoryTransport):
    def release(self, deliveries, delay=0.0):
        lost = super().release(deliveries, delay)
        for delivery in deliveries:
            if delivery not in lost:
                self._store.entries[delivery.id].lost += 1
        return lost


class ReleasesToTheEndOfTheLine(MemoryTransport):
    def release(self, deliveries, delay=0.0):
        for delivery in deliveries:
            entry = self._store.leases.get(delivery.receipt)
            if entry is not None:
                self._store.places += 1
                entry.place = self._store.places
        return super().release(deliveries, delay)


class ReleasesAtOnceThoughToldLater(MemoryTransport):
    def release(self, deliveries, delay=0.0):
        return super().release(deliveries)


class ForgetsWhatItReleases(MemoryTransport):
    def release(self, deliveries, delay=0.0):
        return super().ack(deliveries)


class DoesNotCountEndedLeases(MemoryTransport):
    def receive(self, queues, limit, lease, wait, consumer):
        taken = super().receive(queues, limit, lease, wait, consumer)
        for delivery in taken:
            delivery.lost = 0
        return taken


class CountsEndedLeasesTwice(MemoryTransport):
    def receive(self, queues, limit, lease, wait, consumer):
        taken = super().receive(queues, limit, lease, wait, consumer)
        for delivery in taken:
            delivery.lost *= 2
        return taken


class LeasesNeverEnd(MemoryTransport):
    def receive(self, queues, limit, lease, wait, consumer):
        return super().receive(queues, limit, 1e9, wait, consumer)


class LeasesEndEarly(MemoryTransport):
    def receive(self, queues, limit, lease, wait, consumer):
        return super().receive(queues, limit, lease * 0.9, wait, consumer)


class ExtendsFromTheOldEnd(MemoryTransport):
    def extend(self, deliveries, lease):
        entry = self._store.leases.get(deliveries[0].receipt) if deliveries else None
        left = entry.lease_end - self.clock.monotonic() if entry else 0.0
        return super().extend(deliveries, left + lease)


class ExtendsNothing(MemoryTransport):
    def extend(self, deliveries, lease):
        return [each for each in deliveries if each.receipt not in self._store.leases]


class RestartsTheCountOfASuccessor(MemoryTransport):
    def replace(self, pairs):
        held = [pair for pair in pairs if pair[0].receipt in self._store.leases]
        lost = super().ack([delivery for delivery, _ in pairs])
        self.send([successor for _, successor in held])
        return lost


class KeepsTheLossesOfASuccessor(MemoryTransport):
    def replace(self, pairs):
        lost = super().replace(pairs)
        for delivery, _ in pairs:
            if delivery not in lost:
                self._store.entries[delivery.id].lost = delivery.lost
        return lost


class RecoversEverybody(MemoryTransport):
    def recover(self, consumer, started):
        names = {entry.consumer for entry in self._store.leases.values()}
        return sum([super(RecoversEverybody, self).recover(name, started) for name in names])


class CountsAllItRecovers(MemoryTransport):
    def recover(self, consumer, started):
        return super().recover(consumer, set(self._store.entries))


class CountsNothingItRecovers(MemoryTransport):
    def recover(self, consumer, started):
        return super().recover(consumer, ())


class DeliversEarly(MemoryTransport):
    def send(self, messages):
        for message in messages:
            if message.header.eta is not None:
                message.header.eta -= 2.0
        super().send(messages)


class NeverDeliversWhatWasDelayed(MemoryTransport):
    def send(self, messages):
        for message in messages:
            if message.header.eta is not None:
                message.header.eta += 1e9
        super().send(messages)


class LowestPriorityFirst(MemoryTransport):
    def send(self, messages):
        for message in messages:
            message.header.priority = 9 - message.header.priority
        super().send(messages)


class IgnoresPriority(MemoryTransport):
    def send(self, messages):
        for message in messages:
            message.header.priority = 5
        super().send(messages)


class LastInFirstOut(MemoryTransport):
    def send(self, messages):
        super().send(list(reversed(messages)))


class IgnoresTheOrderOfQueues(MemoryTransport):
    def receive(self, queues, limit, lease, wait, consumer):
        return super().receive(sorted(queues, reverse=True), limit, lease, wait, consumer)


class IgnoresTheLimit(MemoryTransport):
    def receive(self, queues, limit, lease, wait, consumer):
        return super().receive(queues, limit + 1, lease, wait, consumer)


class SendsAnIdTwice(MemoryTransport):
    """Stores a second message under an id of its own, and hands it over by the first's."""

    def send(self, messages):
        for message in messages:
            if message.header.id in self._store.entries:
                message.header.id += "/again"
        super().send(messages)

    def receive(self, queues, limit, lease, wait, consumer):
        taken = super().receive(queues, limit, lease, wait, consumer)
        for delivery in taken:
            delivery.id = delivery.id.replace("/again", "")
        return taken


class OverwritesASecondSend(MemoryTransport):
    def send(self, messages):
        for message in messages:
            entry = self._store.entries.get(message.header.id)
            if entry is not None:
                entry.frame = message.frame
        super().send(messages)


class DropsWhatIsSentWhileALetterIsThere(MemoryTransport):
    def send(self, messages):
        super().send([each for each in messages if each.header.id not in self._store.dead])


class LosesTheLastOfABigBatch(MemoryTransport):
    def send(self, messages):
        super().send(messages[:999])


class TakesFramesForLines(MemoryTransport):
    def receive(self, queues, limit, lease, wait, consumer):
        taken = super().receive(queues, limit, lease, wait, consumer)
        for delivery in taken:
            delivery.frame = delivery.frame.rstrip(b"\n")
        return taken


class FoldsTheNamesOfQueues(MemoryTransport):
    def send(self, messages):
        for message in messages:
            message.header.queue = message.header.queue.lower()
        super().send(messages)


class LooksOnlyNowAndThen(MemoryTransport):
    def receive(self, queues, limit, lease, wait, consumer):
        taken = super().receive(queues, limit, lease, 0, consumer)
        end = self.clock.monotonic() + wait
        while not taken and self.clock.monotonic() < end:
            time.sleep(0.2)
            taken = super().receive(queues, limit, lease, 0, consumer)
        return taken


class WaitsForAFullBatch(MemoryTransport):
    def receive(self, queues, limit, lease, wait, consumer):
        end = self.clock.monotonic() + wait
        taken = super().receive(queues, limit, lease, wait, consumer)
        while len(taken) < limit and self.clock.monotonic() < end:
            taken += super().receive(queues, limit - len(taken), lease, 0.01, consumer)
        return taken


class ForgetsAnEarlyInterrupt(MemoryTransport):
    def receive(self, queues, limit, lease, wait, consumer):
        self._interrupted = False
        return super().receive(queues, limit, lease, wait, consumer)


class StaysInterrupted(MemoryTransport):
    def receive(self, queues, limit, lease, wait, consumer):
        before = self._interrupted
        taken = super().receive(queues, limit, lease, wait, consumer)
        self._interrupted = before
        return taken


class KeepsWhatItBuries(MemoryTransport):
    def bury(self, burials):
        copies = {
            d.id: self._store.entries[d.id] for d, _ in burials if d.id in self._store.entries
        }
        held = [
            (each.id, each.receipt) for each, _ in burials if each.receipt in self._store.leases
        ]
        frames = {key: copies[key].frame for key, _ in held}
        lost = super().bury(burials)
        for key, _ in held:
            copies[key].frame = frames[key]
            self._store.entries[key] = copies[key]
            self._store.put_back(copies[key])
        return lost


class ListsTheOldestLetterFirst(MemoryTransport):
    def dead_letters(self, queue=None, limit=100, offset=0):
        return super().dead_letters(queue, 10_000)[::-1][offset : offset + limit]


class RequeuesWithoutALetter(MemoryTransport):
    def requeue(self, messages):
        done = super().requeue(messages)
        self.send([each for each in messages if each.header.id not in done])
        return done


class RequeuesAndKeepsTheLetter(MemoryTransport):
    def requeue(self, messages):
        letters = {m.header.id: self._store.dead.get(m.header.id) for m in messages}
        done = super().requeue(messages)
        for key in done:
            self._store.dead[key] = letters[key]
        return done


class RestartsTheCountOfARequeuedMessage(MemoryTransport):
    def requeue(self, messages):
        done = super().requeue(messages)
        for key in done:
            self._store.entries[key].deliveries = 0
        return done


class PurgesWhatIsHeld(MemoryTransport):
    def purge(self, queue):
        for entry in list(self._store.leases.values()):
            if entry.queue == queue:
                del self._store.leases[entry.token]
                self._store.remove(entry)
        return super().purge(queue)


class PurgesDeadLetters(MemoryTransport):
    def purge(self, queue):
        for letter in super().dead_letters(queue, 10_000):
            self._store.drop_dead(letter.id)
        return super().purge(queue)


class PurgesOnlyWhatIsReady(MemoryTransport):
    def purge(self, queue):
        waiting = self._store.waiting_in(queue)
        number = super().purge(queue)
        for due, _, entry in waiting:
            entry.frame = entry.id.encode()
            self._store.entries[entry.id] = entry
            self._store.hold(self._store.queue(queue), entry, due)
        return number


class DeletesWhatIsHeld(MemoryTransport):
    def delete(self, ids):
        for key in ids:
            entry = self._store.entries.get(key)
            if entry is not None and self._store.leases.pop(entry.token, None):
                self._store.put_back(entry)
        return super().delete(ids)


class PeeksInTheOrderOfSending(MemoryTransport):
    def peek(self, queue, limit=10, offset=0):
        found = super().peek(queue, 10_000)
        entries = self._store.entries
        found.sort(key=lambda each: entries[each.id].place)
        return found[offset : offset + limit]


class TakesWhatItPeeksAt(MemoryTransport):
    def peek(self, queue, limit=10, offset=0):
        found = super().peek(queue, limit, offset)
        self.receive([queue], limit, 60, 0, "peek")
        return found


class CountsDelayedAsReady(MemoryTransport):
    def stats(self, queues=None):
        found = super().stats(queues)
        for each in found:
            each.ready, each.delayed = each.ready + each.delayed, 0
        return found


class ForgetsOnClose(MemoryTransport):
    def close(self):
        self._store.entries.clear()
        for queue in self._store.queues.values():
            queue.lanes.clear()
            queue.counts["ready"] = 0
        super().close()


# Backends.


class StoresAnything(MemoryBackend):
    def store(self, outcomes):
        self.forget([each.id for each in outcomes])
        return super().store(outcomes)


class FencesByCountOnly(MemoryBackend):
    def store(self, outcomes):
        refused = []
        for each in outcomes:
            found = self.fetch([each.id]).get(each.id)
            if found is not None and found.deliveries > each.deliveries:
                refused.append(each)
            elif found is None or found.deliveries < each.deliveries:
                self.forget([each.id])
                super().store([each])
            else:
                refused.extend(super().store([each]))
        return refused


class GoesBackFromFinal(MemoryBackend):
    def store(self, outcomes):
        refused = []
        for each in outcomes:
            found = self.fetch([each.id]).get(each.id)
            if found is not None and found.fence == each.fence:
                self.forget([each.id])
            refused.extend(super().store([each]))
        return refused


class RefusesInSilence(MemoryBackend):
    def store(self, outcomes):
        super().store(outcomes)
        return []


class OutcomesNeverEnd(MemoryBackend):
    def store(self, outcomes):
        refused = super().store(outcomes)
        self.expire([each.id for each in outcomes], None)
        return refused


class WaitsForAnyState(MemoryBackend):
    def wait(self, ids, timeout):
        return self.fetch(ids) or super().wait(ids, timeout)


class WaitsForAll(MemoryBackend):
    def wait(self, ids, timeout):
        end = self.clock.monotonic() + timeout
        while True:
            found = super().wait(ids, end - self.clock.monotonic())
            if not found or len(found) == len(ids) or self.clock.monotonic() >= end:
                return found if len(found) == len(ids) else {}


class AnswersWithOne(MemoryBackend):
    def wait(self, ids, timeout):
        found = super().wait(ids, timeout)
        return dict(list(found.items())[:1])


class WaitsNowAndThen(MemoryBackend):
    def wait(self, ids, timeout):
        end = self.clock.monotonic() + timeout
        while not (found := super().wait(ids, 0)) and self.clock.monotonic() < end:
            time.sleep(0.2)
        return found


class HoldsItsLockWhileItWaits(MemoryBackend):
    def wait(self, ids, timeout):
        self.busy = True
        try:
            return super().wait(ids, timeout)
        finally:
            self.busy = False

    def store(self, outcomes):
        while getattr(self, "busy", False):
            time.sleep(0.01)
        return super().store(outcomes)


class BackendForgetsAnEarlyInterrupt(MemoryBackend):
    def wait(self, ids, timeout):
        self._interrupted = False
        return super().wait(ids, timeout)


class RevokesAgainAndAgain(MemoryBackend):
    def revoked(self, after):
        return super().revoked(0)


class KeepsTheFirstWish(MemoryBackend):
    def revoke(self, revocations, ttl):
        known = {each.id for each in self.revoked(0)[1]}
        super().revoke([each for each in revocations if each.id not in known], ttl)


class CursorGoesBack(MemoryBackend):
    def maintain(self):
        super().maintain()
        self._store.cursor = max((each[0] for each in self._store.revocations), default=0)


class RevocationsNeverEnd(MemoryBackend):
    def revoke(self, revocations, ttl):
        super().revoke(revocations, 1e9)


class CountsAMemberTwice(MemoryBackend):
    def count(self, key, member, ttl):
        return super().count(key, f"{member}{time.monotonic_ns()}", ttl)


class CountsFromTheFirstMember(MemoryBackend):
    def count(self, key, member, ttl):
        members, end = self._store.members.get(key, (set(), 0.0))
        now = self.clock.monotonic()
        return super().count(key, member, end - now if members and end > now else ttl)


class UpkeepDropsOutcomes(MemoryBackend):
    def maintain(self):
        self._store.outcomes.clear()
        self._store.final.clear()


TRANSPORTS = [
    each
    for each in list(globals().values())
    if isinstance(each, type) and issubclass(each, MemoryTransport) and each is not MemoryTransport
]
BACKENDS = [
    each
    for each in list(globals().values())
    if isinstance(each, type) and issubclass(each, MemoryBackend) and each is not MemoryBackend
]
