//! What else runs on this machine.

use std::fs;

/// Processor time so far, in ticks: of the whole machine, of it spent, and of it by this process.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CpuTime {
    whole: u64,
    spent: u64,
    own: u64,
}

impl CpuTime {
    /// `None` where there is no `/proc`.
    pub(crate) fn now() -> Option<Self> {
        let machine = fs::read_to_string("/proc/stat").ok()?;
        let own = fs::read_to_string("/proc/self/stat").ok()?;
        Self::parse(&machine, &own)
    }

    fn parse(machine: &str, own: &str) -> Option<Self> {
        let line = machine.lines().next()?.strip_prefix("cpu ")?;
        // user, nice, system, idle, iowait, irq, softirq, steal; what follows is counted among them.
        let ticks: Vec<u64> = line
            .split_whitespace()
            .take(8)
            .map_while(|ticks| ticks.parse().ok())
            .collect();
        let whole = ticks.iter().sum();
        let idle = ticks.get(3)? + ticks.get(4)?;
        // The name of the process, which may hold anything, ends with the last parenthesis.
        let fields: Vec<&str> = own.rsplit_once(')')?.1.split_whitespace().collect();
        let own = fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?;
        Some(Self {
            whole,
            spent: whole - idle,
            own,
        })
    }

    /// The share of the machine that was used by others since, or taken away by its host.
    pub(crate) fn others_until(self, later: Self) -> f64 {
        let spent = later.spent.saturating_sub(self.spent);
        let own = later.own.saturating_sub(self.own);
        let whole = later.whole.saturating_sub(self.whole).max(1);
        spent.saturating_sub(own) as f64 / whole as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_used_is_what_was_spent_less_what_this_process_did() {
        let before = CpuTime::parse(
            "cpu  100 0 50 800 50 0 0 0 0 0\ncpu0 1 2 3\n",
            "7 (a) b) S 1 1 1 0 -1 0 0 0 0 0 40 10 0 0 20 0",
        );
        let later = CpuTime::parse(
            "cpu  160 0 70 850 50 0 10 60 0 0\n",
            "7 (a) b) S 1 1 1 0 -1 0 0 0 0 0 80 20 0 0 20 0",
        );
        let others = before.unwrap().others_until(later.unwrap());
        // 150 of 200 ticks were spent, 50 of them here.
        assert!((others - 0.5).abs() < 1e-9, "{others}");
    }

    #[test]
    fn what_cannot_be_read_is_not_guessed() {
        assert!(CpuTime::parse("", "").is_none());
        assert!(CpuTime::parse("cpu 1 2", "7 (a) S 1").is_none());
    }
}
