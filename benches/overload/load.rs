//! The open loop, and what became of its requests.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use rand::{SeedableRng, rngs::SmallRng};
use tokio::{
    runtime::Handle,
    time::{Instant, sleep_until, timeout_at},
};

use crate::{
    backend::{Backend, gap},
    contenders::{Call, Reply},
    scenarios::{OBJECTIVE, Scenario},
};

/// Clients wait no longer.
const PATIENCE: Duration = Duration::from_millis(500);

#[derive(Clone, Debug, Default)]
pub(crate) struct Tally {
    pub(crate) offered: u64,
    pub(crate) good: u64,
    pub(crate) refused: u64,
    pub(crate) given_up: u64,
    /// Requests in which the limiter panicked.
    pub(crate) panicked: u64,
    /// Of the requests that were served, in µs.
    answered: Vec<u32>,
    pub(crate) latest_start: Duration,
}

impl Tally {
    fn add(&mut self, reply: Option<Reply>, took: Duration) {
        match reply {
            Some(Reply::Done) => {
                self.good += u64::from(took <= OBJECTIVE);
                self.answered.push(took.as_micros() as u32);
            }
            Some(Reply::Refused) => self.refused += 1,
            None => self.given_up += 1,
        }
    }

    pub(crate) fn p99(&self) -> Duration {
        let mut answered = self.answered.clone();
        answered.sort_unstable();
        let index = (answered.len() * 99 / 100).min(answered.len().saturating_sub(1));
        answered.get(index).map_or(Duration::ZERO, |&micros| {
            Duration::from_micros(micros.into())
        })
    }

    /// In percent of those offered.
    pub(crate) fn share(&self, count: u64) -> f64 {
        100.0 * count as f64 / self.offered.max(1) as f64
    }
}

pub(crate) async fn run(
    scenario: &Scenario,
    capacity: f64,
    seed: u64,
    backend: &Backend,
    call: Call,
    workers: &Handle,
) -> Tally {
    let tally = Arc::new(Mutex::new(Tally::default()));
    let mut random = SmallRng::seed_from_u64(seed);
    let mut phase_starts = Instant::now() + Duration::from_millis(50);
    let mut latest_start = Duration::ZERO;
    let mut panicked = 0;
    let mut running = tokio::task::JoinSet::new();
    for phase in &scenario.phases {
        sleep_until(phase_starts).await;
        backend.enter(phase);
        let phase_ends = phase_starts + phase.lasts;
        let mut due = phase_starts;
        loop {
            due += Duration::from_secs_f64(gap(&mut random, phase.load * capacity));
            if due >= phase_ends {
                break;
            }
            sleep_until(due).await;
            latest_start = latest_start.max(due.elapsed());
            let tally = phase.counts.then(|| Arc::clone(&tally));
            if let Some(tally) = &tally {
                tally.lock().expect("no panic").offered += 1;
            }
            let call = Arc::clone(&call);
            running.spawn_on(
                async move {
                    let reply = timeout_at(due + PATIENCE, call()).await.ok();
                    if let Some(tally) = tally {
                        tally.lock().expect("no panic").add(reply, due.elapsed());
                    }
                },
                workers,
            );
            while let Some(ended) = running.try_join_next() {
                panicked += u64::from(ended.is_err());
            }
        }
        phase_starts = phase_ends;
    }
    while let Some(ended) = running.join_next().await {
        panicked += u64::from(ended.is_err());
    }
    let mut tally = tally.lock().expect("no panic").clone();
    tally.latest_start = latest_start;
    tally.panicked = panicked;
    tally
}
