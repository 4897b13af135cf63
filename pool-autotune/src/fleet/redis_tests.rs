//! The script against the reference in Rust, on a real Redis.

use private_servers::Redis;
use redis::aio::MultiplexedConnection;
use redis::{Client, Value};

use super::kernel::Count;
use super::pod::Beat;
use super::redis::SCRIPT;
use super::shares::Claim;
use super::store_tests::{
    DIAL_FOR, DIALS, MadeUp, Subject, TTL, Taken, differs, gives_exact_shares, keeps_the_knee,
};

async fn connect(server: &Redis) -> MultiplexedConnection {
    let client = Client::open(server.url()).expect("a valid url");
    let connection = client.get_multiplexed_async_connection().await;
    connection.expect("it accepts connections")
}

const KEY: &str = "budget";

/// What the hash has: the sum, and each process, the number of its last beat, its cap and its share.
const ROWS: &str = "local all, rows = redis.call('HGETALL', KEYS[1]), {}
    for i = 1, #all, 2 do
      local row = cmsgpack.unpack(all[i + 1])
      if all[i] == 'budget' then rows[#rows + 1] = { 0, 0, row.sum_cap, 0 }
      else rows[#rows + 1] = { tonumber(all[i]), row.seq, row.cap, row.share } end
    end
    return rows";

/// The hash of a server with a clock and an identity that are made up.
struct Hash {
    redis: MultiplexedConnection,
    script: String,
}

impl Hash {
    async fn new(redis: &MultiplexedConnection, script: &str) -> Self {
        let mut redis = redis.clone();
        let flushed = redis::cmd("FLUSHALL").exec_async(&mut redis).await;
        flushed.expect("it is empty");
        let between = |from: &str, to: &str| {
            let start = script.find(from).expect("it is there");
            let end = start + script[start..].find(to).expect("it is there");
            script[start..end].to_owned()
        };
        let clock = between("  local t = redis.call('TIME')", "end\n");
        let boot = between("  return string.match(redis.call('INFO'", "end\n");
        let script = script
            .replace(&clock, "  return tonumber(redis.call('GET', 'fake:now'))\n")
            .replace(&boot, "  return redis.call('GET', 'fake:boot')\n");
        Self { redis, script }
    }

    async fn eval(&mut self, script: &str, arguments: &[String]) -> Value {
        let mut command = redis::cmd("EVAL");
        command.arg(script).arg(1).arg(KEY).arg(arguments);
        let value = command.query_async(&mut self.redis).await;
        value.expect("a valid script")
    }
}

fn numbers(value: &Value) -> Vec<i64> {
    let Value::Array(values) = value else {
        panic!("expected numbers, not {value:?}");
    };
    let number = |value: &Value| match value {
        Value::Int(number) => Some(*number),
        _ => None,
    };
    values.iter().filter_map(number).collect()
}

impl Subject for Hash {
    const SETTLES: bool = true;
    const LOOKS: bool = false;
    const EPOCH: i64 = 1_000_000_000;

    async fn beat(&mut self, made_up: &MadeUp<'_>, id: u64, beat: &Beat, claim: &Claim) -> Taken {
        let mut set = redis::cmd("MSET");
        // No clock of Redis is below zero.
        let time = |at: i64| (at + Self::EPOCH).to_string();
        let now = time(made_up.now);
        set.arg("fake:now")
            .arg(&now)
            .arg("fake:boot")
            .arg(made_up.boot);
        set.exec_async(&mut self.redis).await.expect("it is set");
        let (own, at, on) = match made_up.count {
            Count::Of(_, i64::MIN) => (-1, "0".to_owned(), String::new()),
            Count::Of(_, at) => (-1, time(at), made_up.boot.to_string()),
            Count::Own(own) => (i64::from(own), "-1".to_owned(), String::new()),
            Count::None => (-1, "-1".to_owned(), String::new()),
        };
        let mut arguments: Vec<String> = vec![id.to_string(), beat.seq.to_string()];
        arguments.extend([beat.cap, beat.bound, beat.dialing].map(|n| n.to_string()));
        arguments.extend([TTL, DIALS.into(), DIAL_FOR].map(|n| n.to_string()));
        arguments.push("web".to_owned());
        let claims = [claim.weight, claim.floor, claim.need, claim.want];
        arguments.extend(claims.map(|n| n.to_string()));
        arguments.extend([made_up.room.to_string(), "2".to_owned()]);
        let text = |numbers: &[i64]| {
            let texts: Vec<String> = numbers.iter().map(i64::to_string).collect();
            texts.join(" ")
        };
        arguments.extend([own.to_string(), at, on]);
        arguments.extend([text(made_up.report), text(made_up.knee)]);
        if let Count::Of(sessions, _) = made_up.count {
            for (id, n) in sessions {
                arguments.extend([format!("pa1:{id}"), n.to_string()]);
            }
        }
        let script = self.script.clone();
        let replied = self.eval(&script, &arguments).await;
        let reply = numbers(&replied);
        let Value::Array(parts) = &replied else {
            panic!("expected a reply");
        };
        let Value::Array(rows) = self.eval(ROWS, &[]).await else {
            panic!("expected rows");
        };
        let mut rows: Vec<Vec<i64>> = rows.iter().map(numbers).collect();
        let sum = rows.iter().position(|row| row[0] == 0).expect("a budget");
        let sum = rows.swap_remove(sum)[2];
        let mine = rows.iter().find(|row| row[0] == id as i64);
        let unsigned = |n: i64| u32::try_from(n).expect("none is negative");
        Taken {
            grant: unsigned(reply[0]),
            is_late: reply[2] == 1,
            total: unsigned(reply[4]),
            reserve: unsigned(reply[5]),
            share: unsigned(mine.expect("a row")[3]),
            rows: (rows.iter())
                .map(|row| (row[0] as u64, row[1] as u64, unsigned(row[2])))
                .collect(),
            sum: unsigned(sum),
            knee: numbers(&parts[11]),
            sums: numbers(&parts[12]),
        }
    }
}

#[tokio::test]
async fn the_script_does_what_the_reference_does() {
    let server = Redis::start().await.expect("Redis starts");
    let redis = connect(&server).await;
    for seed in 0..8 {
        let mut hash = Hash::new(&redis, SCRIPT).await;
        let different = differs(&mut hash, seed, 400).await;
        assert_eq!(different, None, "seed {seed}");
    }
}

#[tokio::test]
async fn the_script_keeps_the_knee() {
    let server = Redis::start().await.expect("Redis starts");
    let redis = connect(&server).await;
    keeps_the_knee(&mut Hash::new(&redis, SCRIPT).await).await;
}

#[tokio::test]
async fn a_script_without_one_of_the_rules_differs_from_the_reference() {
    let mutants = [
        ("m.seq >= seq", "false"),
        ("m.cap = math.max(held, grant)", "m.cap = grant"),
        ("now < b.settle_until", "false"),
        (
            "n == 0 and row.expires < counted_at",
            "row.expires < counted_at",
        ),
        ("math.min(row.cap, n + row.dials)", "math.min(row.cap, n)"),
        (
            "row.expires < counted_at - row.dial_for",
            "row.expires < counted_at",
        ),
        (
            "sees and row.expires < counted_at then",
            "sees and row.expires < now then",
        ),
        (
            "sees and row.expires < counted_at then",
            "sessions and row.expires < now then",
        ),
        (
            "math.max(b.reserve, b.excess) - (b.sum_cap",
            "b.reserve - (b.sum_cap",
        ),
        ("math.min(bound, seen + dialing)", "bound"),
        ("math.min(bound, seen + dialing)", "seen"),
        ("seen < 0 and math.max(p_cap, bound) or", ""),
        ("held = math.min(held, math.max(old, free))", ""),
        ("if p_cap == 0 then held = math.min(held, old) end", ""),
        ("want, math.max(held, free)))", "want))"),
        ("if row.epoch ~= b.epoch then", "if false then"),
        (
            "row.expires < now - row.dial_for - b.ttl",
            "row.expires < now",
        ),
    ];
    let server = Redis::start().await.expect("Redis starts");
    let redis = connect(&server).await;
    for (rule, without) in mutants {
        assert!(SCRIPT.contains(rule), "there is no {rule}");
        let mutant = SCRIPT.replace(rule, without);
        let mut found = None;
        for seed in 0..24 {
            let mut hash = Hash::new(&redis, &mutant).await;
            found = differs(&mut hash, seed, 400).await;
            if found.is_some() {
                break;
            }
        }
        assert!(found.is_some(), "{rule} is not missed as {without}");
    }
}

#[tokio::test]
async fn the_shares_of_the_script_are_those_of_exact_arithmetic() {
    let server = Redis::start().await.expect("Redis starts");
    let redis = connect(&server).await;
    let start = SCRIPT.find("local function divide").expect("it divides");
    let end = SCRIPT
        .find("\nif sweeps then\n  rows[me]")
        .expect("it sweeps");
    let script = format!(
        "{}
        local live, shares = {{}}, {{}}
        for i = 2, #ARGV, 5 do
          live[string.format('%03d', i)] = {{ weight = tonumber(ARGV[i]), floor = tonumber(ARGV[i + 1]),
            need = tonumber(ARGV[i + 2]), want = tonumber(ARGV[i + 3]), cap = tonumber(ARGV[i + 4]) }}
        end
        local parts = divide(tonumber(ARGV[1]), live)
        table.sort(parts, function(x, y) return x.pod < y.pod end)
        for i, part in ipairs(parts) do shares[i] = part.share end
        return shares",
        &SCRIPT[start..end]
    );
    let mut hash = Hash::new(&redis, SCRIPT).await;
    gives_exact_shares(async |total, claims| {
        let mut arguments = vec![total.to_string()];
        for c in claims {
            let numbers = [c.weight, c.floor, c.need, c.want, c.held];
            arguments.extend(numbers.map(|n| n.to_string()));
        }
        let shares = numbers(&hash.eval(&script, &arguments).await);
        shares.into_iter().map(|share| share as u32).collect()
    })
    .await;
}
