//! The command line, and what is refused in it.

use std::{
    fmt,
    ops::RangeInclusive,
    path::{Path, PathBuf},
    str::FromStr,
};

use clap::{Parser, error::ErrorKind};

/// Drives a service to ten times its capacity and back, once bare and once protected, and reports
/// what its users would have seen.
#[derive(Clone, Debug, Parser)]
#[command(name = "graceful_degradation", version)]
pub(crate) struct Options {
    /// Ramp of 36 seconds a run instead of 72.
    #[arg(long)]
    pub(crate) quick: bool,

    /// Ramp of N seconds a run.
    #[arg(long, value_name = "N", conflicts_with = "quick", allow_negative_numbers = true,
          value_parser = seconds)]
    pub(crate) seconds: Option<u16>,

    /// Query Postgres instead of SQLite: the one at DATABASE_URL, or else a private one, started
    /// from the Postgres found on this machine and removed afterwards.
    #[arg(long)]
    pub(crate) postgres: bool,

    /// Write the numbers to this file.
    #[arg(long, value_name = "PATH")]
    pub(crate) json: Option<PathBuf>,

    /// Draw goodput and P99 into this file.
    #[arg(long, value_name = "PATH")]
    pub(crate) svg: Option<PathBuf>,

    /// Write the report to this file. Defaults to `graceful-degradation.html` in the target
    /// directory, or in the current one.
    #[arg(long, value_name = "PATH")]
    pub(crate) html: Option<PathBuf>,

    /// Keep the protected server up, with a live page, instead of running the ramp.
    #[arg(long)]
    pub(crate) serve: bool,

    /// Port of the server; any free one by default, 8080 with --serve.
    #[arg(long, value_name = "PORT", value_parser = port)]
    pub(crate) port: Option<u16>,

    /// With --serve: requests a second that the server gets from this process.
    #[arg(long, value_name = "RPS", requires = "serve", allow_negative_numbers = true,
          value_parser = positive)]
    pub(crate) load: Option<f64>,

    /// Bounds of the concurrency limit.
    #[arg(long, value_name = "MIN..MAX", default_value = "1..16384")]
    pub(crate) limit: Bounds,

    /// Bounds of the connection pool.
    #[arg(long, value_name = "MIN..MAX", default_value = "2..32")]
    pub(crate) pool: Bounds,

    /// Seed of the random moments at which requests start.
    #[arg(long, value_name = "N", default_value_t = 7, allow_negative_numbers = true,
          value_parser = seed)]
    pub(crate) seed: u64,
}

/// One line: which value is invalid, why, and what was expected.
#[derive(Debug)]
pub(crate) struct Problem(String);

impl Problem {
    pub(crate) fn new(text: impl fmt::Display) -> Self {
        // One line, even of a wrapped text.
        let text = text.to_string();
        Self(text.lines().map(str::trim).collect::<Vec<_>>().join(" "))
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Options {
    /// Length of one run.
    pub(crate) fn run_seconds(&self) -> f64 {
        let whole = if self.quick { 36 } else { 72 };
        self.seconds.unwrap_or(whole).into()
    }
}

/// `MIN..MAX`, both inclusive.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    min: usize,
    max: usize,
}

impl Bounds {
    pub(crate) const fn range(self) -> RangeInclusive<usize> {
        self.min..=self.max
    }

    pub(crate) const fn max(self) -> usize {
        self.max
    }
}

impl FromStr for Bounds {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const EXPECTED: &str = "expected MIN..MAX with 1 <= MIN <= MAX, such as 2..32";
        let bounds = text.split_once("..").and_then(|(min, max)| {
            let max = max.strip_prefix('=').unwrap_or(max);
            Some(Self {
                min: min.parse().ok()?,
                max: max.parse().ok()?,
            })
        });
        match bounds {
            Some(bounds) if bounds.min >= 1 && bounds.min <= bounds.max => Ok(bounds),
            _ => Err(EXPECTED.to_owned()),
        }
    }
}

fn seconds(text: &str) -> Result<u16, String> {
    match text.parse() {
        Ok(seconds @ 2..=3600) => Ok(seconds),
        _ => Err("expected a whole number of seconds in 2..=3600".to_owned()),
    }
}

fn port(text: &str) -> Result<u16, String> {
    text.parse()
        .map_err(|_| format!("expected a whole number in 0..={}", u16::MAX))
}

fn seed(text: &str) -> Result<u64, String> {
    text.parse()
        .map_err(|_| format!("expected a whole number in 0..={}", u64::MAX))
}

fn positive(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if value > 0.0 && value <= 1e6 => Ok(value),
        _ => Err("expected a number of requests a second, above 0 and at most 1000000".to_owned()),
    }
}

pub(crate) fn parse() -> Result<Options, Problem> {
    let options = Options::try_parse().map_err(|error| match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => error.exit(),
        _ => {
            let text = error.to_string();
            let said = text.split("\n\n").next().unwrap_or("unusable arguments");
            Problem::new(said.trim_start_matches("error: "))
        }
    })?;
    for path in [&options.json, &options.svg, &options.html]
        .into_iter()
        .flatten()
    {
        check_parent(path)?;
    }
    Ok(options)
}

/// Reported before the run, not after it.
fn check_parent(path: &Path) -> Result<(), Problem> {
    let parent = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty());
    match parent {
        Some(parent) if !parent.is_dir() => Err(Problem::new(format_args!(
            "cannot write {}: {} is not a directory that exists",
            path.display(),
            parent.display()
        ))),
        _ if path.is_dir() => Err(Problem::new(format_args!(
            "cannot write {}: expected the path of a file, this is a directory",
            path.display()
        ))),
        _ => Ok(()),
    }
}
