//! Another tenant of the machine.

use std::{
    hint::black_box,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread::{JoinHandle, available_parallelism, park_timeout},
    time::Duration,
};

use rand::{Rng, SeedableRng, rngs::SmallRng};
use tokio::time::Instant;

/// A thread for each core that burns it and rests in turn, for times from a tenth of a second to
/// ten seconds, until this is dropped.
#[derive(Debug)]
pub(crate) struct Neighbour {
    gone: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Neighbour {
    /// The same seed comes and goes at the same times.
    pub(crate) fn new(seed: u64) -> Self {
        let gone = Arc::new(AtomicBool::new(false));
        let cores = available_parallelism().map_or(1, usize::from) as u64;
        let threads = (0..cores).map(|core| {
            let gone = Arc::clone(&gone);
            let random = SmallRng::seed_from_u64(seed ^ (core << 32));
            std::thread::spawn(move || come_and_go(random, &gone))
        });
        Self {
            threads: threads.collect(),
            gone,
        }
    }
}

impl Drop for Neighbour {
    fn drop(&mut self) {
        self.gone.store(true, Relaxed);
        for thread in self.threads.drain(..) {
            thread.thread().unpark();
            drop(thread.join());
        }
    }
}

fn come_and_go(mut random: SmallRng, gone: &AtomicBool) {
    let mut burns = random.random::<bool>();
    let mut until = Instant::now();
    while !gone.load(Relaxed) {
        // Uniform in the logarithm.
        let lasts = 0.1 * 100_f64.powf(random.random());
        until += Duration::from_secs_f64(lasts);
        let mut spun = 0_u64;
        while Instant::now() < until && !gone.load(Relaxed) {
            if burns {
                for _ in 0..1_000 {
                    spun = black_box(spun.wrapping_mul(31).wrapping_add(1));
                }
            } else {
                park_timeout(until.saturating_duration_since(Instant::now()));
            }
        }
        burns = !burns;
    }
}
