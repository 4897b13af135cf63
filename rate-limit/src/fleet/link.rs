//! The connection to one Redis server: made, used, given up and made again by one task.
//!
//! What is to be said comes in over a channel, goes out as pipelines, and each pipeline has a
//! deadline. Nothing is sent twice, except what the server refused to run: a script it did not
//! know (NOSCRIPT) and a key it does not hold (MOVED, ASK). When the server fails too often the
//! link opens: nothing is sent any more but a probe now and then, on a new connection.

use std::{
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use redis::{
    AsyncConnectionConfig, Client, ConnectionAddr, Pipeline, RedisError, ServerErrorKind, Value,
    aio::MultiplexedConnection,
};
use tokio::{
    sync::{
        Notify,
        mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
        oneshot,
    },
    time::{Instant, MissedTickBehavior, interval, timeout},
};

use super::{
    account::Ask,
    breaker::{Backoff, Breaker},
    node::{AccountId, Node},
    router::SlotRange,
    script::{self, Action, Reply, Term},
};
use crate::metrics::Call;

/// Something to say about one account.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) key: u64,
    pub(crate) action: Action,
    pub(crate) terms: Box<[Term]>,
    pub(crate) then: Then,
    /// How often it was sent on to another server.
    pub(crate) hops: u8,
    /// Whether that server has to be told that it was asked on purpose.
    pub(crate) asking: bool,
}

/// Who is told the answer.
#[derive(Debug)]
pub(crate) enum Then {
    /// The account that asked.
    Account(AccountId, Ask),
    /// One who peeks.
    Peek(oneshot::Sender<Option<Reply>>),
    /// Nobody.
    Forget,
}

/// A handle to the task that holds the connection.
#[derive(Debug)]
pub(crate) struct Link {
    jobs: UnboundedSender<Job>,
    state: Arc<State>,
}

/// What the task and its users share.
#[derive(Debug)]
struct State {
    address: ConnectionAddr,
    open: AtomicBool,
    breaker: Mutex<Breaker>,
    /// Told when the connection is of no more use.
    broken: Notify,
    why: Mutex<&'static str>,
}

impl Link {
    /// Starts the task. It ends when every handle is gone and what they said has been sent.
    pub(crate) fn start(client: Client, node: &Arc<Node>) -> Self {
        let (jobs, inbox) = unbounded_channel();
        let state = Arc::new(State {
            address: client.get_connection_info().addr().clone(),
            open: AtomicBool::new(false),
            breaker: Mutex::default(),
            broken: Notify::new(),
            why: Mutex::new(""),
        });
        let task = Task {
            client,
            name: Arc::clone(&node.settings().name),
            node: Arc::downgrade(node),
            inbox,
            state: Arc::clone(&state),
        };
        tokio::spawn(task.run());
        Self { jobs, state }
    }

    /// Whether the server is not asked at the moment.
    #[inline]
    pub(crate) fn is_open(&self) -> bool {
        self.state.open.load(Ordering::Acquire)
    }

    /// Says something; the job comes back if nobody is there to say it.
    #[expect(
        clippy::result_large_err,
        reason = "it comes back only when the runtime ends"
    )]
    pub(crate) fn say(&self, job: Job) -> Result<(), Job> {
        self.jobs.send(job).map_err(|unsent| unsent.0)
    }

    pub(crate) fn address(&self) -> &ConnectionAddr {
        &self.state.address
    }
}

impl State {
    fn success(&self, now: u64) {
        lock(&self.breaker).success(now);
    }

    fn failure(&self, now: u64, why: &'static str) {
        if lock(&self.breaker).failure(now) {
            self.give_up(why);
        }
    }

    fn give_up(&self, why: &'static str) {
        if !self.open.swap(true, Ordering::AcqRel) {
            *lock(&self.why) = why;
        }
        self.broken.notify_one();
    }
}

/// What the task owns.
struct Task {
    client: Client,
    /// Of the limiter.
    name: Arc<str>,
    node: Weak<Node>,
    inbox: UnboundedReceiver<Job>,
    state: Arc<State>,
}

/// A connection on which the scripts are known.
#[derive(Clone)]
struct Connection {
    redis: MultiplexedConnection,
    account: Arc<str>,
    nodes: Arc<str>,
}

/// How the serving of a connection ended.
enum End {
    /// Nobody will say anything any more.
    Quiet,
    /// The connection is of no more use.
    Broken,
}

impl Task {
    async fn run(mut self) {
        let mut backoff = Backoff::default();
        let mut since = None;
        let mut is_first = true;
        loop {
            match self.connect().await {
                Ok(connection) => {
                    backoff.reset();
                    *lock(&self.state.breaker) = Breaker::default();
                    let Some(node) = self.node.upgrade() else {
                        return;
                    };
                    if !is_first {
                        // Before anybody asks it.
                        self.tell_news(&node, &connection).await;
                    }
                    is_first = false;
                    self.state.open.store(false, Ordering::Release);
                    if let Some(since) = since.take() {
                        node.link_closed(&self.state.address, since);
                    }
                    drop(node);
                    if let End::Quiet = self.serve(&connection).await {
                        return;
                    }
                }
                Err(why) => self.state.give_up(why),
            }
            if !self.state.open.load(Ordering::Acquire) {
                // The connection was lost, which says nothing about the server yet.
                continue;
            }
            if since.is_none() {
                let Some(node) = self.node.upgrade() else {
                    return;
                };
                since = Some(Instant::now());
                node.link_opened(&self.state.address, *lock(&self.state.why));
            }
            if let End::Quiet = self.pause(backoff.next(random())).await {
                return;
            }
        }
    }

    /// Tells a server what it cannot know: what was admitted without it, and, as it may have lost
    /// its data, what was owed before.
    async fn tell_news(&self, node: &Arc<Node>, connection: &Connection) {
        let mut news = node.news(&self.state.address).into_iter();
        loop {
            let batch: Vec<_> = news.by_ref().take(BATCH / 4).collect();
            if batch.is_empty() {
                return;
            }
            let (node, connection) = (Arc::clone(node), connection.clone());
            exchange(node, connection, Arc::clone(&self.state), batch).await;
        }
    }

    /// Connects, and proves with a script that writes that the server does what it is there for.
    async fn connect(&self) -> Result<Connection, &'static str> {
        let Some(node) = self.node.upgrade() else {
            return Err("nobody needs it any more");
        };
        let deadline = node.settings().deadline;
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_WITHIN))
            .set_response_timeout(Some(CONNECT_WITHIN));
        let found;
        let client = if node.settings().sentinels.is_empty() {
            &self.client
        } else {
            found = find_master(&node.settings().sentinels, &self.client).await?;
            &found
        };
        let connect = client.get_multiplexed_async_connection_with_config(&config);
        let mut redis = match timeout(CONNECT_WITHIN, connect).await {
            Ok(Ok(redis)) => redis,
            Ok(Err(_)) => return Err("it does not accept the connection"),
            Err(_) => return Err("it does not accept the connection in time"),
        };
        let load = async |text: &str| {
            let mut redis = redis.clone();
            let mut command = redis::cmd("SCRIPT");
            let digest = command.arg("LOAD").arg(text).query_async(&mut redis);
            digest.await.map(|digest: String| Arc::from(digest))
        };
        let scripts = async {
            Ok((
                load(&node.settings().script).await?,
                load(script::NODES).await?,
            ))
        };
        let (account, nodes) = match timeout(CONNECT_WITHIN, scripts).await {
            Ok(Ok(scripts)) => scripts,
            Ok(Err(error)) => return Err(reason(&error)),
            Err(_) => return Err("it does not answer"),
        };
        if node.router().wants_map(node.now())
            && let Ok(Some(map)) = timeout(CONNECT_WITHIN, slots(&mut redis)).await
        {
            node.router().learn_map(&map, &self.state.address, &node);
        }
        let mut info = redis::cmd("INFO");
        info.arg("memory");
        // A server that does not allow the question is given the benefit of the doubt.
        if let Ok(Ok(memory)) =
            timeout(CONNECT_WITHIN, info.query_async::<String>(&mut redis)).await
            && memory.contains("maxmemory_policy:allkeys-")
        {
            node.evicts();
        }
        let connection = Connection {
            redis,
            account,
            nodes,
        };
        // The first answer on a connection may take longer than those after it.
        let within = deadline.max(FIRST_ANSWER_WITHIN);
        match timeout(within, count_nodes(&node, &connection, &self.state.address)).await {
            Ok(Ok(())) => Ok(connection),
            Ok(Err(why)) => Err(why),
            Err(_) => Err(LATE),
        }
    }

    async fn serve(&mut self, connection: &Connection) -> End {
        let mut heartbeat = interval(HEARTBEAT);
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        heartbeat.reset();
        let mut jobs = Vec::with_capacity(BATCH);
        loop {
            tokio::select! {
                biased;
                () = self.state.broken.notified() => return End::Broken,
                received = self.inbox.recv_many(&mut jobs, BATCH) => {
                    if received == 0 {
                        return End::Quiet;
                    }
                    let batch = std::mem::replace(&mut jobs, Vec::with_capacity(BATCH));
                    let Some(node) = self.node.upgrade() else {
                        // Leases that are given back in the end.
                        farewell(connection, &self.name, &batch).await;
                        continue;
                    };
                    let (connection, state) = (connection.clone(), Arc::clone(&self.state));
                    tokio::spawn(async move { exchange(node, connection, state, batch).await });
                }
                _ = heartbeat.tick() => {
                    let Some(node) = self.node.upgrade() else {
                        continue;
                    };
                    let (connection, state) = (connection.clone(), Arc::clone(&self.state));
                    tokio::spawn(async move { beat(node, connection, state).await });
                }
            }
        }
    }

    /// Leaves the server alone for a while. What is said meanwhile fails.
    async fn pause(&mut self, pause: Duration) -> End {
        let until = tokio::time::sleep(pause);
        tokio::pin!(until);
        loop {
            tokio::select! {
                () = &mut until => return End::Broken,
                job = self.inbox.recv() => match (job, self.node.upgrade()) {
                    (Some(job), Some(node)) => node.failed(job),
                    _ => return End::Quiet,
                },
            }
        }
    }
}

/// Where the master is that `client` names, as the first of `sentinels` to reply knows it.
async fn find_master(sentinels: &[Client], client: &Client) -> Result<Client, &'static str> {
    let info = client.get_connection_info();
    let name = match info.addr() {
        ConnectionAddr::Tcp(name, _) | ConnectionAddr::TcpTls { host: name, .. } => name,
        _ => return Err("a unix socket has no sentinels"),
    };
    for sentinel in sentinels {
        let ask = async {
            let mut sentinel = sentinel.get_multiplexed_async_connection().await.ok()?;
            let mut command = redis::cmd("SENTINEL");
            let command = command.arg("get-master-addr-by-name").arg(name);
            let found = command.query_async::<Option<(String, u16)>>(&mut sentinel);
            found.await.ok()?
        };
        if let Ok(Some((host, port))) = timeout(CONNECT_WITHIN, ask).await
            && let Some(address) = super::router::at(info.addr(), &host, port)
            && let Ok(client) = Client::open(info.clone().set_addr(address))
        {
            return Ok(client);
        }
    }
    Err("no sentinel knows where it is")
}

/// Sends a batch of jobs and passes the replies on.
async fn exchange(node: Arc<Node>, mut connection: Connection, state: Arc<State>, jobs: Vec<Job>) {
    let start = Instant::now();
    let deadline = start + node.settings().deadline;
    let mut left = jobs;
    let mut tries = 0;
    while !left.is_empty() {
        let mut pipeline = Pipeline::with_capacity(left.len() + 1);
        // In a pipeline the script is there before it is called.
        if tries > 0 {
            let script = &*node.settings().script;
            pipeline.cmd("SCRIPT").arg("LOAD").arg(script);
        }
        let first = pipeline.len();
        for job in &left {
            if job.asking {
                pipeline.cmd("ASKING");
            }
            let key = script::key(&node.settings().name, job.key);
            let Job { action, terms, .. } = job;
            let command = script::command(&connection.account, &key, *action, terms);
            pipeline.add_command(command);
        }
        let answer = connection
            .redis
            .send_packed_commands(&pipeline, 0, pipeline.len());
        let answer = tokio::time::timeout_at(deadline, answer).await;
        let answers = match answer {
            Ok(Ok(answers)) => answers,
            Ok(Err(error)) => {
                node.called(Call::Error, start);
                if error.is_unrecoverable_error() || error.is_connection_dropped() {
                    // Connected anew at once; what was on its way is not said again.
                    state.broken.notify_one();
                }
                state.failure(node.now(), reason(&error));
                return left.into_iter().for_each(|job| node.failed(job));
            }
            Err(_) => {
                node.called(Call::Timeout, start);
                state.failure(node.now(), LATE);
                return left.into_iter().for_each(|job| node.failed(job));
            }
        };
        let mut answers = answers.into_iter().skip(first);
        let mut unknown = Vec::new();
        let mut failure = None;
        for job in left {
            if job.asking {
                answers.next();
            }
            match answers.next() {
                Some(Value::ServerError(error)) => {
                    let error = RedisError::from(error);
                    match error.kind() {
                        redis::ErrorKind::Server(ServerErrorKind::NoScript) if tries == 0 => {
                            unknown.push(job);
                        }
                        redis::ErrorKind::Server(
                            kind @ (ServerErrorKind::Moved | ServerErrorKind::Ask),
                        ) => {
                            let asking = kind == ServerErrorKind::Ask;
                            node.redirect(job, error.redirect_node(), asking, &state.address);
                        }
                        _ => {
                            // What is wrong with one key says nothing about the server.
                            failure = failure.or_else(|| server_failure(&error));
                            node.failed(job);
                        }
                    }
                }
                Some(value) => match Reply::read(&value, job.terms.len()) {
                    Some(reply) => node.answered(job, reply),
                    None => node.failed(job),
                },
                None => node.failed(job),
            }
        }
        match failure {
            Some(why) => {
                node.called(Call::Error, start);
                state.failure(node.now(), why);
            }
            None => {
                node.called(Call::Answered, start);
                state.success(node.now());
            }
        }
        left = unknown;
        tries += 1;
    }
}

/// Says that this node is there, and learns how many there are.
async fn beat(node: Arc<Node>, mut connection: Connection, state: Arc<State>) {
    let within = node.settings().deadline;
    match timeout(within, count_nodes(&node, &connection, &state.address)).await {
        Ok(Ok(())) => state.success(node.now()),
        Ok(Err(why)) => {
            if why == LOST {
                state.broken.notify_one();
            }
            state.failure(node.now(), why);
        }
        Err(_) => state.failure(node.now(), LATE),
    }
    if node.router().wants_map(node.now())
        && let Ok(Some(map)) = timeout(CONNECT_WITHIN, slots(&mut connection.redis)).await
    {
        node.router().learn_map(&map, &state.address, &node);
    }
}

async fn count_nodes(
    node: &Node,
    connection: &Connection,
    address: &ConnectionAddr,
) -> Result<(), &'static str> {
    let Some(key) = node.router().nodes_key(address, &node.settings().name) else {
        // A server of a cluster that holds nothing at the moment has nothing to prove.
        return Ok(());
    };
    let mut redis = connection.redis.clone();
    let mut call = async |command: &str, script: &str| {
        let mut call = redis::cmd(command);
        call.arg(script).arg(1).arg(&key).arg(node.id());
        call.arg(GONE_AFTER.as_millis() as u64);
        call.query_async::<u64>(&mut redis).await
    };
    let mut count = call("EVALSHA", &connection.nodes).await;
    if let Err(error) = &count
        && error.kind() == redis::ErrorKind::Server(ServerErrorKind::NoScript)
    {
        count = call("EVAL", script::NODES).await;
    }
    match count {
        Ok(count) => {
            node.counted(count);
            Ok(())
        }
        Err(error) => Err(reason(&error)),
    }
}

/// Says the last things, without anybody to hear the answers.
async fn farewell(connection: &Connection, name: &str, jobs: &[Job]) {
    let mut pipeline = Pipeline::with_capacity(jobs.len());
    // What would be granted now nobody would use, or give back.
    let takes = |job: &&Job| matches!(job.action, Action::Take { .. });
    for job in jobs.iter().filter(|job| !takes(job)) {
        let Job { action, terms, .. } = job;
        let key = script::key(name, job.key);
        let command = script::command(&connection.account, &key, *action, terms);
        pipeline.add_command(command);
    }
    if pipeline.is_empty() {
        return;
    }
    let mut redis = connection.redis.clone();
    let say = redis.send_packed_commands(&pipeline, 0, pipeline.len());
    // A lease that is not given back is lost, and nothing else.
    let _ = timeout(CONNECT_WITHIN, say).await;
}

/// Which server of a cluster holds which slots.
async fn slots(redis: &mut MultiplexedConnection) -> Option<Vec<SlotRange>> {
    let mut command = redis::cmd("CLUSTER");
    let Value::Array(ranges) = command.arg("SLOTS").query_async(redis).await.ok()? else {
        return None;
    };
    let range = |range: &Value| {
        let Value::Array(fields) = range else {
            return None;
        };
        let [
            Value::Int(first),
            Value::Int(last),
            Value::Array(server),
            ..,
        ] = &fields[..]
        else {
            return None;
        };
        let host = match server.first()? {
            Value::BulkString(host) => String::from_utf8(host.clone()).ok()?,
            Value::SimpleString(host) => host.clone(),
            // The server that was asked does not know its own name.
            Value::Nil => String::new(),
            _ => return None,
        };
        let &Value::Int(port) = server.get(1)? else {
            return None;
        };
        let number = |number: i64| u16::try_from(number).ok();
        Some(SlotRange {
            slots: number(*first)?..=number(*last)?,
            host,
            port: number(port)?,
        })
    };
    ranges.iter().map(range).collect()
}

/// The same for errors that any key would have met.
fn server_failure(error: &RedisError) -> Option<&'static str> {
    let why = reason(error);
    (why != OTHER || matches!(error.code(), Some("MISCONF" | "NOREPLICAS" | "NOAUTH")))
        .then_some(why)
}

/// Why a call failed, for the event that says that Redis is not asked any more.
fn reason(error: &RedisError) -> &'static str {
    use redis::ErrorKind::Server;
    match error.kind() {
        Server(ServerErrorKind::BusyLoading) => "it is loading its data",
        Server(ServerErrorKind::ClusterDown | ServerErrorKind::MasterDown) => "the cluster is down",
        Server(ServerErrorKind::ReadOnly) => "it is a replica",
        Server(ServerErrorKind::NoPerm) => "it does not allow the scripts",
        _ if error.code() == Some("OOM") => "it is out of memory",
        _ if error.is_timeout() => LATE,
        _ if error.is_io_error() || error.is_connection_dropped() => LOST,
        _ => OTHER,
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // Nothing panics while one is held.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Uniform in 0..1; nobody gains anything by guessing it.
pub(crate) fn random() -> f64 {
    use std::hash::BuildHasher;
    let bits = std::hash::RandomState::new().hash_one(());
    (bits >> 11) as f64 / (1u64 << 53) as f64
}

const LATE: &str = "it does not reply in time";
const OTHER: &str = "it replies with errors";
const LOST: &str = "the connection was lost";

/// For the connection and the scripts, each.
const CONNECT_WITHIN: Duration = Duration::from_millis(500);

/// For the first call on a connection.
const FIRST_ANSWER_WITHIN: Duration = Duration::from_millis(20);

/// How often a node says that it is there, and after how long it is taken to be gone.
pub(super) const HEARTBEAT: Duration = Duration::from_secs(1);
pub(super) const GONE_AFTER: Duration = Duration::from_secs(5);

/// How many jobs go into one pipeline at most.
const BATCH: usize = 256;
