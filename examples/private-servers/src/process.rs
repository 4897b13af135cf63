//! One server process, its directory, and the guard that outlives neither.

use std::fs;
use std::io;
use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tempfile::TempDir;
use tokio::time::{Instant, sleep};

use crate::StartError;

/// How long a server may take until it answers.
const READY_WITHIN: Duration = Duration::from_secs(30);

/// How often a starting server is checked for being ready.
const ASK_EVERY: Duration = Duration::from_millis(10);

/// A temporary directory with at most one server process living in it.
#[derive(Debug)]
pub(crate) struct Process {
    /// The server, while it runs.
    child: Option<Child>,
    /// Ends the server and removes the directory when this process is gone.
    guard: Child,
    directory: TempDir,
    user: Option<User>,
}

impl Process {
    /// Makes the directory and starts the guard. `unprivileged`: the server refuses to run as
    /// root, so when this process is root, the directory and the server go to another user.
    pub(crate) fn new(name: &str, unprivileged: bool) -> Result<Self, StartError> {
        let directory = tempfile::Builder::new()
            .prefix(&format!("private-{name}-"))
            .tempdir()
            .map_err(|error| StartError::io(format!("cannot make a directory: {error}"), error))?;
        let owner = fs::metadata(directory.path()).map_err(|error| at(directory.path(), error))?;
        let user = if unprivileged && owner.uid() == 0 {
            Some(User::find()?)
        } else {
            None
        };
        if let Some(user) = &user {
            chown(directory.path(), Some(user.uid), Some(user.gid))
                .map_err(|error| at(directory.path(), error))?;
        }
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o700))
            .map_err(|error| at(directory.path(), error))?;
        let guard = guard(directory.path())
            .map_err(|error| StartError::io(format!("cannot run `sh`: {error}"), error))?;
        Ok(Self {
            child: None,
            guard,
            directory,
            user,
        })
    }

    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// A command that runs as the user this server runs as, in its directory.
    pub(crate) fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command
            .current_dir(self.directory())
            .env("LC_ALL", "C")
            .stdin(Stdio::null());
        if let Some(user) = &self.user {
            command.uid(user.uid).gid(user.gid);
        }
        command
    }

    /// Starts the server and waits until `ready` returns true.
    pub(crate) async fn start(
        &mut self,
        mut command: Command,
        mut ready: impl AsyncFnMut(u32) -> bool,
    ) -> Result<(), StartError> {
        let program = command.get_program().to_string_lossy().into_owned();
        let log = self.directory().join("log");
        let output = fs::File::create(&log).map_err(|error| at(&log, error))?;
        let errors = output.try_clone().map_err(|error| at(&log, error))?;
        let child = command
            .stdout(output)
            .stderr(errors)
            .process_group(0)
            .spawn()
            .map_err(|error| StartError::io(format!("cannot run {program}: {error}"), error))?;
        let pid = child.id();
        let child = self.child.insert(child);
        let pid_file = self.directory.path().join("pid");
        fs::write(&pid_file, pid.to_string()).map_err(|error| at(&pid_file, error))?;

        let deadline = Instant::now() + READY_WITHIN;
        loop {
            if ready(pid).await {
                return Ok(());
            }
            let ended = child
                .try_wait()
                .map_err(|error| at(Path::new(&program), error))?;
            if let Some(status) = ended {
                return Err(StartError::new(format!(
                    "{program} ended at once ({status}): {}",
                    last_line(&log)
                )));
            }
            if Instant::now() > deadline {
                return Err(StartError::new(format!(
                    "{program} was not ready within {READY_WITHIN:?}: {}",
                    last_line(&log)
                )));
            }
            sleep(ASK_EVERY).await;
        }
    }

    pub(crate) fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Sends a signal to the server itself, if it runs.
    pub(crate) fn signal(&self, name: &str) {
        if let Some(pid) = self.pid() {
            signal(name, &[pid]);
        }
    }

    /// Kills the server (SIGKILL) with its child processes, and waits for its end. Does nothing
    /// when it is not running.
    pub(crate) fn kill(&mut self) {
        let Some(mut child) = self.child.take() else {
            return;
        };
        // A Postgres backend survives its postmaster for as long as its query runs, and blocks a
        // restart for that long, so its processes go with it. They are listed while it is stopped:
        // a running one would start more.
        let pid = child.id();
        signal("STOP", &[pid]);
        wait_until(|| state_of(pid) != Some('R') && state_of(pid) != Some('S'));
        let mut all = children_of(pid);
        all.push(pid);
        signal("KILL", &all);
        // Errors are impossible for a child that was not waited for yet.
        let _ = child.wait();
        // A dead process that its new parent does not wait for is dead all the same.
        wait_until(|| {
            all.iter()
                .all(|&pid| matches!(state_of(pid), None | Some('Z')))
        });
        let _ = fs::remove_file(self.directory().join("pid"));
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        // The guard sees the end of its input, removes the directory, and ends.
        drop(self.guard.stdin.take());
        let _ = self.guard.wait();
    }
}

/// A free loopback port, below the range the kernel picks source ports from, so that a server that
/// is restarted finds its port free again. Never the same port twice in one process.
pub(crate) fn free_port() -> Result<u16, StartError> {
    const LOW: u32 = 20_000;
    const HIGH: u32 = 32_000;
    static TAKEN: AtomicU32 = AtomicU32::new(0);
    // Neighbouring processes start their search in different places.
    let seed = std::process::id().wrapping_mul(7919) % (HIGH - LOW);
    (LOW..HIGH)
        .map(|_| (LOW + (seed + TAKEN.fetch_add(1, Ordering::Relaxed)) % (HIGH - LOW)) as u16)
        .find(|&port| TcpListener::bind(("127.0.0.1", port)).is_ok())
        .ok_or_else(|| StartError::new(format!("no free port on 127.0.0.1 in {LOW}..{HIGH}")))
}

/// An unprivileged user from `/etc/passwd`.
#[derive(Debug)]
struct User {
    uid: u32,
    gid: u32,
}

impl User {
    fn find() -> Result<Self, StartError> {
        let passwd = Path::new("/etc/passwd");
        let users = fs::read_to_string(passwd).map_err(|error| at(passwd, error))?;
        ["postgres", "nobody"]
            .iter()
            .find_map(|name| Self::parse(&users, name))
            .ok_or_else(|| {
                StartError::new(
                    "the server refuses to run as root and /etc/passwd has neither a user \
                     `postgres` nor a user `nobody` to run it as",
                )
            })
    }

    fn parse(passwd: &str, name: &str) -> Option<Self> {
        passwd.lines().find_map(|line| {
            let mut fields = line.split(':');
            (fields.next() == Some(name)).then_some(())?;
            Some(Self {
                uid: fields.nth(1)?.parse().ok()?,
                gid: fields.next()?.parse().ok()?,
            })
        })
    }
}

/// A shell that waits for the end of its input, which comes when this process closes it or dies,
/// then ends the server named in the pid file and removes the directory.
fn guard(directory: &Path) -> io::Result<Child> {
    const SCRIPT: &str = r#"
        cat >/dev/null
        if [ -f "$1/pid" ]; then
            pid=$(cat "$1/pid")
            kill -QUIT "$pid" 2>/dev/null
            for _ in 1 2 3 4 5 6 7 8 9 10; do
                kill -0 "$pid" 2>/dev/null || break
                sleep 0.1
            done
            kill -KILL "$pid" 2>/dev/null
        fi
        rm -rf "$1"
    "#;
    Command::new("sh")
        .args(["-c", SCRIPT, "private-server-guard"])
        .arg(directory)
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()
}

fn signal(name: &str, pids: &[u32]) {
    // `sh` has `kill` built in; a separate `kill` program is not on every machine.
    let pids: Vec<_> = pids.iter().map(u32::to_string).collect();
    let _ = Command::new("sh")
        .args(["-c", &format!("kill -{name} {}", pids.join(" "))])
        .stderr(Stdio::null())
        .status();
}

/// Waits for what the kernel does in a moment, and not for ever.
fn wait_until(done: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(5);
    while !done() && Instant::now() < end {
        std::thread::yield_now();
    }
}

/// The fields of `/proc/PID/stat` after the name: state, parent, …
fn stat(pid: u32) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // "pid (name) state ppid": the name may hold anything, so count from its last `)`.
    stat.rsplit_once(')').map(|(_, rest)| rest.to_owned())
}

fn state_of(pid: u32) -> Option<char> {
    stat(pid)?.trim_start().chars().next()
}

fn children_of(parent: u32) -> Vec<u32> {
    let parent_of = |pid| stat(pid)?.split_whitespace().nth(1)?.parse::<u32>().ok();
    Path::new("/proc")
        .read_dir()
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|&pid| parent_of(pid) == Some(parent))
        .collect()
}

fn last_line(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    text.lines()
        .last()
        .unwrap_or("it said nothing")
        .trim()
        .to_owned()
}

fn at(path: &Path, error: io::Error) -> StartError {
    StartError::io(format!("{}: {error}", PathBuf::from(path).display()), error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_read_from_its_line_and_not_from_a_longer_name() {
        let passwd = "root:x:0:0::/root:/bin/sh\nnobody2:x:7:8::/:/x\nnobody:x:65534:65533::/:/x";
        let user = User::parse(passwd, "nobody").expect("the user is there");
        assert_eq!((user.uid, user.gid), (65534, 65533));
        assert!(User::parse(passwd, "postgres").is_none());
    }

    #[tokio::test]
    async fn a_server_that_ends_at_once_is_reported_with_its_last_words() {
        let mut process = Process::new("test", false).expect("a directory");
        let mut command = process.command(Path::new("/bin/sh"));
        command.args(["-c", "echo first; echo the port is taken >&2; exit 3"]);
        let error = process
            .start(command, async |_| false)
            .await
            .expect_err("it ended");
        assert_eq!(
            error.to_string(),
            "/bin/sh ended at once (exit status: 3): the port is taken"
        );
    }

    #[test]
    fn closing_the_guards_input_ends_the_server_and_removes_the_directory() {
        // What happens when the owner dies without running any destructor.
        let directory = tempfile::tempdir().expect("a directory");
        let mut server = Command::new("sleep")
            .arg("600")
            .spawn()
            .expect("`sleep` runs");
        fs::write(directory.path().join("pid"), server.id().to_string()).expect("a pid file");
        let mut guard = guard(directory.path()).expect("`sh` runs");
        assert!(server.try_wait().expect("our child").is_none());

        drop(guard.stdin.take());
        assert!(guard.wait().expect("our child").success());
        assert!(!server.wait().expect("our child").success());
        assert!(!directory.path().exists());
    }
}
