//! The task that beats.

use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};
use tokio_postgres::{Client, Statement};

use super::budget::{Demand, Inner};
use super::config::{Config, Connect, jitter};
use super::pod::Beat;
use super::schema::MIGRATION;
use super::{Budget, BudgetError, events, metrics};

/// A reply that takes longer counts as lost.
const REPLY_WITHIN: Duration = Duration::from_secs(2);

/// What is urgent is sent this soon after the last beat, once; then not more often than [`SOON`].
const AT_ONCE: Duration = Duration::from_millis(400);

const SOON: Duration = Duration::from_secs(1);

/// Beats until `inner` is dropped.
pub(super) async fn run(inner: Weak<Inner>, connect: Connect, config: Config) {
    let mut beats = Beats {
        connect,
        config,
        session: None,
        joined: None,
        untagged: 0,
        unanswered: 0,
        granted: None,
        needed: (0, false),
    };
    let mut least = AT_ONCE;
    loop {
        let Some(budget) = inner.upgrade() else {
            return;
        };
        let sent = Instant::now();
        let before = budget.state().error.as_ref().map(BudgetError::as_str);
        let result = beats.beat(&budget).await;
        let hungry = beats.settle(&budget, &result, before);
        if let Err(Failed::Lost) = result {
            beats.session = None;
            budget.state().beats = false;
        }
        let has_left = budget.state().leaving && result.is_ok();
        budget.beaten();
        if has_left {
            beats.session = None;
            return;
        }
        let ttl = budget.state().pod.terms().ttl;
        let often = (ttl / 3).mul_f64(0.8 + 0.4 * jitter());
        let soon = often.min(SOON.mul_f64(1.0 + jitter()));
        let pause = match hungry {
            true => soon,
            false => often,
        };
        sleep(least.min(pause)).await;
        let hurry = budget.hurry.notified();
        let rest = pause.saturating_sub(least);
        // Either way it is time.
        let _ = timeout(rest, hurry).await;
        least = match sent.elapsed() < SOON {
            true => SOON,
            false => AT_ONCE,
        };
    }
}

struct Beats {
    connect: Connect,
    config: Config,
    session: Option<Session>,
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
}

/// The connection that beats.
struct Session {
    client: Client,
    statement: Option<Statement>,
    connection: JoinHandle<()>,
}

impl Session {
    async fn prepare(&mut self) -> Result<(), tokio_postgres::Error> {
        self.statement = Some(self.client.prepare(BEAT).await?);
        Ok(())
    }

    async fn install(&mut self) -> Result<(), tokio_postgres::Error> {
        self.client.batch_execute(MIGRATION).await?;
        self.prepare().await
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // It ends by itself when the client is dropped, unless the server does not read.
        self.connection.abort();
    }
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

impl Beats {
    /// Sends a beat and takes its reply.
    async fn beat(&mut self, budget: &Arc<Inner>) -> Result<(), Failed> {
        if self.session.as_ref().is_some_and(|s| s.client.is_closed()) {
            self.session = None;
            budget.state().beats = false;
        }
        if self.session.is_none() {
            self.open(budget).await?;
        }
        let Some(session) = &mut self.session else {
            return Err(Failed::Lost);
        };
        let now = Instant::now();
        let demand = budget.demand(now);
        budget.asked(false);
        let (before, need) = (self.needed.0, demand.need);
        self.needed = (need, need * 4 < before * 3 || before * 4 < need * 3);
        let (beat, terms, old) = {
            let mut state = budget.state();
            state.fed();
            let old = state.pod.cap();
            (state.pod.send(now), state.pod.terms(), old)
        };
        let asks = self.untagged > 0 || beat.bound as usize != demand.open || beat.seq % 4 == 1;
        let reply = timeout(
            REPLY_WITHIN.min(terms.ttl / 3),
            send(
                session,
                budget.id,
                &self.config,
                &beat,
                &demand,
                terms,
                asks,
            ),
        );
        let reply = match reply.await {
            Ok(Ok(reply)) => reply,
            Ok(Err(error)) => {
                let error = BudgetError::from_postgres(&error);
                let is_missing = matches!(error, BudgetError::NotInstalled(_));
                fail(budget, error);
                if is_missing && self.config.create {
                    // Its rights are counted anew once the new table has settled.
                    if let Err(error) = session.install().await {
                        fail(budget, BudgetError::from_postgres(&error));
                    }
                }
                let is_closed = session.client.is_closed();
                return Err(if is_closed {
                    Failed::Lost
                } else {
                    Failed::Refused
                });
            }
            Err(_) => {
                let within = REPLY_WITHIN.min(terms.ttl / 3);
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
        self.take(budget, &beat, &demand, &reply, old)
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
        // The pools' own: all but the connection that beats.
        let pools = demand.open.min(open).saturating_sub(1);
        let is_hidden = pools > 0 && reply.seen.is_some_and(|seen| seen <= 1);
        self.untagged = match (reply.seen, is_hidden) {
            (None, _) => self.untagged,
            (_, true) => self.untagged + 1,
            (_, false) => 0,
        };
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
        if state.pod.cap() != old {
            let new = state.pod.cap();
            events::granted(budget.tag(), old, new, reply.members, reply.total);
        }
        let is_idle = open <= 1 && state.pod.dialing() == 0;
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
            self.session = None;
            budget.state().beats = false;
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
        let recently = |joined: Instant| now - joined < Duration::from_secs(1);
        {
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
        let opened = timeout(within, self.connect(budget)).await;
        let mut state = budget.state();
        state.pod.dial_ended();
        state.beats = matches!(opened, Ok(Ok(_)));
        drop(state);
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

    async fn connect(&self, budget: &Arc<Inner>) -> Result<Session, BudgetError> {
        let error = |error: tokio_postgres::Error| BudgetError::from_postgres(&error);
        let mut postgres = self.config.postgres.clone();
        Budget::from_inner(Arc::clone(budget)).tag(&mut postgres);
        // What a pooler does not forward is missed in the beat.
        let id = budget.id;
        let mut options = postgres.get_options().unwrap_or_default().to_owned();
        options += &format!(
            " -c pool_autotune.pod={id} -c default_transaction_isolation=read\\ committed \
             -c statement_timeout=5000"
        );
        postgres.options(options);
        let (client, connection) = (self.connect)(postgres).await.map_err(error)?;
        let connection = tokio::spawn(connection);
        let mut session = Session {
            client,
            statement: None,
            connection,
        };
        if let Err(refused) = session.prepare().await {
            let refused = error(refused);
            if !matches!(refused, BudgetError::NotInstalled(_)) || !self.config.create {
                return Err(refused);
            }
            session.install().await.map_err(error)?;
        }
        Ok(session)
    }
}

fn fail(budget: &Inner, error: BudgetError) {
    let mut state = budget.state();
    state.counts.store_errors += 1;
    metrics::store_error(&error);
    state.error = Some(error);
}

/// What the store replied.
pub(super) struct Reply {
    pub(super) grant: u32,
    seen: Option<u32>,
    is_late: bool,
    is_settling: bool,
    pub(super) total: usize,
    reserve: usize,
    pub(super) members: usize,
    floors: usize,
    counted: usize,
}

const BEAT: &str = "select o_grant, o_seen, o_late, o_settling, o_total, o_reserve, o_members, \
    o_floors, o_counted from pool_autotune.beat_v1($1::int8, $2::int8, $3::int4, $4::int4, $5::int4, \
    $6::int4, $7::int4, $8::int4, $9::bool, $10::text, $11::int4, $12::int4, $13::int4, $14::int4, \
    $15::int4, $16::int4)";

async fn send(
    session: &Session,
    id: i64,
    config: &Config,
    beat: &Beat,
    demand: &Demand,
    terms: super::pod::Terms,
    asks: bool,
) -> Result<Reply, tokio_postgres::Error> {
    let number = |n: usize| i32::try_from(n).unwrap_or(i32::MAX);
    let millis = |time: Duration| number(time.as_millis() as usize);
    let statement: &Statement = match &session.statement {
        Some(statement) => statement,
        None => &session.client.prepare(BEAT).await?,
    };
    let row = session
        .client
        .query_one(
            statement,
            &[
                &id,
                &(beat.seq as i64),
                &(beat.cap as i32),
                &(beat.bound as i32),
                &(beat.dialing as i32),
                &millis(terms.ttl),
                &(terms.dials as i32),
                &millis(terms.dial_for),
                &asks,
                &config.label,
                &((config.weight * 1000.0) as i32),
                &number(demand.floor),
                &number(demand.need),
                &number(demand.want),
                &config.total.map(number),
                &config.reserve.map(number),
            ],
        )
        .await?;
    let count = |column: &str| row.get::<_, i32>(column).max(0) as usize;
    Ok(Reply {
        grant: count("o_grant") as u32,
        seen: row
            .get::<_, Option<i32>>("o_seen")
            .map(|seen| seen.max(0) as u32),
        is_late: row.get("o_late"),
        is_settling: row.get::<_, Option<bool>>("o_settling").unwrap_or(false),
        total: count("o_total"),
        reserve: count("o_reserve"),
        members: count("o_members"),
        floors: count("o_floors"),
        counted: count("o_counted"),
    })
}
