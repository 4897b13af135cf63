use std::io;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::process::free_port;
use crate::{Redis, StartError};

/// A private Redis Cluster of masters without replicas, the slots divided evenly.
///
/// Ended (SIGKILL) and removed from disk on drop.
#[derive(Debug)]
pub struct RedisCluster {
    servers: Vec<Redis>,
}

impl RedisCluster {
    /// Starts `masters` servers and waits until each knows that the cluster is whole.
    ///
    /// # Errors
    ///
    /// No Redis 7 on this machine, or a cluster that was not whole within 30 seconds.
    pub async fn start(masters: u16) -> Result<Self, StartError> {
        Self::start_with(masters, |_| Vec::new()).await
    }

    /// As [`start`](Self::start), with these settings more for each server, by its number.
    ///
    /// # Errors
    ///
    /// As [`start`](Self::start).
    pub async fn start_with(
        masters: u16,
        settings: impl Fn(u16) -> Vec<(&'static str, String)>,
    ) -> Result<Self, StartError> {
        let mut servers = Vec::new();
        let mut buses = Vec::new();
        for server in 0..masters {
            let bus = free_port()?.to_string();
            let more = settings(server);
            let mut settings = vec![
                ("cluster-enabled", "yes"),
                ("cluster-config-file", "nodes.conf"),
                ("cluster-node-timeout", "2000"),
                // The slots of a server that is gone are gone, the others are not.
                ("cluster-require-full-coverage", "no"),
                ("cluster-port", &bus),
            ];
            settings.extend(more.iter().map(|(name, value)| (*name, value.as_str())));
            servers.push(Redis::start_with(&settings).await?);
            buses.push(bus);
        }
        let cluster = Self { servers };
        cluster.join(&buses).await.map_err(|error| {
            StartError::io(format!("cannot make a cluster of them: {error}"), error)
        })?;
        Ok(cluster)
    }

    /// The servers.
    #[must_use]
    pub fn servers(&self) -> &[Redis] {
        &self.servers
    }

    /// The servers, to be killed or restarted.
    #[must_use]
    pub fn servers_mut(&mut self) -> &mut [Redis] {
        &mut self.servers
    }

    async fn join(&self, buses: &[String]) -> io::Result<()> {
        let share = SLOTS / self.servers.len();
        for (index, server) in self.servers.iter().enumerate() {
            let first = index * share;
            let last = match index + 1 == self.servers.len() {
                true => SLOTS - 1,
                false => first + share - 1,
            };
            let slots = [
                "CLUSTER",
                "ADDSLOTSRANGE",
                &first.to_string(),
                &last.to_string(),
            ];
            server.ask(&slots).await?;
            let epoch = (index + 1).to_string();
            server.ask(&["CLUSTER", "SET-CONFIG-EPOCH", &epoch]).await?;
        }
        for (server, bus) in self.servers.iter().zip(buses) {
            let meet = [
                "CLUSTER",
                "MEET",
                "127.0.0.1",
                &server.port().to_string(),
                bus,
            ];
            self.servers[0].ask(&meet).await?;
        }
        let end = Instant::now() + WHOLE_WITHIN;
        for server in &self.servers {
            while !self.is_whole(server).await? {
                if Instant::now() > end {
                    return Err(io::Error::other(format!(
                        "not whole within {WHOLE_WITHIN:?}"
                    )));
                }
                sleep(Duration::from_millis(20)).await;
            }
        }
        Ok(())
    }

    async fn is_whole(&self, server: &Redis) -> io::Result<bool> {
        // A server that may serve a part of the slots says `ok` before it has heard of the others'.
        let whole = [
            "cluster_state:ok".to_owned(),
            format!("cluster_known_nodes:{}", self.servers.len()),
            format!("cluster_slots_ok:{SLOTS}"),
        ];
        let info = server.ask(&["CLUSTER", "INFO"]).await?;
        Ok(whole
            .iter()
            .all(|line| info.lines().any(|found| found.trim() == line)))
    }
}

const SLOTS: usize = 16_384;

const WHOLE_WITHIN: Duration = Duration::from_secs(30);
