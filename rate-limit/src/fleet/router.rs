//! Which server to ask for which key: the only one, or the one that holds the key's slot.
//!
//! redis-rs has a cluster connection of its own, but it hides what this crate is about: it repeats
//! calls that may have been executed (a charge must not be sent twice), it waits and retries beyond
//! any deadline, and it does not say which server is failing, so that one dead server could not be
//! left alone while the others go on. Finding a slot is the smaller part.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

use arc_swap::ArcSwap;
use redis::{Client, ConnectionAddr};

use super::{
    backend::Settings,
    job::{Reports, SlotRange},
    link::Link,
    server::{HEARTBEAT, at},
};
use crate::sync::lock;

pub(crate) struct Router {
    servers: Vec<Client>,
    cluster: bool,
    routes: ArcSwap<Routes>,
    /// Held while they change.
    changing: Mutex<()>,
    /// Whether a key was not where it should have been.
    stale: AtomicBool,
    /// When the map was last asked for.
    asked_at: AtomicU64,
}

#[derive(Clone, Default)]
struct Routes {
    links: Vec<Arc<Link>>,
    /// The index of the link for each slot; empty when there is only one server.
    slots: Box<[u16]>,
}

impl Router {
    pub(crate) fn new(settings: &Settings) -> Self {
        Self {
            servers: settings.servers.clone(),
            cluster: settings.cluster,
            routes: ArcSwap::default(),
            changing: Mutex::new(()),
            stale: AtomicBool::new(true),
            asked_at: AtomicU64::new(0),
        }
    }

    /// Starts the connections to the servers that were configured.
    pub(crate) fn start(&self, node: &Arc<dyn Reports>) {
        let start = |server: &Client| Arc::new(Link::start(server.clone(), node));
        self.routes.store(Arc::new(Routes {
            links: self.servers.iter().map(start).collect(),
            slots: if self.cluster {
                [0; SLOTS].into()
            } else {
                Box::default()
            },
        }));
    }

    /// The server to ask for a key.
    #[inline]
    pub(crate) fn link(&self, key: u64) -> Option<Arc<Link>> {
        let routes = self.routes.load();
        let index = match routes.slots.get(usize::from(self.slot(key))) {
            Some(&index) => usize::from(index),
            None => 0,
        };
        routes.links.get(index).map(Arc::clone)
    }

    /// How many servers are not asked at the moment.
    pub(crate) fn open(&self) -> usize {
        self.routes
            .load()
            .links
            .iter()
            .filter(|link| link.is_open())
            .count()
    }

    /// Where the nodes are counted on this server: each server of a cluster has a count of its
    /// own, in a slot that it holds; `None` when it holds none.
    pub(crate) fn nodes_key(&self, address: &ConnectionAddr, name: &str) -> Option<String> {
        let routes = self.routes.load();
        if routes.slots.is_empty() {
            return Some(format!("{name}:nodes"));
        }
        let is_here = |tag: &u32| {
            let index = routes.slots[usize::from(crc16(tag.to_string().as_bytes()) % SLOTS as u16)];
            routes
                .links
                .get(usize::from(index))
                .is_some_and(|link| link.address() == address)
        };
        let tag = (0..MOST_TAGS).find(is_here)?;
        Some(format!("{name}:{{{tag}}}:nodes"))
    }

    /// Whether it is time to ask for the slots of the cluster.
    pub(crate) fn wants_map(&self, now: u64) -> bool {
        if !self.cluster {
            return false;
        }
        let asked_at = self.asked_at.load(Ordering::Relaxed);
        let due =
            self.stale.load(Ordering::Relaxed) || now > asked_at + HEARTBEAT.as_nanos() as u64;
        due && self
            .asked_at
            .compare_exchange(asked_at, now, Ordering::Relaxed, Ordering::Relaxed)
            .is_ok()
    }

    /// Learns which server holds which slots, from the reply of `from`.
    pub(crate) fn learn_map(
        &self,
        map: &[SlotRange],
        from: &ConnectionAddr,
        node: &Arc<dyn Reports>,
    ) {
        if map.is_empty() {
            // A server that is not in the cluster yet.
            return;
        }
        let _one_at_a_time = lock(&self.changing);
        let old = self.routes.load_full();
        let mut routes = Routes {
            links: Vec::new(),
            slots: [0; SLOTS].into(),
        };
        for range in map {
            let Some(address) = at(from, &range.host, range.port) else {
                continue;
            };
            let Some(index) = self.find_or_start(&mut routes, &old, &address, node) else {
                continue;
            };
            for slot in range.slots.clone() {
                if let Some(entry) = routes.slots.get_mut(usize::from(slot)) {
                    *entry = index;
                }
            }
        }
        self.stale.store(false, Ordering::Relaxed);
        if !routes.links.is_empty() {
            self.routes.store(Arc::new(routes));
        }
    }

    /// Learns the server that holds a slot, or that has to be asked for now, from one that does not.
    pub(crate) fn learn(
        &self,
        address: &str,
        slot: u16,
        asking: bool,
        from: &ConnectionAddr,
        node: &Arc<dyn Reports>,
    ) -> Option<Arc<Link>> {
        let (host, port) = address.rsplit_once(':')?;
        let address = at(from, host, port.parse().ok()?)?;
        self.stale.store(true, Ordering::Relaxed);
        let _one_at_a_time = lock(&self.changing);
        let old = self.routes.load_full();
        let mut routes = Routes::clone(&old);
        let index = self.find_or_start(&mut routes, &old, &address, node)?;
        let link = routes.links.get(usize::from(index)).map(Arc::clone);
        if !asking && let Some(entry) = routes.slots.get_mut(usize::from(slot)) {
            *entry = index;
        }
        self.routes.store(Arc::new(routes));
        link
    }

    fn find_or_start(
        &self,
        routes: &mut Routes,
        old: &Routes,
        address: &ConnectionAddr,
        node: &Arc<dyn Reports>,
    ) -> Option<u16> {
        let is_it = |link: &&Arc<Link>| link.address() == address;
        let index = match routes
            .links
            .iter()
            .position(|link| link.address() == address)
        {
            Some(index) => index,
            None => {
                let link = match old.links.iter().find(is_it) {
                    Some(link) => Arc::clone(link),
                    None => {
                        // Its settings are those of the servers that were configured.
                        let settings = self.servers.first()?.get_connection_info().clone();
                        let client = Client::open(settings.set_addr(address.clone())).ok()?;
                        Arc::new(Link::start(client, node))
                    }
                };
                routes.links.push(link);
                routes.links.len() - 1
            }
        };
        u16::try_from(index).ok()
    }

    #[inline]
    fn slot(&self, key: u64) -> u16 {
        if self.cluster {
            // The hash tag, see `script::key`.
            crc16(format!("{key:016x}").as_bytes()) % SLOTS as u16
        } else {
            0
        }
    }
}

/// CRC-16/XMODEM, by which Redis Cluster finds the slot of a key.
fn crc16(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0, |crc, &byte| {
        (0..8).fold(crc ^ u16::from(byte) << 8, |crc, _| {
            if crc & 0x8000 == 0 {
                crc << 1
            } else {
                crc << 1 ^ 0x1021
            }
        })
    })
}

/// Slots of a Redis Cluster.
const SLOTS: usize = 16_384;

/// Enough to find one in the slots of each of many servers.
const MOST_TAGS: u32 = 10_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_those_of_the_cluster_specification() {
        assert_eq!(crc16(b"123456789"), 0x31C3);
        // As `CLUSTER KEYSLOT` replies.
        assert_eq!(crc16(b"foo") % SLOTS as u16, 12_182);
    }

    #[test]
    fn a_server_that_does_not_know_its_name_is_the_one_that_was_asked() {
        let asked = ConnectionAddr::Tcp("10.0.0.1".to_owned(), 6379);
        assert_eq!(
            at(&asked, "", 7000),
            Some(ConnectionAddr::Tcp("10.0.0.1".to_owned(), 7000))
        );
        assert_eq!(
            at(&asked, "b", 7000),
            Some(ConnectionAddr::Tcp("b".to_owned(), 7000))
        );
    }
}
