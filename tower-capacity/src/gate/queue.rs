//! The waiting room: its lines, and in what order waiters leave them.

use std::{task::Waker, time::Duration};

use slab::Slab;
use tokio::time::Instant;

use super::{
    Claim, Codel, Partition, Priority, RefusedReason,
    claim::LineKey,
    codel::Judgement,
    partition::Partitions,
    word::{Need, Word},
};

/// Waiters, in one line for each class of each partition.
///
/// Waiters live in a slab and are linked by key, so that one that is cancelled leaves from the
/// middle of its line in constant time, and a room that has been full once allocates no more.
#[derive(Debug, Default)]
pub(super) struct Queue {
    waiters: Slab<Waiter>,
    /// By index of the partition; as many as have waited.
    rooms: Vec<PartitionRoom>,
    /// Partitions with waiters, in no order.
    waiting: Vec<Partition>,
    /// Permits that waiters want, by rank of the class.
    by_class: [usize; 4],
    /// The waiter that is next and costs more permits than have come free so far. It stays next for
    /// its class, or requests that cost less would take each permit before there are enough.
    gathering: Option<usize>,
}

/// The lines of one partition, by rank of the class.
#[derive(Debug, Default)]
struct PartitionRoom {
    lines: [Line; 4],
    /// Permits that its waiters want.
    len: usize,
}

/// In order of arrival.
#[derive(Debug, Default)]
struct Line {
    front: Option<usize>,
    back: Option<usize>,
    /// Permits that its waiters want.
    len: usize,
    judgement: Judgement,
}

#[derive(Debug)]
struct Waiter {
    standing: Standing,
    line: LineKey,
    cost: usize,
    since: Instant,
    previous: Option<usize>,
    next: Option<usize>,
}

/// Where a waiter stands.
#[derive(Debug)]
enum Standing {
    InLine(Waker),
    /// Handed a permit that it has not picked up yet.
    Admitted,
    /// Sent away.
    Shed(RefusedReason),
}

/// What a waiter is told when it asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Told {
    Wait,
    Enter,
    Leave(RefusedReason),
}

/// A waiter that is gone.
#[derive(Debug)]
pub(super) struct Removed {
    /// What it was told last.
    pub(super) told: Told,
    pub(super) since: Instant,
    /// If it was still in line.
    pub(super) waker: Option<Waker>,
    /// Whether permits that have come free waited for it.
    pub(super) was_gathering: bool,
}

impl Queue {
    /// Permits that waiters want; those that were told to enter or to leave no longer do.
    pub(super) fn len(&self) -> usize {
        self.by_class.iter().sum()
    }

    /// The highest class with waiters.
    pub(super) fn first_class(&self) -> Option<Priority> {
        let mut classes = Priority::ALL.into_iter();
        classes.find(|class| self.by_class[class.rank()] > 0)
    }

    /// The lowest class with waiters.
    fn last_class(&self) -> Option<Priority> {
        let mut classes = Priority::ALL.into_iter().rev();
        classes.find(|class| self.by_class[class.rank()] > 0)
    }

    /// The line that is next, among those with a class that has a permit free.
    ///
    /// The line for which permits are being gathered, unless a higher class waits. Else first those
    /// within their guarantee, then the higher class, then the one that uses the least of its
    /// guarantee, then the first to come.
    pub(super) fn next(
        &self,
        word: Word,
        partitions: &Partitions,
        reserved: usize,
    ) -> Option<LineKey> {
        let has_permit = |priority: &Priority| {
            word.has_permit(Need {
                priority: *priority,
                reserved,
                cost: 1,
                held: 0,
            })
        };
        let first = self.first_class().filter(has_permit)?;
        let gathering = self.gathering.map(|key| self.waiters[key].line);
        if let Some(line) = gathering.filter(|line| line.priority >= first) {
            return Some(line);
        }
        let goes_before = |priority: &Priority| {
            has_permit(priority) && gathering.is_none_or(|line| line.priority < *priority)
        };
        if let [partition] = self.waiting[..] {
            return Some(LineKey {
                priority: first,
                partition,
            });
        }
        let newcomers = self.newcomers(word, partitions);
        let turn = |partition: &Partition| {
            let priority = self.rooms[partition.index()].first_class();
            let priority = priority.filter(goes_before)?;
            let line = LineKey {
                priority,
                partition: *partition,
            };
            let since = self.waiters[self.line(line).front?].since;
            let standing = partitions.standing(*partition, word, newcomers);
            Some((line, standing.is_entitled(), standing.load(0), since))
        };
        let before = |a: &Turn, b: &Turn| {
            (b.1.cmp(&a.1))
                .then(b.0.priority.cmp(&a.0.priority))
                .then(a.2.total_cmp(&b.2))
                .then(a.3.cmp(&b.3))
        };
        let next = self.waiting.iter().filter_map(turn).min_by(before);
        next.map(|(line, ..)| line)
    }

    /// Partitions that wait and have none inside.
    fn newcomers(&self, word: Word, partitions: &Partitions) -> usize {
        let is_new = |partition: &&Partition| partitions.inflight(**partition, word) == 0;
        self.waiting.iter().filter(is_new).count()
    }

    /// Stands at the end of a line.
    pub(super) fn push_back(
        &mut self,
        waker: Waker,
        claim: Claim,
        since: Instant,
        codel: Option<&Codel>,
    ) -> usize {
        let (line, cost) = (claim.line(), claim.cost());
        let index = line.partition.index();
        if self.rooms.len() <= index {
            self.rooms.resize_with(index + 1, PartitionRoom::default);
        }
        let room = &mut self.rooms[index];
        if room.len == 0 {
            self.waiting.push(line.partition);
        }
        room.len += cost;
        self.by_class[line.priority.rank()] += cost;
        let end = &mut room.lines[line.priority.rank()];
        if end.front.is_none()
            && let Some(codel) = codel
        {
            end.judgement.observe(codel, since, Duration::ZERO);
        }
        let key = self.waiters.insert(Waiter {
            standing: Standing::InLine(waker),
            line,
            cost,
            since,
            previous: end.back,
            next: None,
        });
        match end.back {
            Some(back) => self.waiters[back].next = Some(key),
            None => end.front = Some(key),
        }
        end.back = Some(key);
        end.len += cost;
        key
    }

    /// The waiter of a line that is next, and its cost: the one for which permits are being
    /// gathered, else the first, or the newest if the line is overloaded.
    pub(super) fn next_of(&self, key: LineKey, overloaded: bool) -> Option<(usize, usize)> {
        let line = self.line(key);
        let is_here = |waiter: &usize| self.waiters[*waiter].line == key;
        let key = match self.gathering.filter(is_here) {
            Some(waiter) => waiter,
            None if overloaded => line.back?,
            None => line.front?,
        };
        Some((key, self.waiters[key].cost))
    }

    /// Keeps the permits that come free for a waiter that costs more than are free now. Returns
    /// whether that is new.
    pub(super) fn gather_for(&mut self, key: usize) -> bool {
        self.gathering.replace(key) != Some(key)
    }

    /// Admits a waiter. Returns its waker.
    pub(super) fn admit(&mut self, key: usize) -> Option<Waker> {
        self.dismiss(key, Standing::Admitted)
    }

    /// Judges a line by its first, at a moment when a permit is free.
    pub(super) fn judge(&mut self, line: LineKey, codel: &Codel, now: Instant) -> bool {
        let line = &mut self.rooms[line.partition.index()].lines[line.priority.rank()];
        let wait = line.front.map_or(Duration::ZERO, |front| {
            now.saturating_duration_since(self.waiters[front].since)
        });
        line.judgement.observe(codel, now, wait)
    }

    /// Sheds the first of a line if it has waited for longer than `patience`, unless permits are
    /// being gathered for it. Returns its waker and its cost.
    pub(super) fn shed_stale(
        &mut self,
        line: LineKey,
        codel: &Codel,
        now: Instant,
    ) -> Option<(Waker, usize)> {
        let front = self.line(line).front?;
        if self.gathering == Some(front) {
            return None;
        }
        let waited = now.saturating_duration_since(self.waiters[front].since);
        if waited <= codel.patience() {
            return None;
        }
        let shed = &mut self.rooms[line.partition.index()].lines[line.priority.rank()];
        shed.judgement.shed(codel, now);
        let waker = self.dismiss(front, Standing::Shed(RefusedReason::Overloaded))?;
        Some((waker, self.waiters[front].cost))
    }

    /// Makes place in a full room for a newcomer. Returns the waker and the cost of the waiter that
    /// leaves.
    ///
    /// A newcomer within its guarantee displaces the newest of the partition that holds and asks
    /// for the most beyond its own; else one that matters more displaces the newest of the lowest
    /// class.
    pub(super) fn displace(
        &mut self,
        newcomer: LineKey,
        word: Word,
        partitions: &Partitions,
    ) -> Option<(Waker, usize)> {
        let victim = self
            .greediest(newcomer.partition, word, partitions)
            .or_else(|| {
                let lowest = self.last_class()?;
                if lowest >= newcomer.priority {
                    return None;
                }
                let has_waiter = |partition: &&Partition| {
                    let room = &self.rooms[partition.index()];
                    room.lines[lowest.rank()].back.is_some()
                };
                let partition = *self.waiting.iter().find(has_waiter)?;
                Some(LineKey {
                    priority: lowest,
                    partition,
                })
            })?;
        let back = self.line(victim).back?;
        let waker = self.dismiss(back, Standing::Shed(RefusedReason::Displaced))?;
        Some((waker, self.waiters[back].cost))
    }

    /// The lowest line of the partition that asks for most beyond its guarantee, if that is another
    /// one, and `newcomer` asks for no more than its own.
    fn greediest(
        &self,
        newcomer: Partition,
        word: Word,
        partitions: &Partitions,
    ) -> Option<LineKey> {
        if self.waiting.iter().all(|waiting| *waiting == newcomer) {
            return None;
        }
        let waits = self.waiting.contains(&newcomer);
        let is_new = !waits && partitions.inflight(newcomer, word) == 0;
        let newcomers = self.newcomers(word, partitions) + usize::from(is_new);
        let load = |partition: Partition, more: usize| {
            let room = self.rooms.get(partition.index());
            let queued = room.map_or(0, |room| room.len);
            let standing = partitions.standing(partition, word, newcomers);
            standing.load(queued + more)
        };
        let own = load(newcomer, 1);
        let loads = self
            .waiting
            .iter()
            .map(|waiting| (*waiting, load(*waiting, 0)));
        let (partition, most) = loads.max_by(|a, b| a.1.total_cmp(&b.1))?;
        if own > 1.0 || most <= 1.0 || partition == newcomer {
            return None;
        }
        let priority = self.rooms[partition.index()].last_class()?;
        Some(LineKey {
            priority,
            partition,
        })
    }

    /// Whether a request waits that a newcomer might displace.
    #[cfg(all(feature = "layer", not(loom)))]
    pub(super) fn may_displace(&self, newcomer: LineKey) -> bool {
        let matters_less = self
            .last_class()
            .is_some_and(|lowest| lowest < newcomer.priority);
        matters_less
            || self
                .waiting
                .iter()
                .any(|other| *other != newcomer.partition)
    }

    /// Permits that waiters want that are to be admitted before a newcomer, by the order of
    /// [`next`](Self::next).
    #[cfg(not(loom))]
    pub(super) fn ahead_of(&self, newcomer: LineKey, word: Word, partitions: &Partitions) -> usize {
        let is_known = self.waiting.contains(&newcomer.partition);
        let is_new = !is_known && partitions.inflight(newcomer.partition, word) == 0;
        let newcomers = self.newcomers(word, partitions) + usize::from(is_new);
        // What a partition may still be given before those beyond their guarantee.
        let entitled = |partition: Partition| {
            let standing = partitions.standing(partition, word, newcomers);
            (standing.guarantee - standing.inflight as f64)
                .max(0.0)
                .ceil() as usize
        };
        let own = self.rooms.get(newcomer.partition.index());
        let own_queued = own.map_or(0, |room| room.len);
        let is_entitled = own_queued < entitled(newcomer.partition);
        let ahead = |partition: &Partition| {
            let room = &self.rooms[partition.index()];
            let as_important = room.waiting_from(newcomer.priority);
            if *partition == newcomer.partition {
                return as_important;
            }
            match is_entitled {
                true => as_important.min(entitled(*partition)),
                false => as_important.max(room.len.min(entitled(*partition))),
            }
        };
        self.waiting.iter().map(ahead).sum()
    }

    /// Says what the waiter is to do, and remembers its waker if it is still in line.
    ///
    /// Returns the waker that is no longer needed, to be dropped outside the lock: dropping it may
    /// drop a task, which may drop another waiter of this gate.
    pub(super) fn ask(&mut self, key: usize, waker: &Waker) -> (Told, Option<Waker>) {
        match &mut self.waiters[key].standing {
            Standing::Admitted => (Told::Enter, None),
            Standing::Shed(reason) => (Told::Leave(*reason), None),
            Standing::InLine(known) if known.will_wake(waker) => (Told::Wait, None),
            Standing::InLine(known) => (Told::Wait, Some(std::mem::replace(known, waker.clone()))),
        }
    }

    /// Forgets the waiter.
    pub(super) fn remove(&mut self, key: usize) -> Removed {
        let was_gathering = self.gathering == Some(key);
        if let Standing::InLine(_) = self.waiters[key].standing {
            self.unlink(key);
        }
        let waiter = self.waiters.remove(key);
        let (told, waker) = match waiter.standing {
            Standing::InLine(waker) => (Told::Wait, Some(waker)),
            Standing::Admitted => (Told::Enter, None),
            Standing::Shed(reason) => (Told::Leave(reason), None),
        };
        Removed {
            told,
            since: waiter.since,
            waker,
            was_gathering,
        }
    }

    fn line(&self, key: LineKey) -> &Line {
        &self.rooms[key.partition.index()].lines[key.priority.rank()]
    }

    /// Takes a waiter out of its line and leaves word for it.
    fn dismiss(&mut self, key: usize, standing: Standing) -> Option<Waker> {
        self.unlink(key);
        match std::mem::replace(&mut self.waiters[key].standing, standing) {
            Standing::InLine(waker) => Some(waker),
            Standing::Admitted | Standing::Shed(_) => None,
        }
    }

    fn unlink(&mut self, key: usize) {
        let Waiter {
            line: of,
            cost,
            previous,
            next,
            ..
        } = self.waiters[key];
        if self.gathering == Some(key) {
            self.gathering = None;
        }
        let room = &mut self.rooms[of.partition.index()];
        let line = &mut room.lines[of.priority.rank()];
        match previous {
            Some(previous) => self.waiters[previous].next = next,
            None => line.front = next,
        }
        match next {
            Some(next) => self.waiters[next].previous = previous,
            None => line.back = previous,
        }
        line.len -= cost;
        self.by_class[of.priority.rank()] -= cost;
        room.len -= cost;
        if room.len == 0 {
            self.waiting.retain(|waiting| *waiting != of.partition);
        }
    }
}

impl PartitionRoom {
    /// Permits that waiters of this class and those above it want.
    #[cfg(not(loom))]
    fn waiting_from(&self, priority: Priority) -> usize {
        let lines = &self.lines[..=priority.rank()];
        lines.iter().map(|line| line.len).sum()
    }

    fn first_class(&self) -> Option<Priority> {
        let mut classes = Priority::ALL.into_iter();
        classes.find(|class| self.lines[class.rank()].front.is_some())
    }

    fn last_class(&self) -> Option<Priority> {
        let mut classes = Priority::ALL.into_iter().rev();
        classes.find(|class| self.lines[class.rank()].front.is_some())
    }
}

/// A line, whether it is within its guarantee, how much of that it holds, and when its first came.
type Turn = (LineKey, bool, f64, Instant);
