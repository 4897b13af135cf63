//! What the connections report to the node, and ask of it.

use std::sync::{Arc, atomic::Ordering};

use redis::ConnectionAddr;
use tokio::time::Instant;

use super::{
    backend::Settings,
    job::{Job, ReplyTo, Reports, SlotRange},
    node::Node,
    script::{Action, Reply},
    server::GONE_AFTER,
};
use crate::{Warning, metrics::Call, sync::lock};

impl Reports for Node {
    fn settings(&self) -> &Settings {
        &self.settings
    }

    fn id(&self) -> &str {
        &self.id
    }

    fn now(&self) -> u64 {
        Self::now(self)
    }

    fn answered(&self, job: Job, reply: Reply) {
        self.take_in(job, reply);
        self.moved.notify_waiters();
    }

    fn failed(&self, job: Job) {
        match job.then {
            ReplyTo::Account(id, ask) => {
                if let Some(account) = self.shard(id).get_mut(&id) {
                    account.failed(&ask);
                }
                self.moved.notify_waiters();
            }
            ReplyTo::Peek(tell) => drop(tell.send(None)),
            ReplyTo::Forget => {}
        }
    }

    fn redirect(
        self: Arc<Self>,
        mut job: Job,
        to: Option<(&str, u16)>,
        asking: bool,
        from: &ConnectionAddr,
    ) {
        let node: Arc<dyn Reports> = Arc::clone(&self) as _;
        let link =
            to.and_then(|(address, slot)| self.router.learn(address, slot, asking, from, &node));
        job.hops += 1;
        job.asking = asking;
        match link {
            Some(link) if job.hops <= MOST_HOPS => {
                if let Err(job) = link.send(job) {
                    self.failed(job);
                }
            }
            _ => self.failed(job),
        }
    }

    fn link_opened(&self, address: &ConnectionAddr, why: &str) {
        self.metrics.open(self.router.open());
        #[cfg(feature = "tracing")]
        tracing::warn!(
            target: "rate_limit",
            server = %address,
            reason = why,
            nodes = self.nodes(),
            "redis unavailable, applying on_outage",
        );
        #[cfg(not(feature = "tracing"))]
        let _ = (address, why);
    }

    fn link_closed(&self, address: &ConnectionAddr, since: Instant) {
        self.metrics.open(self.router.open());
        #[cfg(feature = "tracing")]
        tracing::warn!(
            target: "rate_limit",
            server = %address,
            after = ?since.elapsed(),
            "redis is asked again",
        );
        #[cfg(not(feature = "tracing"))]
        let _ = (address, since);
    }

    fn catch_up(&self, address: &ConnectionAddr) -> Vec<Job> {
        let sizing = self.sizing();
        let now = self.now();
        let mut news = Vec::new();
        for shard in &self.shards {
            for (id, account) in lock(shard).iter_mut() {
                let link = self.router.link(id.key);
                if link.is_none_or(|link| link.address() != address) {
                    continue;
                }
                if let Some(terms) = account.remembers(now) {
                    news.push(self.forget(id.key, Action::Raise, terms));
                }
                if let Some(terms) = account.owes(now, &sizing) {
                    news.push(self.forget(id.key, Action::Owe, terms));
                }
            }
        }
        news
    }

    fn counted(&self, count: u64) {
        let now = self.now();
        // A server that has lost its data counts anew: fewer are believed when all have had time
        // to report.
        let at = self.nodes_at.load(Ordering::Relaxed);
        let patience = GONE_AFTER.as_nanos() as u64;
        if count >= self.nodes.load(Ordering::Relaxed) || now > at + patience {
            self.nodes.store(count, Ordering::Relaxed);
            self.nodes_at.store(now, Ordering::Relaxed);
        }
        self.metrics.nodes(count);
        self.metrics.open(self.router.open());
        self.plans.show_metrics();
        let crowded = self.settings.is_planned && count > self.settings.planned;
        if crowded && !self.crowded.swap(true, Ordering::Relaxed) {
            #[cfg(feature = "tracing")]
            tracing::warn!(
                target: "rate_limit",
                nodes = count,
                planned = self.settings.planned,
                "there are more nodes than `FleetBackend::nodes` says",
            );
        } else if !crowded {
            self.crowded.store(false, Ordering::Relaxed);
        }
    }

    fn called(&self, call: Call, start: Instant) {
        self.metrics.called(call, start.elapsed());
    }

    fn evicts(&self) {
        self.plans.watch().raise(Warning::EvictingRedis);
    }

    fn wants_map(&self) -> bool {
        self.router.wants_map(Self::now(self))
    }

    fn learn_map(self: Arc<Self>, map: &[SlotRange], from: &ConnectionAddr) {
        let node: Arc<dyn Reports> = Arc::clone(&self) as _;
        self.router.learn_map(map, from, &node);
    }

    fn nodes_key(&self, address: &ConnectionAddr) -> Option<String> {
        self.router.nodes_key(address, &self.settings.name)
    }
}

/// A key can move while it is asked for, and move again.
const MOST_HOPS: u8 = 3;
