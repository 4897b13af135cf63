//! Several processes, one key: what they admit against what the quota allows.

use std::process::{Command, Stdio};

use private_servers::Redis;

use crate::{
    Error,
    node::{BIN, Scheme, Seen, soon},
};

/// One run.
struct Run {
    scheme: Scheme,
    nodes: u32,
    quota: u64,
    burst: u64,
    offered: u64,
    seconds: u64,
}

const SCHEMES: [Scheme; 4] = [
    Scheme::Exact,
    Scheme::Lease,
    Scheme::PostPaid(50),
    Scheme::PostPaid(1_000),
];

pub(crate) fn run(seconds: u64) -> Result<(), Error> {
    let (quota, burst) = (1_000, 500);
    for (load, offered) in [("5x", 5_000), ("0.8x", 800)] {
        println!("\n{load}: {offered} a second on a quota of {quota} a second, burst {burst}");
        headline();
        for nodes in [1, 4, 10] {
            for scheme in SCHEMES {
                let run = Run {
                    scheme,
                    nodes,
                    quota,
                    burst,
                    offered,
                    seconds,
                };
                run.print(&run.run()?);
            }
        }
    }
    Ok(())
}

pub(crate) fn reach(seconds: u64) -> Result<(), Error> {
    let (quota, burst, offered) = (10_000, 2_000, 50_000);
    println!("\n{offered} a second on a quota of {quota} a second, burst {burst}");
    headline();
    for scheme in [Scheme::Exact, Scheme::Lease] {
        for _ in 0..3 {
            let run = Run {
                scheme,
                nodes: 4,
                quota,
                burst,
                offered,
                seconds,
            };
            run.print(&run.run()?);
        }
    }
    Ok(())
}

fn headline() {
    println!(
        "{:>14} {:>2} {:>8} {:>9} {:>8} {:>8} {:>8} {:>8} {:>9} {:>9} {:>9}",
        "scheme",
        "M",
        "offered",
        "admitted",
        "over all",
        "0.1 s",
        "1 s",
        "10 s",
        "calls/req",
        "P50 us",
        "P99 us"
    );
}

impl Run {
    fn run(&self) -> Result<Seen, Error> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let redis = runtime.block_on(Redis::start())?;
        let program = std::env::current_exe()?;
        let start = soon();
        let mut children = Vec::new();
        for _ in 0..self.nodes {
            let mut command = Command::new(&program);
            let mut option = |name: &str, value: String| {
                command.arg(format!("--{name}={value}"));
            };
            option("redis", redis.url());
            option("scheme", self.scheme.to_string());
            option("quota", self.quota.to_string());
            option("burst", self.burst.to_string());
            option("nodes", self.nodes.to_string());
            option(
                "offered",
                (self.offered / u64::from(self.nodes)).to_string(),
            );
            option("seconds", self.seconds.to_string());
            option("start", start.to_string());
            let arguments: Vec<_> = command.get_args().map(ToOwned::to_owned).collect();
            let mut command = Command::new(&program);
            command
                .arg("node")
                .args(arguments)
                .stdin(Stdio::null())
                .stdout(Stdio::piped());
            children.push(command.spawn()?);
        }
        let mut all = Seen::default();
        for child in children {
            let output = child.wait_with_output()?;
            let text = String::from_utf8(output.stdout)?;
            let seen = Seen::parse(&text).ok_or("a process did not report")?;
            all.offered += seen.offered;
            all.calls += seen.calls;
            all.added.extend(seen.added);
            if all.bins.len() < seen.bins.len() {
                all.bins.resize(seen.bins.len(), 0);
            }
            for (bin, more) in all.bins.iter_mut().zip(seen.bins) {
                *bin += more;
            }
        }
        all.added.sort_unstable();
        Ok(all)
    }

    /// What is admitted in the worst window of so many milliseconds beyond what the quota allows,
    /// in percent of that.
    fn over(&self, bins: &[u64], millis: u64) -> f64 {
        let width = ((millis / BIN) as usize).min(bins.len()).max(1);
        let bound = self.burst as f64 + self.quota as f64 * (width as u64 * BIN) as f64 / 1e3;
        let most = bins
            .windows(width)
            .map(|window| window.iter().sum())
            .max()
            .unwrap_or(0u64);
        (100.0 * (most as f64 / bound - 1.0)).max(0.0)
    }

    fn print(&self, seen: &Seen) {
        let mut so_far = 0;
        let mut over = f64::MIN;
        for (bin, admitted) in seen.bins.iter().enumerate() {
            so_far += admitted;
            let bound =
                self.burst as f64 + self.quota as f64 * ((bin as u64 + 1) * BIN) as f64 / 1e3;
            over = over.max(so_far as f64 - bound);
        }
        let whole = self.burst + self.quota * self.seconds;
        let could = whole.min(self.offered * self.seconds);
        let at = |part: f64| {
            let index = (seen.added.len() as f64 * part) as usize;
            seen.added
                .get(index)
                .map_or(0.0, |nanos| *nanos as f64 / 1e3)
        };
        println!(
            "{:>14} {:>2} {:>8} {:>8.1}% {:>8.0} {:>7.1}% {:>7.1}% {:>7.1}% {:>9.3} {:>9.1} {:>9.1}",
            self.scheme.to_string(),
            self.nodes,
            seen.offered,
            100.0 * so_far as f64 / could as f64,
            over.max(0.0),
            self.over(&seen.bins, 100),
            self.over(&seen.bins, 1_000),
            self.over(&seen.bins, 10_000),
            seen.calls as f64 / seen.offered as f64,
            at(0.5),
            at(0.99),
        );
    }
}
