//! What one process of the fleet may do: four rules, without I/O and without a clock.
//!
//! The store counts `cap` connections for this process. The process never has more sessions on the
//! server than `max(cap, bound)`, and says so with every beat; the store lowers its count only then.
//!
//! 1. It dials only below its cap, a few at once at most, and only if the dial ends before the
//!    lease does. A dial raises `bound`; closing a connection does not lower it, since the server may
//!    show the session for a while.
//! 2. To shrink, it lowers its cap first, closes, and beats again.
//! 3. A beat carries a number, what it keeps to, and what is being dialled. Past the lease its cap is
//!    0. Only the reply to the latest beat counts.
//! 4. A reply sets the cap, and lowers `bound` to what the server showed and what was dialled since.
//!    The lease counts from when the beat was sent.

use std::hash::{Hash, Hasher};
use std::time::Duration;

use tokio::time::Instant;

/// What does not change while a process is a member.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(crate) struct Terms {
    /// How long a grant lasts without another.
    pub(crate) ttl: Duration,
    /// How long a dial may take until it is a session or has failed.
    pub(crate) dial_for: Duration,
    /// Dials at the same time.
    pub(crate) dials: u32,
}

/// What a beat says.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(crate) struct Beat {
    pub(crate) seq: u64,
    pub(crate) cap: u32,
    pub(crate) bound: u32,
    pub(crate) dialing: u32,
}

/// The rights of one process.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(crate) struct Pod {
    terms: Terms,
    seq: u64,
    cap: u32,
    lease_end: Option<Instant>,
    bound: u32,
    dialing: u32,
    /// Dials begun in all. States that differ only in it behave alike.
    begun: Begun,
    sent: Option<Sent>,
}

/// A number that does not tell states apart.
#[derive(Clone, Copy, Debug, Default)]
struct Begun(u64);

impl PartialEq for Begun {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Begun {}

impl Hash for Begun {
    fn hash<H: Hasher>(&self, _: &mut H) {}
}

#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
struct Sent {
    at: Instant,
    dialing: u32,
    /// Dials begun since.
    since: u32,
}

impl Pod {
    pub(crate) fn new(terms: Terms) -> Self {
        Self {
            terms,
            seq: 0,
            cap: 0,
            lease_end: None,
            bound: 0,
            dialing: 0,
            begun: Begun::default(),
            sent: None,
        }
    }

    /// Drops the rights if the lease has ended.
    pub(crate) fn lapse(&mut self, now: Instant) {
        if self.lease_end.is_some_and(|end| now >= end) {
            self.lease_end = None;
            self.cap = 0;
        }
    }

    /// Begins a dial if rule 1 allows it.
    pub(crate) fn dial(&mut self, now: Instant) -> bool {
        let may = self.may_dial(now) > 0;
        if may {
            self.begin_dial();
        }
        may
    }

    /// How many dials may begin now.
    pub(crate) fn may_dial(&self, now: Instant) -> u32 {
        let lands = |end: Instant| now + self.terms.dial_for < end;
        if !self.lease_end.is_some_and(lands) {
            return 0;
        }
        let slots = self.cap.saturating_sub(self.bound);
        slots.min(self.terms.dials.saturating_sub(self.dialing))
    }

    /// Begins the dial of the connection that beats, whether it is within the cap or not: where it is
    /// not, the join reserve pays for it.
    pub(crate) fn join(&mut self) {
        self.begin_dial();
    }

    fn begin_dial(&mut self) {
        self.dialing += 1;
        self.begun.0 += 1;
        self.bound += 1;
        if let Some(sent) = &mut self.sent {
            sent.since += 1;
        }
    }

    /// A dial became a session, or failed.
    pub(crate) fn dial_ended(&mut self) {
        self.dialing = self.dialing.saturating_sub(1);
    }

    /// Counts what is open here, where no store says what the server shows.
    pub(crate) fn confirm(&mut self, open: u32) {
        self.bound = open + self.dialing;
    }

    /// Gives up what is above `cap` (rule 2).
    pub(crate) fn shrink(&mut self, cap: u32) {
        self.cap = self.cap.min(cap);
    }

    /// The next beat. Replies to earlier ones no longer count.
    pub(crate) fn send(&mut self, now: Instant) -> Beat {
        self.lapse(now);
        self.seq += 1;
        self.sent = Some(Sent {
            at: now,
            dialing: self.dialing,
            since: 0,
        });
        Beat {
            seq: self.seq,
            cap: self.cap,
            bound: self.bound,
            dialing: self.dialing,
        }
    }

    /// A reply. `seen`: sessions that the server shows, if it was asked; `open`: connections that this
    /// process has. Returns whether it gave rights.
    pub(crate) fn reply(
        &mut self,
        now: Instant,
        seq: u64,
        grant: u32,
        seen: Option<u32>,
        open: u32,
    ) -> bool {
        self.lapse(now);
        if seq != self.seq {
            return false;
        }
        let Some(sent) = self.sent.take() else {
            return false;
        };
        if let Some(seen) = seen {
            let shown = seen + sent.dialing + sent.since;
            self.bound = self.bound.min(shown).max(open + self.dialing);
        }
        let end = sent.at + self.terms.ttl;
        if now >= end {
            return false;
        }
        self.cap = grant;
        self.lease_end = (grant > 0).then_some(end);
        grant > 0
    }

    /// What it may have.
    pub(crate) fn cap(&self) -> u32 {
        self.cap
    }

    /// The most sessions that the server may show.
    pub(crate) fn bound(&self) -> u32 {
        self.bound
    }

    /// How long a dial may take.
    pub(crate) fn dial_for(&self) -> Duration {
        self.terms.dial_for
    }

    pub(crate) fn terms(&self) -> Terms {
        self.terms
    }

    /// Dials under way. While there is one, the last session stays open: it shows the server that the process
    /// lives.
    pub(crate) fn dialing(&self) -> u32 {
        self.dialing
    }

    /// Dials begun since it was made.
    #[cfg(feature = "fleet-redis")]
    pub(crate) fn begun(&self) -> u64 {
        self.begun.0
    }

    /// When its rights end, if it has any.
    pub(crate) fn lease_end(&self) -> Option<Instant> {
        self.lease_end
    }

    /// Numbers its beats anew, for a search that tells states apart.
    #[cfg(test)]
    pub(crate) fn renumber(&mut self, seq: u64) {
        self.seq = seq;
    }

    #[cfg(test)]
    pub(crate) fn seq(&self) -> u64 {
        self.seq
    }

    #[cfg(test)]
    pub(crate) fn is_waiting(&self) -> bool {
        self.sent.is_some()
    }

    /// The reply is not waited for any longer.
    #[cfg(test)]
    pub(crate) fn give_up_waiting(&mut self) {
        self.sent = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const TERMS: Terms = Terms {
        ttl: Duration::from_secs(15),
        dial_for: Duration::from_secs(5),
        dials: 2,
    };

    /// One that was granted `cap` and has its beating connection.
    fn joined(now: Instant, cap: u32) -> Pod {
        let mut pod = Pod::new(TERMS);
        pod.join();
        pod.dial_ended();
        let beat = pod.send(now);
        assert_eq!((beat.cap, beat.bound, beat.dialing), (0, 1, 0));
        assert!(pod.reply(now, beat.seq, cap, Some(1), 1));
        pod
    }

    #[test]
    fn nothing_is_dialled_before_the_first_grant_or_above_it() {
        let now = Instant::now();
        assert!(!Pod::new(TERMS).dial(now));
        let mut pod = joined(now, 3);
        assert!(pod.dial(now) && pod.dial(now));
        pod.dial_ended();
        pod.dial_ended();
        assert!(!pod.dial(now), "the beating connection is one of three");
    }

    #[test]
    fn only_so_many_dials_run_at_once() {
        let now = Instant::now();
        let mut pod = joined(now, 9);
        assert!(pod.dial(now) && pod.dial(now) && !pod.dial(now));
        pod.dial_ended();
        assert!(pod.dial(now));
    }

    #[test]
    fn a_closed_connection_is_replaced_only_when_the_server_no_longer_shows_it() {
        let now = Instant::now();
        let mut pod = joined(now, 2);
        assert!(pod.dial(now));
        pod.dial_ended();
        // It is closed here, and still shown there.
        let beat = pod.send(now);
        pod.reply(now, beat.seq, 2, Some(2), 1);
        assert!(!pod.dial(now));
        let beat = pod.send(now);
        pod.reply(now, beat.seq, 2, Some(1), 1);
        assert!(pod.dial(now));
    }

    #[test]
    fn a_dial_has_to_end_before_the_lease_does() {
        let now = Instant::now();
        let mut pod = joined(now, 9);
        assert!(pod.dial(now + 9 * SECOND));
        assert!(!pod.dial(now + 10 * SECOND));
    }

    #[test]
    fn past_the_lease_it_claims_nothing_and_a_late_reply_gives_nothing() {
        let now = Instant::now();
        let mut pod = joined(now, 9);
        let beat = pod.send(now + 14 * SECOND);
        assert_eq!(beat.cap, 9);
        let late = now + 29 * SECOND;
        assert!(!pod.reply(late, beat.seq, 9, Some(1), 1));
        assert!(!pod.dial(late));
        assert_eq!(pod.send(late).cap, 0);
    }

    #[test]
    fn only_the_reply_to_the_latest_beat_counts() {
        let now = Instant::now();
        let mut pod = joined(now, 4);
        let (first, second) = (pod.send(now), pod.send(now));
        assert!(!pod.reply(now, first.seq, 9, Some(1), 1));
        assert_eq!(pod.cap(), 4);
        assert!(pod.reply(now, second.seq, 5, Some(1), 1));
        assert_eq!(pod.cap(), 5);
    }

    #[test]
    fn what_is_dialled_while_a_beat_is_under_way_is_not_forgotten() {
        let now = Instant::now();
        let mut pod = joined(now, 9);
        assert!(pod.dial(now));
        let beat = pod.send(now);
        assert_eq!(beat.dialing, 1);
        assert!(pod.dial(now));
        pod.dial_ended();
        pod.dial_ended();
        // The server looked before either was a session.
        pod.reply(now, beat.seq, 9, Some(1), 3);
        assert_eq!(pod.bound(), 3);
    }

    #[test]
    fn a_grant_of_nothing_ends_the_lease() {
        let now = Instant::now();
        let mut pod = joined(now, 4);
        let beat = pod.send(now);
        assert!(!pod.reply(now, beat.seq, 0, Some(1), 1));
        assert_eq!(pod.lease_end(), None);
        assert!(!pod.dial(now));
    }

    #[test]
    fn a_shrink_is_promised_before_it_is_done() {
        let now = Instant::now();
        let mut pod = joined(now, 4);
        pod.shrink(2);
        let beat = pod.send(now);
        assert_eq!((beat.cap, beat.bound), (2, 1));
    }
}
