//! Services of known capacity.

use std::{
    convert::Infallible,
    hint::black_box,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::Duration,
};

use rand::{Rng, SeedableRng, rngs::SmallRng};
use rand_distr::{Distribution, LogNormal};
use tokio::{sync::Semaphore, time::Instant};
use tower::Service;

use crate::{
    scenarios::{Phase, Scenario},
    sqlite::Sqlite,
};

/// Sleeping workers, and how long they take on average.
const WORKERS: u32 = 8;
const SLEEP: Duration = Duration::from_millis(20);
/// Requests per second that they can do.
pub(crate) const SLEEP_CAPACITY: f64 = 400.0;
/// What a request costs of a core on average.
const CPU: Duration = Duration::from_millis(4);
/// Between two of these a request lets others run.
const SLICE: Duration = Duration::from_micros(250);
/// Coefficient of variation of both.
const VARIATION: f64 = 0.5;

/// Any number of requests may be inside, and share the capacity.
#[derive(Clone, Debug)]
pub(crate) struct Backend {
    shared: Arc<Shared>,
}

/// What a request costs.
#[derive(Clone, Debug)]
pub(crate) enum Work {
    /// One of eight workers that sleep.
    Sleep,
    /// Time of a core.
    Cpu,
    /// A query that costs some milliseconds of a core, on the thread of its connection.
    Sqlite(Sqlite),
}

#[derive(Debug)]
struct Shared {
    work: Work,
    workers: Semaphore,
    /// As the bits of an `f64`.
    capacity: AtomicU64,
    dependency_nanos: AtomicU64,
    times: LogNormal<f64>,
    random: Mutex<SmallRng>,
}

impl Backend {
    pub(crate) fn new(work: Work, scenario: &Scenario, seed: u64) -> Self {
        // Mean 1 and the variation above.
        let sigma = (1.0 + VARIATION * VARIATION).ln().sqrt();
        let times = LogNormal::new(-sigma * sigma / 2.0, sigma).expect("a finite deviation");
        let backend = Self {
            shared: Arc::new(Shared {
                work,
                workers: Semaphore::new(WORKERS as usize),
                capacity: AtomicU64::new(1.0_f64.to_bits()),
                dependency_nanos: AtomicU64::new(0),
                times,
                random: Mutex::new(SmallRng::seed_from_u64(seed ^ 0x5EED)),
            }),
        };
        backend.enter(&scenario.phases[0]);
        backend
    }

    /// Changes to the capacity and the dependency of a phase.
    pub(crate) fn enter(&self, phase: &Phase) {
        let shared = &self.shared;
        shared.capacity.store(phase.capacity.to_bits(), Relaxed);
        let nanos = phase.dependency.as_nanos() as u64;
        shared.dependency_nanos.store(nanos, Relaxed);
    }

    async fn work(self) {
        let shared = &self.shared;
        let dependency = Duration::from_nanos(shared.dependency_nanos.load(Relaxed));
        if !dependency.is_zero() {
            tokio::time::sleep(dependency).await;
        }
        let time = {
            let mut random = shared.random.lock().expect("no panic");
            shared.times.sample(&mut *random)
        };
        let capacity = f64::from_bits(shared.capacity.load(Relaxed));
        let time = time / capacity;
        match &shared.work {
            Work::Cpu => burn(CPU.mul_f64(time)).await,
            Work::Sleep => {
                let _worker = shared.workers.acquire().await.expect("never closed");
                tokio::time::sleep(SLEEP.mul_f64(time)).await;
            }
            Work::Sqlite(sqlite) => sqlite.query().await,
        }
    }
}

/// Uses a core for `cpu` in all, whatever else runs on it.
async fn burn(cpu: Duration) {
    let mut left = cpu;
    while !left.is_zero() {
        let slice = left.min(SLICE);
        let until = Instant::now() + slice;
        let mut spun = 0_u64;
        while Instant::now() < until {
            spun = black_box(spun.wrapping_mul(31).wrapping_add(1));
        }
        left -= slice;
        tokio::task::yield_now().await;
    }
}

impl Service<()> for Backend {
    type Response = ();
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<(), Infallible>> + Send>>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, (): ()) -> Self::Future {
        let backend = self.clone();
        Box::pin(async move {
            backend.work().await;
            Ok(())
        })
    }
}

/// How many requests a second the cores do while a generator runs beside them: the best of three
/// seconds with four requests inside for each core.
pub(crate) fn measure(work: &Work, workers: &tokio::runtime::Runtime) -> f64 {
    let scenario = &crate::scenarios::all()[0];
    let second = |seed| {
        let backend = Backend::new(work.clone(), scenario, seed);
        let until = Instant::now() + Duration::from_secs(1);
        workers.block_on(async {
            let loops: Vec<_> = (0..8)
                .map(|_| {
                    let mut backend = backend.clone();
                    tokio::spawn(async move {
                        let mut done = 0_u32;
                        while Instant::now() < until {
                            let Ok(()) = backend.call(()).await;
                            done += 1;
                        }
                        done
                    })
                })
                .collect();
            let mut done = 0;
            for one in loops {
                done += one.await.expect("no panic");
            }
            f64::from(done)
        })
    };
    (0..3).map(second).fold(0.0, f64::max)
}

/// Waits between Poisson arrivals, in seconds.
pub(crate) fn gap(random: &mut SmallRng, rate: f64) -> f64 {
    -(1.0 - random.random::<f64>()).ln() / rate
}
