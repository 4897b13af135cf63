use std::fmt;

use crate::PoolSnapshot;
use crate::tuner::Verdict;

/// One paragraph for an operator: the size the pool should have, why, and what it would take.
///
/// Its [`Display`](fmt::Display) is that paragraph.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    text: String,
    target: usize,
}

impl Report {
    pub(crate) fn new(now: &PoolSnapshot, verdict: &Verdict, peak_demand: Option<usize>) -> Self {
        let target = now.target();
        // Neither what is held nor a dial that hangs is a connection too many.
        let limit = now.limit().min(now.size().max(target));
        let limit = limit.saturating_sub(now.held);
        let size = match target.cmp(&limit) {
            std::cmp::Ordering::Less => format!("should have {target} connections, not {limit}"),
            std::cmp::Ordering::Equal if now.size() < limit && now.pending() > 0 => {
                format!("should have {target} connections and has {}", now.size())
            }
            std::cmp::Ordering::Equal => format!("has the {target} connections it should have"),
            std::cmp::Ordering::Greater => format!("should have {target} connections, not {limit}"),
        };
        let demand = match (peak_demand, now.use_mean()) {
            (Some(demand), Some(used)) => format!(
                "{:.0} checkouts a second that use their connection for {used:.1?} each need {demand} \
                 at their peak in the last minutes",
                now.arrival_rate(),
            ),
            _ if now.arrival_rate() > 0.0 => format!(
                "{:.0} checkouts a second ask for a connection, and none was given back lately",
                now.arrival_rate(),
            ),
            _ => "nothing was checked out lately".to_owned(),
        };
        let waits = format!(
            "checkouts wait {:.1?} on average and at most {:.1?} in 95 of 100 cases",
            now.wait_mean(),
            now.wait_p95(),
        );
        let cost = match target.cmp(&limit) {
            std::cmp::Ordering::Less => format!(
                "Nothing would wait longer, and the server would keep {} connections fewer",
                limit - target
            ),
            std::cmp::Ordering::Equal => "Nothing would change".to_owned(),
            std::cmp::Ordering::Greater => format!(
                "Waits would fall, at the cost of {} more connections on the server; whether it \
                 makes use of them only enforce mode can try",
                target - limit
            ),
        };
        let dials = now
            .dial_error()
            .map(|error| format!(" The last connection did not open: {error}."));
        let text = format!(
            "Pool {} {size}. Why: {demand}; {waits}. {cost}. Verdict: {verdict}.{}",
            now.name(),
            dials.unwrap_or_default()
        );
        Self { text, target }
    }

    /// The size the pool should have.
    #[must_use]
    pub fn target(&self) -> usize {
        self.target
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}
