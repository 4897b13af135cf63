//! Grants from a hash in a Redis or a Valkey, for a Postgres; the processes count its sessions.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures_core::Stream;
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, Cmd, RedisError, ServerErrorKind, Value};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

use super::budget::Inner;
use super::knee::{Knee, Sums};
use super::postgres::{Connection, Postgres};
use super::store::{Ask, Reply, Store};
use super::{BudgetError, events};

/// What is sent with every beat; see its first lines.
pub(super) const SCRIPT: &str = include_str!("beat_v1.lua");

/// A hash in a Redis.
pub(super) struct Hash {
    pub(super) client: Client,
    pub(super) key: String,
    /// The Postgres that is divided, if it is asked.
    pub(super) postgres: Option<Postgres>,
}

/// The connection to Redis, and the one to Postgres.
pub(super) struct Session {
    redis: MultiplexedConnection,
    digest: String,
    is_lost: bool,
    wakes: Wakes,
    counting: Option<Counting>,
    /// When a connection to count was opened that was not within the rights.
    joined: Option<Instant>,
    /// When the last reply was made, by the clock of its server: counts are at least as new.
    replied: Option<(String, String)>,
}

struct Counting {
    client: tokio_postgres::Client,
    _connection: Connection,
}

/// The task that listens for others that wait for what this process holds.
struct Wakes(JoinHandle<()>);

impl Wakes {
    fn start(hash: &Hash, budget: &Arc<Inner>) -> Self {
        let client = hash.client.clone();
        let channel = format!("{}:{}", hash.key, budget.id);
        let budget = Arc::downgrade(budget);
        Self(tokio::spawn(async move {
            // Without it, the process learns of them at its next beat, and then listens anew.
            let _ = listen(&client, &channel, &budget).await;
        }))
    }
}

impl Drop for Wakes {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn listen(client: &Client, channel: &str, budget: &Weak<Inner>) -> Result<(), RedisError> {
    let mut connection = client.get_async_pubsub().await?;
    connection.subscribe(channel).await?;
    let mut messages = pin!(connection.into_on_message());
    while poll_fn(|cx| messages.as_mut().poll_next(cx))
        .await
        .is_some()
    {
        let Some(budget) = budget.upgrade() else {
            break;
        };
        budget.hurry.notify_one();
    }
    Ok(())
}

/// What Postgres shows.
struct Count {
    /// Connections that this role may have.
    room: i32,
    /// The names of sessions, and how many carry each.
    sessions: Vec<(String, i32)>,
}

impl Store for Hash {
    type Session = Session;

    const IS_DIVIDED: bool = false;

    async fn open(&self, budget: &Arc<Inner>) -> Result<Session, BudgetError> {
        const WITHIN: Duration = Duration::from_secs(2);
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(WITHIN))
            .set_response_timeout(Some(WITHIN));
        let redis = self
            .client
            .get_multiplexed_async_connection_with_config(&config);
        let mut redis = redis.await.map_err(|error| read(&error))?;
        let digest = load(&mut redis).await.map_err(|error| read(&error))?;
        if self.postgres.is_none() {
            events::uncounted(budget.tag());
        }
        Ok(Session {
            redis,
            digest,
            is_lost: false,
            wakes: Wakes::start(self, budget),
            counting: None,
            joined: None,
            replied: None,
        })
    }

    fn is_closed(session: &Session) -> bool {
        session.is_lost
    }

    /// Opens the connection that counts: within the rights, or else from the reserve for processes that join,
    /// unless there is nothing that it could find out.
    async fn prepare(&self, session: &mut Session, budget: &Arc<Inner>, knows_total: bool) {
        if session.wakes.0.is_finished() {
            session.wakes = Wakes::start(self, budget);
        }
        let is_open = (session.counting.as_ref()).is_some_and(|c| !c.client.is_closed());
        let Some(postgres) = self.postgres.as_ref().filter(|_| !is_open) else {
            return;
        };
        session.counting = None;
        let now = Instant::now();
        let recently = |joined: Instant| now - joined < Duration::from_secs(1);
        let within = {
            let mut state = budget.state();
            state.beats = false;
            if state.leaving {
                return;
            }
            if !state.pod.dial(now) {
                let has_none = state.pod.bound() == 0;
                if knows_total && has_none || session.joined.is_some_and(recently) {
                    return;
                }
                session.joined = Some(now);
                state.pod.join();
            }
            state.pod.dial_for().min(Duration::from_secs(5))
        };
        let opened = timeout(within, postgres.connect(budget)).await;
        let mut state = budget.state();
        state.pod.dial_ended();
        if let Ok(Ok((client, connection))) = opened {
            state.beats = true;
            session.counting = Some(Counting {
                client,
                _connection: connection,
            });
        }
    }

    async fn beat(&self, session: &mut Session, ask: &Ask<'_>) -> Result<Reply, BudgetError> {
        let count = match &session.counting {
            Some(counting) => Some(counting.count(ask.budget.id).await?),
            None => None,
        };
        let own = match self.postgres {
            Some(_) => None,
            None => Some(ask.budget.own_count(Instant::now())),
        };
        let command = command(
            &session.digest,
            &self.key,
            ask,
            count.as_ref(),
            own,
            &session.replied,
        );
        let value: Value = match command.query_async(&mut session.redis).await {
            Ok(value) => value,
            Err(error) if error.code() == Some("NOSCRIPT") => {
                session.digest = load(&mut session.redis).await.map_err(|e| read(&e))?;
                return Err(read(&error));
            }
            Err(error) => {
                session.is_lost = error.is_io_error() || error.is_connection_dropped();
                return Err(read(&error));
            }
        };
        let (reply, at, server) =
            parse(&value).ok_or_else(|| BudgetError::Refused("its reply cannot be read".into()))?;
        session.replied = Some((at, server));
        Ok(reply)
    }
}

async fn load(redis: &mut MultiplexedConnection) -> Result<String, RedisError> {
    let mut command = redis::cmd("SCRIPT");
    command.arg("LOAD").arg(SCRIPT);
    command.query_async(redis).await
}

impl Counting {
    async fn count(&self, id: i64) -> Result<Count, BudgetError> {
        let error = |error: tokio_postgres::Error| BudgetError::from_postgres(&error);
        let row = self.client.query_one(COUNT, &[]).await.map_err(error)?;
        let process: Option<String> = row.get("process");
        if process.as_deref() != Some(&id.to_string()) {
            // This session is another program's next, and what the server shows is the pooler's.
            return Err(BudgetError::Pooler(
                format!("this session was not opened by process {id}").into(),
            ));
        }
        let (tags, counts): (Vec<String>, Vec<i32>) = (row.get("tags"), row.get("counts"));
        Ok(Count {
            room: row.get("room"),
            sessions: tags.into_iter().zip(counts).collect(),
        })
    }
}

/// What the functions `sessions` and `room` of the table count, without them.
const COUNT: &str = "with r as materialized (
      select oid, rolconnlimit from pg_roles where rolname = current_user),
    s as materialized (
      select usesysid, coalesce(application_name, '') tag, count(*)::int n
      from pg_stat_get_activity(null)
      where usesysid is not null and coalesce(backend_type, 'client backend') = 'client backend'
      group by 1, 2),
    o as (
      select current_setting('max_connections')::int most,
        current_setting('superuser_reserved_connections')::int
          + coalesce(current_setting('reserved_connections', true)::int, 0) kept,
        (select coalesce(sum(n), 0)::int from s, r where usesysid <> oid) others)
    select current_setting('pool_autotune.pod', true) process,
      (select greatest(0, least(case when rolconnlimit >= 0 then rolconnlimit end,
         most - kept - others - greatest(2, least(10, most / 20)))) from o, r) room,
      (select array_agg(tag order by tag) from s, r where usesysid = oid) tags,
      (select array_agg(n order by tag) from s, r where usesysid = oid) counts";

fn command(
    digest: &str,
    key: &str,
    ask: &Ask<'_>,
    count: Option<&Count>,
    own: Option<u32>,
    replied: &Option<(String, String)>,
) -> Cmd {
    let Ask {
        settings,
        beat,
        demand,
        terms,
        ..
    } = ask;
    let total = match (settings.total, count) {
        (Some(total), Some(count)) => total.min(count.room.max(0) as usize) as i64,
        (Some(total), None) => total as i64,
        (None, Some(count)) => count.room.max(0).into(),
        (None, None) => -1,
    };
    let number = |n: Option<usize>| n.map_or(-1, |n| n as i64);
    let mut command = redis::cmd("EVALSHA");
    command.arg(digest).arg(1).arg(key);
    command.arg(ask.budget.id).arg(beat.seq).arg(beat.cap);
    command.arg(beat.bound).arg(beat.dialing);
    command.arg(terms.ttl.as_millis() as u64).arg(terms.dials);
    command.arg(terms.dial_for.as_millis() as u64);
    command
        .arg(&settings.label)
        .arg((settings.weight * 1000.0) as i64);
    command.arg(demand.floor).arg(demand.need).arg(demand.want);
    command.arg(total).arg(number(settings.reserve));
    command.arg(own.map_or(-1, i64::from));
    let numbers = |numbers: &[i64]| {
        let texts: Vec<String> = numbers.iter().map(i64::to_string).collect();
        texts.join(" ")
    };
    let did = numbers(&ask.report);
    let knee = (ask.knee.as_ref()).map_or(String::new(), |knee| numbers(&knee.numbers()));
    match (count, replied) {
        (Some(count), Some((at, server))) => {
            command.arg(at).arg(server).arg(did).arg(knee);
            for (tag, n) in &count.sessions {
                command.arg(tag).arg(n);
            }
        }
        // Its own sessions are known, and of what time those of others are is not.
        (Some(count), None) => {
            command.arg(0).arg("").arg(did).arg(knee);
            for (tag, n) in &count.sessions {
                command.arg(tag).arg(n);
            }
        }
        (None, _) => {
            command.arg(-1).arg("").arg(did).arg(knee);
        }
    }
    command
}

/// The reply, when it was made, and on which server.
fn parse(value: &Value) -> Option<(Reply, String, String)> {
    let Value::Array(values) = value else {
        return None;
    };
    let number = |index: usize| match values.get(index) {
        Some(&Value::Int(number)) => Some(number),
        _ => None,
    };
    let count = |index: usize| number(index).map(|n| n.max(0) as usize);
    let array = |index: usize| match values.get(index) {
        Some(Value::Array(numbers)) => (numbers.iter())
            .filter_map(|number| match number {
                Value::Int(number) => Some(*number),
                _ => None,
            })
            .collect(),
        _ => Vec::new(),
    };
    let text = |index: usize| match values.get(index) {
        Some(Value::BulkString(text)) => String::from_utf8(text.clone()).ok(),
        _ => None,
    };
    let reply = Reply {
        grant: count(0)? as u32,
        seen: u32::try_from(number(1)?).ok(),
        is_late: number(2)? == 1,
        is_settling: number(3)? == 1,
        total: count(4)?,
        reserve: count(5)?,
        members: count(6)?,
        floors: count(7)?,
        counted: count(8)?,
        now: text(9)?.parse().ok()?,
        knee: Knee::from_numbers(&array(11)),
        sums: Sums::from_numbers(&array(12)),
    };
    Some((reply, text(9)?, text(10)?))
}

fn read(error: &RedisError) -> BudgetError {
    let text: Arc<str> = error.to_string().into();
    match error.kind() {
        redis::ErrorKind::Server(ServerErrorKind::ReadOnly) => BudgetError::ReadOnly(text),
        redis::ErrorKind::Server(ServerErrorKind::NoPerm) => BudgetError::MissingRights(text),
        redis::ErrorKind::AuthenticationFailed => BudgetError::MissingRights(text),
        _ if error.code() == Some("NOAUTH") => BudgetError::MissingRights(text),
        _ if error.code() == Some("PA001") => BudgetError::WrongVersion(text),
        redis::ErrorKind::Server(
            ServerErrorKind::BusyLoading
            | ServerErrorKind::ClusterDown
            | ServerErrorKind::MasterDown
            | ServerErrorKind::TryAgain,
        ) => BudgetError::Unreachable(text),
        _ if error.is_io_error() || error.is_timeout() || error.is_connection_dropped() => {
            BudgetError::Unreachable(text)
        }
        _ => BudgetError::Refused(text),
    }
}
