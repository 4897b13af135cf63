//! What the store does with a beat: the reference that the SQL is compared with, and that the model
//! check runs.
//!
//! Times are numbers of no unit. `share` may be anything: what is safe does not depend on it.

use super::pod::Beat;

/// What is counted for one process.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(crate) struct Row {
    pub(crate) id: u64,
    pub(crate) seq: u64,
    /// The most it may believe it has.
    pub(crate) cap: u32,
    pub(crate) expires: i64,
    /// The server that it last beat on.
    pub(crate) epoch: u32,
    pub(crate) dials: u32,
    pub(crate) dial_for: i64,
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Store {
    pub(crate) total: u32,
    /// Kept for the connections of processes that join.
    pub(crate) reserve: u32,
    pub(crate) boot: u64,
    /// Counts servers: another, or the same anew.
    pub(crate) epoch: u32,
    /// Until then nothing is raised: processes may hold rights that this table does not show.
    pub(crate) settle_until: i64,
    /// Sessions that no row counts, when they were last looked at.
    pub(crate) excess: u32,
    /// When a process last said what the server shows.
    pub(crate) counted: i64,
    pub(crate) rows: Vec<Row>,
}

/// What is known of the sessions that the server shows.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Count<'a> {
    /// Those of every process, whether it beats or not, as they were at that time or later.
    Of(&'a [(u64, u32)], i64),
    /// Those of the process that beats, by its own count.
    Own(u32),
    None,
}

/// What the server knows at one beat.
#[derive(Clone, Copy, Debug)]
pub(crate) struct World<'a> {
    pub(crate) now: i64,
    pub(crate) boot: u64,
    pub(crate) ttl: i64,
    pub(crate) count: Count<'a>,
    /// Whether the rows of others are looked through.
    pub(crate) sweeps: bool,
}

impl World<'_> {
    fn seen(&self, id: u64) -> Option<u32> {
        match self.count {
            Count::Of(sessions, _) => {
                let of = sessions.iter().filter(|&&(process, _)| process == id);
                Some(of.map(|&(_, count)| count).sum())
            }
            Count::Own(count) => Some(count),
            Count::None => None,
        }
    }
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Reply {
    pub(crate) grant: u32,
    pub(crate) seen: Option<u32>,
    pub(crate) is_settling: bool,
    pub(crate) is_late: bool,
}

/// A rule left out, to show that a test misses it.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) enum Mutant {
    #[default]
    None,
    /// Beats that come late are taken.
    NoSeq,
    /// A cut is counted when it is granted, not when it is reported.
    GrantCounts,
    /// Rights are raised as soon as a new server is up.
    NoSettle,
    /// A row goes when its lease ends, and sessions without one are not looked at.
    TtlOnly,
    /// A lapsed process is counted by its sessions, without the dials that it may have begun.
    NoDials,
    /// A raise is paid from nothing.
    NoLimit,
    /// A count is believed of leases that ended after it.
    OldCounts,
}

impl Store {
    /// Takes a beat. `share`: what the policy would give, at most.
    pub(crate) fn beat(
        &mut self,
        id: u64,
        beat: &Beat,
        (dials, dial_for): (u32, i64),
        world: &World<'_>,
        share: impl FnOnce(u32) -> u32,
        mutant: Mutant,
    ) -> Reply {
        let mine = self.rows.iter().position(|row| row.id == id);
        let seen = world.seen(id);
        if mine.is_some_and(|mine| self.rows[mine].seq >= beat.seq) && mutant != Mutant::NoSeq {
            return Reply {
                grant: 0,
                seen,
                is_settling: false,
                is_late: true,
            };
        }
        if self.boot != world.boot {
            self.boot = world.boot;
            self.epoch += 1;
            self.settle_until = world.now + world.ttl;
            self.counted = world.now;
        }
        if matches!(world.count, Count::Of(..)) {
            self.counted = world.now;
        }
        let is_settling = world.now < self.settle_until && mutant != Mutant::NoSettle;
        let old = mine.map_or(0, |mine| self.rows[mine].cap);
        if world.sweeps && !is_settling {
            self.sweep(id, world, mutant);
        }
        let most = seen.map_or(beat.bound, |seen| beat.bound.min(seen + beat.dialing));
        let held = beat.cap.max(most);
        let others = || self.rows.iter().filter(|row| row.id != id);
        let counted: u32 = others().map(|row| row.cap).sum();
        let cap_of = |id: u64| others().find(|row| row.id == id).map_or(0, |row| row.cap);
        if let Count::Of(sessions, _) = world.count {
            let foreign = sessions.iter().filter(|&&(other, _)| other != id);
            self.excess = foreign
                .map(|&(other, count)| count.saturating_sub(cap_of(other)))
                .sum();
        }
        let excess = match mutant {
            Mutant::TtlOnly => 0,
            _ => self.excess,
        };
        let kept = self.reserve.max(excess);
        let limit = self.total.saturating_sub(kept).saturating_sub(counted);
        let limit = if mutant == Mutant::NoLimit {
            self.total
        } else {
            limit
        };
        let (grant, cap) = if is_settling {
            // A live lease is registered again, and nothing is raised; above its share only what there is
            // room for.
            let held = if beat.cap == 0 { held.min(old) } else { held };
            let most = limit.max(share(held));
            (held.min(beat.cap).min(most), held)
        } else {
            // What is counted never grows past what is free.
            let held = held.min(old.max(limit));
            let grant = share(held.max(limit)).min(held.max(limit));
            let cap = match mutant {
                Mutant::GrantCounts => grant,
                _ => held.max(grant),
            };
            (grant, cap)
        };
        if matches!(world.count, Count::Of(..)) {
            // For the next beat, this process is one of the others.
            self.excess += seen.unwrap_or(0).saturating_sub(cap);
        }
        let row = Row {
            id,
            seq: beat.seq,
            cap,
            expires: world.now + world.ttl,
            epoch: self.epoch,
            dials,
            dial_for,
        };
        match self.rows.iter_mut().find(|row| row.id == id) {
            Some(mine) => *mine = row,
            // Also for one that has to wait: its floor is to pull the shares of the others down.
            None => self.rows.push(row),
        }
        Reply {
            grant,
            seen,
            is_settling,
            is_late: false,
        }
    }

    /// Counts a process with an ended lease by what the server shows of it.
    fn sweep(&mut self, me: u64, world: &World<'_>, mutant: Mutant) {
        let (epoch, now, counted) = (self.epoch, world.now, self.counted);
        self.rows.retain_mut(|row| {
            if row.id == me {
                return true;
            }
            if row.epoch != epoch {
                // It did not beat on this server while the others waited for it.
                row.epoch = epoch;
                row.expires = row.expires.min(now - 1);
            }
            let at = match world.count {
                Count::Of(_, at) => at,
                // What it had is taken for gone one more lease after its own, where no process counts.
                Count::None => return true,
                Count::Own(_) => {
                    let is_counted = counted >= now - 2 * world.ttl;
                    return is_counted || row.expires >= now - row.dial_for - world.ttl;
                }
            };
            // A count that is older than the end of its lease says nothing.
            if row.expires >= at {
                return true;
            }
            let seen = world.seen(row.id).unwrap_or(0);
            let is_gone = seen == 0 && row.expires < at - row.dial_for;
            if is_gone || mutant == Mutant::TtlOnly {
                return false;
            }
            let dials = if mutant == Mutant::NoDials {
                0
            } else {
                row.dials
            };
            row.cap = row.cap.min(seen + dials);
            if seen > 0 {
                row.expires = at - 1;
            }
            true
        });
    }
}
