//! A request of which Redis decides: what is asked, and what comes of it.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use pin_project_lite::pin_project;
use tokio::{
    sync::oneshot,
    time::{Instant, Sleep, sleep_until},
};

use super::{
    account::{AccountId, Cells, Verdict},
    node::Node,
    script::{Term, Terms},
};
use crate::{
    gcra::Excess,
    plans::Plan,
    rules::{Charge, Ruling},
};

/// A request that is to be decided.
#[derive(Debug)]
pub(crate) struct Question {
    pub(super) id: AccountId,
    pub(crate) plan: Arc<Plan<Terms>>,
    pub(super) terms: Terms,
    pub(crate) charge: Charge,
    pub(super) cost: Cells,
}

/// What Redis, or what stands in for it, has decided: `levels` are what is owed after it;
/// `outcome` has the policies in shadow mode that would have refused an admitted request.
pub(super) fn ruling(
    question: &Question,
    now: u64,
    levels: &Cells,
    outcome: Result<&[bool], Excess>,
) -> Ruling {
    let Question {
        id,
        plan,
        terms,
        charge,
        ..
    } = question;
    let mut ruling = Ruling::at(now, id.key);
    let mut tightest = None;
    let rules = plan.rules.rules();
    for (index, (rule, term)) in rules.iter().zip(&**terms).enumerate() {
        let Term { level, burst, .. } = term;
        // What is held back from the burst is as good as owed.
        let held_back = burst
            .saturating_mul(level.price)
            .saturating_sub(level.capacity);
        let owed = level.nanos(levels[index].saturating_add(held_back));
        ruling.tats[index] = charge.gcra(index, rule).owing(now, owed);
        let cells = charge.cells(index);
        let would_not = match outcome {
            Ok(uncharged) => uncharged[index] && rule.policy.is_shadow(),
            Err(_) => level.excess(levels[index], cells).is_some(),
        };
        if would_not && rule.policy.is_shadow() {
            ruling.shadowed.insert(index);
        } else if would_not {
            ruling.violated.insert(index);
        }
        let fill = levels[index] as f64 / level.capacity as f64;
        if cells > 0 && !rule.policy.is_shadow() && tightest.is_none_or(|(_, f)| fill > f) {
            tightest = Some((index, fill));
        }
    }
    if let Err(excess) = outcome {
        ruling.excess = Some(excess);
        // It would fit by what is known here, but not a whole lease would, or others took it.
        if ruling.violated.is_empty()
            && let Some((index, _)) = tightest
        {
            ruling.violated.insert(index);
        }
    }
    ruling
}

pin_project! {
    /// Waits for the reply of Redis, for no longer than the deadline.
    #[derive(Debug)]
    pub(crate) struct Waiting {
        told: oneshot::Receiver<Verdict>,
        #[pin]
        overdue: Sleep,
    }
}

impl Waiting {
    pub(crate) fn new(node: &Node, told: oneshot::Receiver<Verdict>) -> Self {
        // A timer is rounded up to a millisecond, and so is the sleep of the thread that minds it.
        let deadline = node.settings().deadline - LATE;
        Self {
            told,
            overdue: sleep_until(Instant::now() + deadline),
        }
    }

    pub(crate) fn poll_verdict(
        self: Pin<&mut Self>,
        node: &Node,
        question: &Question,
        cx: &mut Context<'_>,
    ) -> Poll<Verdict> {
        let this = self.project();
        let told = match Pin::new(&mut *this.told).poll(cx) {
            Poll::Ready(told) => told.ok(),
            Poll::Pending if this.overdue.poll(cx).is_pending() => return Poll::Pending,
            Poll::Pending => {
                // The verdict has arrived in this moment, or it never will.
                this.told.close();
                this.told.try_recv().ok()
            }
        };
        Poll::Ready(match told {
            Some(verdict) => {
                node.told();
                verdict
            }
            None => node.decide_overdue(question.id, &question.terms, &question.cost),
        })
    }

    pub(super) async fn verdict(self, node: &Node, question: &Question) -> Verdict {
        let mut this = std::pin::pin!(self);
        std::future::poll_fn(|cx| this.as_mut().poll_verdict(node, question, cx)).await
    }
}

const LATE: Duration = Duration::from_millis(2);
