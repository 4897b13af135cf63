//! The default law: Little's law, a square root, and a service time that is put to the test.
//!
//! # The limit
//!
//! With *n* requests inside and a service time *w*, Little's law says that *b = n·S/w* of them are
//! at work and the rest queue, where *S* is the service time without a queue of ours. The limit is
//!
//! ```text
//! L = b·(1 + τ) + √b        τ = 0.1
//! ```
//!
//! the requests at work, a tenth more, and what chance needs (square-root staffing: Halfin and Whitt
//! 1981; the headroom of Envoy's gradient controller and of Netflix's concurrency-limits is √L). It
//! follows a capacity that changes within a few windows, since *b* falls with the throughput, and it
//! needs no absolute time.
//!
//! # The service time without a queue
//!
//! Nothing can be read from *w* alone: it grows when requests queue inside and when a dependency gets
//! slower, and the right reactions are opposite. So *S* moves for four reasons only.
//!
//! - **Light load.** A window that did not reach the limit, with less than 0.7 of it in use, shows
//!   *S* as it is.
//! - **A probe downwards.** The limit is lowered to 0.7 of itself for a few windows, and *b* is where the
//!   line through both points meets: *b = n₁·(n₂/n₁)^e*, with the elasticity *e = ∂ln X/∂ln n* between
//!   them. At a sharp knee this is exact. *e* is measured twice, by the throughput and by the service
//!   time (*1 − ∂ln w/∂ln n*, by Little's law), and the two are weighed by their errors, which are
//!   scaled by how far steady windows were found to scatter. A probe lasts until the error is small
//!   or the verdict plain. If half the limit was as good as all of it, the next probe follows at once.
//!   If *e* is surely above 0.15, more than the higher of the two limits is worth having, as in a
//!   server whose requests share what they cost (wake-ups, group commits): then all of it counts as
//!   at work, and the next probe comes soon. One that says that slowness is not ours (*e* near 1 and a
//!   higher *S*) is repeated upwards before it is believed: the limit goes back, and the throughput has
//!   to come back with it. If it does not, capacity was lost meanwhile. So a capacity that moves by
//!   itself is not mistaken for a slow dependency.
//! - **A probe upwards.** Where the refused share has halved, or the limit is half or twice what it was
//!   after the last probe, which says little of a limit that far away, a probe is due at once, and if less
//!   than half of what comes is refused it raises the limit instead, to where 0.7 of it is the limit of
//!   before. If all that comes fits then, or more pays, the limit stays there and the next one follows at
//!   once. At the knee of an overloaded service this costs time and no throughput; under a load that would
//!   fit it ends the refusals.
//! - **Death.** When a fifth of the requests that end were given up inside, at an age above the usual
//!   service time, the limit is at least halved, and *S* with it, whatever the windows say. If an
//!   eighth of the limit changes nothing, the deaths are not ours: the limit is restored, and that
//!   share is tolerated, unless it is nine in ten. What is left of an *S* that was a guess is probed at
//!   once.
//!
//! A limit that comes down by a fifth without a probe and takes the throughput with it, while the
//! service time stays, has been a probe already: it goes back up to be confirmed.
//!
//! But for light load and death, this is read only from windows that the limit has filled: with four
//! fifths of it in use on average, or a fifth of the requests refused. Where a burst has touched it and no
//! more, the callers set the throughput: it says nothing of the limit, which then never goes down, and up
//! by a tenth where a request was refused.
//!
//! *S* is never above *w* by more than the error of *w*.
//!
//! Probes come due a second after the limit was first reached and twice as late each time that
//! nothing was learned, up to half a minute (or 24 and 128 windows, where that is longer). One starts at
//! once when two windows in a row are slower than the limit explains: a full limit of *n* makes requests
//! slower by *n/b* itself, a small one by more than a large one.
//!
//! # Start
//!
//! The limit starts at 20 and doubles (slow start, RFC 5681) for as long as a doubling pays; where few
//! requests ended, not before that is known. After a slowness that was not ours it doubles again up to
//! what the throughput of before needs, and grows by 1.4 beyond.

mod law;
mod objective;
mod tally;

pub use self::law::Knee;
