//! Sends jobs to a server as pipelines and sorts the replies.

use std::sync::Arc;

use redis::{Pipeline, RedisError, ServerErrorKind, Value};
use tokio::time::{Instant, timeout};

use super::{
    failure::{LATE, reason, server_failure},
    job::{Connection, Job, Reports, State},
    script::{self, Action, Reply},
    server::CONNECT_WITHIN,
};
use crate::metrics::Call;

/// Sends a batch of jobs and passes the replies on.
pub(super) async fn exchange(
    node: Arc<dyn Reports>,
    mut connection: Connection,
    state: Arc<State>,
    jobs: Vec<Job>,
) {
    let start = Instant::now();
    let deadline = start + node.settings().deadline;
    let mut left = jobs;
    let mut tries = 0;
    while !left.is_empty() {
        let (pipeline, first) = pipeline(&node, &connection, &left, tries > 0);
        let answer = connection
            .redis
            .send_packed_commands(&pipeline, 0, pipeline.len());
        let answer = tokio::time::timeout_at(deadline, answer).await;
        let answers = match answer {
            Ok(Ok(answers)) => answers,
            Ok(Err(error)) => {
                node.called(Call::Error, start);
                if error.is_unrecoverable_error() || error.is_connection_dropped() {
                    // Connected anew at once; what was on its way is not sent again.
                    state.broken.notify_one();
                }
                state.failure(node.now(), reason(&error));
                return left.into_iter().for_each(|job| node.failed(job));
            }
            Err(_) => {
                node.called(Call::Timeout, start);
                state.failure(node.now(), LATE);
                return left.into_iter().for_each(|job| node.failed(job));
            }
        };
        let answers = answers.into_iter().skip(first);
        let (unknown, failure) = deliver(&node, &state, left, answers, tries == 0);
        match failure {
            Some(why) => {
                node.called(Call::Error, start);
                state.failure(node.now(), why);
            }
            None => {
                node.called(Call::Answered, start);
                state.success(node.now());
            }
        }
        left = unknown;
        tries += 1;
    }
}

/// The commands of `jobs`, and how many come before them.
fn pipeline(
    node: &Arc<dyn Reports>,
    connection: &Connection,
    jobs: &[Job],
    loads: bool,
) -> (Pipeline, usize) {
    let mut pipeline = Pipeline::with_capacity(jobs.len() + 1);
    // In a pipeline the script is there before it is called.
    if loads {
        let script = &*node.settings().script;
        pipeline.cmd("SCRIPT").arg("LOAD").arg(script);
    }
    let first = pipeline.len();
    for job in jobs {
        if job.asking {
            pipeline.cmd("ASKING");
        }
        let key = script::key(&node.settings().name, job.key);
        let Job { action, terms, .. } = job;
        let command = script::command(&connection.account, &key, *action, terms);
        pipeline.add_command(command);
    }
    (pipeline, first)
}

/// Passes each reply on. Returns the jobs for which the script has to be loaded first, where
/// `may_load`, and why the server failed, if it did.
fn deliver(
    node: &Arc<dyn Reports>,
    state: &State,
    jobs: Vec<Job>,
    mut answers: impl Iterator<Item = Value>,
    may_load: bool,
) -> (Vec<Job>, Option<&'static str>) {
    let mut unknown = Vec::new();
    let mut failure = None;
    for job in jobs {
        if job.asking {
            answers.next();
        }
        match answers.next() {
            Some(Value::ServerError(error)) => {
                let error = RedisError::from(error);
                match error.kind() {
                    redis::ErrorKind::Server(ServerErrorKind::NoScript) if may_load => {
                        unknown.push(job);
                    }
                    redis::ErrorKind::Server(
                        kind @ (ServerErrorKind::Moved | ServerErrorKind::Ask),
                    ) => {
                        let asking = kind == ServerErrorKind::Ask;
                        let to = error.redirect_node();
                        Arc::clone(node).redirect(job, to, asking, &state.address);
                    }
                    _ => {
                        // What is wrong with one key says nothing about the server.
                        failure = failure.or_else(|| server_failure(&error));
                        node.failed(job);
                    }
                }
            }
            Some(value) => match Reply::read(&value, job.terms.len()) {
                Some(reply) => node.answered(job, reply),
                None => node.failed(job),
            },
            None => node.failed(job),
        }
    }
    (unknown, failure)
}

/// Sends the last jobs, without waiting for the replies.
pub(super) async fn farewell(connection: &Connection, name: &str, jobs: &[Job]) {
    let mut pipeline = Pipeline::with_capacity(jobs.len());
    // What would be granted now would be neither used nor given back.
    let takes = |job: &&Job| matches!(job.action, Action::Take { .. });
    for job in jobs.iter().filter(|job| !takes(job)) {
        let Job { action, terms, .. } = job;
        let key = script::key(name, job.key);
        let command = script::command(&connection.account, &key, *action, terms);
        pipeline.add_command(command);
    }
    if pipeline.is_empty() {
        return;
    }
    let mut redis = connection.redis.clone();
    let say = redis.send_packed_commands(&pipeline, 0, pipeline.len());
    // A lease that is not given back is lost, and nothing else.
    let _ = timeout(CONNECT_WITHIN, say).await;
}
