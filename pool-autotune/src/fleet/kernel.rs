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
    pub(crate) rows: Vec<Row>,
}

/// What the server knows at one beat.
#[derive(Clone, Copy, Debug)]
pub(crate) struct World<'a> {
    pub(crate) now: i64,
    pub(crate) boot: u64,
    pub(crate) ttl: i64,
    /// Sessions by process, of those that beat or not.
    pub(crate) sessions: &'a [(u64, u32)],
    /// Whether the rows of others are looked through.
    pub(crate) sweeps: bool,
}

impl World<'_> {
    fn seen(&self, id: u64) -> u32 {
        let of = self.sessions.iter().filter(|&&(process, _)| process == id);
        of.map(|&(_, count)| count).sum()
    }
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Reply {
    pub(crate) grant: u32,
    pub(crate) seen: u32,
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
        }
        let is_settling = world.now < self.settle_until && mutant != Mutant::NoSettle;
        let old = mine.map_or(0, |mine| self.rows[mine].cap);
        if world.sweeps && !is_settling {
            self.sweep(id, world, mutant);
        }
        let held = beat.cap.max(beat.bound.min(seen + beat.dialing));
        let others = || self.rows.iter().filter(|row| row.id != id);
        let counted: u32 = others().map(|row| row.cap).sum();
        let cap_of = |id: u64| others().find(|row| row.id == id).map_or(0, |row| row.cap);
        let foreign = world.sessions.iter().filter(|&&(other, _)| other != id);
        let excess: u32 = foreign
            .map(|&(other, count)| count.saturating_sub(cap_of(other)))
            .sum();
        let excess = if mutant == Mutant::TtlOnly { 0 } else { excess };
        let kept = self.reserve.max(excess);
        let limit = self.total.saturating_sub(kept).saturating_sub(counted);
        let limit = if mutant == Mutant::NoLimit {
            self.total
        } else {
            limit
        };
        let (grant, cap) = if is_settling {
            // A live lease is registered again, and nothing is raised.
            let held = if beat.cap == 0 { held.min(old) } else { held };
            (held.min(beat.cap), held)
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

    /// Counts processes whose lease has ended by what the server shows of them.
    fn sweep(&mut self, me: u64, world: &World<'_>, mutant: Mutant) {
        let (epoch, now) = (self.epoch, world.now);
        self.rows.retain_mut(|row| {
            if row.id == me {
                return true;
            }
            if row.epoch != epoch {
                // It did not beat on this server while the others waited for it.
                row.epoch = epoch;
                row.expires = row.expires.min(now - 1);
            }
            if row.expires >= now {
                return true;
            }
            let seen = world.seen(row.id);
            let is_gone = seen == 0 && row.expires < now - row.dial_for;
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
                row.expires = now - 1;
            }
            true
        });
    }
}
