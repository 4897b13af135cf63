//! A log of everything a tuner was given and decided, from which its decisions can be made again.

use std::{error, fmt, io};

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::{Decision, PoolWindow, Tuner, TunerConfig, decision::Inputs};
use crate::{Bounds, BoundsError};

/// One line: how the tuner began, or what it was given and decided.
#[derive(Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
enum Line {
    Start {
        pool: String,
        min: usize,
        max: usize,
        size: usize,
        config: TunerConfig,
    },
    Step(Step),
}

#[derive(Deserialize, Serialize)]
struct Step {
    /// Since the start, in ns.
    at: u64,
    given: Given,
    from: usize,
    to: usize,
    reason: String,
    /// For readers of the log; made again from what was given.
    #[serde(skip_deserializing)]
    inputs: Inputs,
}

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Given {
    Window(Box<PoolWindow>),
    Bounds { min: usize, max: usize },
    Failover,
}

/// Writes a log, one line of JSON for each step.
pub(crate) struct LogWriter {
    start: Instant,
    to: Box<dyn io::Write + Send>,
}

impl LogWriter {
    pub(crate) fn new(
        mut to: Box<dyn io::Write + Send>,
        pool: &str,
        config: TunerConfig,
        bounds: Bounds,
        size: usize,
        start: Instant,
    ) -> io::Result<Self> {
        let line = Line::Start {
            pool: pool.to_owned(),
            min: bounds.min(),
            max: bounds.max(),
            size,
            config,
        };
        write_line(&mut to, &line)?;
        Ok(Self { start, to })
    }

    pub(crate) fn step(&mut self, given: Given, decision: &Decision) -> io::Result<()> {
        let line = Line::Step(Step {
            at: decision.at().duration_since(self.start).as_nanos() as u64,
            given,
            from: decision.from(),
            to: decision.to(),
            reason: decision.reason().as_str().to_owned(),
            inputs: decision.inputs().clone(),
        });
        write_line(&mut self.to, &line)
    }
}

impl fmt::Debug for LogWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LogWriter").finish_non_exhaustive()
    }
}

fn write_line(to: &mut impl io::Write, line: &Line) -> io::Result<()> {
    let mut text = serde_json::to_vec(line)?;
    text.push(b'\n');
    to.write_all(&text)?;
    to.flush()
}

/// What [`Builder::decision_log`](crate::Builder::decision_log) wrote.
///
/// ```no_run
/// use std::{fs::File, io::BufReader};
/// use pool_autotune::tuner::DecisionLog;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let log = DecisionLog::read(BufReader::new(File::open("orders.jsonl")?))?;
/// for decision in log.replay()? {
///     println!("{decision}");
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct DecisionLog {
    pool: String,
    tuner: Tuner,
    start: Instant,
    steps: Vec<Step>,
}

impl fmt::Debug for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} -> {}: {}", self.from, self.to, self.reason)
    }
}

impl DecisionLog {
    /// Reads a log. The last line may be cut off, as that of a process that was killed.
    ///
    /// # Errors
    ///
    /// [`DecisionLogError`] names the line that is none of a log, or out of place.
    pub fn read(from: impl io::BufRead) -> Result<Self, DecisionLogError> {
        let fail = |line: usize, problem| DecisionLogError { line, problem };
        let mut log: Option<Self> = None;
        let mut cut: Option<DecisionLogError> = None;
        for (index, text) in from.lines().enumerate() {
            let number = index + 1;
            let text = text.map_err(|error| fail(number, Problem::Read(error)))?;
            if let Some(error) = cut {
                return Err(error);
            }
            let line = match serde_json::from_str(&text) {
                Ok(line) => line,
                Err(error) => {
                    cut = Some(fail(number, Problem::Json(error)));
                    continue;
                }
            };
            match (line, &mut log) {
                (
                    Line::Start {
                        pool,
                        min,
                        max,
                        size,
                        config,
                    },
                    None,
                ) => {
                    let bounds = Bounds::new(min..=max);
                    let bounds = bounds.map_err(|error| fail(number, Problem::Bounds(error)))?;
                    let start = Instant::now();
                    log = Some(Self {
                        pool,
                        tuner: Tuner::new(config, bounds, size, start),
                        start,
                        steps: Vec::new(),
                    });
                }
                (Line::Step(step), Some(log)) => log.steps.push(step),
                (Line::Start { .. }, Some(_)) | (Line::Step(_), None) => {
                    return Err(fail(number, Problem::OutOfPlace));
                }
            }
        }
        log.ok_or_else(|| cut.unwrap_or_else(|| fail(1, Problem::OutOfPlace)))
    }

    /// The name of the pool.
    #[must_use]
    pub fn pool(&self) -> &str {
        &self.pool
    }

    /// Makes the decisions again, every one of them, also those that changed nothing.
    ///
    /// # Errors
    ///
    /// [`DecisionLogError`] names the line where the decision comes out different: another version of
    /// this crate wrote it, or it was edited.
    pub fn replay(&self) -> Result<Vec<Decision>, DecisionLogError> {
        let mut tuner = self.tuner.clone();
        let replay = |(index, step): (usize, &Step)| {
            let number = index + 2;
            let fail = |problem| DecisionLogError {
                line: number,
                problem,
            };
            let at = self.start + std::time::Duration::from_nanos(step.at);
            let decision = match &step.given {
                Given::Window(window) => tuner.on_window(at, window),
                Given::Bounds { min, max } => {
                    let bounds = Bounds::new(*min..=*max);
                    let bounds = bounds.map_err(|error| fail(Problem::Bounds(error)))?;
                    tuner.set_bounds(at, bounds)
                }
                Given::Failover => tuner.failover(at),
            };
            let same = (decision.from(), decision.to()) == (step.from, step.to)
                && decision.reason().as_str() == step.reason;
            if same {
                Ok(decision)
            } else {
                Err(fail(Problem::Different {
                    logged: format!("{step:?}"),
                    replayed: decision.to_string(),
                }))
            }
        };
        self.steps.iter().enumerate().map(replay).collect()
    }
}

/// A decision log that cannot be read, or does not replay.
#[derive(Debug)]
pub struct DecisionLogError {
    line: usize,
    problem: Problem,
}

#[derive(Debug)]
enum Problem {
    Read(io::Error),
    Json(serde_json::Error),
    Bounds(BoundsError),
    OutOfPlace,
    Different { logged: String, replayed: String },
}

impl fmt::Display for DecisionLogError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {} of the decision log: ", self.line)?;
        match &self.problem {
            Problem::Read(error) => error.fmt(f),
            Problem::Json(error) => error.fmt(f),
            Problem::Bounds(error) => error.fmt(f),
            Problem::OutOfPlace => f.write_str("expected one `start`, and then only `step`s"),
            Problem::Different { logged, replayed } => {
                write!(f, "logged `{logged}`, replayed `{replayed}`")
            }
        }
    }
}

impl error::Error for DecisionLogError {
    fn source(&self) -> Option<&(dyn error::Error + 'static)> {
        match &self.problem {
            Problem::Read(error) => Some(error),
            Problem::Json(error) => Some(error),
            Problem::Bounds(error) => Some(error),
            Problem::OutOfPlace | Problem::Different { .. } => None,
        }
    }
}
