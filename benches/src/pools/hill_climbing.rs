//! .NET's hill climbing, written from its published description.

use std::{collections::VecDeque, f64::consts::TAU};

use super::Seen;

/// A square wave on the size, and the part of throughput that swings with it.
///
/// From Hellerstein, Morrison and Eilebrecht, "Applying Control Theory in the Real World" (ACM
/// SIGMETRICS Performance Evaluation Review 37(3), 2009), with the constants of the .NET runtime:
/// a wave of 4 samples, a history of 8 waves, a bias of 0.15, a gain exponent of 2, at most 4 a
/// second and 20 at once, a wave of up to 20, and no sample with fewer completions than the error
/// at its ends allows.
#[derive(Clone, Debug, Default)]
pub struct HillClimbing {
    /// Throughput and size of each sample.
    history: VecDeque<(f64, f64)>,
    /// The size that the wave rides on.
    control: Option<f64>,
    samples: usize,
    noise: f64,
    completions: f64,
    seconds: f64,
}

const PERIOD: usize = 4;
const HISTORY: usize = 8 * PERIOD;
const BIAS: f64 = 0.15;
const SIGNAL_TO_NOISE: f64 = 3.0;
const PER_SECOND: f64 = 4.0;
const MOST_AT_ONCE: f64 = 20.0;
const SAMPLE_ERROR: f64 = 0.15;

impl HillClimbing {
    pub(super) fn next(&mut self, size: usize, max: usize, seen: &Seen) -> usize {
        self.completions += seen.completions as f64;
        self.seconds += seen.seconds;
        if (size - 1) as f64 >= SAMPLE_ERROR * self.completions {
            return size;
        }
        let (seconds, throughput) = (self.seconds, self.completions / self.seconds);
        (self.completions, self.seconds) = (0.0, 0.0);
        self.history.push_back((throughput, size as f64));
        if self.history.len() > HISTORY {
            self.history.pop_front();
        }
        self.samples += 1;

        let control = self.control.get_or_insert(size as f64);
        // Whole waves only, and at least two, so that there is a neighbouring frequency.
        let whole = self.history.len() / PERIOD * PERIOD;
        let mut amplitude = 1.0;
        if whole >= 2 * PERIOD {
            let recent: Vec<(f64, f64)> = self
                .history
                .iter()
                .rev()
                .take(whole)
                .rev()
                .copied()
                .collect();
            let throughputs: Vec<f64> = recent.iter().map(|sample| sample.0).collect();
            let sizes: Vec<f64> = recent.iter().map(|sample| sample.1).collect();
            let (mean_throughput, mean_size) = (mean(&throughputs), mean(&sizes));
            if mean_throughput > 0.0 {
                let waves = (whole / PERIOD) as f64;
                let at = |waves: f64| component(&throughputs, waves);
                let (wave_t, wave_n) = (at(waves), component(&sizes, waves));
                let noise = at(waves - 1.0).size().max(at(waves + 1.0).size()) / mean_throughput;
                // Smoothed, for the height of the wave; the raw one for confidence.
                self.noise = if self.noise == 0.0 {
                    noise
                } else {
                    0.1 * noise + 0.9 * self.noise
                };
                let (t, n) = (wave_t.over(mean_throughput), wave_n.over(mean_size));
                if n.size() > 0.0 {
                    let ratio = t.real_part_of_quotient(n) - BIAS;
                    let confidence = if noise > 0.0 {
                        (n.size() / noise / SIGNAL_TO_NOISE).min(1.0)
                    } else {
                        1.0
                    };
                    let wish = ratio.clamp(-1.0, 1.0) * confidence;
                    let step = wish.signum() * wish * wish * PER_SECOND * seconds;
                    *control += step.clamp(-MOST_AT_ONCE, MOST_AT_ONCE);
                }
            }
            amplitude = (0.5 + 2.0 * *control * self.noise * SIGNAL_TO_NOISE).clamp(1.0, 20.0);
        }
        *control = control.clamp(1.0, (max as f64 - amplitude).max(1.0));
        let up = (self.samples / (PERIOD / 2)) % 2;
        (*control + amplitude.floor() * up as f64) as usize
    }
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

#[derive(Clone, Copy, Debug)]
struct Complex {
    re: f64,
    im: f64,
}

impl Complex {
    fn size(self) -> f64 {
        self.re.hypot(self.im)
    }

    fn over(self, by: f64) -> Self {
        Self {
            re: self.re / by,
            im: self.im / by,
        }
    }

    fn real_part_of_quotient(self, by: Self) -> f64 {
        (self.re * by.re + self.im * by.im) / (by.re * by.re + by.im * by.im)
    }
}

/// The Fourier component of `values` with so many waves in all.
fn component(values: &[f64], waves: f64) -> Complex {
    let step = TAU * waves / values.len() as f64;
    let (mut re, mut im) = (0.0, 0.0);
    for (index, value) in values.iter().enumerate() {
        let angle = step * index as f64;
        re += value * angle.cos();
        im -= value * angle.sin();
    }
    Complex { re, im }.over(values.len() as f64)
}
