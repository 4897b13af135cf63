//! The connection to one Redis server: made, used, given up and made again by one task.
//!
//! Jobs come in over a channel, goes out as pipelines, and each pipeline has a
//! deadline. Nothing is sent twice, except what the server refused to run: a script it did not
//! know (NOSCRIPT) and a key it does not hold (MOVED, ASK). When the server fails too often the
//! link opens: nothing is sent any more but a probe now and then, on a new connection.

use std::{
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use redis::{AsyncConnectionConfig, Client, ConnectionAddr};
use tokio::{
    sync::{
        Notify,
        mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
    },
    time::{Instant, MissedTickBehavior, interval, timeout},
};

use super::{
    breaker::{Backoff, Breaker},
    exchange::{exchange, farewell},
    failure::{LATE, reason},
    job::{Connection, Job, Reports, State, random},
    script,
    server::{
        CONNECT_WITHIN, HEARTBEAT, count_nodes, evicts, find_master, load, report_alive, slots,
    },
};
use crate::sync::lock;

/// A handle to the task that holds the connection.
#[derive(Debug)]
pub(crate) struct Link {
    jobs: UnboundedSender<Job>,
    state: Arc<State>,
}

impl Link {
    /// Starts the task. It ends when every handle is gone and all jobs have been sent.
    pub(crate) fn start(client: Client, node: &Arc<dyn Reports>) -> Self {
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

    /// Sends a job; it comes back if the task has ended.
    #[expect(
        clippy::result_large_err,
        reason = "it comes back only when the runtime ends"
    )]
    pub(crate) fn send(&self, job: Job) -> Result<(), Job> {
        self.jobs.send(job).map_err(|unsent| unsent.0)
    }

    pub(crate) fn address(&self) -> &ConnectionAddr {
        &self.state.address
    }
}

/// What the task owns.
struct Task {
    client: Client,
    /// Of the limiter.
    name: Arc<str>,
    node: Weak<dyn Reports>,
    inbox: UnboundedReceiver<Job>,
    state: Arc<State>,
}

/// Why `serve` returned.
enum End {
    /// Every handle is gone.
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
                        // Before it is asked for anything.
                        self.send_catch_up(&node, &connection).await;
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

    /// Sends a server what it cannot know: what was admitted without it, and, as it may have lost
    /// its data, what was owed before.
    async fn send_catch_up(&self, node: &Arc<dyn Reports>, connection: &Connection) {
        let mut news = node.catch_up(&self.state.address).into_iter();
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
            return Err("the limiter is gone");
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
        let scripts = async {
            Ok((
                load(&redis, &node.settings().script).await?,
                load(&redis, script::NODES).await?,
            ))
        };
        let (account, nodes) = match timeout(CONNECT_WITHIN, scripts).await {
            Ok(Ok(scripts)) => scripts,
            Ok(Err(error)) => return Err(reason(&error)),
            Err(_) => return Err("it does not reply"),
        };
        if node.wants_map()
            && let Ok(Some(map)) = timeout(CONNECT_WITHIN, slots(&mut redis)).await
        {
            Arc::clone(&node).learn_map(&map, &self.state.address);
        }
        if evicts(&mut redis).await {
            node.evicts();
        }
        let connection = Connection {
            redis,
            account,
            nodes,
        };
        // The first reply on a connection may take longer than those after it.
        let within = deadline.max(FIRST_ANSWER_WITHIN);
        match timeout(
            within,
            count_nodes(&*node, &connection, &self.state.address),
        )
        .await
        {
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
                    tokio::spawn(async move { report_alive(node, connection, state).await });
                }
            }
        }
    }

    /// Asks nothing of the server for a while. Jobs fail meanwhile.
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

/// For the first call on a connection.
const FIRST_ANSWER_WITHIN: Duration = Duration::from_millis(20);

/// How many jobs go into one pipeline at most.
const BATCH: usize = 256;
