//! From margins to probabilities, and how honest those are.

use serde::{Deserialize, Serialize};

use super::logistic::sigmoid;

/// Platt's sigmoid: P(toxic) = 1 / (1 + exp(-(slope * margin + intercept))).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Calibration {
    /// Above 0.
    pub slope: f32,
    /// Moves the margin that means one half.
    pub intercept: f32,
}

impl Calibration {
    /// The calibrated log odds of a margin.
    pub fn logit(&self, margin: f32) -> f32 {
        self.slope * margin + self.intercept
    }

    /// The calibrated probability of a margin.
    pub fn probability(&self, margin: f32) -> f32 {
        sigmoid(self.logit(margin))
    }

    /// Maximum likelihood by Newton's method, on (margin, toxic, weight) that training hasn't seen.
    pub fn fit(held_out: &[(f32, bool, f32)]) -> Self {
        let (mut slope, mut intercept) = (1f64, 0f64);
        for _ in 0..50 {
            // Gradient and Hessian of the weighted negative log likelihood; a small ridge keeps it solvable.
            let (mut gs, mut gi, mut hss, mut hsi, mut hii) = (0f64, 0f64, 1e-6, 0f64, 1e-6);
            for &(margin, toxic, weight) in held_out {
                let (m, w) = (f64::from(margin), f64::from(weight));
                let p = 1.0 / (1.0 + (-(slope * m + intercept)).exp());
                let error = w * (p - f64::from(u8::from(toxic)));
                let curvature = w * p * (1.0 - p);
                gs += error * m;
                gi += error;
                hss += curvature * m * m;
                hsi += curvature * m;
                hii += curvature;
            }
            let determinant = hss * hii - hsi * hsi;
            let (ds, di) = ((hii * gs - hsi * gi) / determinant, (hss * gi - hsi * gs) / determinant);
            slope -= ds;
            intercept -= di;
            if ds.abs() + di.abs() < 1e-9 {
                break;
            }
        }
        Calibration {
            slope: slope as f32,
            intercept: intercept as f32,
        }
    }
}

/// How predictions and outcomes agree.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Reliability {
    /// Number of predictions.
    pub n: usize,
    /// Share of toxic ones.
    pub toxic: f64,
    /// Area under the ROC curve.
    pub auc: f64,
    /// F1 of the toxic class at 0.5.
    pub f1: f64,
    /// Share of toxic texts above 0.5.
    pub detected: f64,
    /// Share of other texts above 0.5.
    pub false_positives: f64,
    /// Expected calibration error over ten equal bins.
    pub ece: f64,
    /// The same with toxic texts weighted to the share that calibration assumes.
    pub ece_at_prior: f64,
    /// Ten equal bins: count, mean prediction, share of toxic texts.
    pub bins: Vec<(usize, f64, f64)>,
}

impl Reliability {
    /// Compares predicted probabilities with the truth; `prior` is the share of toxic texts calibration assumes.
    pub fn of(predictions: &[(f32, bool)], prior: f32) -> Self {
        let n = predictions.len().max(1) as f64;
        let toxic = predictions.iter().filter(|p| p.1).count() as f64;
        let hits = predictions.iter().filter(|p| p.1 && p.0 > 0.5).count() as f64;
        let alarms = predictions.iter().filter(|p| !p.1 && p.0 > 0.5).count() as f64;
        let mut bins = vec![(0usize, 0f64, 0f64); 10];
        let mut errors_at_prior = [0f64; 10];
        let class_weights = [
            f64::from(1.0 - prior) / (n - toxic).max(1.0),
            f64::from(prior) / toxic.max(1.0),
        ];
        for &(p, truth) in predictions {
            let at = ((p * 10.0) as usize).min(9);
            errors_at_prior[at] += class_weights[usize::from(truth)] * (f64::from(p) - f64::from(u8::from(truth)));
            let bin = &mut bins[at];
            bin.0 += 1;
            bin.1 += f64::from(p);
            bin.2 += f64::from(u8::from(truth));
        }
        let ece = bins.iter().map(|bin| (bin.1 - bin.2).abs()).sum::<f64>() / n;
        for bin in &mut bins {
            let count = bin.0.max(1) as f64;
            (bin.1, bin.2) = (bin.1 / count, bin.2 / count);
        }
        Reliability {
            n: predictions.len(),
            toxic: toxic / n,
            auc: area_under_curve(predictions),
            f1: 2.0 * hits / (toxic + hits + alarms).max(1.0),
            detected: hits / toxic.max(1.0),
            false_positives: alarms / (n - toxic).max(1.0),
            ece,
            ece_at_prior: errors_at_prior.iter().map(|error| error.abs()).sum(),
            bins,
        }
    }
}

/// Mann-Whitney statistic; ties count half.
fn area_under_curve(predictions: &[(f32, bool)]) -> f64 {
    let mut sorted = predictions.to_vec();
    sorted.sort_by(|a, b| a.0.total_cmp(&b.0));
    let (mut below, mut area) = (0f64, 0f64);
    for same in sorted.chunk_by(|a, b| a.0 == b.0) {
        let positives = same.iter().filter(|p| p.1).count() as f64;
        let negatives = same.len() as f64 - positives;
        area += positives * (below + negatives / 2.0);
        below += negatives;
    }
    let positives = predictions.len() as f64 - below;
    if positives * below == 0.0 {
        0.5
    } else {
        area / (positives * below)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fit_recovers_a_known_sigmoid() {
        let truth = Calibration {
            slope: 1.7,
            intercept: -0.4,
        };
        let held_out: Vec<_> = (-40..=40)
            .flat_map(|m| {
                let margin = m as f32 / 10.0;
                let p = truth.probability(margin);
                [(margin, true, p), (margin, false, 1.0 - p)]
            })
            .collect();
        let fitted = Calibration::fit(&held_out);
        assert!(
            (fitted.slope - 1.7).abs() < 1e-3 && (fitted.intercept + 0.4).abs() < 1e-3,
            "{fitted:?}"
        );
    }

    #[test]
    fn perfect_and_reversed_orders_have_area_one_and_zero() {
        assert_eq!(area_under_curve(&[(0.1, false), (0.9, true)]), 1.0);
        assert_eq!(area_under_curve(&[(0.9, false), (0.1, true)]), 0.0);
        assert_eq!(area_under_curve(&[(0.5, false), (0.5, true)]), 0.5);
    }
}
