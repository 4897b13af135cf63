//! A second witness for services that share their cores: CPU pressure, which can only lower a
//! limit.

use std::{
    error, fmt, fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::{
    task::JoinHandle,
    time::{MissedTickBehavior, interval},
};

use crate::Limiter;

/// How often the pressure is read: long enough for a share of it to mean something, short enough
/// to brake before callers give up.
const INTERVAL: Duration = Duration::from_millis(500);
/// Shares of the time that tasks waited for a core, above which the limit is lowered and below
/// which it is let go. The 80 and 60 % of CPU-based load shedding at Netflix ("Enhancing Netflix
/// Reliability with Service-Level Prioritized Load Shedding", 2024).
const HIGH: f64 = 0.8;
const LOW: f64 = 0.6;
/// By how much in an interval: a tenth, the step of most AIMD limiters.
const DOWN: f64 = 0.9;
const UP: f64 = 1.1;

/// Reads the pressure stall information of Linux (PSI) for the CPU.
///
/// A control law sees that requests got slower, not why. On a machine that is shared with other
/// processes, tasks that wait for a core say so directly, and before throughput does. While they
/// wait for more than 80 % of the time, the limit is lowered by a tenth each half second; below
/// 60 % it is let go again, and grows as the law sees fit. It is never raised, and never goes below
/// the bounds of the limiter.
///
/// Read from the cgroup of this process where there is one (version 2, `cpu.pressure`, the line
/// `full`: nothing of the service ran), else from the machine (`/proc/pressure/cpu`, the line
/// `some`: at least one thread waited).
///
/// ```no_run
/// use tower_capacity::{CapacityLayer, CpuPressure};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let capacity = CapacityLayer::adaptive();
/// let _watch = CpuPressure::detect()?.watch(capacity.limiter());
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
#[must_use]
pub struct CpuPressure {
    path: PathBuf,
    line: &'static str,
    /// Total stall time at the last reading, in µs.
    total: u64,
}

impl CpuPressure {
    /// Finds the pressure file of this process, or else that of the machine.
    ///
    /// # Errors
    ///
    /// [`CpuPressureError`] names the last file that was tried: the system is not Linux, or its
    /// kernel was built or started without PSI.
    pub fn detect() -> Result<Self, CpuPressureError> {
        let root = Path::new("/sys/fs/cgroup");
        let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let own = own.lines().find_map(|line| line.strip_prefix("0::/"));
        let cgroups = [own.map(|own| root.join(own)), Some(root.to_owned())];
        for cgroup in cgroups.into_iter().flatten() {
            if let Ok(found) = Self::open(cgroup.join("cpu.pressure"), "full") {
                return Ok(found);
            }
        }
        Self::open("/proc/pressure/cpu".into(), "some")
    }

    /// Reads the line `full` of a pressure file: that of another cgroup than this process's own.
    ///
    /// # Errors
    ///
    /// [`CpuPressureError`] if there is no such file, or if it is none of pressure.
    pub fn of_cgroup(path: impl Into<PathBuf>) -> Result<Self, CpuPressureError> {
        Self::open(path.into(), "full")
    }

    fn open(path: PathBuf, line: &'static str) -> Result<Self, CpuPressureError> {
        let mut opened = Self {
            path,
            line,
            total: 0,
        };
        opened.total = opened.read()?;
        Ok(opened)
    }

    /// Lowers the limit of `limiter` while the pressure is high, until what is returned is dropped.
    ///
    /// A file that can no longer be read lifts the brake, until it can be read again.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime with timers.
    pub fn watch(mut self, limiter: &Limiter) -> CpuPressureWatch {
        let watched = limiter.clone();
        let task = tokio::spawn(async move {
            let mut ticks = interval(INTERVAL);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            let mut brake = Brake::default();
            let mut last = ticks.tick().await;
            loop {
                let now = ticks.tick().await;
                let stalled = self.stalled_since(now - last).unwrap_or(0.0);
                last = now;
                watched.set_ceiling(brake.on_interval(stalled, watched.snapshot().limit()));
            }
        });
        CpuPressureWatch {
            task,
            limiter: limiter.clone(),
        }
    }

    /// The share of `elapsed` in which tasks waited.
    fn stalled_since(&mut self, elapsed: Duration) -> Result<f64, CpuPressureError> {
        let total = self.read()?;
        let stalled = Duration::from_micros(total.saturating_sub(self.total));
        self.total = total;
        Ok((stalled.as_secs_f64() / elapsed.as_secs_f64().max(1e-6)).min(1.0))
    }

    fn read(&self) -> Result<u64, CpuPressureError> {
        let fail = |kind| CpuPressureError {
            path: self.path.clone(),
            kind,
        };
        let text = fs::read_to_string(&self.path).map_err(|error| fail(Kind::Read(error)))?;
        total_of(&text, self.line).ok_or_else(|| fail(Kind::Format(self.line)))
    }
}

/// Reads the total of one line, in µs: `some avg10=0.00 avg60=0.00 avg300=0.00 total=0`.
fn total_of(text: &str, line: &str) -> Option<u64> {
    let mut lines = text.lines().map(str::split_ascii_whitespace);
    let mut fields = lines.find_map(|mut fields| (fields.next()? == line).then_some(fields))?;
    let total = fields.find_map(|field| field.strip_prefix("total="))?;
    total.parse().ok()
}

/// What the pressure makes of the limit.
#[derive(Debug, Default)]
struct Brake {
    ceiling: Option<f64>,
}

impl Brake {
    /// The ceiling after an interval in which tasks waited for a share of the time.
    fn on_interval(&mut self, stalled: f64, limit: usize) -> usize {
        if stalled > HIGH {
            let from = self.ceiling.unwrap_or(f64::MAX).min(limit as f64);
            self.ceiling = Some((from * DOWN).max(1.0));
        } else if stalled < LOW
            && let Some(ceiling) = self.ceiling
        {
            // Let go when the law no longer touches it.
            let raised = ceiling * UP + 1.0;
            self.ceiling = ((limit as f64) + 1.0 >= ceiling.floor()).then_some(raised);
        }
        self.ceiling.map_or(usize::MAX, |ceiling| ceiling as usize)
    }
}

/// Keeps a [`CpuPressure`] at work; dropping it lets the limit go.
#[derive(Debug)]
#[must_use = "dropping it stops the watch"]
pub struct CpuPressureWatch {
    task: JoinHandle<()>,
    limiter: Limiter,
}

impl Drop for CpuPressureWatch {
    fn drop(&mut self) {
        self.task.abort();
        self.limiter.set_ceiling(usize::MAX);
    }
}

/// The CPU pressure of the system cannot be read.
#[derive(Debug)]
pub struct CpuPressureError {
    path: PathBuf,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Read(io::Error),
    /// The line that was looked for.
    Format(&'static str),
}

impl fmt::Display for CpuPressureError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path.display();
        match &self.kind {
            Kind::Read(error) => write!(f, "cannot read CPU pressure from {path}: {error}"),
            Kind::Format(line) => write!(
                f,
                "no CPU pressure in {path}: expected a line `{line} … total=` and microseconds"
            ),
        }
    }
}

impl error::Error for CpuPressureError {
    fn source(&self) -> Option<&(dyn error::Error + 'static)> {
        match &self.kind {
            Kind::Read(error) => Some(error),
            Kind::Format(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_total_of_a_line_is_read() {
        let text = "some avg10=67.69 avg60=60.12 avg300=35.17 total=4432725036\n\
                    full avg10=0.00 avg60=0.00 avg300=0.00 total=17\n";
        assert_eq!(total_of(text, "some"), Some(4_432_725_036));
        assert_eq!(total_of(text, "full"), Some(17));
        assert_eq!(total_of("full total=", "full"), None);
        assert_eq!(total_of("some total=3", "full"), None);
    }

    #[test]
    fn the_brake_lowers_under_pressure_holds_in_between_and_lets_go() {
        let mut brake = Brake::default();
        assert_eq!(brake.on_interval(0.5, 100), usize::MAX);
        assert_eq!(brake.on_interval(0.9, 100), 90);
        assert_eq!(brake.on_interval(0.9, 90), 81);
        assert_eq!(brake.on_interval(0.7, 81), 81, "between the two it holds");
        let mut limit = 81;
        let mut ceilings = Vec::new();
        for _ in 0..20 {
            let ceiling = brake.on_interval(0.1, limit);
            ceilings.push(ceiling);
            // The law wants 110.
            limit = ceiling.min(110);
        }
        assert!(ceilings.is_sorted(), "{ceilings:?}");
        assert_eq!(ceilings.last(), Some(&usize::MAX));
    }

    #[test]
    fn the_brake_never_goes_below_one() {
        let mut brake = Brake::default();
        let last = (0..200).map(|_| brake.on_interval(1.0, 3)).last();
        assert_eq!(last, Some(1));
    }
}
