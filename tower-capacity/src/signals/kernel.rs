use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use super::error::{Kind, SignalError};

/// A file of the kernel, and what it said when it was last read.
#[derive(Debug)]
pub(super) struct KernelFile {
    pub(super) name: &'static str,
    path: PathBuf,
    what: What,
    /// The part and the whole: stalled µs (the whole is then the time), or throttled periods and all.
    last: (u64, u64),
}

/// What is read of a file.
#[derive(Clone, Copy, Debug)]
pub(super) enum What {
    /// A line of pressure stall information: `full` is time in which nothing ran, `some` time in
    /// which at least one task waited.
    Stall(&'static str),
    /// `nr_throttled` and `nr_periods` of `cpu.stat`.
    Throttling,
}

impl KernelFile {
    pub(super) fn open(name: &'static str, path: PathBuf, what: What) -> Result<Self, SignalError> {
        let mut opened = Self {
            name,
            path,
            what,
            last: (0, 0),
        };
        opened.last = opened.read()?;
        Ok(opened)
    }

    /// Opens `file` of the cgroup of this process (version 2), or of the one that stands for it in a
    /// container.
    pub(super) fn of_own_cgroup(
        name: &'static str,
        file: &str,
        what: What,
    ) -> Result<Self, SignalError> {
        let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let own = own.lines().find_map(|line| line.strip_prefix("0::/"));
        Self::of_cgroup((name, what), file, Path::new("/sys/fs/cgroup"), own)
    }

    fn of_cgroup(
        (name, what): (&'static str, What),
        file: &str,
        root: &Path,
        own: Option<&str>,
    ) -> Result<Self, SignalError> {
        if let Some(own) = own
            && !own.is_empty()
            && let Ok(found) = Self::open(name, root.join(own).join(file), what)
        {
            return Ok(found);
        }
        // The root of the machine has no `cgroup.events`, and its `full` is never more than 0: it says nothing
        // of this process.
        if !root.join("cgroup.events").exists() {
            let path = root.join(file);
            let error = io::Error::from(io::ErrorKind::NotFound);
            let kind = Kind::Read(error);
            return Err(SignalError { name, path, kind });
        }
        Self::open(name, root.join(file), what)
    }

    /// The share of what has passed since the last reading, `elapsed` ago. None if the file cannot be
    /// read now.
    pub(super) fn share(&mut self, elapsed: Duration) -> Option<f64> {
        let now = self.read().ok()?;
        let part = now.0.saturating_sub(self.last.0) as f64;
        let whole = match self.what {
            What::Stall(_) => elapsed.as_micros() as f64,
            What::Throttling => now.1.saturating_sub(self.last.1) as f64,
        };
        self.last = now;
        Some((part / whole.max(1.0)).min(1.0))
    }

    fn read(&self) -> Result<(u64, u64), SignalError> {
        let fail = |kind| SignalError {
            name: self.name,
            path: self.path.clone(),
            kind,
        };
        let text = fs::read_to_string(&self.path).map_err(|error| fail(Kind::Read(error)))?;
        match self.what {
            What::Stall(line) => stalled(&text, line)
                .map(|total| (total, 0))
                .ok_or(match line {
                    "full" => "a line `full … total=` and microseconds",
                    _ => "a line `some … total=` and microseconds",
                }),
            What::Throttling => field(&text, "nr_throttled")
                .zip(field(&text, "nr_periods"))
                .ok_or("lines `nr_periods` and `nr_throttled`, which are there with a quota"),
        }
        .map_err(|expected| fail(Kind::Format(expected)))
    }
}

/// The total of one line, in µs: `some avg10=0.00 avg60=0.00 avg300=0.00 total=0`.
fn stalled(text: &str, line: &str) -> Option<u64> {
    let mut lines = text.lines().map(str::split_ascii_whitespace);
    let mut fields = lines.find_map(|mut fields| (fields.next()? == line).then_some(fields))?;
    let total = fields.find_map(|field| field.strip_prefix("total="))?;
    total.parse().ok()
}

/// A value of `cpu.stat`: a name, a space, a number.
fn field(text: &str, name: &str) -> Option<u64> {
    let value = text.lines().find_map(|line| line.strip_prefix(name))?;
    value.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_total_of_a_line_is_read() {
        let text = "some avg10=67.69 avg60=60.12 avg300=35.17 total=4432725036\n\
                    full avg10=0.00 avg60=0.00 avg300=0.00 total=17\n";
        assert_eq!(stalled(text, "some"), Some(4_432_725_036));
        assert_eq!(stalled(text, "full"), Some(17));
        assert_eq!(stalled("full total=", "full"), None);
        assert_eq!(stalled("some total=3", "full"), None);
    }

    #[test]
    fn the_root_of_the_machine_is_not_taken_for_the_cgroup_of_this_process() {
        let root = tempfile::tempdir().unwrap();
        let what = ("cpu_pressure", What::Stall("full"));
        let find = |own| KernelFile::of_cgroup(what, "cpu.pressure", root.path(), own);
        let full = "full avg10=0.00 avg60=0.00 avg300=0.00 total=0\n";
        fs::write(root.path().join("cpu.pressure"), full).unwrap();
        assert!(find(Some("")).is_err());
        // In a container the root is the container's.
        fs::write(root.path().join("cgroup.events"), "populated 1\n").unwrap();
        assert!(find(Some("")).is_ok());
        assert!(find(None).is_ok());
        // A cgroup of its own goes first.
        let own = root.path().join("service");
        fs::create_dir(&own).unwrap();
        fs::write(own.join("cpu.pressure"), full).unwrap();
        assert!(find(Some("service")).unwrap().path.starts_with(own));
    }

    #[test]
    fn a_field_is_read_by_its_whole_name() {
        let text = "usage_usec 7\nnr_periods 100\nnr_throttled 40\nthrottled_usec 9\n";
        assert_eq!(field(text, "nr_throttled"), Some(40));
        assert_eq!(field(text, "nr_period"), None);
    }
}
