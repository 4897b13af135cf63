//! A few random situations on a real Postgres, each played against a bare pool and the same pool tuned.
//!
//! Many more are played in virtual time, in `situations`. Here the server is real: its dials, its errors and
//! what it does with connections that it ends. Uses sleep in the server and cost no processor, so that what
//! is served does not depend on the machine.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use deadpool_postgres::{Manager, Pool};
use pool_autotune::Autotuned;
use private_servers::Postgres;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_postgres::NoTls;

const PATIENCE: Duration = Duration::from_secs(2);

#[derive(Clone, Debug)]
struct Phase {
    lasts: Duration,
    /// Callers a second.
    rate: f64,
    uses: Duration,
    /// Connections taken at its start, and held to the end of the situation.
    holders: usize,
    /// The connections that the server ends at its start.
    ends: Ends,
}

#[derive(Clone, Copy, Debug)]
enum Ends {
    None,
    One,
    All,
}

fn random(dice: &mut SmallRng, max: usize) -> Vec<Phase> {
    let mut left = max / 2;
    let mut phase = || {
        let uses = Duration::from_millis([2, 20, 100, 300][dice.random_range(0..4)]);
        let load = [0.2, 0.4, 0.8, 1.2][dice.random_range(0..4)] * max as f64;
        let holders = [0, 0, 2, 4][dice.random_range(0..4)].min(left);
        left -= holders;
        Phase {
            lasts: Duration::from_millis(2_500),
            // The client, and not the server, is not to be the bottleneck.
            rate: (load / uses.as_secs_f64()).min(200.0),
            uses,
            holders,
            ends: [Ends::None, Ends::One][dice.random_range(0..2)],
        }
    };
    let (first, second) = (phase(), phase());
    let ends = Ends::All;
    vec![first, Phase { ends, ..second }]
}

#[derive(Clone)]
enum Source {
    Bare(Pool),
    Tuned(Autotuned<Pool>),
}

impl Source {
    /// Whether a caller was served within its patience.
    async fn serves(&self, statement: &str) -> bool {
        match self {
            Self::Bare(pool) => match timeout(PATIENCE, pool.get()).await {
                Ok(Ok(client)) => client.simple_query(statement).await.is_ok(),
                _ => false,
            },
            Self::Tuned(pool) => match timeout(PATIENCE, pool.get()).await {
                Ok(Ok(client)) => match client.simple_query(statement).await {
                    Ok(_) => true,
                    Err(error) => {
                        pool.note_error(&error);
                        false
                    }
                },
                _ => false,
            },
        }
    }
}

/// Returns how many callers were served, and how many there were.
async fn play(postgres: &Postgres, source: Source, seed: u64, phases: &[Phase]) -> (usize, usize) {
    let mut dice = SmallRng::seed_from_u64(seed);
    let (admin, connection) = tokio_postgres::connect(&postgres.url(), NoTls)
        .await
        .expect("a server");
    tokio::spawn(connection);
    let served = Arc::new(AtomicUsize::new(0));
    let (mut callers, mut holders) = (JoinSet::new(), JoinSet::new());
    let (mut at, mut count) = (Instant::now(), 0);
    let end = at + phases.iter().map(|phase| phase.lasts).sum::<Duration>();
    for phase in phases {
        let others = match phase.ends {
            Ends::None => "LIMIT 0",
            Ends::One => "LIMIT 1",
            Ends::All => "",
        };
        let ends = format!(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
             WHERE backend_type = 'client backend' AND pid <> pg_backend_pid() {others}"
        );
        admin.simple_query(&ends).await.expect("a server");
        let held = format!("SELECT pg_sleep({})", (end - at).as_secs_f64());
        for _ in 0..phase.holders {
            let (source, held) = (source.clone(), held.clone());
            holders.spawn(async move { source.serves(&held).await });
        }
        let until = at + phase.lasts;
        let statement = format!("SELECT pg_sleep({})", phase.uses.as_secs_f64());
        loop {
            let gap = -(1.0 - dice.random::<f64>()).ln() / phase.rate;
            if at + Duration::from_secs_f64(gap) >= until {
                break;
            }
            at += Duration::from_secs_f64(gap);
            sleep_until(at).await;
            count += 1;
            let (source, served, statement) =
                (source.clone(), Arc::clone(&served), statement.clone());
            callers.spawn(async move {
                served.fetch_add(usize::from(source.serves(&statement).await), Relaxed);
            });
        }
        at = until;
        sleep_until(at).await;
    }
    while callers.join_next().await.is_some() {}
    while holders.join_next().await.is_some() {}
    (served.load(Relaxed), count)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tuned_pool_serves_on_postgres_what_the_bare_one_serves() {
    const WORST: f64 = 0.98;
    let postgres = Postgres::start().await.expect("a private Postgres");
    let config: tokio_postgres::Config = postgres.url().parse().expect("a valid url");
    for seed in 1..=4 {
        let mut dice = SmallRng::seed_from_u64(seed);
        let max = [4, 10, 20, 40][dice.random_range(0..4)];
        let phases = random(&mut dice, max);
        let pool = || {
            let manager = Manager::new(config.clone(), NoTls);
            let pool = Pool::builder(manager).max_size(max).build();
            pool.expect("no timeouts are set")
        };
        let bare = play(&postgres, Source::Bare(pool()), seed, &phases).await;
        let tuned = Autotuned::new(pool()).expect("a runtime");
        let ours = play(&postgres, Source::Tuned(tuned.clone()), seed, &phases).await;
        println!("seed {seed}, at most {max}: bare {bare:?}, tuned {ours:?}; {phases:?}");
        // How many are in use when the server ends them is chance.
        let slack = 4.0 + max as f64 / 2.0;
        let decisions = tuned.decisions();
        let decisions = decisions.iter().map(|decision| format!("\n{decision}"));
        assert!(
            ours.0 as f64 >= WORST * bare.0 as f64 - slack,
            "seed {seed}: bare {bare:?}, tuned {ours:?} of {phases:?}{}",
            decisions.collect::<String>()
        );
        assert_eq!(tuned.snapshot().pending(), 0, "{}", tuned.report());
    }
}
