//! Quantiles of a few values.

/// The value below which a share of the values lies.
pub(super) fn quantile(values: &mut [f64], share: f64) -> f64 {
    let index = ((values.len() as f64 * share) as usize).min(values.len() - 1);
    *values.select_nth_unstable_by(index, f64::total_cmp).1
}
