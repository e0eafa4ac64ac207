//! What a step costs, how often drafts are right, and from both how long drafts should be.

use std::time::Duration;

use super::draft::Trust;

/// What an observation weighs after each later one.
const KEPT: f64 = 0.98;
/// Draft tokens of each sequence before anything is measured.
const UNMEASURED: usize = 4;
/// No draft is thought to be surer than this.
const SUREST: f64 = 0.98;

/// Measured costs and rates of an engine.
#[derive(Debug)]
pub(super) struct Pace {
    most: usize,
    fit: Fit,
    rates: [Rate; Trust::COUNT],
}

/// Seconds as a linear function of rows and of rows with logits, which cost more: least squares over steps, of which later ones weigh more.
#[derive(Debug, Default)]
struct Fit {
    /// Sums of the products of any two of 1, rows, rows with logits.
    products: [[f64; 3]; 3],
    /// Sums of the products of these with the seconds.
    seconds: [f64; 3],
}

/// What a step is thought to cost, in seconds.
#[derive(Debug, Clone, Copy)]
struct Cost {
    fixed: f64,
    row: f64,
    /// Of a row with logits, on top.
    logits: f64,
}

/// How often something was right, of late.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rate {
    right: f64,
    tried: f64,
}

/// What might be drafted for a sequence in a step.
#[derive(Debug, Clone, Copy)]
pub(super) struct Slot {
    /// Continuations that would go on together.
    pub members: usize,
    /// Most draft tokens: what is expected, or what is left to generate.
    pub limit: usize,
    pub trust: Trust,
    /// The sequence's own rate.
    pub rate: Rate,
}

impl Slot {
    /// What yields no token and takes no draft.
    pub(super) const NONE: Self = Self {
        members: 0,
        limit: 0,
        trust: Trust::Begun,
        rate: Rate { right: 0.0, tried: 1.0 },
    };
}

impl Pace {
    /// With at most so many draft tokens a sequence and step.
    pub(super) fn new(most: usize) -> Self {
        Self {
            most,
            fit: Fit::default(),
            // Rewriting copies most of its source.
            rates: [0.8, 0.85, 0.5, 0.2].map(|rate| Rate::new(rate, 4.0)),
        }
    }

    /// A rate to begin a sequence with.
    pub(super) fn prior(&self) -> Rate {
        Rate::new(self.rates[Trust::Following as usize].mean(), 4.0)
    }

    /// A step with so many rows, of which so many with logits, took so long.
    pub(super) fn stepped(&mut self, rows: usize, with_logits: usize, took: Duration) {
        self.fit.add(rows as f64, with_logits as f64, took.as_secs_f64());
    }

    /// A draft token was right for this share of those who came to it.
    pub(super) fn tried(&mut self, trust: Trust, right: f64) {
        let rate = &mut self.rates[trust as usize];
        rate.fade();
        rate.add(right);
    }

    /// How many draft tokens for each sequence give the most tokens a second, in a step that has `rows` rows without them; each of the
    /// sequences has one with logits.
    ///
    /// A draft token's worth is the chance that it is reached and right; the sum of worths over the time of the step is largest when
    /// tokens are taken in the order of their worth for as long as one brings more a second than the step as a whole.
    pub(super) fn plan(&self, slots: &[Slot], rows: usize) -> Vec<usize> {
        let mut lengths = vec![0; slots.len()];
        let limit = |slot: &Slot| slot.limit.min(self.most);
        let Some(cost) = self.fit.cost() else {
            for (length, slot) in lengths.iter_mut().zip(slots) {
                *length = limit(slot).min(UNMEASURED);
            }
            return lengths;
        };
        let mut worths = Vec::new();
        for (index, slot) in slots.iter().enumerate() {
            let mut worth = slot.members as f64;
            for place in 0..limit(slot) {
                let rate = match place {
                    0 if slot.trust != Trust::Following => self.rates[slot.trust as usize].mean(),
                    _ => slot.rate.mean(),
                };
                worth *= rate.min(SUREST);
                worths.push((worth, index));
            }
        }
        // A stable sort: of a sequence's tokens the nearer comes first.
        worths.sort_by(|(a, _), (b, _)| b.total_cmp(a));
        let mut tokens: f64 = slots.iter().map(|slot| slot.members as f64).sum();
        let row = cost.row + cost.logits;
        let mut seconds = cost.fixed + cost.row * rows as f64 + cost.logits * slots.len() as f64;
        for (worth, index) in worths {
            if worth * seconds <= row * tokens {
                break;
            }
            lengths[index] += 1;
            tokens += worth;
            seconds += row;
        }
        lengths
    }
}

impl Fit {
    fn add(&mut self, rows: f64, with_logits: f64, seconds: f64) {
        let values = [1.0, rows, with_logits];
        for (i, a) in values.into_iter().enumerate() {
            self.seconds[i] = self.seconds[i] * KEPT + a * seconds;
            for (j, b) in values.into_iter().enumerate() {
                self.products[i][j] = self.products[i][j] * KEPT + a * b;
            }
        }
    }

    /// `None` while all steps were alike.
    fn cost(&self) -> Option<Cost> {
        let [[count, rows, logits], [_, rows_rows, rows_logits], [.., logits_logits]] = self.products;
        if count < 4.0 {
            return None;
        }
        let mean = self.seconds[0] / count;
        // About the means, as variances and covariances.
        let about = |sum: f64, a: f64, b: f64| (sum - a * b / count) / count;
        let (rr, ll) = (about(rows_rows, rows, rows), about(logits_logits, logits, logits));
        let rl = about(rows_logits, rows, logits);
        let rs = about(self.seconds[1], rows, self.seconds[0]);
        let ls = about(self.seconds[2], logits, self.seconds[0]);
        if rr < 0.5 {
            return None;
        }
        let (mean_rows, mean_logits) = (rows / count, logits / count);
        let determinant = rr * ll - rl * rl;
        let (mut row, mut more) = (rs / rr, 0.0);
        if determinant > 0.01 * rr * ll.max(0.5) {
            (row, more) = ((rs * ll - ls * rl) / determinant, (ls * rr - rs * rl) / determinant);
        }
        // Noise may make a row cost nothing, or a step less than nothing.
        row = row.min(mean / mean_rows).max(0.01 * mean / mean_rows);
        more = more.min((mean - row * mean_rows) / mean_logits.max(1.0)).max(0.0);
        Some(Cost {
            fixed: mean - row * mean_rows - more * mean_logits,
            row,
            logits: more,
        })
    }
}

impl Rate {
    fn new(mean: f64, weight: f64) -> Self {
        Self {
            right: mean * weight,
            tried: weight,
        }
    }

    fn mean(self) -> f64 {
        self.right / self.tried
    }

    pub(super) fn add(&mut self, right: f64) {
        self.tried += 1.0;
        self.right += right;
    }

    fn fade(&mut self) {
        self.right *= KEPT;
        self.tried *= KEPT;
    }
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{RngExt, SeedableRng};

    use super::*;

    fn pace(fixed: f64, row: f64) -> Pace {
        let mut pace = Pace::new(16);
        for (rows, with_logits) in [(1, 1), (20, 1), (5, 5), (12, 2), (8, 8), (3, 3)] {
            pace.stepped(rows, with_logits, Duration::from_secs_f64(fixed + row * rows as f64));
        }
        pace
    }

    fn slot(rate: f64, members: usize) -> Slot {
        Slot {
            members,
            limit: 16,
            trust: Trust::Following,
            rate: Rate::new(rate, 1.0),
        }
    }

    /// Expected tokens a second of a plan.
    fn speed(fixed: f64, row: f64, slots: &[Slot], lengths: &[usize]) -> f64 {
        let tokens: f64 = slots
            .iter()
            .zip(lengths)
            .map(|(slot, &length)| {
                let rate = slot.rate.mean().min(SUREST);
                slot.members as f64 * (0..=length as i32).map(|place| rate.powi(place)).sum::<f64>()
            })
            .sum();
        tokens / (fixed + row * (slots.len() + lengths.iter().sum::<usize>()) as f64)
    }

    #[test]
    fn the_cost_is_found_again() {
        let mut fit = Fit::default();
        for (rows, with_logits) in [(1.0, 1.0), (20.0, 1.0), (5.0, 5.0), (9.0, 2.0), (8.0, 8.0)] {
            fit.add(rows, with_logits, 3e-3 + 4e-4 * rows + 1e-4 * with_logits);
        }
        let cost = fit.cost().unwrap();
        assert!(
            (cost.fixed - 3e-3).abs() < 1e-8 && (cost.row - 4e-4).abs() < 1e-8 && (cost.logits - 1e-4).abs() < 1e-8
        );
        let mut alike = Fit::default();
        for rows in [4.0, 4.0, 4.0, 4.0, 4.0, 4.0] {
            alike.add(rows, rows, 1.0);
        }
        assert!(alike.cost().is_none());
        // Where every row has logits the two can't be told apart, and need not be.
        let mut without_prompts = Fit::default();
        for rows in [1.0, 2.0, 8.0, 4.0, 1.0, 2.0] {
            without_prompts.add(rows, rows, 3e-3 + 5e-4 * rows);
        }
        let cost = without_prompts.cost().unwrap();
        assert!((cost.row + cost.logits - 5e-4).abs() < 1e-8);
    }

    #[test]
    fn noise_gives_no_cost_below_nothing() {
        let mut rng = StdRng::seed_from_u64(4);
        for _ in 0..2000 {
            let mut fit = Fit::default();
            for _ in 0..rng.random_range(1..40) {
                let rows: f64 = rng.random_range(1..30).into();
                let with_logits = rng.random_range(0.0..=rows).floor();
                let seconds = if rng.random_bool(0.5) {
                    rng.random_range(0.0..1e-2)
                } else {
                    rows * 1e-3
                };
                fit.add(rows, with_logits, seconds);
                if let Some(cost) = fit.cost() {
                    assert!(cost.row >= 0.0 && cost.logits >= 0.0, "{cost:?}");
                    assert!(cost.fixed >= -1e-9 && cost.fixed.is_finite(), "{cost:?}");
                }
            }
        }
    }

    #[test]
    fn no_other_lengths_are_faster() {
        for (fixed, row) in [(3e-3, 4e-4), (3e-3, 3e-3), (1e-4, 1e-3), (1e-2, 1e-5)] {
            for rates in [(0.9, 0.5), (0.97, 0.8), (0.2, 0.1)] {
                let slots = [slot(rates.0, 1), slot(rates.1, 3)];
                let lengths = pace(fixed, row).plan(&slots, 2);
                let planned = speed(fixed, row, &slots, &lengths);
                for first in 0..=16 {
                    for second in 0..=16 {
                        let other = speed(fixed, row, &slots, &[first, second]);
                        assert!(other <= planned * 1.000_1, "{lengths:?} against {first}, {second}");
                    }
                }
            }
        }
    }

    #[test]
    fn costly_rows_and_full_batches_shorten_drafts() {
        let alone = |fixed, row| pace(fixed, row).plan(&[slot(0.85, 1)], 1)[0];
        assert!(alone(3e-3, 1e-4) > alone(3e-3, 1e-3));
        assert_eq!(alone(0.0, 1e-3), 0, "where rows are all the cost, drafts bring nothing");
        let many = vec![slot(0.85, 1); 32];
        let pace = pace(3e-3, 4e-4);
        assert!(pace.plan(&many, 32)[31] < pace.plan(&many[..1], 1)[0]);
    }

    #[test]
    fn the_setting_is_a_bound_and_zero_turns_drafts_off() {
        let mut bounded = pace(1e-2, 1e-5);
        bounded.most = 3;
        assert_eq!(bounded.plan(&[slot(0.9, 1)], 1), [3]);
        assert_eq!(Pace::new(0).plan(&[slot(0.9, 1)], 1), [0]);
        let short = Slot {
            limit: 2,
            ..slot(0.9, 1)
        };
        assert_eq!(Pace::new(16).plan(&[short], 1), [2]);
    }
}
