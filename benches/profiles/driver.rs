//! Plays a profile: each way, level by level, on real servers.

use std::error::Error;
use std::net::SocketAddr;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use indicatif::ProgressBar;
use serde::Serialize;
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep, sleep_until};

use crate::fleet::{Fleet, Watcher};
use crate::judge::{Verdict, judge};
use crate::load::{Load, Running};
use crate::measure::{Measured, Second, difference, fill, summarise};
use crate::pod::stats::Counted;
use crate::pod::{SUPERUSERS, Spec, Way};
use crate::profile::{Level, Profile};
use crate::servers::Servers;
use crate::sockets::Sockets;
use crate::target::Kind;

/// One way through a profile.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Run {
    pub(crate) way: &'static str,
    pub(crate) levels: Vec<Measured>,
    pub(crate) verdicts: Vec<Verdict>,
    pub(crate) capacity: Option<Capacity>,
    /// How a pod explained itself at the end of each level; not part of the JSON.
    #[serde(skip)]
    pub(crate) explained: Vec<(String, String)>,
}

/// A static limit, and what was served within the objective.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Swept {
    pub(crate) concurrency: usize,
    pub(crate) seen: Measured,
}

/// What a search found, in requests a second of the run.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Capacity {
    pub(crate) comfortable_per_s: Option<f64>,
    pub(crate) broken_per_s: Option<f64>,
    pub(crate) steps: Vec<Measured>,
}

/// Everything about a profile.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Played {
    pub(crate) profile: Profile,
    pub(crate) quick: bool,
    pub(crate) sweep: Vec<Swept>,
    /// The best goodput of any static numbers.
    pub(crate) saturated_per_s: Option<f64>,
    pub(crate) runs: Vec<Run>,
    pub(crate) load_average: f64,
}

/// On a new server, a budget gives no rights for one lease.
const LEASE: Duration = Duration::from_secs(16);

/// How long the cache is filled before the best static numbers are looked for, in seconds.
const WARM: f64 = 6.0;

pub(crate) struct Driver<'a> {
    pub(crate) profile: &'a Profile,
    pub(crate) quick: bool,
    pub(crate) bar: ProgressBar,
}

/// What a level needs beside its load.
struct Stage<'a> {
    servers: &'a Servers,
    fleet: Fleet,
    sockets: Sockets,
}

impl<'a> Stage<'a> {
    fn new(servers: &'a Servers) -> Self {
        let fleet = Fleet::new();
        Self {
            servers,
            sockets: Sockets::new(std::sync::Arc::clone(&fleet.balancer)),
            fleet,
        }
    }

    async fn close(self) -> Result<(), Box<dyn Error>> {
        drop(self.sockets);
        self.fleet.close().await?;
        // The next way begins when the server has no clients.
        let end = Instant::now() + Duration::from_secs(5);
        loop {
            self.servers.counts.take();
            sleep(Duration::from_millis(250)).await;
            if self.servers.counts.take() == 0 || Instant::now() > end {
                return Ok(());
            }
        }
    }
}

impl Driver<'_> {
    fn seconds(&self, seconds: f64) -> f64 {
        match self.quick {
            true => (seconds / 4.0).clamp(5.0, 8.0),
            false => seconds,
        }
    }

    /// About how long it takes, in seconds.
    pub(crate) fn length(&self) -> u64 {
        let levels: f64 = self
            .profile
            .levels
            .iter()
            .map(|l| self.seconds(l.seconds))
            .sum();
        let sweep = self.profile.sweep.as_ref().map_or(0.0, |sweep| {
            self.seconds(sweep.seconds) * self.limits(&sweep.concurrency).len() as f64
        });
        let search = self.profile.search.map_or(0.0, |search| {
            2.0 * self.seconds(search.seconds) * self.steps(search.steps) as f64
        });
        (2.0 * levels + sweep + search) as u64
    }

    fn limits<'b>(&self, all: &'b [usize]) -> &'b [usize] {
        &all[..all.len().min(if self.quick { 2 } else { usize::MAX })]
    }

    fn steps(&self, steps: usize) -> usize {
        steps.min(if self.quick { 3 } else { usize::MAX })
    }

    pub(crate) async fn play(&self) -> Result<Played, Box<dyn Error>> {
        let load_average = load_average();
        self.bar.set_message("servers");
        let mut servers = Servers::start(self.profile).await?;
        let sweep = self.sweep(&servers).await?;
        let saturated = sweep.iter().map(|swept| swept.seen.good_per_s);
        let saturated = saturated.reduce(f64::max);
        let mut runs = Vec::new();
        for way in [Way::Static, Way::Ours] {
            if way == Way::Ours {
                servers.end_bouncer();
                sleep_until(servers.installed + LEASE).await;
            }
            runs.push(self.run(&servers, way).await?);
        }
        // Of the same mix: only levels beyond the plan are compared with it.
        let is_beyond = |seen: &&Measured| {
            let level = self.profile.level(&seen.level);
            level.is_some_and(|level| level.kind == Kind::Beyond)
        };
        let best = runs[0]
            .levels
            .iter()
            .filter(is_beyond)
            .map(|seen| seen.good_per_s);
        let saturated = saturated.map(|saturated| best.fold(saturated, f64::max));
        for run in &mut runs {
            for seen in &mut run.levels {
                if is_beyond(&&*seen) {
                    seen.goodput_pct = saturated.map(|most| 100.0 * seen.good_per_s / most);
                }
            }
            run.verdicts = judge(self.profile, run.way, &run.levels);
            if self.quick {
                // What takes a minute to see is not seen here.
                run.verdicts.retain(|verdict| verdict.measured.is_some());
            }
        }
        Ok(Played {
            profile: self.profile.clone(),
            quick: self.quick,
            sweep,
            saturated_per_s: saturated,
            runs,
            load_average,
        })
    }

    async fn sweep(&self, servers: &Servers) -> Result<Vec<Swept>, Box<dyn Error>> {
        let mut swept = Vec::new();
        let Some(sweep) = &self.profile.sweep else {
            return Ok(swept);
        };
        let level = self.profile.level(&sweep.level).ok_or("no such level")?;
        if let Some(first) = self.profile.levels.first() {
            // With an empty cache, what is measured first would be its misses.
            let mut stage = Stage::new(servers);
            let load = Load::of(self.profile, first, WARM);
            self.level(&mut stage, Way::Swept(10_000), first, load)
                .await?;
            stage.close().await?;
        }
        for &concurrency in self.limits(&sweep.concurrency) {
            let mut stage = Stage::new(servers);
            let load = Load::of(self.profile, level, self.seconds(sweep.seconds));
            let (seen, _) = self
                .level(&mut stage, Way::Swept(concurrency), level, load)
                .await?;
            stage.close().await?;
            swept.push(Swept { concurrency, seen });
        }
        Ok(swept)
    }

    async fn run(&self, servers: &Servers, way: Way) -> Result<Run, Box<dyn Error>> {
        servers.clear().await?;
        if let Some(api) = &servers.api {
            api.seen.restart();
        }
        let mut stage = Stage::new(servers);
        let (mut levels, mut explained) = (Vec::new(), Vec::new());
        let mut before: Option<&Level> = None;
        for level in &self.profile.levels {
            // Documented numbers that differ are another configuration, and so other pods.
            let same = before.is_none_or(|old| (old.pods, old.pool) == (level.pods, level.pool));
            if way == Way::Static && !same {
                stage.close().await?;
                stage = Stage::new(servers);
            }
            let load = Load::of(self.profile, level, self.seconds(level.seconds));
            let (seen, text) = self.level(&mut stage, way, level, load).await?;
            levels.push(seen);
            explained.push((level.name.clone(), text));
            before = Some(level);
        }
        stage.close().await?;
        let capacity = self.search(servers, way, &mut explained).await?;
        Ok(Run {
            way: name(way),
            levels,
            verdicts: Vec::new(),
            capacity,
            explained,
        })
    }

    /// Raises the load step by step until it is out of the band that is broken.
    async fn search(
        &self,
        servers: &Servers,
        way: Way,
        explained: &mut Vec<(String, String)>,
    ) -> Result<Option<Capacity>, Box<dyn Error>> {
        let Some(search) = self.profile.search else {
            return Ok(None);
        };
        let most = self.profile.levels.iter().max_by_key(|level| level.pods);
        let level = most.ok_or("no level")?;
        let scale = &self.profile.scale;
        let mut stage = Stage::new(servers);
        let mut capacity = Capacity::default();
        let mut is_comfortable = true;
        let mut rate = scale.rate(search.from);
        for _ in 0..self.steps(search.steps) {
            let load = Load::of(self.profile, level, self.seconds(search.seconds)).at(rate);
            let plain = Level {
                name: format!("{rate:.0}/s"),
                deploys: false,
                sockets: 0,
                ..level.clone()
            };
            let (seen, text) = self.level(&mut stage, way, &plain, load).await?;
            explained.push((plain.name.replace('/', "-per-"), text));
            let within = |p95: f64, errors: f64| {
                seen.p95_ms.is_some_and(|ms| ms <= scale.ms(p95))
                    && seen.error_pct.is_some_and(|pct| pct <= errors)
            };
            is_comfortable &= within(search.comfortable_p95_ms, search.comfortable_error_pct);
            let is_broken = !within(search.broken_p95_ms, search.broken_error_pct);
            if is_comfortable {
                capacity.comfortable_per_s = Some(rate);
            }
            capacity.steps.push(seen);
            if is_broken {
                capacity.broken_per_s = Some(rate);
                break;
            }
            rate *= search.factor;
        }
        stage.close().await?;
        Ok(Some(capacity))
    }

    fn spec(&self, servers: &Servers, way: Way, level: &Level) -> Spec {
        let scale = &self.profile.scale;
        let all = match way {
            // All that there is, without those of superusers.
            Way::Swept(_) => {
                scale.count(self.profile.servers.max_connections) - scale.count(SUPERUSERS)
            }
            Way::Static | Way::Ours => scale.count(level.pool),
        };
        Spec {
            profile: self.profile.clone(),
            way,
            index: 0,
            pods: level.pods,
            most_pods: self.profile.most_pods(),
            pool: (all / level.pods).max(1),
            primary: servers.primary(way),
            replicas: servers.replicas(),
            redis: servers.redis(),
            api: servers.api.as_ref().map(|api| api.url.clone()),
        }
    }

    async fn level(
        &self,
        stage: &mut Stage<'_>,
        way: Way,
        level: &Level,
        load: Load,
    ) -> Result<(Measured, String), Box<dyn Error>> {
        let (profile, scale) = (self.profile, &self.profile.scale);
        self.bar
            .set_message(format!("{}: {}, {}", profile.name, name(way), level.name));
        let seconds = load.seconds();
        let servers = stage.servers;
        let spec = self.spec(servers, way, level);
        let (fleet, sockets) = (&mut stage.fleet, &mut stage.sockets);
        fleet.scale(&spec).await?;
        if !matches!(way, Way::Swept(_)) {
            sockets.grow(level.sockets).await;
        }
        let watcher = fleet.watcher();
        let first = watcher.counted().await;
        servers.counts.take();
        let seed = level.name.bytes().map(u64::from).sum();
        let running = Running::start(load, fleet.balancer.clone(), seed)?;
        let mut sampler = Sampler {
            watcher: watcher.clone(),
            servers,
            sockets,
            limit: scale.count(profile.servers.max_connections),
            // Pods that are replaced meanwhile cannot be compared.
            pids: if level.deploys {
                Vec::new()
            } else {
                fleet.pids()
            },
            last: first.clone(),
            seconds: Vec::new(),
        };
        let deploy = async {
            if level.deploys {
                sleep(Duration::from_secs_f64(seconds / 4.0)).await;
                fleet.deploy(&spec).await?;
            }
            Ok::<_, Box<dyn Error>>(())
        };
        let sample = async {
            sampler.run(seconds, &self.bar).await;
            Ok(())
        };
        tokio::select! {
            done = async { tokio::try_join!(deploy, sample) } => { done?; }
            () = watcher.probe() => {}
        }
        let mut seen_seconds = std::mem::take(&mut sampler.seconds);
        let last = watcher.counted().await;
        let text = watcher.explain().await;
        let records = running.finish().await;
        let objective = scale.ms(profile.objective_ms);
        fill(&mut seen_seconds, &records, objective);
        let mut seen = summarise(&level.name, &records, seconds, objective);
        seen.add(&difference(&first, &last), seen_seconds);
        seen.probes_failed = watcher.probes_failed.load(Relaxed);
        if let Some(api) = &servers.api {
            let calls = api.seen.calls();
            let minutes = calls.elapsed.as_secs_f64() / 60.0;
            seen.outbound_refused = (minutes > 1.0).then_some(calls.refused_late);
            seen.outbound_per_minute = (minutes > 1.0).then_some(calls.served as f64 / minutes);
        }
        Ok((seen, text))
    }
}

/// Samples once a second while a level lasts.
struct Sampler<'a> {
    watcher: Watcher,
    servers: &'a Servers,
    sockets: &'a Sockets,
    limit: usize,
    pids: Vec<u32>,
    last: Vec<(SocketAddr, Counted)>,
    seconds: Vec<Second>,
}

impl Sampler<'_> {
    async fn run(&mut self, lasts: f64, bar: &ProgressBar) {
        let every = Duration::from_secs(1);
        let mut tick = interval_at(Instant::now() + every, every);
        tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let end = Instant::now() + Duration::from_secs_f64(lasts + 0.1);
        loop {
            tokio::select! {
                _ = tick.tick() => {}
                () = sleep_until(end) => return,
            }
            let counted = self.watcher.counted().await;
            let seen = difference(&self.last, &counted);
            self.last = counted;
            let connections = self.servers.counts.take();
            let reads = seen.hits + seen.misses;
            self.seconds.push(Second {
                connections,
                connections_pct: 100.0 * connections as f64 / self.limit as f64,
                pool_in_use: seen.pool[1],
                pool_waiting: seen.pool[2],
                limit: seen.limit,
                inflight: seen.inflight,
                hit_pct: (reads > 0).then(|| 100.0 * seen.hits as f64 / reads as f64),
                sockets: self.sockets.open(),
                memory_mib: self.pids.iter().map(|&pid| memory_mib(pid)).sum(),
                ..Second::default()
            });
            bar.inc(1);
        }
    }
}

pub(crate) fn name(way: Way) -> &'static str {
    match way {
        Way::Static => "static",
        Way::Ours => "ours",
        Way::Swept(_) => "sweep",
    }
}

/// Resident memory of a process.
fn memory_mib(pid: u32) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok());
    kib.unwrap_or(0.0) / 1024.0
}

/// Processes that ran or wanted to in the last minute, where the system has that number.
fn load_average() -> f64 {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let first = text.split_whitespace().next();
    first.and_then(|first| first.parse().ok()).unwrap_or(0.0)
}
