//! Grants from a table in the Postgres that is divided.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio_postgres::tls::{MakeTlsConnect, TlsConnect};
use tokio_postgres::{AsyncMessage, Client, Socket, Statement};

use super::budget::Inner;
use super::knee::{Knee, Sums};
use super::schema::MIGRATION;
use super::store::{Ask, Reply, Store};
use super::{Budget, BudgetError, events};

type Boxed<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// Opens a connection of the budget. What it listens to wakes the task that beats.
type Connect = Arc<
    dyn Fn(
            tokio_postgres::Config,
            Weak<Inner>,
        ) -> Boxed<Result<(Client, Boxed<()>), tokio_postgres::Error>>
        + Send
        + Sync,
>;

/// A Postgres, and how to connect to it.
#[derive(Clone)]
pub(super) struct Postgres {
    connect: Connect,
    pub(super) config: tokio_postgres::Config,
}

pub(super) fn connect_by<T>(config: tokio_postgres::Config, tls: T) -> Postgres
where
    T: MakeTlsConnect<Socket> + Clone + Send + Sync + 'static,
    T::Stream: Send,
    T::TlsConnect: Send,
    <T::TlsConnect as TlsConnect<Socket>>::Future: Send,
{
    let connect: Connect = Arc::new(move |config, budget| {
        let tls = tls.clone();
        Box::pin(async move {
            let (client, mut connection) = config.connect(tls).await?;
            let ended: Boxed<()> = Box::pin(async move {
                // Where it ends, the next beat finds it closed.
                while let Some(Ok(message)) = poll_fn(|cx| connection.poll_message(cx)).await {
                    if matches!(message, AsyncMessage::Notification(_))
                        && let Some(budget) = budget.upgrade()
                    {
                        budget.hurry.notify_one();
                    }
                }
            });
            Ok((client, ended))
        })
    });
    Postgres { connect, config }
}

impl Postgres {
    /// Opens a connection of the budget itself, tagged as this process'.
    pub(super) async fn connect(
        &self,
        budget: &Arc<Inner>,
    ) -> Result<(Client, Connection), tokio_postgres::Error> {
        let mut config = self.config.clone();
        Budget::from_inner(Arc::clone(budget)).tag(&mut config);
        // What a pooler does not forward is missed in the beat. A plan made while the table was small would
        // read all of it at every beat for as long as the session lasts.
        let id = budget.id;
        let mut options = config.get_options().unwrap_or_default().to_owned();
        options += &format!(
            " -c pool_autotune.pod={id} -c default_transaction_isolation=read\\ committed \
             -c statement_timeout=5000 -c enable_seqscan=off -c jit=off"
        );
        config.options(options);
        let (client, connection) = (self.connect)(config, Arc::downgrade(budget)).await?;
        Ok((client, Connection(tokio::spawn(connection))))
    }
}

/// The task that serves a connection.
pub(super) struct Connection(JoinHandle<()>);

impl Drop for Connection {
    fn drop(&mut self) {
        // It ends by itself when the client is dropped, unless the server does not read.
        self.0.abort();
    }
}

/// The table of the server, asked by a function in it.
pub(super) struct Table {
    pub(super) postgres: Postgres,
    pub(super) create: bool,
    /// After how long without a beat the sessions of another process are ended.
    pub(super) reap_after: Option<Duration>,
}

/// The connection that beats.
pub(super) struct Session {
    client: Client,
    statement: Option<Statement>,
    listens: bool,
    _connection: Connection,
}

impl Session {
    async fn prepare(&mut self) -> Result<(), tokio_postgres::Error> {
        self.statement = Some(self.client.prepare(BEAT).await?);
        Ok(())
    }
}

fn read(error: tokio_postgres::Error) -> BudgetError {
    BudgetError::from_postgres(&error)
}

impl Store for Table {
    type Session = Session;

    const IS_DIVIDED: bool = true;

    async fn open(&self, budget: &Arc<Inner>) -> Result<Session, BudgetError> {
        let (client, connection) = self.postgres.connect(budget).await.map_err(read)?;
        let mut session = Session {
            client,
            statement: None,
            listens: false,
            _connection: connection,
        };
        fence(&session, budget.tag()).await.map_err(read)?;
        if let Err(refused) = session.prepare().await {
            let refused = read(refused);
            if !matches!(refused, BudgetError::NotInstalled(_)) || !self.create {
                return Err(refused);
            }
            self.install(&mut session).await?;
        }
        Ok(session)
    }

    fn is_closed(session: &Session) -> bool {
        session.client.is_closed()
    }

    async fn install(&self, session: &mut Session) -> Result<(), BudgetError> {
        let installed = session.client.batch_execute(MIGRATION).await;
        installed.map_err(read)?;
        session.prepare().await.map_err(read)
    }

    async fn beat(&self, session: &mut Session, ask: &Ask<'_>) -> Result<Reply, BudgetError> {
        let reply = send(session, ask).await.map_err(read)?;
        if !session.listens {
            // Not before a beat has shown that no pooler is in between. Refused, it costs time only.
            session.listens = true;
            let listen = format!("listen \"{}\"", ask.budget.tag());
            let _ = session.client.batch_execute(&listen).await;
        }
        // What it ends shows at the next beat.
        if let Some(after) = self.reap_after.filter(|_| ask.asks) {
            reap(session, ask, after).await.map_err(read)?;
        }
        Ok(reply)
    }
}

const BEAT: &str = "select o_grant, o_seen, o_late, o_settling, o_total, o_reserve, o_members, \
    o_floors, o_counted, o_now, o_knee, o_sums from pool_autotune.beat_v1($1::int8, $2::int8, $3::int4, $4::int4, $5::int4, \
    $6::int4, $7::int4, $8::int4, $9::bool, $10::text, $11::int4, $12::int4, $13::int4, $14::int4, \
    $15::int4, $16::int4, $17::int8[], $18::int8[])";

async fn send(session: &Session, ask: &Ask<'_>) -> Result<Reply, tokio_postgres::Error> {
    let number = |n: usize| i32::try_from(n).unwrap_or(i32::MAX);
    let millis = |time: Duration| number(time.as_millis() as usize);
    let statement: &Statement = match &session.statement {
        Some(statement) => statement,
        None => &session.client.prepare(BEAT).await?,
    };
    let Ask {
        settings,
        beat,
        demand,
        terms,
        ..
    } = ask;
    let row = session
        .client
        .query_one(
            statement,
            &[
                &ask.budget.id,
                &(beat.seq as i64),
                &(beat.cap as i32),
                &(beat.bound as i32),
                &(beat.dialing as i32),
                &millis(terms.ttl),
                &(terms.dials as i32),
                &millis(terms.dial_for),
                &ask.asks,
                &settings.label,
                &((settings.weight * 1000.0) as i32),
                &number(demand.floor),
                &number(demand.need),
                &number(demand.want),
                &settings.total.map(number),
                &settings.reserve.map(number),
                &ask.report.as_slice(),
                &ask.knee.map(|knee| knee.numbers().to_vec()),
            ],
        )
        .await?;
    let count = |column: &str| row.get::<_, i32>(column).max(0) as usize;
    let numbers = |column: &str| row.get::<_, Option<Vec<i64>>>(column).unwrap_or_default();
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
        now: row.get::<_, Option<i64>>("o_now").unwrap_or(0),
        knee: Knee::from_numbers(&numbers("o_knee")),
        sums: Sums::from_numbers(&numbers("o_sums")),
    })
}

async fn reap(
    session: &Session,
    ask: &Ask<'_>,
    after: Duration,
) -> Result<(), tokio_postgres::Error> {
    let after = i32::try_from(after.as_millis()).unwrap_or(i32::MAX);
    let reap = "select pool_autotune.reap($1::int8, $2::int4)";
    let id = ask.budget.id;
    let row = session.client.query_one(reap, &[&id, &after]).await?;
    let reaped: i32 = row.get(0);
    if reaped > 0 {
        events::reaped(ask.budget.tag(), reaped);
    }
    Ok(())
}

/// Reports a role that could exceed the budget.
async fn fence(session: &Session, tag: &str) -> Result<(), tokio_postgres::Error> {
    let role = "select rolsuper, rolconnlimit < 0 from pg_roles where rolname = current_user";
    let row = session.client.query_one(role, &[]).await?;
    let (is_superuser, is_unlimited): (bool, bool) = (row.get(0), row.get(1));
    if is_superuser || is_unlimited {
        events::unfenced(tag, is_superuser);
    }
    Ok(())
}
