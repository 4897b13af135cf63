//! The SQL against the reference in Rust, on a real Postgres.

use std::collections::HashMap;

use private_servers::Postgres;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tokio::sync::Mutex;
use tokio_postgres::{Client, NoTls};

use super::kernel::Count;
use super::pod::Beat;
use super::schema::MIGRATION;
use super::shares::Claim;
use super::store_tests::{MadeUp, Subject, Taken, differs, gives_exact_shares, keeps_the_knee};

async fn connect(server: &Postgres) -> Client {
    let (client, connection) = tokio_postgres::connect(&server.url(), NoTls)
        .await
        .expect("it accepts connections");
    tokio::spawn(connection);
    client
}

/// Time, sessions and room as the test has them.
const FAKES: &str = "
    create table if not exists fake(at timestamptz, boot timestamptz, room int);
    create table if not exists fake_session(tag text, n int);
    create or replace function pool_autotune.clock() returns timestamptz language sql as
      'select at from public.fake';
    create or replace function pool_autotune.boot() returns timestamptz language sql as
      'select boot from public.fake';
    create or replace function pool_autotune.room() returns int language sql as
      'select room from public.fake';
    create or replace function pool_autotune.sessions(out tag text, out n int) returns setof record
      language sql as 'select tag, n from public.fake_session where n > 0';
    insert into fake values ('2020-01-01', '2019-01-01', 20);";

const BEAT: &str = "select set_config('pool_autotune.pod', $1::bigint::text, false), b.*
    from pool_autotune.beat_v1($1, $2, $3, $4, $5, 15000, 2, 5000, true, 'web', 1000, $6, $7, $8,
      null, 2, $9, $10) b";

/// The table of a server with a made-up clock, start, sessions and room.
struct Table<'a> {
    client: &'a Client,
}

impl<'a> Table<'a> {
    async fn new(client: &'a Client, migration: &str) -> Self {
        let drop =
            "drop schema if exists pool_autotune cascade; drop table if exists fake, fake_session";
        client.batch_execute(drop).await.expect("it is dropped");
        client.batch_execute(migration).await.expect("valid SQL");
        client.batch_execute(FAKES).await.expect("valid SQL");
        let installed = "update pool_autotune.installed set at = '-infinity'";
        client.batch_execute(installed).await.expect("updated");
        Self { client }
    }
}

impl Subject for Table<'_> {
    const SETTLES: bool = false;
    const LOOKS: bool = true;
    /// 2020.
    const EPOCH: i64 = 1_577_836_800_000;

    async fn beat(&mut self, made_up: &MadeUp<'_>, id: u64, beat: &Beat, claim: &Claim) -> Taken {
        let MadeUp {
            now, boot, room, ..
        } = made_up;
        let Count::Of(sessions, _) = made_up.count else {
            panic!("the table counts itself");
        };
        let values: Vec<String> = (sessions.iter())
            .map(|(id, n)| format!("('pa1:{id}', {n})"))
            .collect();
        let setup = format!(
            "update fake set at = '2020-01-01Z'::timestamptz + {now} * interval '1 ms',
               boot = '2019-01-01'::timestamptz + {boot} * interval '1 s', room = {room};
             delete from fake_session; insert into fake_session values {};
             select set_config('pool_autotune.pod', '{id}', false)",
            values.join(",")
        );
        self.client.batch_execute(&setup).await.expect("it is set");
        let id = id as i64;
        let number = |n: u32| n as i32;
        let row = self
            .client
            .query_one(
                BEAT,
                &[
                    &id,
                    &(beat.seq as i64),
                    &number(beat.cap),
                    &number(beat.bound),
                    &number(beat.dialing),
                    &number(claim.floor),
                    &number(claim.need),
                    &number(claim.want),
                    &made_up.report,
                    &made_up.knee,
                ],
            )
            .await
            .expect("a beat");
        let lease = "select pod, seq, cap, share from pool_autotune.lease";
        let rows = self.client.query(lease, &[]).await.expect("rows");
        let mine = rows.iter().find(|row| row.get::<_, i64>(0) == id);
        let sum = "select sum_cap from pool_autotune.budget";
        let sum: i32 = self.client.query_one(sum, &[]).await.expect("a row").get(0);
        let unsigned = |n: i32| u32::try_from(n).expect("none is negative");
        Taken {
            grant: unsigned(row.get("o_grant")),
            is_late: row.get("o_late"),
            total: unsigned(row.get("o_total")),
            reserve: unsigned(row.get("o_reserve")),
            share: unsigned(mine.expect("a row").get(3)),
            rows: (rows.iter())
                .map(|row| {
                    let (pod, seq): (i64, i64) = (row.get(0), row.get(1));
                    (pod as u64, seq as u64, unsigned(row.get(2)))
                })
                .collect(),
            sum: unsigned(sum),
            knee: row.get::<_, Option<Vec<i64>>>("o_knee").unwrap_or_default(),
            sums: row.get::<_, Option<Vec<i64>>>("o_sums").unwrap_or_default(),
        }
    }
}

#[tokio::test]
async fn the_sql_does_what_the_reference_does() {
    let server = Postgres::start().await.expect("Postgres starts");
    let client = connect(&server).await;
    for seed in 0..4 {
        let mut table = Table::new(&client, MIGRATION).await;
        let different = differs(&mut table, seed, 300).await;
        assert_eq!(different, None, "seed {seed}");
    }
}

#[tokio::test]
async fn the_sql_keeps_the_knee() {
    let server = Postgres::start().await.expect("Postgres starts");
    let client = connect(&server).await;
    keeps_the_knee(&mut Table::new(&client, MIGRATION).await).await;
}

#[tokio::test]
async fn sql_without_one_of_the_rules_differs_from_the_reference() {
    let mutants = [
        ("m.seq >= sq", "false"),
        ("mycap := greatest(held, o_grant);", "mycap := o_grant;"),
        ("now_ < b.settle_until", "false"),
        ("and pool_autotune.seen(pod) = 0", ""),
        ("least(cap, x.k + dials)", "least(cap, x.k)"),
        ("expires < now_ - dial_for", "expires < now_"),
        (
            "greatest(b.reserve, b.excess) - (b.sum_cap",
            "b.reserve - (b.sum_cap",
        ),
        ("least(p_bound, coalesce(o_seen, 0) + p_dialing)", "p_bound"),
        (
            "least(p_bound, coalesce(o_seen, 0) + p_dialing)",
            "coalesce(o_seen, 0)",
        ),
        ("held := least(held, greatest(old, lim));", ""),
        ("if p_cap = 0 then held := least(held, old); end if;", ""),
        ("p_want, greatest(held, lim))", "p_want)"),
        ("and epoch <> b.epoch", "and false"),
    ];
    let server = Postgres::start().await.expect("Postgres starts");
    let client = connect(&server).await;
    for (rule, without) in mutants {
        assert!(MIGRATION.contains(rule), "there is no {rule}");
        let mutant = MIGRATION.replace(rule, without);
        let mut found = None;
        for seed in 0..8 {
            let mut table = Table::new(&client, &mutant).await;
            found = differs(&mut table, seed, 300).await;
            if found.is_some() {
                break;
            }
        }
        assert!(found.is_some(), "{rule} is not missed");
    }
}

#[tokio::test]
async fn the_shares_of_the_sql_are_those_of_exact_arithmetic() {
    let server = Postgres::start().await.expect("Postgres starts");
    let client = connect(&server).await;
    client.batch_execute(MIGRATION).await.expect("valid SQL");
    gives_exact_shares(async |total, claims| {
        let values: Vec<String> = (claims.iter().enumerate())
            .map(|(pod, c)| {
                format!(
                    "('postgres', {pod}, '', 1, now() + interval '1 h', 1, {}, 0, {}, {}, {}, {}, 1, '5 s')",
                    c.held, c.weight, c.floor, c.need, c.want
                )
            })
            .collect();
        let sql = format!(
            "delete from pool_autotune.lease; insert into pool_autotune.lease values {}",
            values.join(",")
        );
        client.batch_execute(&sql).await.expect("rows");
        let shares = "select share from pool_autotune.shares($1) order by pod";
        let rows = client.query(shares, &[&(total as i32)]).await;
        let rows = rows.expect("shares");
        (rows.iter())
            .map(|row| row.get::<_, i32>(0) as u32)
            .collect()
    })
    .await;
}

/// Rights of simulated processes, by process.
type Rights = Mutex<HashMap<u64, i32>>;

/// Installs a table that grants at once, by a policy that gives all to all: what is safe does not depend on it.
async fn install_generous(server: &Postgres, migration: &str) {
    let client = connect(server).await;
    client
        .batch_execute("drop schema if exists pool_autotune cascade")
        .await
        .expect("it is dropped");
    client.batch_execute(migration).await.expect("valid SQL");
    client
        .batch_execute("update pool_autotune.installed set at = '-infinity'")
        .await
        .expect("updated");
    client
        .batch_execute(
            "create or replace function pool_autotune.shares(b int) returns table(pod bigint, share int)
               language sql stable as 'select pod, want from pool_autotune.lease'",
        )
        .await
        .expect("valid SQL");
}

/// Twenty clients beat at the same time for two processes each. Returns the most that were granted.
async fn most_granted(server: &Postgres, beats: usize) -> i32 {
    // On a slow server, others wait for the lock.
    let slow = MIGRATION.replace("now_ := pool", "perform pg_sleep(0.001);\n  now_ := pool");
    install_generous(server, &slow).await;
    let rights: &Rights = &Mutex::default();
    let most = &Mutex::new(0);
    let clients = futures_util::future::join_all((0..20).map(|_| connect(server))).await;
    let clients = (0..20_u64).zip(clients).map(|(number, client)| async move {
        let mut random = SmallRng::seed_from_u64(number);
        let mut seqs = [0_i64; 2];
        for _ in 0..beats {
            let pod = random.random_range(0..2_usize);
            let id = number * 2 + pod as u64 + 1;
            seqs[pod] += 1;
            // The promise comes first, then the statement.
            let cap = {
                let mut rights = rights.lock().await;
                let cap = rights.entry(id).or_default();
                if random.random_ratio(2, 5) {
                    *cap = random.random_range(0..=*cap);
                }
                *cap
            };
            let want = [0, 1, 3, 10, 30][random.random_range(0..5)];
            client
                .execute(
                    "select set_config('pool_autotune.pod', $1, false)",
                    &[&id.to_string()],
                )
                .await
                .expect("it is set");
            let sql = "select o_grant, o_late from pool_autotune.beat_v1($1, $2, $3, $3, 0, 15000,
                2, 5000, false, 'web', 1000, 1, $4, $4, 81, 0)";
            let row = client
                .query_one(sql, &[&(id as i64), &seqs[pod], &cap, &want])
                .await;
            let row = row.expect("a beat");
            if random.random_ratio(1, 5) {
                // An earlier beat comes late, with less.
                let parameters: [&(dyn tokio_postgres::types::ToSql + Sync); 4] =
                    [&(id as i64), &(seqs[pod] - 1), &0, &0];
                client.query_one(sql, &parameters).await.expect("a beat");
            }
            if random.random_ratio(1, 5) {
                // The reply is lost.
                continue;
            }
            let mut rights = rights.lock().await;
            rights.insert(id, row.get(0));
            let sum: i32 = rights.values().sum();
            let mut most = most.lock().await;
            *most = sum.max(*most);
        }
        client
    });
    // A session that ends leaves more to share, so each stays until all have beaten.
    drop(futures_util::future::join_all(clients).await);
    most.lock().await.to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_clients_at_once_are_never_granted_more_than_the_total() {
    let server = Postgres::start().await.expect("Postgres starts");
    let most = most_granted(&server, 60).await;
    // Of 81, the 21 sessions of this test are of the role, beyond what any row counts.
    assert!((30..=60).contains(&most), "{most}");
}

/// Two processes that each want all: the second beats while the first has beaten and not committed. Returns
/// what both were granted.
async fn granted_to_two(server: &Postgres, migration: &str) -> i32 {
    install_generous(server, migration).await;
    let (first, second) = (connect(server).await, connect(server).await);
    let is = async |client: &Client, pod: i32| {
        let named = format!("select set_config('pool_autotune.pod', '{pod}', false)");
        client.batch_execute(&named).await.expect("it is set");
    };
    let beat = |pod: i32, want: i32| {
        format!(
            "select o_grant from pool_autotune.beat_v1({pod}, 1, 0, 0, 0, 15000, 2, 5000, false, 'web',
                1000, {want}, {want}, {want}, 81, 0)"
        )
    };
    // The row that is locked is there.
    is(&first, 3).await;
    first.query_one(&beat(3, 0), &[]).await.expect("a beat");
    is(&first, 1).await;
    is(&second, 2).await;
    first.batch_execute("begin").await.expect("it begins");
    let one = first.query_one(&beat(1, 60), &[]).await.expect("a beat");
    let other = tokio::spawn(async move { second.query_one(&beat(2, 60), &[]).await });
    let watch = connect(server).await;
    let waits = "select count(*) from pg_stat_activity
        where wait_event_type = 'Lock' and query like '%beat_v1(2,%' and pid <> pg_backend_pid()";
    while watch
        .query_one(waits, &[])
        .await
        .expect("a count")
        .get::<_, i64>(0)
        == 0
    {
        assert!(
            !other.is_finished(),
            "the second did not wait for the lock of the first"
        );
        tokio::task::yield_now().await;
    }
    first.batch_execute("commit").await.expect("it commits");
    let other = other.await.expect("it ends").expect("a beat");
    one.get::<_, i32>(0) + other.get::<_, i32>(0)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_beat_that_waits_for_another_counts_what_that_was_granted() {
    let server = Postgres::start().await.expect("Postgres starts");
    // Of 81, the sessions of this test are of the role, beyond what any row counts.
    let granted = granted_to_two(&server, MIGRATION).await;
    assert!((60..=81).contains(&granted), "{granted}");

    // Read before the lock and not after it, what the other took is not seen.
    let rule = "from pool_autotune.budget where role = current_user for update;";
    assert!(MIGRATION.contains(rule));
    let locks = "perform 1 from pool_autotune.budget where role = current_user for update;";
    let read = rule.replace(" for update", "");
    let mutant = MIGRATION.replace(rule, &format!("{read} {locks}"));
    let granted = granted_to_two(&server, &mutant).await;
    assert!(granted > 81, "{granted}");
}

#[tokio::test]
async fn a_beat_on_a_snapshot_that_does_not_move_is_refused() {
    let server = Postgres::start().await.expect("Postgres starts");
    let client = connect(&server).await;
    client.batch_execute(MIGRATION).await.expect("valid SQL");
    let session = "set default_transaction_isolation = 'repeatable read';
        select set_config('pool_autotune.pod', '1', false)";
    client.batch_execute(session).await.expect("it is set");
    let beat =
        "select pool_autotune.beat_v1(1, 1, 0, 1, 0, 15000, 2, 5000, true, '', 1000, 1, 1, 1,
        null, null)";
    let error = client.query(beat, &[]).await.expect_err("it is refused");
    assert_eq!(error.code().map(|code| code.code()), Some("PA003"));
}

/// The CPU time of a server process in seconds.
fn cpu_seconds(pid: i32) -> f64 {
    /// Ticks of Linux's clock for users.
    const TICKS: f64 = 100.0;
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("Linux");
    let (_, rest) = stat.rsplit_once(')').expect("a name");
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let ticks = |field: usize| fields[field].parse::<f64>().expect("ticks");
    (ticks(11) + ticks(12)) / TICKS
}

/// `cargo test -p pool-autotune --features fleet the_cost_of_a_beat -- --ignored --nocapture`
#[tokio::test]
#[ignore = "a measurement"]
async fn the_cost_of_a_beat() {
    let server = Postgres::start().await.expect("Postgres starts");
    let client = connect(&server).await;
    client.batch_execute(MIGRATION).await.expect("valid SQL");
    client
        .batch_execute(
            "update pool_autotune.installed set at = '-infinity';
             create or replace function pool_autotune.room() returns int language sql as 'select 9000';
             set enable_seqscan = off; set jit = off",
        )
        .await
        .expect("a server that has enough for all");
    let pid: i32 = client
        .query_one("select pg_backend_pid()", &[])
        .await
        .expect("a row")
        .get(0);
    let beat = "select b.o_grant
        from (select set_config('pool_autotune.pod', $1::bigint::text, false)) s,
          lateral pool_autotune.beat_v1($1, $2, $3, $3, 0, 60000, 2, 5000, $4, 'web', 1000, 1, $5, $5,
          5000, 0, '{3000,3000,200000,0,0,0,0,0,0}') b";
    let beat = client.prepare(beat).await.expect("valid SQL");
    for rows in [10_i64, 100, 1000] {
        client
            .batch_execute("delete from pool_autotune.lease; update pool_autotune.budget set swept = '-infinity'")
            .await
            .expect("deleted");
        let mut caps = vec![0_i32; rows as usize];
        let mut seq = 0_i64;
        let round = async |caps: &mut Vec<i32>, seq: &mut i64, asks: bool, need: i32| {
            let before = cpu_seconds(pid);
            let mut beats = 0;
            while beats < 2_000 {
                *seq += 1;
                for pod in 0..rows {
                    let cap = caps[pod as usize];
                    let row = client
                        .query_one(&beat, &[&pod, &*seq, &cap, &asks, &need])
                        .await;
                    caps[pod as usize] = row.expect("a beat").get(0);
                    beats += 1;
                }
            }
            (cpu_seconds(pid) - before) * 1000.0 / f64::from(beats)
        };
        round(&mut caps, &mut seq, false, 4).await;
        // As autovacuum leaves it: plans are made for the rows there are.
        for table in ["lease", "budget"] {
            let vacuum = format!("vacuum analyze pool_autotune.{table}");
            client.batch_execute(&vacuum).await.expect("vacuumed");
        }
        let plain = round(&mut caps, &mut seq, false, 4).await;
        let asking = round(&mut caps, &mut seq, true, 4).await;
        // The beat that looks through all rows, once a second for the fleet; and the statement that makes it so.
        let due = "update pool_autotune.budget set swept = '-infinity'";
        let due = client.prepare(due).await.expect("valid SQL");
        let mut cost = [0.0; 2];
        for (sweeps, cost) in [false, true].into_iter().zip(&mut cost) {
            let before = cpu_seconds(pid);
            for _ in 0..500 {
                client.execute(&due, &[]).await.expect("updated");
                if sweeps {
                    seq += 1;
                    let parameters: [&(dyn tokio_postgres::types::ToSql + Sync); 5] =
                        [&0_i64, &seq, &caps[0], &false, &4];
                    client.query_one(&beat, &parameters).await.expect("a beat");
                }
            }
            *cost = (cpu_seconds(pid) - before) * 2.0;
        }
        let sweep = cost[1] - cost[0];
        let shares = "select count(*) from pool_autotune.shares(90)";
        let before = cpu_seconds(pid);
        for _ in 0..100 {
            client.query_one(shares, &[]).await.expect("a row");
        }
        let refresh = (cpu_seconds(pid) - before) * 10.0;
        println!(
            "{rows} rows: {plain:.3} ms, asking {asking:.3} ms, sweeping {sweep:.2} ms, shares {refresh:.2} ms"
        );
    }
}
