//! What does the gate add to a checkout?
//!
//! `cargo bench -p overload-benches --bench checkout`
//!
//! Checkout and return of an idle object that costs nothing to check, on one thread. Rounds of all
//! contenders are interleaved, since a shared machine drifts by more than they differ, and shorter
//! than the slice of a scheduler; medians, and the median of the ratios to bare deadpool in the same
//! round, are reported.

use std::convert::Infallible;
use std::hint::black_box;

use pool_autotune::adapter::bb8::Bb8;
use pool_autotune::{Autotuned, adapter::Adapter};
use tokio::time::Instant;

const CHECKOUTS: u32 = 1_000;
const ROUNDS: usize = 1_001;

struct Nothing;

impl deadpool::managed::Manager for Nothing {
    type Type = u64;
    type Error = Infallible;

    async fn create(&self) -> Result<u64, Infallible> {
        Ok(7)
    }

    async fn recycle(
        &self,
        _: &mut u64,
        _: &deadpool::managed::Metrics,
    ) -> deadpool::managed::RecycleResult<Infallible> {
        Ok(())
    }
}

impl bb8::ManageConnection for Nothing {
    type Connection = u64;
    type Error = Infallible;

    async fn connect(&self) -> Result<u64, Infallible> {
        Ok(7)
    }

    async fn is_valid(&self, _: &mut u64) -> Result<(), Infallible> {
        Ok(())
    }

    fn has_broken(&self, _: &mut u64) -> bool {
        false
    }
}

type Deadpool = deadpool::managed::Pool<Nothing>;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let deadpool = || Deadpool::builder(Nothing).max_size(10).build();
    let bare_deadpool = deadpool()?;
    let bare_bb8 = bb8::Pool::builder().max_size(10).build(Nothing).await?;
    let tuned_deadpool = Autotuned::new(deadpool()?)?;
    let counter_deadpool = Autotuned::builder(deadpool()?).counter_clock().build()?;
    let bb8 = || Bb8::new(bb8::Pool::builder().max_size(10), Nothing);
    let tuned_bb8 = Autotuned::new(bb8())?;
    let counter_bb8 = Autotuned::builder(bb8()).counter_clock().build()?;

    let mut nanos: [Vec<f64>; 6] = Default::default();
    for _ in 0..ROUNDS {
        nanos[0].push(round(async || drop(black_box(bare_deadpool.get().await))).await);
        nanos[1].push(round(async || drop(black_box(bare_bb8.get().await))).await);
        nanos[2].push(tuned(&tuned_deadpool).await);
        nanos[3].push(tuned(&counter_deadpool).await);
        nanos[4].push(tuned(&tuned_bb8).await);
        nanos[5].push(tuned(&counter_bb8).await);
    }
    let names = [
        "deadpool",
        "bb8",
        "pool-autotune over deadpool",
        "the same, counter clock",
        "pool-autotune over bb8",
        "the same, counter clock",
    ];
    for (name, own) in names.iter().zip(&nanos) {
        let ratios = own
            .iter()
            .zip(&nanos[0])
            .map(|(own, bare)| own / bare)
            .collect();
        println!(
            "{name:<28} {:>6.0} ns  ×{:.2}",
            median(own.clone()),
            median(ratios)
        );
    }
    Ok(())
}

async fn tuned<P: Adapter>(pool: &Autotuned<P>) -> f64 {
    round(async || drop(black_box(pool.get().await))).await
}

/// Nanoseconds for one checkout and its return.
async fn round(checkout: impl AsyncFn()) -> f64 {
    let start = Instant::now();
    for _ in 0..CHECKOUTS {
        checkout().await;
    }
    start.elapsed().as_nanos() as f64 / f64::from(CHECKOUTS)
}

fn median(mut numbers: Vec<f64>) -> f64 {
    numbers.sort_by(f64::total_cmp);
    numbers[numbers.len() / 2]
}
