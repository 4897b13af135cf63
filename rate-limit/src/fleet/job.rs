//! What the tasks that talk to servers share with each other and with the node.

use std::{
    ops::RangeInclusive,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use redis::{ConnectionAddr, aio::MultiplexedConnection};
use tokio::{
    sync::{Notify, oneshot},
    time::Instant,
};

use super::{
    account::{AccountId, Ask},
    backend::Settings,
    breaker::Breaker,
    script::{Action, Reply, Term},
};
use crate::{metrics::Call, sync::lock};

/// A command about one account.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) key: u64,
    pub(crate) action: Action,
    pub(crate) terms: Box<[Term]>,
    pub(crate) then: ReplyTo,
    /// How often it was sent on to another server.
    pub(crate) hops: u8,
    /// Whether `ASKING` has to precede it.
    pub(crate) asking: bool,
}

/// Where the reply goes.
#[derive(Debug)]
pub(crate) enum ReplyTo {
    /// The account that asked.
    Account(AccountId, Ask),
    /// To the caller of `peek`.
    Peek(oneshot::Sender<Option<Reply>>),
    /// Nowhere.
    Forget,
}

/// What a link reports to and takes orders from: the node.
pub(super) trait Reports: Send + Sync + 'static {
    fn settings(&self) -> &Settings;

    /// The name of the node among the nodes.
    fn id(&self) -> &str;

    /// Nanoseconds since the node was started.
    fn now(&self) -> u64;

    /// Handles the reply to a job.
    fn answered(&self, job: Job, reply: Reply);

    /// Handles a job that gets no reply.
    fn failed(&self, job: Job);

    /// Sends a job on to the server that is said to hold the key.
    fn redirect(
        self: Arc<Self>,
        job: Job,
        to: Option<(&str, u16)>,
        asking: bool,
        from: &ConnectionAddr,
    );

    /// The jobs that bring a server that was away up to date.
    fn catch_up(&self, address: &ConnectionAddr) -> Vec<Job>;

    /// A server does not reply and is no longer asked.
    fn link_opened(&self, address: &ConnectionAddr, why: &str);

    /// A server is asked again.
    fn link_closed(&self, address: &ConnectionAddr, since: Instant);

    /// The server evicts keys that are still in debt when its memory is full.
    fn evicts(&self);

    /// Handles a count of the nodes.
    fn counted(&self, count: u64);

    fn called(&self, call: Call, start: Instant);

    /// Whether it is time to ask for the slots of the cluster.
    fn wants_map(&self) -> bool;

    fn learn_map(self: Arc<Self>, map: &[SlotRange], from: &ConnectionAddr);

    /// Where the nodes are counted on this server; `None` if it holds no slot.
    fn nodes_key(&self, address: &ConnectionAddr) -> Option<String>;
}

/// A server of a cluster, and what it holds.
#[derive(Clone, Debug)]
pub(crate) struct SlotRange {
    pub(crate) slots: RangeInclusive<u16>,
    /// Empty for the server that was asked.
    pub(crate) host: String,
    pub(crate) port: u16,
}

/// What the task and its users share.
#[derive(Debug)]
pub(super) struct State {
    pub(super) address: ConnectionAddr,
    pub(super) open: AtomicBool,
    pub(super) breaker: Mutex<Breaker>,
    /// Notified when the connection is of no more use.
    pub(super) broken: Notify,
    pub(super) why: Mutex<&'static str>,
}

impl State {
    pub(super) fn success(&self, now: u64) {
        lock(&self.breaker).success(now);
    }

    pub(super) fn failure(&self, now: u64, why: &'static str) {
        if lock(&self.breaker).failure(now) {
            self.give_up(why);
        }
    }

    pub(super) fn give_up(&self, why: &'static str) {
        if !self.open.swap(true, Ordering::AcqRel) {
            *lock(&self.why) = why;
        }
        self.broken.notify_one();
    }
}

/// A connection on which the scripts are known.
#[derive(Clone)]
pub(super) struct Connection {
    pub(super) redis: MultiplexedConnection,
    pub(super) account: Arc<str>,
    pub(super) nodes: Arc<str>,
}

/// Uniform in 0..1; there is nothing to gain by guessing it.
pub(crate) fn random() -> f64 {
    use std::hash::BuildHasher;
    let bits = std::hash::RandomState::new().hash_one(());
    (bits >> 11) as f64 / (1u64 << 53) as f64
}
