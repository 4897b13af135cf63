use std::{path::PathBuf, time::Duration};

use tokio::{
    task::JoinHandle,
    time::{MissedTickBehavior, interval},
};

use super::{
    brake::Brake,
    error::SignalError,
    kernel::{KernelFile, What},
    runtime::{Runtime, What as OfRuntime},
};
use crate::Limiter;

/// How often signals are read: long enough for a share of it to mean something, short enough to
/// brake before callers give up.
const INTERVAL: Duration = Duration::from_millis(500);

const CPU_PRESSURE: &str = "cpu pressure";
const CPU_THROTTLING: &str = "cpu throttling";
const MEMORY_PRESSURE: &str = "memory pressure";

/// The signals that a limiter listens to, see the [module](super).
///
/// ```no_run
/// use tower_capacity::{CapacityLayer, Signals};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let capacity = CapacityLayer::adaptive();
/// let _watch = Signals::detect().watch(capacity.limiter());
/// # }
/// ```
#[derive(Debug, Default)]
#[must_use]
pub struct Signals {
    files: Vec<(KernelFile, Brake)>,
    runtime: Vec<OfRuntime>,
}

impl Signals {
    /// No signals, to add to.
    pub fn none() -> Self {
        Self::default()
    }

    /// All that this machine has: CPU pressure, CPU throttling and memory pressure where the kernel
    /// is Linux and tells them, and the lag of the runtime.
    pub fn detect() -> Self {
        let found = [
            Self::none().cpu_pressure(),
            Self::none().cpu_throttling(),
            Self::none().memory_pressure(),
        ];
        let files = found.into_iter().flatten().flat_map(|found| found.files);
        Self {
            files: files.collect(),
            runtime: vec![OfRuntime::Lag],
        }
    }

    /// Adds the CPU pressure of this process' cgroup (`cpu.pressure`, the line `full`: nothing of
    /// the service ran), else of the machine (`/proc/pressure/cpu`, the line `some`: at least one
    /// thread waited).
    ///
    /// # Errors
    ///
    /// [`SignalError`] names the last file that was tried: the system is not Linux, or its kernel
    /// was built or started without PSI.
    pub fn cpu_pressure(self) -> Result<Self, SignalError> {
        let file = KernelFile::of_own_cgroup(CPU_PRESSURE, "cpu.pressure", What::Stall("full"));
        let file = file.or_else(|_| {
            let machine = PathBuf::from("/proc/pressure/cpu");
            KernelFile::open(CPU_PRESSURE, machine, What::Stall("some"))
        });
        Ok(self.with(file?))
    }

    /// Adds the line `full` of another cgroup's `cpu.pressure`.
    ///
    /// # Errors
    ///
    /// [`SignalError`] if there is no such file, or if it is none of pressure.
    pub fn cpu_pressure_of(self, path: impl Into<PathBuf>) -> Result<Self, SignalError> {
        let file = KernelFile::open(CPU_PRESSURE, path.into(), What::Stall("full"))?;
        Ok(self.with(file))
    }

    /// Adds the throttling of this process' cgroup: periods of its CPU quota (`cpu.max`, the limit
    /// of a Kubernetes container) that ended with nothing left to use.
    ///
    /// # Errors
    ///
    /// [`SignalError`] if the cgroup has no quota, or is not of version 2.
    pub fn cpu_throttling(self) -> Result<Self, SignalError> {
        let file = KernelFile::of_own_cgroup(CPU_THROTTLING, "cpu.stat", What::Throttling)?;
        Ok(self.with(file))
    }

    /// Adds the throttling in another cgroup's `cpu.stat`.
    ///
    /// # Errors
    ///
    /// [`SignalError`] if there is no such file, or nothing of throttling in it.
    pub fn cpu_throttling_of(self, path: impl Into<PathBuf>) -> Result<Self, SignalError> {
        let file = KernelFile::open(CPU_THROTTLING, path.into(), What::Throttling)?;
        Ok(self.with(file))
    }

    /// Adds the memory pressure of this process' cgroup (`memory.pressure`, the line `some`), else of
    /// the machine: tasks that wait until memory is reclaimed or read back. More requests at once
    /// take more memory, so this is the last moment at which fewer help.
    ///
    /// # Errors
    ///
    /// As [`cpu_pressure`](Self::cpu_pressure).
    pub fn memory_pressure(self) -> Result<Self, SignalError> {
        let what = What::Stall("some");
        let file = KernelFile::of_own_cgroup(MEMORY_PRESSURE, "memory.pressure", what);
        let machine = || KernelFile::open(MEMORY_PRESSURE, "/proc/pressure/memory".into(), what);
        Ok(self.with(file.or_else(|_| machine())?))
    }

    /// Adds the line `some` of another cgroup's `memory.pressure`.
    ///
    /// # Errors
    ///
    /// As [`cpu_pressure_of`](Self::cpu_pressure_of).
    pub fn memory_pressure_of(self, path: impl Into<PathBuf>) -> Result<Self, SignalError> {
        let file = KernelFile::open(MEMORY_PRESSURE, path.into(), What::Stall("some"))?;
        Ok(self.with(file))
    }

    /// Adds the lag of the runtime that [`watch`](Self::watch) is called on: by how much a task is
    /// late that wants to run every 10 ms. A runtime with workers that are busy for 40 ms before they
    /// turn to a task that is ready has a lag of 0.8: handlers compute or block instead of awaiting.
    pub fn runtime_lag(self) -> Self {
        self.with_runtime(OfRuntime::Lag)
    }

    /// Adds the queue of the runtime that [`watch`](Self::watch) is called on: how often it holds more
    /// tasks than there are workers. Tasks go there when they are woken from outside of the runtime, or
    /// when a worker has more than 256 of its own.
    pub fn runtime_queue(self) -> Self {
        self.with_runtime(OfRuntime::Queue)
    }

    /// Adds the workers of the runtime that [`watch`](Self::watch) is called on: how much of their time they
    /// are busy.
    ///
    /// For a service that has to keep a part of its processor free, as for bursts: one that may use it
    /// up serves less with it.
    pub fn runtime_busy(self) -> Self {
        self.with_runtime(OfRuntime::Busy)
    }

    fn with_runtime(mut self, what: OfRuntime) -> Self {
        if !self.runtime.contains(&what) {
            self.runtime.push(what);
        }
        self
    }

    /// The names of the signals.
    pub fn names(&self) -> impl Iterator<Item = &'static str> + '_ {
        let runtime = self.runtime.iter().map(|what| what.name());
        self.files.iter().map(|(file, _)| file.name).chain(runtime)
    }

    fn with(mut self, file: KernelFile) -> Self {
        let brake = match file.name {
            MEMORY_PRESSURE => Brake::new(0.15, 0.07),
            _ => Brake::new(0.8, 0.6),
        };
        self.files.push((file, brake));
        self
    }

    /// Lowers the limit of `limiter` while a signal is high, until what is returned is dropped. Of
    /// several that are high, the one that allows least counts.
    ///
    /// A file that can no longer be read lifts its brake, until it can be read again.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime with timers.
    pub fn watch(mut self, limiter: &Limiter) -> SignalsWatch {
        let watched = limiter.clone();
        let mut runtime = (!self.runtime.is_empty()).then(|| Runtime::start(&self.runtime));
        let task = tokio::spawn(async move {
            let mut ticks = interval(INTERVAL);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            let mut last = ticks.tick().await;
            loop {
                let now = ticks.tick().await;
                let (elapsed, limit) = (now - last, watched.snapshot().limit());
                last = now;
                let files = self.files.iter_mut().map(|(file, brake)| {
                    let share = file.share(elapsed).unwrap_or(0.0);
                    (brake.on_interval(share, limit), file.name)
                });
                let runtime = runtime
                    .iter_mut()
                    .flat_map(|runtime| runtime.ceilings(elapsed, limit));
                if let Some((ceiling, name)) = files.chain(runtime).min() {
                    watched.set_ceiling(ceiling, name);
                }
            }
        });
        SignalsWatch {
            task,
            limiter: limiter.clone(),
        }
    }
}

/// Keeps [`Signals`] at work; dropping it lets the limit go.
#[derive(Debug)]
#[must_use = "dropping it stops the watch"]
pub struct SignalsWatch {
    task: JoinHandle<()>,
    limiter: Limiter,
}

impl Drop for SignalsWatch {
    fn drop(&mut self) {
        self.task.abort();
        self.limiter.set_ceiling(usize::MAX, "no signal is watched");
    }
}
