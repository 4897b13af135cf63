//! The task that beats.

use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::budget::{Demand, Inner};
use super::jitter::jitter;
use super::knee::Knee;
use super::pod::Beat;
use super::store::{Ask, Reply, Settings, Store};
use super::trial::Trial;
use super::{BudgetError, events, metrics};

/// A reply that takes longer counts as lost.
const REPLY_WITHIN: Duration = Duration::from_secs(2);

/// What is urgent is sent this soon after the last beat, [`QUICK`] times; then not more often than [`SOON`].
const AT_ONCE: Duration = Duration::from_millis(400);

/// Enough for a load that moves: less is needed, it is given up, and it is gone.
const QUICK: u32 = 3;

const SOON: Duration = Duration::from_secs(1);

/// For this long after the need of a process rose beyond its rights, it beats twice as often as one that
/// has had too few for long: its queue may not be patient for more than a beat or two.
const URGENT_FOR: Duration = Duration::from_secs(3);

/// A process that leaves beats this often at first, until the server shows nothing of its pools any more.
const LEAVES: Duration = Duration::from_millis(50);

/// What was taken from a process is free for others with its next beat, which is sent this soon after.
const CONFIRMS: Duration = Duration::from_millis(50);

/// The server shows within this time that an idle connection was closed.
const CLOSED_WITHIN: Duration = Duration::from_millis(20);

/// Beats until `inner` is dropped.
pub(super) async fn run<S: Store>(inner: Weak<Inner>, store: S, settings: Settings) {
    let mut beats = Beats {
        store,
        settings,
        session: None,
        joined: None,
        untagged: 0,
        unanswered: 0,
        granted: None,
        needed: (0, false),
        rose: None,
        shown: None,
        was_cut: false,
        knee: None,
    };
    let mut quick = 0;
    let mut leaves = LEAVES;
    loop {
        let Some(budget) = inner.upgrade() else {
            return;
        };
        let sent = Instant::now();
        let before = budget.state().error.as_ref().map(BudgetError::as_str);
        let result = beats.beat(&budget).await;
        let hungry = beats.settle(&budget, &result, before);
        if let Err(Failed::Lost) = result {
            beats.hang_up(&budget);
        }
        let leaving = budget.state().leaving;
        let has_left = leaving && result.is_ok() && beats.shown.is_none_or(|n| n <= budget.own());
        budget.state().has_left = has_left;
        if has_left {
            beats.hang_up(&budget);
        }
        budget.beaten();
        if has_left {
            return;
        }
        if leaving {
            sleep(leaves).await;
            leaves = (2 * leaves).min(SOON);
            continue;
        }
        let ttl = budget.state().pod.terms().ttl;
        let often = (ttl / 3).mul_f64(0.8 + 0.4 * jitter());
        let is_too_small = matches!(budget.state().error, Some(BudgetError::TooSmall { .. }));
        if matches!(result, Err(Failed::Waits)) && is_too_small {
            // Its next connection comes from the reserve, as those of all others that wait: they would take
            // more than there is of it if they came back soon, and nothing is likely to be free.
            while timeout_at(sent + often, budget.hurry.notified())
                .await
                .is_ok()
            {
                if budget.state().leaving {
                    break;
                }
            }
            continue;
        }
        let soon = often.min(SOON.mul_f64(1.0 + jitter()));
        let pause = match hungry {
            true if beats.is_urgent(sent) => soon / 2,
            true => soon,
            false => often,
        };
        if std::mem::take(&mut beats.was_cut) {
            sleep(CONFIRMS).await;
            continue;
        }
        let least = match quick < QUICK {
            true => AT_ONCE,
            false => SOON,
        };
        sleep(least.min(pause)).await;
        let hurry = budget.hurry.notified();
        // Either way it is time.
        let _ = timeout(pause.saturating_sub(least), hurry).await;
        quick = match sent.elapsed() < SOON {
            true => quick + 1,
            false => 0,
        };
    }
}

struct Beats<S: Store> {
    store: S,
    settings: Settings,
    session: Option<S::Session>,
    /// When a connection was opened that was not within the rights.
    joined: Option<Instant>,
    /// Beats in a row at which the server showed none of the pools' connections.
    untagged: u32,
    /// Beats in a row without a reply.
    unanswered: u32,
    /// When the last reply came.
    granted: Option<Instant>,
    /// What the last beat said is needed, and whether that was news: shares may not have been made anew
    /// for it yet.
    needed: (usize, bool),
    /// When the need rose beyond the rights.
    rose: Option<Instant>,
    /// Sessions of this process that the server showed at the last beat, if it was asked.
    shown: Option<usize>,
    /// The last reply left less than there was.
    was_cut: bool,
    /// What is to become of the knee.
    knee: Option<Knee>,
}

enum Failed {
    /// The connection is of no more use.
    Lost,
    /// It may be.
    Late,
    /// The process has to wait, and holds no connection meanwhile.
    Waits,
    /// The connection is fine.
    Refused,
}

impl<S: Store> Beats<S> {
    fn hang_up(&mut self, budget: &Inner) {
        self.session = None;
        budget.state().beats = false;
    }

    fn is_urgent(&self, now: Instant) -> bool {
        self.rose.is_some_and(|rose| now < rose + URGENT_FOR)
    }

    /// Sends a beat and takes its reply.
    async fn beat(&mut self, budget: &Arc<Inner>) -> Result<(), Failed> {
        if self.session.as_ref().is_some_and(S::is_closed) {
            self.hang_up(budget);
        }
        if self.session.is_none() {
            self.open(budget).await?;
        }
        let Some(session) = &mut self.session else {
            return Err(Failed::Lost);
        };
        let knows_total = budget.state().counts.total > 0;
        self.store.prepare(session, budget, knows_total).await;
        let before = self.needed.0;
        let yields = budget.yields(before);
        if yields {
            // What is closed meanwhile is free with this beat, not with the next.
            sleep(CLOSED_WITHIN).await;
        }
        let now = Instant::now();
        let mut demand = budget.demand(now);
        if yields {
            demand.want = demand.need;
        }
        budget.asked(false);
        let need = demand.need;
        self.needed = (need, need * 4 < before * 3 || before * 4 < need * 3);
        let (beat, terms, old, leaving) = {
            let mut state = budget.state();
            state.fed();
            let old = state.pod.cap();
            if state.leaving {
                state.pod.shrink(0);
            }
            let mut terms = state.pod.terms();
            if state.leaving && state.pod.dialing() == 0 {
                // Nothing is dialled any more: what the server shows is all there is, from now on.
                (terms.ttl, terms.dial_for, terms.dials) = (Duration::ZERO, Duration::ZERO, 0);
            }
            (state.pod.send(now), terms, old, state.leaving)
        };
        if before * 4 < need * 3 && need > old as usize {
            self.rose = Some(now);
        }
        let asks = yields
            || leaving
            || self.untagged > 0
            || beat.bound as usize != demand.open
            || beat.seq % 4 == 1;
        let ask = Ask {
            budget,
            settings: &self.settings,
            beat,
            demand,
            terms,
            asks,
            report: budget.report(now),
            knee: self.knee.take(),
        };
        let within = REPLY_WITHIN.min(budget.state().pod.terms().ttl / 3);
        let reply = match timeout(within, self.store.beat(session, &ask)).await {
            Ok(Ok(reply)) => reply,
            Ok(Err(error)) => {
                let is_missing = matches!(error, BudgetError::NotInstalled(_));
                fail(budget, error);
                if is_missing && self.settings.create {
                    // Its rights are counted anew once the new table has settled.
                    if let Err(error) = self.store.install(session).await {
                        fail(budget, error);
                    }
                }
                return Err(match S::is_closed(session) {
                    true => Failed::Lost,
                    false => Failed::Refused,
                });
            }
            Err(_) => {
                let silent = format!("no reply to a beat within {within:?}");
                fail(budget, BudgetError::unreachable(silent));
                self.unanswered += 1;
                let is_dialing = budget.state().pod.dialing() > 0;
                return Err(match self.unanswered {
                    0..=2 => Failed::Late,
                    _ if is_dialing => Failed::Late,
                    _ => Failed::Lost,
                });
            }
        };
        self.unanswered = 0;
        budget.asked(true);
        if reply.is_late {
            // A later beat of this process was taken before: the next has a higher number still.
            return Err(Failed::Refused);
        }
        self.look_at_knee(budget, &reply);
        self.take(budget, &beat, &demand, &reply, old)
    }

    /// Takes part in the experiment that is to come, and finds out what the last one showed.
    fn look_at_knee(&mut self, budget: &Arc<Inner>, reply: &Reply) {
        let knee = &reply.knee;
        budget.state().counts.knee = knee.cap(reply.now);
        // One that only reports changes nothing for the others, either.
        if !self.settings.knee || !budget.enforces() {
            return;
        }
        let mut state = budget.state();
        let is_known = (state.trial).is_some_and(|trial| trial.number() == knee.trial);
        if !is_known && let Some(trial) = Trial::announced(knee, reply.now, budget.id) {
            state.trial = Some(trial);
        }
        drop(state);
        // The longest time between two beats.
        let lead = (budget.state().pod.terms().ttl * 2 / 5).as_millis() as i64;
        let most = reply.total.saturating_sub(reply.reserve) as i64;
        self.knee = (reply.sums).and_then(|sums| {
            let next = knee.next(reply.now, &sums, reply.members as i64, most, lead)?;
            events::knee(budget.tag(), knee.cap, next.cap, &sums);
            Some(next)
        });
        if self.knee.is_some() {
            budget.hurry.notify_one();
        }
    }

    fn take(
        &mut self,
        budget: &Arc<Inner>,
        beat: &Beat,
        demand: &Demand,
        reply: &Reply,
        old: u32,
    ) -> Result<(), Failed> {
        let now = Instant::now();
        let open = budget.demand(now).open;
        let own = budget.own();
        // The pools' own: all but the connection that beats.
        let pools = demand.open.min(open).saturating_sub(own);
        let is_hidden = pools > 0 && reply.seen.is_some_and(|seen| seen as usize <= own);
        self.untagged = match (reply.seen, is_hidden) {
            (None, _) => self.untagged,
            (_, true) => self.untagged + 1,
            (_, false) => 0,
        };
        self.shown = reply.seen.map(|seen| seen as usize);
        let mut state = budget.state();
        let has_rights = state
            .pod
            .reply(now, beat.seq, reply.grant, reply.seen, open as u32);
        let counts = &mut state.counts;
        if counts.total != reply.total {
            events::joined(budget.tag(), reply.total, demand.floor);
        }
        counts.total = reply.total;
        counts.reserve = reply.reserve;
        counts.members = reply.members;
        counts.counted = reply.counted;
        counts.is_settling = reply.is_settling;
        let is_floored = reply.grant as usize <= demand.floor && demand.want > demand.floor;
        counts.floor_hits += u64::from(is_floored);
        let is_too_small = reply.floors > reply.total.saturating_sub(reply.reserve);
        state.error = if is_too_small {
            Some(BudgetError::TooSmall {
                members: reply.members,
                floors: reply.floors,
                total: reply.total.saturating_sub(reply.reserve),
            })
        } else if self.untagged >= 3 {
            Some(BudgetError::Untagged { open: pools })
        } else {
            None
        };
        self.was_cut = has_rights && state.pod.cap() < old;
        if state.pod.cap() != old {
            let new = state.pod.cap();
            events::granted(budget.tag(), old, new, reply.members, reply.total);
        }
        let is_idle = open <= own && state.pod.dialing() == 0;
        let waits = !has_rights && is_idle && !state.leaving;
        drop(state);
        let age = self.granted.replace(now).map(|last| now - last);
        metrics::beat(reply, demand, age);
        if waits {
            return Err(Failed::Waits);
        }
        Ok(())
    }

    /// Reports a change for the worse or the better; returns whether the next beat is due soon.
    fn settle(
        &mut self,
        budget: &Arc<Inner>,
        result: &Result<(), Failed>,
        before: Option<&'static str>,
    ) -> bool {
        if matches!(result, Err(Failed::Waits)) {
            self.hang_up(budget);
        }
        let error = budget.state().error.clone();
        match (before, &error) {
            (Some(_), None) => events::recovered(budget.tag()),
            (before, Some(error)) if before != Some(error.as_str()) => {
                events::failed(budget.tag(), error);
            }
            _ => {}
        }
        let is_news = self.needed.1;
        result.is_err() || error.is_some() || is_news || budget.demand(Instant::now()).is_hungry
    }

    /// Opens the connection that beats: within the rights, or else from the reserve for those that join.
    async fn open(&mut self, budget: &Arc<Inner>) -> Result<(), Failed> {
        let now = Instant::now();
        let recently = |joined: Instant| now - joined < AT_ONCE;
        if S::IS_DIVIDED {
            let mut state = budget.state();
            if !state.pod.dial(now) {
                if self.joined.is_some_and(recently) {
                    return Err(Failed::Late);
                }
                self.joined = Some(now);
                state.pod.join();
            }
        }
        let within = budget.state().pod.dial_for().min(Duration::from_secs(5));
        let opened = timeout(within, self.store.open(budget)).await;
        if S::IS_DIVIDED {
            let mut state = budget.state();
            state.pod.dial_ended();
            state.beats = matches!(opened, Ok(Ok(_)));
        }
        match opened {
            Ok(Ok(session)) => {
                self.session = Some(session);
                Ok(())
            }
            Ok(Err(error)) => {
                fail(budget, error);
                Err(Failed::Lost)
            }
            Err(_) => {
                let silent = format!("no connection within {within:?}");
                fail(budget, BudgetError::unreachable(silent));
                Err(Failed::Lost)
            }
        }
    }
}

fn fail(budget: &Inner, error: BudgetError) {
    let mut state = budget.state();
    state.counts.store_errors += 1;
    metrics::store_error(&error);
    state.error = Some(error);
}
